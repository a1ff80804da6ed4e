//! Proofs take minutes: an ordinary run plays a few of a file, by a seed that it prints, and `FULL=1` all of them.

use crate::accuracy::{Dice, new_seed};
use crate::guard;
use anyhow::{Context, Result, ensure};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// So many of a file are chosen.
const CHOSEN: usize = 4;
/// None begins when those before it took so long together.
const ENOUGH: Duration = Duration::from_secs(36);

/// Held by a proof that is played.
#[derive(Debug)]
pub struct Turn {
    #[expect(dead_code, reason = "held as long as the proof runs")]
    lock: guard::Turn,
    name: String,
    began: Instant,
}

/// The turn of the test of this name; `None`: it is not to be played now, and why has been printed.
pub fn turn(name: &str) -> Result<Option<Turn>> {
    let why = match guard::why_not_traced() {
        Some(why) => Some(why),
        None if std::env::var_os("FULL").is_some() => None,
        None => why_not_chosen(name)?,
    };
    if let Some(why) = why {
        println!("{name}: skipped: {why}");
        return Ok(None);
    }
    Ok(Some(Turn { lock: guard::turn()?, name: name.to_owned(), began: Instant::now() }))
}

static SPENT_MS: AtomicU64 = AtomicU64::new(0);

impl Drop for Turn {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        println!("{}: {:.1} s", self.name, took.as_secs_f32());
        SPENT_MS.fetch_add(u64::try_from(took.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

fn why_not_chosen(name: &str) -> Result<Option<String>> {
    let seed = seed();
    let all = all()?;
    ensure!(all.iter().any(|known| known == name), "no test of this program is called {name}");
    let chosen = choose(&all, seed);
    if !chosen.contains(&name) {
        return Ok(Some(format!("SEED={seed} chose others; FULL=1 plays all")));
    }
    let spent = Duration::from_millis(SPENT_MS.load(Ordering::Relaxed));
    let late = format!("SEED={seed} chose it, but {:.0} s are spent; FULL=1 plays all", spent.as_secs_f32());
    Ok((spent >= ENOUGH).then_some(late))
}

/// `SEED`, else another one each time.
fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| guard::number("SEED", new_seed()))
}

/// The tests of this program, as it lists them itself.
fn all() -> Result<Vec<String>> {
    static ALL: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut known = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    if known.is_empty() {
        let program = std::env::current_exe().context("finding this program")?;
        let out = Command::new(program).args(["--list", "--format", "terse"]).output().context("listing the tests")?;
        ensure!(out.status.success(), "listing the tests: {}", out.status);
        let text = String::from_utf8(out.stdout)?;
        *known = text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
    }
    Ok(known.clone())
}

/// A few of them, each as often as any other over many seeds.
fn choose(all: &[String], seed: u64) -> Vec<&str> {
    let mut rest: Vec<&str> = all.iter().map(String::as_str).collect();
    rest.sort_unstable();
    let mut dice = Dice::new(seed);
    let mut chosen = Vec::new();
    while chosen.len() < CHOSEN && !rest.is_empty() {
        let at = dice.between(0, rest.len() as u64 - 1);
        chosen.push(rest.swap_remove(usize::try_from(at).unwrap_or(0)));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_test_has_its_turn() {
        let all: Vec<String> = (0..24).map(|n| format!("proof_{n}")).collect();
        let mut times: BTreeMap<&str, u32> = BTreeMap::new();
        for seed in 1_700_000_000..1_700_000_600 {
            let chosen = choose(&all, seed);
            assert_eq!(chosen.len(), CHOSEN);
            assert_eq!(chosen, choose(&all, seed), "a seed chooses the same again");
            chosen.into_iter().for_each(|name| *times.entry(name).or_default() += 1);
        }
        assert_eq!(times.len(), all.len());
        assert_eq!(times.values().sum::<u32>(), 2400, "none twice in one choice");
        assert!(times.values().all(|n| (50..200).contains(n)), "{times:?}");
        assert_eq!(choose(&all[..2], 1).len(), 2);
    }

    #[test]
    fn a_program_knows_its_tests() {
        let all = all().unwrap();
        assert!(all.iter().any(|name| name == "proofs::tests::a_program_knows_its_tests"), "{all:?}");
        assert!(why_not_chosen("no_such_test").is_err());
    }
}
