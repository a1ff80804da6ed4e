//! What `check` says. Field names and ids are the contract of docs/events.md and docs/schema.

use crate::model::incident::{Advice, Cause, Missing, SCHEMA};
use crate::model::place::Place;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// A stop with requests under way loses some of them.
    WillLose,
    /// It depends on the moment, on the load, or on something that is not known.
    MayLose,
}

impl Severity {
    pub const ALL: &[Severity] = &[Severity::WillLose, Severity::MayLose];

    pub fn id(self) -> &'static str {
        match self {
            Severity::WillLose => "will-lose",
            Severity::MayLose => "may-lose",
        }
    }
}

/// One way in which the next stop loses requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    #[serde(rename = "type")]
    pub kind: String,
    pub schema: u32,
    /// What why502 would say of the lost requests.
    pub cause: Cause,
    pub sub_cause: Option<String>,
    pub severity: Severity,
    /// `Deployment/web`
    pub workload: Option<String>,
    /// Name, or id, of the container that is at fault.
    pub container: Option<String>,
    /// What to look at; null when it is something that nobody wrote.
    pub at: Option<Place>,
    pub summary: String,
    pub advice: Vec<Advice>,
    /// What was not known, and what that does to this finding.
    pub missing: Vec<Missing>,
}

impl Finding {
    pub fn new(cause: Cause, severity: Severity, summary: impl Into<String>) -> Finding {
        Finding {
            kind: "finding".into(),
            schema: SCHEMA,
            cause,
            sub_cause: None,
            severity,
            workload: None,
            container: None,
            at: None,
            summary: summary.into(),
            advice: Vec::new(),
            missing: Vec::new(),
        }
    }

    pub fn at(self, at: Option<&Place>) -> Finding {
        Finding { at: at.cloned(), ..self }
    }

    pub fn missing(mut self, fact: &str, effect: impl Into<String>) -> Finding {
        self.missing.push(Missing { fact: fact.into(), effect: effect.into() });
        self
    }
}

/// The end of a check: what was found, and what could not be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The worst first.
    pub findings: Vec<Finding>,
    pub not_checked: Vec<Missing>,
}

/// The report's last line in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    #[serde(rename = "type")]
    pub kind: String,
    pub schema: u32,
    pub will_lose: u64,
    pub may_lose: u64,
    pub not_checked: Vec<Missing>,
}

impl Report {
    pub fn summary(&self) -> Summary {
        let count = |severity| self.findings.iter().filter(|f| f.severity == severity).count() as u64;
        Summary {
            kind: "check".into(),
            schema: SCHEMA,
            will_lose: count(Severity::WillLose),
            may_lose: count(Severity::MayLose),
            not_checked: self.not_checked.clone(),
        }
    }
}
