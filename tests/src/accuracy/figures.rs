//! What the plays add up to: per cause, per level, in time.

use super::play::Ledgers;
use crate::ledger::{Claim, Comparison};
use crate::load::Request;
use crate::tracer::Heard;
use std::collections::BTreeMap;
use why502::model::incident::Cause;

/// Two-sided 95%.
const Z: f64 = 1.959_964;

/// Wilson's score interval for `hits` of `n`.
pub fn wilson(hits: u64, n: u64) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let (p, n) = (hits as f64 / n as f64, n as f64);
    let middle = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (((middle - half) / scale).max(0.0), ((middle + half) / scale).min(1.0))
}

/// One cause. A request's truth is its own cause where the ledgers leave one, else the verdict's if that is allowed, else
/// the first that is allowed.
#[derive(Clone, Debug, Default)]
pub struct OfCause {
    /// Lost requests whose truth it is.
    pub lost: u64,
    /// Of those, the ones for which the ledgers leave no other cause.
    pub decided: u64,
    /// With a right verdict.
    pub right: u64,
    pub missed: u64,
    /// Verdicts of this cause that are wrong, or that are about no lost request.
    pub false_claims: u64,
    /// What the wrong verdicts on requests of this cause said.
    pub confused: BTreeMap<&'static str, u64>,
    pub mechanisms: BTreeMap<&'static str, u64>,
    pub sub_causes: BTreeMap<String, u64>,
    pub levels: BTreeMap<&'static str, u64>,
    /// ns from the last fact of the chain to the verdict, and to its line being read.
    pub decided_after: Vec<u64>,
    pub read_after: Vec<u64>,
    /// ns from the loss to the verdict: the rule's window.
    pub window: u64,
}

impl OfCause {
    pub fn precision(&self) -> (u64, u64) {
        (self.right, self.right + self.false_claims)
    }

    pub fn recall(&self) -> (u64, u64) {
        (self.right, self.lost)
    }
}

/// A scenario, a control or a pod beside.
#[derive(Clone, Debug, Default)]
pub struct OfScenario {
    pub plays: u64,
    pub requests: u64,
    pub lost: u64,
    pub deviations: u64,
}

/// What was lost, and how much of that has a right verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub lost: u64,
    pub right: u64,
}

impl Count {
    fn add(&mut self, right: bool) {
        (self.lost, self.right) = (self.lost + 1, self.right + u64::from(right));
    }
}

#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub plays: u64,
    /// That came to no end.
    pub unplayed: u64,
    pub pods: u64,
    /// Pods that were stopped, or under load, beside another one of the same play.
    pub beside: Count,
    pub beside_pods: u64,
    /// By what a scenario is there to provoke; what else was lost in it is not in here.
    pub provoked: BTreeMap<(Cause, Option<&'static str>), Count>,
    /// By the cause, and a side of its layout: see [`super::SIDES`].
    pub layouts: BTreeMap<(Cause, &'static str), Count>,
    pub causes: BTreeMap<Cause, OfCause>,
    pub scenarios: BTreeMap<&'static str, OfScenario>,
    /// By what the ledgers say of how a request was lost, and the mechanism that its verdict names; the second: of those,
    /// verdicts whose mechanism is not right.
    pub mechanisms: BTreeMap<(String, &'static str), (u64, u64)>,
    /// By confidence in hundredths: verdicts, and the right ones among them.
    pub calibration: BTreeMap<u32, (u64, u64)>,
    /// Incidents without a lost request, and those that name a pod which is not theirs.
    pub false_incidents: u64,
    pub wrong_pod: u64,
    pub wrong_sub_cause: u64,
    pub wrong_mechanism: u64,
    pub truncated: u64,
    pub unclear: u64,
    /// One line each, for people.
    pub deviations: Vec<String>,
}

impl Figures {
    /// Adds a part that is over; gives its deviations.
    ///
    /// `beside`: it was not the only pod of its play.
    pub fn add(&mut self, ledgers: &Ledgers, heard: &[Heard], beside: bool) -> Vec<String> {
        let result = ledgers.compare(heard);
        let scenario = ledgers.part.scenario;
        let mut bad = result.complaints();
        for (r, claim) in &result.verdicts {
            self.verdict(ledgers, r, claim, heard);
            let wrong_sub = scenario.wrong_sub_cause(claim);
            let right = ledgers.allowed(r).contains(&claim.cause) && !wrong_sub;
            self.count(ledgers, truth(ledgers, r, Some(claim)), right, beside);
            if !ledgers.mechanisms(r).contains(&claim.mechanism) {
                bad.push(format!("mechanism, {}: {claim}", ledgers.seen_as(r)));
            }
            if wrong_sub {
                self.wrong_sub_cause += 1;
                bad.push(format!("sub_cause {:?}: {claim}", claim.sub_cause));
            }
        }
        for r in &result.missed {
            self.count(ledgers, truth(ledgers, r, None), false, beside);
            let of = self.causes.entry(truth(ledgers, r, None)).or_default();
            (of.lost, of.missed) = (of.lost + 1, of.missed + 1);
            of.decided += u64::from(ledgers.allowed(r).len() == 1);
        }
        for claim in &result.false_incidents {
            self.causes.entry(claim.cause).or_default().false_claims += 1;
            self.calibrate(claim, false);
        }
        let strangers = ledgers.of_another_pod(heard);
        bad.extend(strangers.iter().map(|c| format!("pod {:?}: {c}", c.pod)));
        bad.extend(missing_cause(ledgers, &result));
        self.wrong_pod += strangers.len() as u64;
        self.false_incidents += result.false_incidents.len() as u64;
        self.truncated += result.truncated as u64;
        self.unclear += result.unclear.len() as u64;
        let of = self.scenarios.entry(scenario.name).or_default();
        (of.plays, of.requests) = (of.plays + 1, of.requests + result.requests as u64);
        of.lost += result.lost_total() as u64;
        (self.pods, self.beside_pods) = (self.pods + 1, self.beside_pods + u64::from(beside));
        of.deviations += bad.len() as u64;
        let bad = shortened(bad);
        self.deviations.extend(bad.iter().map(|line| format!("{}: {line}", ledgers.part)));
        bad
    }

    fn count(&mut self, ledgers: &Ledgers, truth: Cause, right: bool, beside: bool) {
        let scenario = ledgers.part.scenario;
        if scenario.cause == Some(truth) {
            self.provoked.entry((truth, scenario.sub_cause)).or_default().add(right);
        }
        for side in ledgers.part.draw.layout.sides() {
            self.layouts.entry((truth, side)).or_default().add(right);
        }
        if beside {
            self.beside.add(right);
        }
    }

    fn verdict(&mut self, ledgers: &Ledgers, r: &Request, claim: &Claim, heard: &[Heard]) {
        let (allowed, truth) = (ledgers.allowed(r), truth(ledgers, r, Some(claim)));
        let right = allowed.contains(&claim.cause);
        let of = self.causes.entry(truth).or_default();
        of.lost += 1;
        of.decided += u64::from(allowed.len() == 1);
        if right {
            of.right += 1;
            *of.mechanisms.entry(claim.mechanism.id()).or_default() += 1;
            *of.sub_causes.entry(claim.sub_cause.clone().unwrap_or_default()).or_default() += 1;
            *of.levels.entry(claim.level.id()).or_default() += 1;
            of.decided_after.push(claim.decided_after.saturating_sub(claim.last_fact_after));
            of.window = of.window.max(claim.decided_after);
            if let Some(read) = heard.iter().find(|h| h.claim.id == claim.id).and_then(|h| h.read) {
                of.read_after.push(read.saturating_sub(claim.at + claim.last_fact_after));
            }
        } else {
            *of.confused.entry(claim.cause.id()).or_default() += 1;
            self.causes.entry(claim.cause).or_default().false_claims += 1;
        }
        let wrong = u64::from(!ledgers.mechanisms(r).contains(&claim.mechanism));
        let of = self.mechanisms.entry((ledgers.seen_as(r), claim.mechanism.id())).or_default();
        *of = (of.0 + 1, of.1 + wrong);
        self.wrong_mechanism += wrong;
        self.calibrate(claim, right);
    }

    fn calibrate(&mut self, claim: &Claim, right: bool) {
        let of = self.calibration.entry((claim.confidence * 100.0).round() as u32).or_default();
        *of = (of.0 + 1, of.1 + u64::from(right));
    }

    /// Mean over the causes that were provoked; `None` without any. `unexplained` is none.
    pub fn macro_mean(&self, of: fn(&OfCause) -> (u64, u64)) -> Option<f64> {
        let shares = self
            .causes
            .iter()
            .filter(|(cause, c)| **cause != Cause::Unexplained && c.lost > 0)
            .map(|(_, c)| of(c))
            .filter(|(_, n)| *n > 0);
        let shares: Vec<f64> = shares.map(|(hits, n)| hits as f64 / n as f64).collect();
        (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
    }

    /// Verdicts with at least this confidence (hundredths), and the right ones among them.
    pub fn from_confidence(&self, least: u32) -> (u64, u64) {
        self.calibration.range(least..).fold((0, 0), |sum, (_, of)| (sum.0 + of.0, sum.1 + of.1))
    }

    /// Verdicts that blame a wrong cause, or that are about nothing.
    pub fn false_blame(&self) -> u64 {
        self.causes.values().map(|c| c.false_claims).sum()
    }
}

/// Two of each kind, and how many more there are: one play that goes wrong does so for all of its requests.
fn shortened(lines: Vec<String>) -> Vec<String> {
    let mut kinds: BTreeMap<String, (Vec<String>, usize)> = BTreeMap::new();
    for line in lines {
        let of = kinds.entry(line.split(':').next().unwrap_or_default().to_string()).or_default();
        if of.0.len() < 2 { of.0.push(line) } else { of.1 += 1 }
    }
    let more = |kind: &str, n: usize| (n > 0).then(|| format!("{kind}: … and {n} more"));
    kinds.into_iter().flat_map(|(kind, (lines, n))| lines.into_iter().chain(more(&kind, n))).collect()
}

/// The cause that a request counts for.
fn truth(ledgers: &Ledgers, r: &Request, claim: Option<&Claim>) -> Cause {
    let allowed = ledgers.allowed(r);
    let said = claim.map(|c| c.cause).filter(|c| allowed.contains(c));
    let own = ledgers.part.scenario.cause.filter(|c| allowed.contains(c));
    // Nothing is allowed for what a graceful stop must not lose: that it was lost at all has no known cause.
    said.or(own).or(allowed.first().copied()).unwrap_or(Cause::Unexplained)
}

/// A play that does not produce its cause shows nothing.
fn missing_cause(ledgers: &Ledgers, result: &Comparison) -> Option<String> {
    let cause = ledgers.part.scenario.cause?;
    let can = |r: &Request| ledgers.allowed(r).contains(&cause);
    let produced = result.missed.iter().any(can) || result.verdicts.iter().any(|(r, _)| can(r));
    (!produced).then(|| format!("nothing was lost to {cause}: the scenario did not happen"))
}

/// The value below which this share of them lies, 0..=1.
pub fn percentile(values: &[u64], share: f64) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share).round() as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilsons_bounds() {
        // Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
        for (hits, n, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let (l, h) = wilson(hits, n);
            assert!((l - low).abs() < 5e-5 && (h - high).abs() < 5e-5, "{hits} of {n}: {l} {h}");
        }
        let (low, high) = wilson(200, 200);
        assert!(low > 0.98 && (high - 1.0).abs() < 1e-9);
        assert_eq!(wilson(0, 0), (0.0, 1.0));
    }

    #[test]
    fn percentiles() {
        let values: Vec<u64> = (1..=101).rev().collect();
        assert_eq!((percentile(&values, 0.5), percentile(&values, 0.99)), (Some(51), Some(100)));
        assert_eq!((percentile(&[7], 0.99), percentile(&[], 0.5)), (Some(7), None));
    }

    #[test]
    fn what_goes_wrong_in_one_way_is_told_twice() {
        let lines = (0..5).map(|n| format!("missed: {n}")).chain(["false: x".into()]);
        assert_eq!(shortened(lines.collect()), ["false: x", "missed: 0", "missed: 1", "missed: … and 3 more"]);
    }

    #[test]
    fn a_mean_hides_no_cause() {
        let mut figures = Figures::default();
        figures.causes.insert(Cause::QuitThenTerm, OfCause { lost: 1000, right: 1000, ..OfCause::default() });
        figures.causes.insert(Cause::KeepaliveRace, OfCause { lost: 10, right: 5, ..OfCause::default() });
        figures.causes.insert(Cause::ClientAbort, OfCause { false_claims: 3, ..OfCause::default() });
        assert_eq!(figures.macro_mean(OfCause::recall), Some(0.75));
        assert_eq!(figures.false_blame(), 3);
    }
}
