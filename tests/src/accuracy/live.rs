//! One scenario as a test: beside a why502 of its own, whose recording must replay to the same lines.

use super::dice::Dice;
use super::figures::Figures;
use super::layout::Draw;
use super::play::{Part, Played, play};
use super::recorded::{self, Recorded};
use super::series::{Order, Series, eyes};
use super::{shape, table};
use crate::guard;
use crate::ledger::Claim;
use crate::scene::Watch;
use crate::tracer::{Heard, binary};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use why502::model::Input;
use why502::model::incident::{Cause, Incident, Level};
use why502::model::input::LossFact;

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
        bad.extend(judged(&one, watch, runs)?.0.into_iter().map(|c| format!("run {run}: {c}")));
    }
    println!("{name}: {lost} lost requests in {runs} runs, {} deviations", bad.len());
    ensure!(bad.is_empty(), "{}", bad.join("\n"));
    Ok(())
}

/// Plays one part beside a why502 of its own, which is started when the site stands.
pub(super) fn beside(why502: &Path, part: Part) -> Result<(Played, Watch)> {
    beside_with(why502, part, &[])
}

/// With more arguments of `why502 watch`.
fn beside_with(why502: &Path, part: Part, more: &[&str]) -> Result<(Played, Watch)> {
    let mut watch = None;
    let uprobes = part.draw.layout.uprobes;
    let played = play(&[part], |sites| {
        let eyes = eyes(sites[0].dir.path(), uprobes)?;
        let args = [&eyes.each_ref().map(String::as_str), more].concat();
        watch = Some(Watch::by(why502, sites[0].dir.join("watch.rec"), &args)?);
        Ok(())
    })?;
    watch.and_then(|watch| Some((played.into_iter().next()?, watch))).context("one part was to be played")
}

/// What is wrong, and all that was said of the site.
fn judged(one: &Played, watch: Watch, runs: u64) -> Result<(Vec<String>, Vec<Claim>)> {
    let (part, made) = (&one.part, one.part.scenario.made);
    let (result, said) = one.over.heard(part.scenario.name, watch, made, &|r, started| one.allowed(r, started))?;
    println!("{part}: {result}");
    let cause = part.scenario.cause;
    let of_it = |c: &&Claim| cause == Some(c.cause);
    let mut bad = result.complaints_in(runs);
    let claims: Vec<_> = result.verdicts.iter().map(|(_, c)| c).filter(of_it).collect();
    if let (Some(cause), true) = (cause, claims.is_empty()) {
        bad.push(format!("nothing was lost to {cause}: the scenario did not happen"));
    }
    let wanted = part.scenario.sub_cause;
    if !claims.is_empty() && wanted.is_some_and(|s| claims.iter().all(|c| c.sub_cause.as_deref() != Some(s))) {
        bad.push(format!("no verdict has the sub cause {wanted:?}"));
    }
    let other_sub = claims.iter().filter(|c| part.scenario.wrong_sub_cause(c));
    bad.extend(other_sub.map(|c| format!("sub_cause {:?}: {c}", c.sub_cause)));
    // Its children are forked while why502 watches, and live for a second: time enough to learn their pool.
    let timed_out = said.incidents.iter().filter(|i| i.cause == Cause::FpmRequestTerminateTimeout);
    let nameless = timed_out.filter(|i| !i.chain.iter().any(|link| link.text.contains("pool ")));
    bad.extend(nameless.map(|i| format!("no link of {} names the pool of a php-fpm child", i.id)));
    Ok((bad, said.claims(&one.over.site)))
}

/// What a why502 said that had lost a share of its records.
#[derive(Debug)]
pub struct Shed {
    pub incidents: Vec<Incident>,
    /// As its recording has them.
    pub losses: Vec<LossFact>,
    /// Records that were not dropped, since all was ready.
    pub events: u64,
    /// Requests that were lost.
    pub lost: usize,
    /// Certain verdicts with a cause that is not right for their request, and certain ones about no lost request.
    pub wrong: Vec<String>,
}

/// Plays a scenario beside a why502 that loses this share of all records in its drain stage.
pub fn shed(name: &str, draw: Draw, share: f64, seed: u64) -> Result<Shed> {
    let scenario = table::named(name).with_context(|| format!("no scenario {name}"))?;
    let from = guard::boot_ns();
    let (one, watch) = beside_with(&binary()?, Part::new(scenario, draw), &["--shed", &format!("{share}:{seed}")])?;
    watch.tracer.wait_for(one.lost(), &one.over.site)?;
    let said = watch.tracer.stop()?;
    ensure!(said.status.success(), "why502 watch ended with {}: {}", said.status, said.stderr.join("\n"));
    let inputs = recorded::read(&watch.recording)?;
    let (ledgers, site) = one.ledgers(from)?;
    let result = ledgers.compare(&said.incidents.iter().map(Heard::from).collect::<Vec<_>>());
    let certain = |c: &&Claim| c.level == Level::Certain;
    let wrong = result.wrong_cause.iter().map(|(_, c)| c);
    let of_nothing = result.false_incidents.iter().filter(|c| ledgers.owns_claim(c));
    let wrong = wrong.chain(of_nothing).filter(certain).map(|c| c.to_string()).collect();
    let territory = site.territory();
    let incidents: Vec<Incident> = said.incidents.into_iter().filter(|i| territory.has(&i.into())).collect();
    let ready = inputs.iter().position(|i| matches!(i, Input::Ready { .. })).unwrap_or(0);
    let events = inputs[ready..].iter().filter(|i| matches!(i, Input::Event(_))).count() as u64;
    let losses = inputs.into_iter().filter_map(|i| if let Input::Loss(l) = i { Some(l) } else { None }).collect();
    Ok(Shed { incidents, losses, events, lost: ledgers.lost(), wrong })
}

/// Plays so many causes as they were kept, on the same layouts, and gives what is not as it was then: a recording that live
/// runs no longer look like shows nothing.
pub fn as_kept(plays: usize, seed: u64) -> Result<Vec<String>> {
    let mut dice = Dice::new(seed);
    let mut by_cause: BTreeMap<Cause, Vec<Recorded>> = BTreeMap::new();
    for one in recorded::all(&recorded::place())? {
        if let Some(cause) = one.ledgers.part.scenario.cause {
            by_cause.entry(cause).or_default().push(one);
        }
    }
    let mut causes: Vec<_> = by_cause.into_values().collect();
    let mut bad = Vec::new();
    let mut played = 0;
    while played < plays && !causes.is_empty() {
        let mut of_cause = causes.swap_remove(dice.below(causes.len()));
        let kept = of_cause.swap_remove(dice.below(of_cause.len()));
        let part = kept.ledgers.part.clone();
        if let Some(why) = part.why_not() {
            println!("{part}: skipped: {why}");
            continue;
        }
        let (one, watch) = beside(&binary()?, part)?;
        let (wrong, claims) = judged(&one, watch, 1)?;
        let unlike = shape::unlike(&shape::of(&claims), &shape::of_heard(&kept.heard()));
        bad.extend(wrong.into_iter().chain(unlike).map(|line| format!("{}: {line}", one.part)));
        played += 1;
    }
    ensure!(played > 0, "nothing was played");
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
