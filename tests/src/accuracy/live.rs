//! One scenario as a test: beside a why502 of its own, whose recording must replay to the same lines.

use super::figures::Figures;
use super::layout::Draw;
use super::play::{Part, Played, play};
use super::series::{Order, Series, eyes};
use super::table;
use crate::guard;
use crate::scene::Watch;
use crate::tracer::binary;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// Plays a scenario `RUNS` times (2), each on another layout; `words` are of [`super::WORDS`]. In fewer than 20 runs a
/// single request that was missed passes, see [`crate::ledger::Comparison::complaints_in`].
pub fn live(name: &str, words: &[&str]) -> Result<()> {
    if let Some(why) = guard::why_not_traced() {
        println!("{name}: skipped: {why}");
        return Ok(());
    }
    let scenario = table::named(name).with_context(|| format!("no scenario {name}"))?;
    let _turn = guard::turn()?;
    let runs = guard::number("RUNS", 2);
    let (mut lost, mut bad) = (0, Vec::new());
    for run in 1..=runs {
        let mut draw = Draw::nth(run);
        words.iter().try_for_each(|word| draw.layout.with(word))?;
        let part = Part::new(scenario, draw);
        if let Some(why) = part.why_not() {
            println!("{name}: skipped: {why}");
            return Ok(());
        }
        let (one, watch) = beside(&binary()?, part)?;
        lost += one.lost();
        bad.extend(judged(&one, watch, runs)?.into_iter().map(|c| format!("run {run}: {c}")));
    }
    println!("{name}: {lost} lost requests in {runs} runs, {} deviations", bad.len());
    ensure!(bad.is_empty(), "{}", bad.join("\n"));
    Ok(())
}

/// Plays one part beside a why502 of its own, which is started when the site stands.
pub(super) fn beside(why502: &Path, part: Part) -> Result<(Played, Watch)> {
    let mut watch = None;
    let played = play(&[part], |sites| {
        let eyes = eyes(sites[0].dir.path())?;
        watch = Some(Watch::by(why502, sites[0].dir.join("watch.rec"), &eyes.each_ref().map(String::as_str))?);
        Ok(())
    })?;
    watch.and_then(|watch| Some((played.into_iter().next()?, watch))).context("one part was to be played")
}

fn judged(one: &Played, watch: Watch, runs: u64) -> Result<Vec<String>> {
    let (part, made) = (&one.part, one.part.scenario.made);
    let (result, _) = one.over.heard(part.scenario.name, watch, made, &|r, started| one.allowed(r, started))?;
    println!("{part}: {result}");
    let cause = part.scenario.cause;
    let of_it = |c: &&crate::ledger::Claim| cause == Some(c.cause);
    let mut bad = result.complaints_in(runs);
    let claims: Vec<_> = result.verdicts.iter().map(|(_, c)| c).filter(of_it).collect();
    if let (Some(cause), true) = (cause, claims.is_empty()) {
        bad.push(format!("nothing was lost to {cause}: the scenario did not happen"));
    }
    let other_sub =
        claims.iter().filter(|c| part.scenario.sub_cause.is_some_and(|s| c.sub_cause.as_deref() != Some(s)));
    bad.extend(other_sub.map(|c| format!("sub_cause {:?}: {c}", c.sub_cause)));
    Ok(bad)
}

/// Plays so many scenarios that the seed draws.
pub fn drawn(plays: u64, seed: u64) -> Result<Figures> {
    let keep =
        std::env::var_os("RECORDINGS").map_or_else(|| std::env::temp_dir().join("why502-deviations"), PathBuf::from);
    let order = Order { drawn: plays, seed, together: true, keep, ..Order::default() };
    let mut series = Series::new(&binary()?, order)?;
    series.run(|_| Ok(()))?;
    Ok(series.figures)
}
