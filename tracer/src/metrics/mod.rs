//! Metrics in Prometheus' text format. One table says what there is; docs/metrics.md, the dashboard and the alert rules
//! are checked against it.

pub mod own;
pub mod tally;
pub mod text;

pub use tally::Tally;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Counter,
    Gauge,
}

/// One family. Names by Prometheus' conventions: base units, counters end in `_total`.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Type,
    pub labels: &'static [&'static str],
    /// One sentence, without a line end.
    pub help: &'static str,
}

/// The table's rows are constants and its own list: a family that is not in [`ALL`] cannot be made.
macro_rules! metrics {
    ($($id:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub const $id: Metric =
            Metric { name: $name, kind: Type::$kind, labels: &[$($label),*], help: $help };)*
        /// All of them, in the order in which they are served.
        pub const ALL: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    BUILD_INFO = Gauge "why502_build_info" ["version", "kernel", "node"]
        "Always 1; which why502 runs on which kernel and node.";
    READY = Gauge "why502_ready" []
        "1 once all probes are attached and the scan at the start is done.";
    INPUT_AGE = Gauge "why502_input_age_seconds" []
        "Since the pipeline last moved; it does several times a second, also on an idle node.";
    LOST_REQUESTS = Counter "why502_lost_requests_total" ["cause", "mechanism", "trigger", "namespace", "workload"]
        "Requests that a server lost, a lower bound where one connection can carry several unseen.";
    OTHER_REQUESTS = Counter "why502_not_the_server_total" ["cause"]
        "Requests that ended without an answer by no fault of the server: client aborts, edge timeouts and the like.";
    STOPS = Counter "why502_stops_total" ["trigger", "server", "namespace", "workload"]
        "Terminations of containers that ran nginx or php-fpm.";
    STOPS_LOSSY = Counter "why502_lossy_stops_total" ["trigger", "server", "namespace", "workload"]
        "Those of why502_stops_total that lost at least one request.";
    OVERFLOW = Counter "why502_series_overflow_total" []
        "Additions to series with the label _other, made when there were too many namespaces, workloads or series.";
    SIGNALS = Counter "why502_signals_total" ["signal"]
        "Signals that were generated for watched processes.";
    RESETS = Counter "why502_resets_total" ["direction"]
        "TCP resets that were sent and received by sockets of this node.";
    ANSWERED = Counter "why502_answered_connections_total" []
        "Connections that ended with their last answer sent, counted in the kernel.";
    EVENTS = Counter "why502_events_total" ["kind"]
        "Events that the kernel reported.";
    LOSS = Counter "why502_loss_total" ["hook", "kind"]
        "What was not seen: records that did not fit, runs that the kernel skipped, facts that were dropped.";
    PROBE = Gauge "why502_probe_status" ["hook", "status"]
        "1 for the status that a probe has: attached, skipped (not wanted or not possible here) or failed.";
    DEGRADED = Gauge "why502_degraded" ["id"]
        "1 for each thing that this kernel or host does not give; docs/events.md lists the ids.";
    PROBE_HITS = Counter "why502_probe_hits_total" ["hook"]
        "Runs of a probe.";
    PROBE_RECORDS = Counter "why502_probe_records_total" ["hook"]
        "Records that a probe sent up.";
    PROBE_SECONDS = Counter "why502_probe_run_seconds_total" ["hook"]
        "Time that a probe took; absent unless the kernel's statistics are on (--bpf-stats, or sysctl kernel.bpf_stats_enabled).";
    SOURCE = Gauge "why502_source_up" ["source"]
        "1 while a container runtime or a resource of the Kubernetes API can be asked.";
    STORE_OK = Gauge "why502_store_ok" []
        "0 while incidents cannot be written to the disk; they wait in memory then.";
    STORE_WRITTEN = Counter "why502_store_written_total" []
        "Incidents and stops that are safe on the disk.";
    STORE_WAITING = Gauge "why502_store_waiting" []
        "Incidents and stops that wait for the disk.";
    STORE_DROPPED = Counter "why502_store_dropped_total" []
        "Incidents and stops that were lost because too many waited for the disk.";
    STORE_SKIPPED = Counter "why502_store_skipped_total" []
        "Incidents and stops that were not kept because their container had more than 5000 in an hour.";
    STORE_FAILURES = Counter "why502_store_failures_total" []
        "Tries at writing to the disk that failed.";
    STORE_DAMAGED = Gauge "why502_store_damaged_lines" []
        "Lines of the newest file that were found damaged at the start.";
    STORE_BYTES = Gauge "why502_store_bytes" []
        "Size of the store.";
    STORE_FIRST = Gauge "why502_store_first_sequence" []
        "Number of the oldest record that can be there.";
    STORE_LAST = Gauge "why502_store_last_sequence" []
        "Number of the newest record.";
    EXPORT_OK = Gauge "why502_export_ok" ["to"]
        "0 while what goes to a server elsewhere (Kubernetes Events, OTLP) cannot be delivered; it waits in memory then.";
    EXPORT_SENT = Counter "why502_export_sent_total" ["to"]
        "Events and log records that a server elsewhere has taken.";
    EXPORT_WAITING = Gauge "why502_export_waiting" ["to"]
        "Events and log records that wait for a server elsewhere.";
    EXPORT_FAILURES = Counter "why502_export_failures_total" ["to"]
        "Tries at a delivery that failed and are made again.";
    EXPORT_DROPPED = Counter "why502_export_dropped_total" ["to", "reason"]
        "What a server elsewhere never got: too many waited (queue), it did not want them (refused), bounded (rate), a pod without a name (unnamed).";
    HTTP_REQUESTS = Counter "why502_http_requests_total" ["route", "code"]
        "Requests to why502's own HTTP server.";
    HTTP_CONNECTIONS = Gauge "why502_http_connections" []
        "Open connections to why502's own HTTP server.";
    HTTP_REFUSED = Counter "why502_http_refused_total" ["reason"]
        "Connections and streams that were turned away because there were too many.";
    CPU = Counter "process_cpu_seconds_total" []
        "User and system time of this process; the probes' time is not in it.";
    MEMORY = Gauge "process_resident_memory_bytes" []
        "Memory of this process.";
    FDS = Gauge "process_open_fds" []
        "Open file descriptors of this process.";
    START = Gauge "process_start_time_seconds" []
        "When this process was started, since 1970.";
}
