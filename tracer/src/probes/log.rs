//! What the probes log, on stderr: only in a `trace-log` build, for developing them. A log call reserves a record of its own
//! and wakes the reader, so no shipped object has one.

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &Record<'_>) {
        eprintln!("probe {} {}: {}", record.level(), record.target(), record.args());
    }
    fn flush(&self) {}
}

/// Reads the AYA_LOGS ring; `None` when the object has no log lines in it.
pub(super) struct ProbeLog(Option<EbpfLogger<Stderr>>);

impl ProbeLog {
    pub(super) fn new(ebpf: &mut Ebpf) -> Self {
        ProbeLog(EbpfLogger::init_with_logger(ebpf, Stderr).ok())
    }

    pub(super) fn print(&mut self) {
        if let Some(logger) = &mut self.0 {
            logger.flush();
        }
    }
}
