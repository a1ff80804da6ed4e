//! Plays that were kept: what why502 saw, and the ledgers that tell what is true of it. They replay without root, kernel and
//! servers, and say whether live plays still look like them.
//!
//! `NAME.rec` is a recording, `NAME.jsonl` its truth: a line of what is known of the play, then one for each request that
//! was not answered.

use super::cut::{Scrub, Site as Cut, cut};
use super::figures::Figures;
use super::layout::Draw;
use super::live::beside;
use super::play::{Ledgers, Part};
use super::scenario::{Marks, Scenario};
use super::table;
use crate::load::Request;
use crate::nginx::Upstream;
use crate::php::Served;
use crate::site::Territory;
use crate::tracer::Heard;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use why502::correlate::{Engine, EngineOptions};
use why502::model::{Incident, Input, Output};
use why502::sinks::recording::{Reader, Writer};

/// Those of the repository.
pub fn place() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings")
}

/// What is known of a play, without its requests.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    scenario: String,
    draw: Draw,
    marks: BTreeMap<String, u64>,
    /// Scripts that had begun a request.
    seen: Vec<String>,
    served: Vec<Served>,
    upstream: BTreeMap<String, Upstream>,
    territory: Territory,
    from: u64,
    to: u64,
    pod: String,
    /// Requests that were answered, or that nobody meant to be answered: their lines are left out.
    answered: usize,
}

/// One kept play.
#[derive(Debug)]
pub struct Recorded {
    pub ledgers: Ledgers,
    pub inputs: Vec<Input>,
}

/// All of a directory, by name.
pub fn all(dir: &Path) -> Result<Vec<Recorded>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|e| e == "rec"));
    files.sort();
    files.iter().map(|path| Recorded::read(path)).collect()
}

impl Recorded {
    fn read(recording: &Path) -> Result<Self> {
        let truth = recording.with_extension("jsonl");
        let text = std::fs::read_to_string(&truth).with_context(|| truth.display().to_string())?;
        let head = text.lines().next().with_context(|| format!("{} is empty", truth.display()))?;
        let head: Head = serde_json::from_str(head).with_context(|| truth.display().to_string())?;
        let requests = text.lines().skip(1).map(serde_json::from_str).collect::<Result<_, _>>();
        let requests = requests.with_context(|| truth.display().to_string())?;
        let inputs = read(recording)?;
        Ok(Self { ledgers: head.ledgers(requests)?, inputs })
    }

    /// What why502 says about it.
    pub fn heard(&self) -> Vec<Heard> {
        let said = replay(&self.inputs);
        let all: Vec<_> = said.iter().map(Heard::from).collect();
        self.ledgers.mine(&all)
    }
}

/// All of them as one series.
pub fn figures(all: &[Recorded]) -> Figures {
    let mut figures = Figures { plays: all.len() as u64, ..Figures::default() };
    for one in all {
        figures.add(&one.ledgers, &one.heard(), false);
    }
    figures
}

pub(super) fn read(recording: &Path) -> Result<Vec<Input>> {
    let file = File::open(recording).with_context(|| recording.display().to_string())?;
    let reader = Reader::new(BufReader::new(file)).with_context(|| recording.display().to_string())?;
    reader.collect::<Result<_, _>>().with_context(|| recording.display().to_string())
}

/// The incidents as `why502 watch` prints them.
pub fn replay<'a>(inputs: impl IntoIterator<Item = &'a Input>) -> Vec<Incident> {
    let mut engine = Engine::new(EngineOptions::default());
    let incident = |output| match output {
        Output::Incident(i) => Some(*i),
        Output::Stop(_) => None,
    };
    inputs.into_iter().flat_map(|input| engine.feed(input)).filter_map(incident).collect()
}

/// The play of a scenario that is kept: smaller than the others, each scenario on a layout of its own.
pub fn kept(scenario: &'static Scenario) -> Part {
    // By its name: a scenario that is new changes no other one's layout.
    let n = scenario.name.bytes().fold(0_u64, |n, b| (n * 31 + u64::from(b)) % 9973);
    let mut draw = Draw { slow: 12, fast: 6, ..Draw::nth(n) };
    draw.layout.uprobes = !n.is_multiple_of(3);
    Part::new(scenario, draw)
}

/// Plays a part beside a why502 of its own, and keeps it. Nothing is kept of a play that deviates: it is no example.
pub fn record(why502: &Path, part: Part, dir: &Path) -> Result<String> {
    let name = part.scenario.name;
    let from = crate::guard::boot_ns();
    let (one, watch) = beside(why502, part)?;
    watch.tracer.wait_for(one.lost(), &one.over.site)?;
    let said = watch.tracer.stop()?;
    ensure!(said.status.success(), "why502 watch ended with {}: {}", said.status, said.stderr.join("\n"));
    let whole = read(&watch.recording)?;
    ensure!(!whole.iter().any(|i| matches!(i, Input::Loss(_))), "records were lost");
    let (mut ledgers, site) = one.ledgers(from)?;
    let (files, pods) = (site.dir.path().to_path_buf(), site.pod_uids());
    ledgers.close(site);
    let heard: Vec<_> = said.incidents.iter().map(Heard::from).collect();
    let bad = Figures::default().add(&ledgers, &ledgers.mine(&heard), false);
    ensure!(bad.is_empty(), "{}", bad.join("\n"));

    let known = Cut { territory: &ledgers.territory, pods: &pods, dir: &files, to: ledgers.to };
    let inputs = cut(&whole, &known);
    let scrub = Scrub::new(&whole, &known)?;
    let inputs = scrub.inputs(&inputs, &known)?;
    let kept = Recorded { ledgers: ledgers.reduced()?, inputs };
    same(&ledgers.mine(&heard), &kept.heard(), &scrub)?;
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let path = dir.join(name).with_extension("rec");
    let mut writer = Writer::new(BufWriter::new(File::create(&path)?))?;
    kept.inputs.iter().try_for_each(|input| writer.write(input))?;
    kept.ledgers.write(&path.with_extension("jsonl"))?;
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len() / 1024);
    let lost = kept.ledgers.lost();
    Ok(format!("{lost} lost, {} kB, {} kB of truth", size(&path), size(&path.with_extension("jsonl"))))
}

/// What was left out of a recording must not have mattered. A loss on a unix socket has its path in its id.
fn same(live: &[Heard], cut: &[Heard], scrub: &Scrub) -> Result<()> {
    let text = |heard: &[Heard]| -> Vec<String> {
        let line = |h: &Heard| scrub.text(&format!("{:.2} {}", h.claim.confidence, h.claim));
        let mut lines: Vec<_> = heard.iter().map(|h| (h.claim.at, line(h))).collect();
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    };
    let (live, cut) = (text(live), text(cut));
    let other = live.iter().zip(&cut).find(|(a, b)| a != b);
    ensure!(other.is_none(), "cut to its site the recording says something else: {other:#?}");
    ensure!(
        live.len() == cut.len(),
        "cut to its site the recording tells of {} losses, not of {}",
        cut.len(),
        live.len()
    );
    Ok(())
}

impl Head {
    fn ledgers(self, requests: Vec<Request>) -> Result<Ledgers> {
        let scenario = table::named(&self.scenario);
        let scenario = scenario.with_context(|| format!("no scenario is called {} any more", self.scenario))?;
        Ok(Ledgers {
            // As it was played: what a scenario leaves free may have changed since.
            part: Part { scenario, draw: self.draw },
            requests,
            marks: Marks::of(self.marks),
            seen: self.seen.into_iter().collect(),
            served: self.served,
            upstream: self.upstream,
            territory: self.territory,
            from: self.from,
            to: self.to,
            pod: self.pod,
            answered: self.answered,
        })
    }
}

impl Ledgers {
    /// Without the lines that neither comparison nor truth look at.
    fn reduced(&self) -> Result<Self> {
        let made = self.part.scenario.made;
        let requests: Vec<Request> =
            self.requests.iter().filter(|r| !crate::ledger::is_fine(r, made)).cloned().collect();
        let ids: HashSet<&str> = requests.iter().map(|r| r.id.as_str()).collect();
        let first_end = self.served.iter().filter(|s| s.ev == "end").min_by_key(|s| s.t);
        let served = self.served.iter().filter(|s| ids.contains(s.id.as_str()) || Some(*s) == first_end);
        let of_it = |id: &&String| ids.contains(id.as_str());
        let real = |requests: &[Request]| requests.iter().filter(|r| r.asks()).count();
        let reduced = Self {
            part: self.part.clone(),
            seen: self.seen.iter().filter(of_it).cloned().collect(),
            served: served.cloned().collect(),
            upstream: self.upstream.iter().filter(|(id, _)| of_it(id)).map(|(id, u)| (id.clone(), *u)).collect(),
            marks: Marks::of(self.marks.all()),
            territory: self.territory.clone(),
            from: self.from,
            to: self.to,
            pod: self.pod.clone(),
            answered: real(&self.requests) - real(&requests),
            requests,
        };
        let other = reduced.requests.iter().find(|r| reduced.allowed(r) != self.allowed(r));
        ensure!(other.is_none(), "the truth of a request rests on what others left behind: {other:?}");
        Ok(reduced)
    }

    fn write(&self, path: &Path) -> Result<()> {
        let mut seen: Vec<String> = self.seen.iter().cloned().collect();
        seen.sort();
        let head = Head {
            scenario: self.part.scenario.name.into(),
            draw: self.part.draw.clone(),
            marks: self.marks.all(),
            seen,
            served: self.served.clone(),
            upstream: self.upstream.clone(),
            territory: self.territory.clone(),
            from: self.from,
            to: self.to,
            pod: self.pod.clone(),
            answered: self.answered,
        };
        let mut out = BufWriter::new(File::create(path).with_context(|| path.display().to_string())?);
        writeln!(out, "{}", serde_json::to_string(&head)?)?;
        for request in &self.requests {
            writeln!(out, "{}", serde_json::to_string(request)?)?;
        }
        out.flush().with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::SIDES;
    use super::*;

    /// Needs no root: every verdict of every play that is kept, on this version of the rules.
    #[test]
    fn kept_plays_replay_to_right_verdicts() {
        let all = all(&place()).expect("recordings");
        let figures = figures(&all);
        assert!(figures.deviations.is_empty(), "{}", figures.deviations.join("\n"));
        let without: Vec<_> =
            table::all().into_iter().filter(|s| all.iter().all(|r| r.ledgers.part.scenario.name != s.name)).collect();
        assert!(without.is_empty(), "not kept (cargo xtask accuracy --record tests/recordings --only …): {without:?}");
        let sides: HashSet<&str> = all.iter().flat_map(|r| r.ledgers.part.draw.layout.sides()).collect();
        let missing: Vec<_> = SIDES.iter().filter(|side| !sides.contains(*side)).collect();
        assert!(missing.is_empty(), "no kept play is on {missing:?}");
        println!("{} plays", all.len());
    }

    #[test]
    fn a_kept_play_is_seen_when_it_is_not_right() {
        let mut all = all(&place()).expect("recordings");
        all.retain(|one| one.ledgers.part.scenario.name == "nginx-term");
        let [one] = &mut all[..] else { panic!("nginx-term is kept") };
        let lost = one.ledgers.lost();
        let gone = one.ledgers.requests.pop().expect("a lost request");
        assert_eq!(one.ledgers.lost(), lost - 1);
        let figures = figures(&all);
        assert_eq!((figures.false_incidents, figures.deviations.len()), (1, 1), "{gone:?}");
    }
}
