//! How often why502 is right: every scenario played with real nginx and php-fpm, every lost request compared.
//!
//! ```text
//! dice      choices that a seed makes again
//! layout    what a scenario is played on, and the numbers of one play
//! scenario  what a scenario is; table: all of them
//! play      one or several at the same moment
//! figures   what the plays add up to; report: as text and as a page
//! live      one scenario as a test
//! recorded  plays that were kept, and their replay; cut: a recording without what is not of its site
//! shape     what the verdicts of a play look like as a whole
//! series    the runner: one why502 for a round of plays
//! ```

mod cut;
mod dice;
mod figures;
mod layout;
mod live;
mod play;
mod recorded;
mod report;
mod scenario;
mod series;
mod shape;
mod table;

pub use crate::scene::LIMIT;
pub use dice::{Dice, new_seed};
pub use figures::{Figures, wilson};
pub use layout::{Draw, Layout, SIDES, WORDS};
pub use live::{Shed, as_kept, drawn, live, shed};
pub use play::{Ledgers, Part, Played, play};
pub use recorded::{Recorded, all as recordings, figures as replayed, kept, place, record, replay};
pub use report::{REMARKS, Setting, page, text};
pub use scenario::{Known, Marks, Scenario};
pub use series::{Order, Series, is_of};
pub use table::{all, named};
