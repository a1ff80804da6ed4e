//! From the ring buffer to events: [`decode`] is pure and bounds-checked, [`reorder`] keeps the order, [`drain`] reads,
//! [`counters`] tells what was not seen.

pub mod counters;
pub mod decode;
pub mod drain;
pub mod reorder;
pub mod shed;
