//! The runner: round after round, every scenario beside one running `why502 watch`.
//!
//! A round has one why502 and one recording. The machine's turn is taken for each play, not for the round, so that other
//! live tests come in between; what they lose is not of our sites, and is left out.

use super::dice::Dice;
use super::figures::Figures;
use super::layout::{Draw, Layout};
use super::play::{Ledgers, Part, play};
use super::scenario::Scenario;
use super::table;
use crate::guard::{self, Dir, boot_ns};
use crate::load::write_ledger;
use crate::schema;
use crate::site::Site;
use crate::tracer::{Heard, Said, Tracer};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use why502::sinks::recording::{Reader, Writer, time_of};

/// What is to be played.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// Plays of each scenario; with dice so many times the number of scenarios, drawn.
    pub runs: u64,
    pub seed: Option<u64>,
    /// Names of scenarios or ids of causes; empty: all of them.
    pub only: Vec<String>,
    /// Words of [`super::WORDS`] that every layout gets.
    pub layout: Vec<String>,
    /// Plays with several pods at once as well.
    pub together: bool,
    /// Ends after so many plays.
    pub plays: Option<u64>,
    /// Where a deviation's recording and ledger are kept.
    pub keep: PathBuf,
}

/// A running series.
#[derive(Debug)]
pub struct Series {
    why502: PathBuf,
    order: Order,
    chosen: Vec<&'static Scenario>,
    dice: Dice,
    pub figures: Figures,
    pub plays: u64,
    pub took: Duration,
    kept: u64,
}

/// No verdict takes longer; what is missing then is judged at the end of the round.
const VERDICTS: Duration = Duration::from_secs(4);

/// What happens at one moment.
type Cast = Vec<Part>;

impl Series {
    pub fn new(why502: &Path, order: Order) -> Result<Self> {
        let wanted = |s: &&Scenario| {
            let names = order.only.iter().any(|o| o == s.name || s.cause.is_some_and(|c| o == c.id()));
            order.only.is_empty() || names
        };
        let chosen: Vec<_> = table::all().into_iter().filter(wanted).collect();
        if chosen.is_empty() {
            let all: Vec<_> = table::all().iter().map(|s| s.name).collect();
            bail!("no scenario is called {}; there are {}", order.only.join(", "), all.join(", "));
        }
        let mut layout = Layout::nth(0);
        order.layout.iter().try_for_each(|word| layout.with(word))?;
        let dice = Dice::new(order.seed.unwrap_or(0));
        let figures = Figures::default();
        let took = Duration::ZERO;
        Ok(Self { why502: why502.into(), order, chosen, dice, figures, plays: 0, took, kept: 0 })
    }

    /// Plays all of it. The figures so far stand when it is interrupted.
    pub fn run(&mut self) -> Result<()> {
        let start = Instant::now();
        for round in 0..self.order.runs {
            let casts = self.casts(round)?;
            let done = self.round(round, casts);
            self.took = start.elapsed();
            done?;
            if self.order.plays.is_some_and(|max| self.plays >= max) {
                break;
            }
        }
        Ok(())
    }

    fn casts(&mut self, round: u64) -> Result<Vec<Cast>> {
        let mut casts: Vec<Cast> = Vec::new();
        for n in 0..self.chosen.len() as u64 {
            casts.push(match self.order.seed {
                // Neighbours in the table have other layouts than each other.
                None => vec![Part::new(self.chosen[n as usize], Draw::nth(round * 11 + n))],
                Some(_) => self.drawn_cast(round * self.chosen.len() as u64 + n),
            });
        }
        if self.order.together && self.order.seed.is_none() {
            casts.extend(self.together(round)?);
        }
        for part in casts.iter_mut().flatten() {
            self.order.layout.iter().try_for_each(|word| part.draw.layout.with(word))?;
            part.draw = part.scenario.fitted(part.draw.clone());
        }
        if let Some(max) = self.order.plays {
            casts.truncate(usize::try_from(max - self.plays)?);
        }
        Ok(casts)
    }

    fn drawn_cast(&mut self, n: u64) -> Cast {
        let part = |dice: &mut Dice| Part::new(dice.pick(&self.chosen), Draw::drawn(n, dice));
        let first = part(&mut self.dice);
        if self.order.together && self.dice.between(1, 8) == 1 {
            vec![first, part(&mut self.dice)]
        } else {
            vec![first]
        }
    }

    /// Nothing crosses pods: two that are stopped at once with different causes, ten under load beside one that is
    /// stopped, a stop without a loss beside a pod that answers 502 by itself.
    fn together(&self, round: u64) -> Result<Vec<Cast>> {
        let with_cause: Vec<_> = table::all().into_iter().filter(|s| s.cause.is_some()).collect();
        let one = |name: &str, n: u64| -> Result<Part> {
            let scenario = table::named(name).with_context(|| format!("no scenario {name}"))?;
            Ok(Part::new(scenario, Draw::nth(n)))
        };
        let pick = |n: u64| Part::new(with_cause[(n % with_cause.len() as u64) as usize], Draw::nth(n));
        let beside = std::iter::once(Ok(pick(round * 3 + 1))).chain((0..10).map(|n| one("quiet", round + n)));
        Ok(vec![
            vec![pick(round), pick(round + 1 + with_cause.len() as u64 / 2)],
            beside.collect::<Result<_>>()?,
            vec![one("answers-502", round)?, one("idle-stop", round)?],
        ])
    }

    fn round(&mut self, round: u64, casts: Vec<Cast>) -> Result<()> {
        let dir = Dir::new()?;
        let recording = dir.join("round.rec");
        let eyes = eyes(dir.path())?;
        let args = eyes.iter().map(OsStr::new).chain(["--record".as_ref(), recording.as_os_str()]);
        let watch = Tracer::watch(&self.why502, &args.collect::<Vec<_>>())?;
        println!("round {} of {}: {} plays", round + 1, self.order.runs, casts.len());
        let mut all = Vec::new();
        let mut heard = Vec::new();
        let (mut lines, mut unplayed) = (0, 0);
        for cast in casts {
            let names: Vec<String> = cast.iter().map(Part::to_string).collect();
            if let Some(why) = cast.iter().find_map(Part::why_not) {
                println!("  {}: skipped: {why}", names.join(" + "));
                continue;
            }
            let turn = guard::turn()?;
            let start = Instant::now();
            let played = one(&cast, &watch, &mut lines, &mut heard);
            drop(turn);
            // A play that fails of itself ends nothing but itself.
            let ledgers = match played {
                Ok(ledgers) => ledgers,
                Err(e) if !guard::interrupted() => {
                    let line = format!("{}: not played: {e:#}", names.join(" + "));
                    println!("  {line}");
                    self.figures.deviations.push(line);
                    unplayed += 1;
                    continue;
                }
                Err(e) => return Err(e),
            };
            self.plays += 1;
            for one in ledgers {
                let result = one.compare(&one.mine(&heard));
                let (lost, explained) = (result.lost_total(), result.explained);
                let secs = start.elapsed().as_secs_f32();
                println!("  {:>4.1} s  {}: {lost} lost, {explained} explained {:?}", secs, one.part, result.by_cause);
                all.push(one);
            }
        }
        heard.extend(watch.more(&mut lines)?);
        let said = watch.stop()?;
        ensure!(said.status.success(), "why502 watch ended with {}: {}", said.status, said.stderr.join("\n"));
        schema::check(&said)?;
        self.judge(&all, said, &mut heard, &recording)?;
        if unplayed == 0 {
            self.strays(&all, &heard);
        }
        Ok(())
    }

    /// Once everything is final: a verdict that comes too late for its play still counts.
    fn judge(&mut self, all: &[Ledgers], said: Said, heard: &mut Vec<Heard>, recording: &Path) -> Result<()> {
        // What it said between the last look and its end.
        for incident in said.incidents.iter().skip(heard.len()) {
            heard.push(Heard { claim: incident.into(), read: boot_ns() });
        }
        for one in all {
            let bad = self.figures.add(one, &one.mine(heard));
            for line in &bad {
                println!("  DEVIATION {}: {line}", one.part);
            }
            if !bad.is_empty() {
                self.keep(one, recording)?;
            }
        }
        Ok(())
    }

    /// Incidents of pods of this process that belong to no play: of the time before or after it.
    fn strays(&mut self, all: &[Ledgers], heard: &[Heard]) {
        let mark = format!("{:08x}-", std::process::id());
        let ours = heard.iter().filter(|h| h.claim.pod.as_ref().is_some_and(|pod| pod.starts_with(&mark)));
        for stray in ours.filter(|h| all.iter().all(|one| !one.owns(h))) {
            let line = format!("outside of every play: {}", stray.claim);
            println!("  DEVIATION {line}");
            self.figures.false_incidents += 1;
            self.figures.deviations.push(line);
        }
    }

    /// The recording, cut to the time of one part, and the client's ledger.
    fn keep(&mut self, one: &Ledgers, recording: &Path) -> Result<()> {
        std::fs::create_dir_all(&self.order.keep).context("cannot keep a deviation")?;
        self.kept += 1;
        let base = self.order.keep.join(format!("{}-{}", one.part.scenario.name, self.kept));
        slice(recording, one.from, one.to + 3_000_000_000, &base.with_extension("rec"))?;
        write_ledger(&base.with_extension("jsonl"), &one.requests)?;
        println!("  kept: {}.rec, .jsonl", base.display());
        Ok(())
    }
}

/// Plays it, waits for its verdicts, and takes it down.
fn one(cast: &[Part], watch: &Tracer, lines: &mut usize, heard: &mut Vec<Heard>) -> Result<Vec<Ledgers>> {
    let from = boot_ns();
    let mut all: Vec<(Ledgers, Site)> =
        play(cast, |_| Ok(()))?.into_iter().map(|one| one.ledgers(from)).collect::<Result<_>>()?;
    let _ = guard::wait("verdicts", VERDICTS, || {
        heard.extend(watch.more(lines).unwrap_or_default());
        all.iter().all(|(one, _)| one.mine(heard).len() >= one.lost())
    });
    Ok(all
        .drain(..)
        .map(|(mut one, site)| {
            one.close(site);
            one
        })
        .collect())
}

/// What was known when why502 was ready, and what came from `from` to `to`: it replays to the same verdicts for a site of
/// that time.
fn slice(recording: &Path, from: u64, to: u64, out: &Path) -> Result<()> {
    let reader = Reader::new(BufReader::new(File::open(recording)?))?;
    let mut writer = Writer::new(BufWriter::new(File::create(out)?))?;
    let mut ready = false;
    for input in reader {
        let input = input?;
        let at = time_of(&input);
        let end = matches!(input, why502::model::Input::Stopped { .. });
        if !ready || end || (from..=to).contains(&at) {
            writer.write(&input)?;
        }
        ready |= matches!(input, why502::model::Input::Ready { .. });
    }
    Ok(())
}

/// What the tracer is told of the pods: a hook that is mistyped, as one scenario runs it.
/// What `why502 watch` is told for a series: failed connects to unix sockets are seen by every kernel this way, and only this
/// way by some; the commands of hooks are in the spec alone.
pub(super) fn eyes(dir: &Path) -> Result<[String; 4]> {
    let spec = dir.join("pod.json");
    std::fs::write(&spec, pod_spec())?;
    let spec = spec.display().to_string();
    Ok(["--unix-connect".into(), "syscalls".into(), "--pod-spec".into(), spec])
}

fn pod_spec() -> String {
    let hook = serde_json::json!({"preStop": {"exec": {"command": table::absent::HOOK}}});
    let containers = serde_json::json!([{"name": "nginx", "lifecycle": hook}]);
    serde_json::json!({"kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": containers}}).to_string()
}
