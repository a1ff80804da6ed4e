//! Drops a share of the records, for tests of what is said when records are lost: by a seed, and counted by hook as the
//! probes count what a full ring did not take. Pure.

use std::collections::BTreeMap;
use std::str::FromStr;

/// `SHARE` or `SHARE:SEED`, 0 < SHARE < 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    pub share: f64,
    pub seed: u64,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (share, seed) = text.split_once(':').unwrap_or((text, "1"));
        let share: f64 = share.parse().map_err(|_| format!("{share:?} is no number"))?;
        let seed = seed.parse().map_err(|_| format!("{seed:?} is no seed"))?;
        if share > 0.0 && share < 1.0 { Ok(Self { share, seed }) } else { Err("a share is above 0 and below 1".into()) }
    }
}

#[derive(Debug)]
pub struct Shed {
    share: f64,
    state: u64,
    by_hook: BTreeMap<&'static str, u64>,
}

impl Shed {
    pub fn new(wanted: Wanted) -> Self {
        Self { share: wanted.share, state: wanted.seed, by_hook: BTreeMap::new() }
    }

    /// Whether the next record goes; counted.
    pub fn takes(&mut self, hook: &'static str) -> bool {
        // splitmix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let takes = (((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64) < self.share;
        if takes {
            *self.by_hook.entry(hook).or_default() += 1;
        }
        takes
    }

    /// How many since the last call.
    pub fn taken(&mut self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut self.by_hook)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_them_by_seed() {
        let taken = |share, seed| {
            let mut shed = Shed::new(Wanted { share, seed });
            (0..10_000).filter(|_| shed.takes("x")).count()
        };
        assert!((400..600).contains(&taken(0.05, 1)) && (4800..5200).contains(&taken(0.5, 2)));
        assert_eq!(taken(0.5, 7), taken(0.5, 7));
        let mut shed = Shed::new(Wanted { share: 0.999_999, seed: 1 });
        assert!(shed.takes("a") && shed.takes("b") && shed.takes("a"));
        assert_eq!(shed.taken(), [("a", 2), ("b", 1)].into());
        assert!(shed.taken().is_empty(), "told once");
    }

    #[test]
    fn shares_are_shares() {
        assert_eq!("0.05:7".parse(), Ok(Wanted { share: 0.05, seed: 7 }));
        assert!(["0", "1", "x", "0.5:y", "-1", "NaN"].iter().all(|t| t.parse::<Wanted>().is_err()));
    }
}
