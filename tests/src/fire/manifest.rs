//! The manifest: what was done, as the records that why502 must have printed for it.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

/// One line of the manifest.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
pub enum Line {
    /// Always first.
    Kernel(Kernel),
    Expect(Expect),
    /// This machine does not allow the case.
    Skipped {
        name: String,
        why: String,
    },
}

/// What the running kernel can report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kernel {
    pub release: String,
    /// `enum sk_rst_reason` is in the kernel's BTF (6.10): `tcp_send_reset` has a reason, and since the same release it
    /// also fires for resets that answer a packet without a full socket (net/ipv4/tcp_ipv4.c `tcp_v4_send_reset()`).
    pub reset_reasons: bool,
}

impl Kernel {
    /// Of the machine we run on.
    ///
    /// # Errors
    /// When the kernel has no BTF.
    pub fn running() -> Result<Self> {
        let path = "/sys/kernel/btf/vmlinux";
        let btf = fs::read(path).with_context(|| path.to_owned())?;
        let name = b"\0sk_rst_reason\0";
        Ok(Self {
            release: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            reset_reasons: btf.windows(name.len()).any(|w| w == name),
        })
    }
}

/// What a kernel must be able to report for a record to be there. Where it is not, the record must be absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Needs {
    Nothing,
    /// `tcp_send_reset` for packets that no full socket takes.
    ReplyResets,
}

/// Records that must be there. Values are compared as in [`super::check::diff`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Expect {
    pub name: String,
    /// Which records are meant.
    pub select: Value,
    /// What each of them must say.
    pub want: Value,
    /// How many there must be.
    pub min: usize,
    pub max: usize,
    pub needs: Needs,
    /// `reason` of a reset; compared only where the kernel gives reasons, and must be null elsewhere.
    pub reason: Option<u32>,
}

impl Expect {
    pub fn one(name: &str, select: Value, want: Value) -> Self {
        Self { name: name.to_owned(), select, want, min: 1, max: 1, needs: Needs::Nothing, reason: None }
    }
    pub fn times(mut self, count: usize) -> Self {
        (self.min, self.max) = (count, count);
        self
    }
    pub fn between(mut self, min: usize, max: usize) -> Self {
        (self.min, self.max) = (min, max);
        self
    }
    pub fn none(name: &str, select: Value) -> Self {
        Self::one(name, select, Value::Null).times(0)
    }
    pub fn reply_reset(mut self) -> Self {
        self.needs = Needs::ReplyResets;
        self
    }
    pub fn reason(mut self, reason: u32) -> Self {
        self.reason = Some(reason);
        self
    }
}

/// Writes a manifest. Each line is one write(2) in append mode, so forked processes may write as well.
pub(crate) struct Manifest(File);

impl Manifest {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let _ = fs::remove_file(path);
        let file = OpenOptions::new().append(true).create(true).open(path);
        let it = Self(file.with_context(|| path.display().to_string())?);
        it.line(&Line::Kernel(Kernel::running()?))?;
        Ok(it)
    }

    fn line(&self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        (&self.0).write_all(text.as_bytes()).context("manifest")
    }

    pub(crate) fn expect(&self, expect: Expect) -> Result<()> {
        self.line(&Line::Expect(expect))
    }

    pub(crate) fn skip(&self, name: &str, why: &str) -> Result<()> {
        self.line(&Line::Skipped { name: name.to_owned(), why: why.to_owned() })
    }
}

/// Reads a manifest.
///
/// # Errors
/// Names the file and the line.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut lines = Vec::new();
    for (n, text) in (1..).zip(BufReader::new(file).lines()) {
        let line = serde_json::from_str(&text?).with_context(|| format!("{}:{n}", path.display()))?;
        lines.push(line);
    }
    Ok(lines)
}
