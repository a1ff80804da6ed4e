//! The runner: round after round, every scenario beside one running `why502 watch`.
//!
//! A round has one why502 and one recording. The machine's turn is taken for each play unless more is asked for, so that
//! other live tests come in between; what they lose is not of our sites, and is left out.

use super::dice::Dice;
use super::figures::Figures;
use super::layout::{Draw, Layout};
use super::play::{Ledgers, Part, play};
use super::scenario::Scenario;
use super::table;
use crate::guard::{self, Dir, Turn, boot_ns};
use crate::load::write_ledger;
use crate::schema;
use crate::site::Site;
use crate::tracer::{Heard, Said, Tracer};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use why502::sinks::recording::{Reader, Writer, time_of};

/// What is to be played.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// Plays of each scenario.
    pub runs: u64,
    /// Then those are played again by which fewer requests than that were lost to what they provoke.
    pub at_least: u64,
    /// Then so many plays that dice choose, by this seed.
    pub drawn: u64,
    pub seed: u64,
    /// Names of scenarios or ids of causes; empty: all of them.
    pub only: Vec<String>,
    /// Words of [`super::WORDS`] that every layout gets.
    pub layout: Vec<String>,
    /// Plays with several pods at once as well.
    pub together: bool,
    /// The machine's turn is kept for so long before other live tests get theirs; zero: for one play.
    pub hold: Duration,
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
    /// Of all plays, and of those that dice chose.
    pub figures: Figures,
    pub drawn: Figures,
    pub took: Duration,
    rounds: u64,
    /// And since when.
    turn: Option<(Turn, Instant)>,
    /// So often each scenario was played: its next layout.
    times: BTreeMap<&'static str, u64>,
    kept: u64,
}

/// A scenario that lacks losses is played so many times at most.
const MOST: u64 = 60;
/// Drawn plays beside one why502.
const ROUND: u64 = 40;

/// No verdict takes longer; what is missing then is judged at the end of the round.
const VERDICTS: Duration = Duration::from_secs(4);

/// One of these names, or of these causes; without any every scenario is.
pub fn is_of(scenario: &Scenario, only: &[String]) -> bool {
    let named = |o: &String| o == scenario.name || scenario.cause.is_some_and(|c| o == c.id());
    only.is_empty() || only.iter().any(named)
}

/// What happens at one moment.
type Cast = Vec<Part>;

impl Series {
    /// Those of these names or causes; without any all of them.
    pub fn scenarios(only: &[String]) -> Result<Vec<&'static Scenario>> {
        let chosen: Vec<_> = table::all().into_iter().filter(|s| is_of(s, only)).collect();
        if chosen.is_empty() {
            let all: Vec<_> = table::all().iter().map(|s| s.name).collect();
            bail!("no scenario is called {}; there are {}", only.join(", "), all.join(", "));
        }
        Ok(chosen)
    }

    pub fn new(why502: &Path, order: Order) -> Result<Self> {
        let chosen = Self::scenarios(&order.only)?;
        let mut layout = Layout::nth(0);
        order.layout.iter().try_for_each(|word| layout.with(word))?;
        let dice = Dice::new(order.seed);
        Ok(Self {
            why502: why502.into(),
            order,
            chosen,
            dice,
            figures: Figures::default(),
            drawn: Figures::default(),
            took: Duration::ZERO,
            rounds: 0,
            turn: None,
            times: BTreeMap::new(),
            kept: 0,
        })
    }

    /// Plays all of it; `after` each round. The figures so far stand when it is interrupted.
    pub fn run(&mut self, mut after: impl FnMut(&Self) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        while let Some((casts, drawn)) = self.next_casts()? {
            let done = self.round(casts, drawn);
            self.rounds += 1;
            self.took = start.elapsed();
            done?;
            after(self)?;
        }
        Ok(())
    }

    /// And whether dice chose them.
    fn next_casts(&mut self) -> Result<Option<(Vec<Cast>, bool)>> {
        if self.rounds < self.order.runs {
            let mut casts = self.in_turn(self.chosen.clone());
            if self.order.together {
                casts.extend(self.together(self.rounds)?);
            }
            return Ok(Some((self.laid_out(casts)?, false)));
        }
        let lacking = self.lacking();
        if !lacking.is_empty() {
            let casts = self.in_turn(lacking);
            return Ok(Some((self.laid_out(casts)?, false)));
        }
        let left = (self.order.drawn - self.drawn.plays.min(self.order.drawn)).min(ROUND);
        if left == 0 {
            return Ok(None);
        }
        let casts = (0..left).map(|n| self.drawn_cast(self.drawn.plays + n)).collect();
        Ok(Some((self.laid_out(casts)?, true)))
    }

    fn lacking(&self) -> Vec<&'static Scenario> {
        let lacks = |s: &&&Scenario| {
            let Some(cause) = s.cause else { return false };
            let lost = self.figures.provoked.get(&(cause, s.sub_cause)).map_or(0, |c| c.lost);
            lost < self.order.at_least && self.times.get(s.name).is_none_or(|times| *times < MOST)
        };
        self.chosen.iter().filter(lacks).copied().collect()
    }

    /// Every play of a scenario has another layout; neighbours have other layouts than each other.
    fn in_turn(&mut self, scenarios: Vec<&'static Scenario>) -> Vec<Cast> {
        let place = |s: &Scenario| table::all().iter().position(|other| other.name == s.name).unwrap_or(0) as u64;
        let mut one = |s: &'static Scenario| {
            let times = self.times.entry(s.name).or_default();
            *times += 1;
            vec![Part::new(s, Draw::nth((*times - 1) * 11 + place(s)))]
        };
        scenarios.into_iter().map(&mut one).collect()
    }

    /// With the sides that were asked for.
    fn laid_out(&self, mut casts: Vec<Cast>) -> Result<Vec<Cast>> {
        for part in casts.iter_mut().flatten() {
            self.order.layout.iter().try_for_each(|word| part.draw.layout.with(word))?;
            part.draw = part.scenario.fitted(part.draw.clone());
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

    /// Nothing crosses pods: two that are stopped at once with different causes, the same beside ten under load, a stop
    /// without a loss beside a pod that answers 502 by itself.
    fn together(&self, round: u64) -> Result<Vec<Cast>> {
        let with_cause: Vec<_> = table::all().into_iter().filter(|s| s.cause.is_some()).collect();
        let half = with_cause.len() as u64 / 2;
        let one = |name: &str, n: u64| -> Result<Part> {
            let scenario = table::named(name).with_context(|| format!("no scenario {name}"))?;
            Ok(Part::new(scenario, Draw::nth(n)))
        };
        let pick = |n: u64| Part::new(with_cause[(n % with_cause.len() as u64) as usize], Draw::nth(n));
        // Over the rounds everything meets something.
        let pair = |n: u64| -> Result<Cast> {
            let first = pick(n);
            let other = (n + half..).map(pick).find(|p| p.scenario.cause != first.scenario.cause);
            Ok(vec![first, other.context("all scenarios have one cause")?])
        };
        let quiet = (0..10).map(|n| one("quiet", round + n)).collect::<Result<Vec<_>>>()?;
        Ok(vec![
            pair(2 * round)?,
            pair(2 * round + 1)?.into_iter().chain(quiet).collect(),
            vec![one("answers-502", round)?, one("idle-stop", round)?],
        ])
    }

    fn round(&mut self, mut casts: Vec<Cast>, drawn: bool) -> Result<()> {
        let dir = Dir::new()?;
        let recording = dir.join("round.rec");
        // Every second round has no probes in nginx, unless one side was asked for.
        let uprobes = match self.order.layout.iter().rfind(|word| word.ends_with("uprobes")) {
            Some(word) => word == "uprobes",
            None => self.rounds.is_multiple_of(2),
        };
        casts.iter_mut().flatten().for_each(|part| part.draw.layout.uprobes = uprobes);
        let eyes = eyes(dir.path(), uprobes)?;
        let args = eyes.iter().map(OsStr::new).chain(["--record".as_ref(), recording.as_os_str()]);
        let watch = Tracer::watch(&self.why502, &args.collect::<Vec<_>>())?;
        let kind = if drawn { "drawn" } else { "in turn" };
        println!("round {}: {} plays, {kind}", self.rounds + 1, casts.len());
        let mut all = Vec::new();
        let mut heard = Vec::new();
        let (mut lines, mut unplayed) = (0, 0);
        for cast in casts {
            let names: Vec<String> = cast.iter().map(Part::to_string).collect();
            if let Some(why) = cast.iter().find_map(Part::why_not) {
                println!("  {}: skipped: {why}", names.join(" + "));
                continue;
            }
            let turn = match self.turn.take() {
                Some(turn) => turn,
                None => (guard::turn()?, Instant::now()),
            };
            let start = Instant::now();
            let played = one(&cast, &watch, &mut lines, &mut heard);
            self.turn = Some(turn).filter(|(_, since)| since.elapsed() < self.order.hold);
            // A play that fails of itself ends nothing but itself.
            let ledgers = match played {
                Ok(ledgers) => ledgers,
                Err(e) if !guard::interrupted() => {
                    let line = format!("{}: not played: {e:#}", names.join(" + "));
                    println!("  {line}");
                    self.figures.deviations.push(line);
                    self.figures.unplayed += 1;
                    unplayed += 1;
                    continue;
                }
                Err(e) => return Err(e),
            };
            let beside = ledgers.len() > 1;
            self.figures.plays += 1;
            self.drawn.plays += u64::from(drawn);
            for one in ledgers {
                let result = one.compare(&one.mine(&heard));
                let (lost, explained) = (result.lost_total(), result.explained);
                let secs = start.elapsed().as_secs_f32();
                println!("  {:>4.1} s  {}: {lost} lost, {explained} explained {:?}", secs, one.part, result.by_cause);
                all.push((one, beside));
            }
        }
        heard.extend(watch.more(&mut lines)?);
        let said = watch.stop()?;
        ensure!(said.status.success(), "why502 watch ended with {}: {}", said.status, said.stderr.join("\n"));
        schema::check(&said)?;
        self.judge(&all, drawn, said, &mut heard, &recording)?;
        let all: Vec<_> = all.into_iter().map(|(one, _)| one).collect();
        if unplayed == 0 {
            self.strays(&all, &heard);
        }
        Ok(())
    }

    /// Once everything is final: a verdict that comes too late for its play still counts.
    fn judge(
        &mut self,
        all: &[(Ledgers, bool)],
        drawn: bool,
        said: Said,
        heard: &mut Vec<Heard>,
        recording: &Path,
    ) -> Result<()> {
        // What it said between the last look and its end.
        for incident in said.incidents.iter().skip(heard.len()) {
            heard.push(Heard { claim: incident.into(), read: Some(boot_ns()) });
        }
        for (one, beside) in all {
            let mine = one.mine(heard);
            let bad = self.figures.add(one, &mine, *beside);
            if drawn {
                self.drawn.add(one, &mine, *beside);
            }
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

/// What `why502 watch` is told for a series: failed connects to unix sockets are seen by every kernel this way, and only this
/// way by some; the commands of hooks are in the spec alone.
pub(super) fn eyes(dir: &Path, uprobes: bool) -> Result<[String; 6]> {
    let spec = dir.join("pod.json");
    std::fs::write(&spec, pod_spec())?;
    let spec = spec.display().to_string();
    let uprobes = if uprobes { "auto" } else { "off" }.into();
    Ok(["--unix-connect".into(), "syscalls".into(), "--uprobes".into(), uprobes, "--pod-spec".into(), spec])
}

/// Of the pods: a hook that is mistyped, and one that waits, as two scenarios run them.
fn pod_spec() -> String {
    let hook = |command: &[&str]| serde_json::json!({"preStop": {"exec": {"command": command}}});
    let containers = serde_json::json!([
        {"name": "nginx", "lifecycle": hook(&table::absent::HOOK)},
        {"name": "app", "lifecycle": hook(&table::absent::WAITS)},
    ]);
    serde_json::json!({"kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": containers}}).to_string()
}
