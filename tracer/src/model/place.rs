//! Where something was read, and what was wrong there.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A file as the user named it (or as it is called in the container), with a line where one is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Hostile: escape before printing.
    pub file: String,
    /// Counted from 1.
    pub line: Option<u32>,
}

impl Place {
    pub fn of(file: &str) -> Place {
        Place { file: file.to_owned(), line: None }
    }

    pub fn line(file: &str, line: u32) -> Place {
        Place { file: file.to_owned(), line: Some(line) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// A value with the place that says so; `None` when it is a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    pub value: T,
    pub at: Option<Place>,
}

impl<T> At<T> {
    pub fn new(value: T, at: Place) -> At<T> {
        At { value, at: Some(at) }
    }

    /// What holds when nothing is said.
    pub fn default_of(value: T) -> At<T> {
        At { value, at: None }
    }
}

/// Input that cannot be read as what it is said to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {what}")]
pub struct Trouble {
    pub at: Place,
    pub what: String,
}

impl Trouble {
    pub fn new(at: Place, what: impl Into<String>) -> Trouble {
        Trouble { at, what: what.into() }
    }
}
