//! A real OpenTelemetry collector, Rotel, that prints what it gets. The live tests use it as well (tests/tests/otlp.rs).

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// Where `cargo xtask setup` brought it, or in the path.
pub(crate) fn find() -> Option<PathBuf> {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent()?.join("rotel/rotel/rotel-agent");
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let named = std::env::split_paths(&paths).map(|dir| dir.join("rotel-agent"));
    [target].into_iter().chain(named).find(|path| path.is_file())
}

/// Not by println!: that is not seen of a test that passes.
pub(crate) fn skipped(name: &str) {
    let why = "no rotel-agent here; `cargo xtask setup --for ci` brings it (PyPI: rotel)";
    let _ = writeln!(std::io::stderr(), "skipped: {name}: {why}");
}

/// Where nobody listens, and where no other test takes the port before the collector does.
pub(crate) fn free_address() -> String {
    TcpListener::bind("127.43.18.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Killed with -9 on drop.
pub(crate) struct Collector {
    child: Child,
    pub(crate) address: String,
    lines: mpsc::Receiver<String>,
    /// All that it printed and was waited for.
    pub(crate) said: String,
}

impl Collector {
    /// Listens there.
    pub(crate) fn start(path: &Path, address: &str) -> Collector {
        let mut child = Command::new(path)
            .args(["start", "--otlp-http-endpoint", address, "--otlp-grpc-endpoint", &free_address()])
            .args(["--exporter", "blackhole", "--disable-batching", "--debug-log", "logs"])
            .args(["--debug-log-verbosity", "detailed"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (told, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| told.send(line)));
        let collector = Collector { child, address: address.to_owned(), lines, said: String::new() };
        let start = Instant::now();
        while TcpStream::connect(&collector.address).is_err() {
            assert!(start.elapsed() < PATIENCE, "the collector does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        collector
    }

    /// Until all of these were printed.
    pub(crate) fn until<S: AsRef<str>>(&mut self, wanted: &[S]) {
        let start = Instant::now();
        while let Some(missing) = wanted.iter().map(AsRef::as_ref).find(|text| !self.said.contains(*text)) {
            match self.lines.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
                Ok(line) => self.said.extend([&*line, "\n"]),
                Err(e) => panic!("no {missing:?} ({e}) in\n{}", self.said),
            }
        }
    }
}

/// A test that waits for each text needs no more than [`Collector::until`].
#[allow(dead_code, reason = "the live tests alone ask what else came")]
impl Collector {
    /// Kills it: all that it ever printed.
    pub(crate) fn end(mut self) -> String {
        let _ = self.child.kill();
        let mut said = std::mem::take(&mut self.said);
        self.lines.iter().for_each(|line| said.extend([&*line, "\n"]));
        said
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
