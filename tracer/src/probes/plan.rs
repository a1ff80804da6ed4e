//! What is attached and why. One row per hook of [`why502_ebpf::names::HOOKS`], in their order.

use why502_ebpf::names::{At, HOOKS, hook};

/// One hook as the product needs it.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Counter row, and index in [`HOOKS`].
    pub hook: u32,
    /// Without it no verdict can be trusted: why502 refuses to start.
    pub required: bool,
    /// What it is for.
    pub why: &'static str,
    /// What is lost when it is not attached.
    pub lost_without: &'static str,
    /// Another hook shows the same: this one is for kernels where that one cannot be attached, and only when asked for.
    pub fallback_of: Option<u32>,
}

impl Row {
    /// Name of the program, its counters and the tracepoint or function; what users see.
    pub fn name(&self) -> &'static str {
        HOOKS[self.hook as usize].name
    }

    pub fn at(&self) -> At {
        HOOKS[self.hook as usize].at
    }
}

const fn need(hook: u32, why: &'static str, lost_without: &'static str) -> Row {
    Row { hook, required: true, why, lost_without, fallback_of: None }
}

const fn want(hook: u32, why: &'static str, lost_without: &'static str) -> Row {
    Row { hook, required: false, why, lost_without, fallback_of: None }
}

const fn instead(hook: u32, of: u32, why: &'static str, lost_without: &'static str) -> Row {
    Row { hook, required: false, why, lost_without, fallback_of: Some(of) }
}

/// The plan. Process hooks come first, so that nobody is unknown whose socket is reported.
pub const PLAN: &[Row] = &[
    need(hook::SIGNAL_GENERATE, "who sent which signal to whom", "every chain that begins with a signal"),
    want(
        hook::SIGNAL_DELIVER,
        "when a signal took effect, and whether it was handled",
        "the time between a signal and its effect",
    ),
    need(hook::SCHED_PROCESS_FORK, "a process's parent", "roles of processes younger than why502"),
    need(hook::SCHED_PROCESS_EXEC, "what a process runs", "roles of processes younger than why502"),
    need(hook::SCHED_PROCESS_EXIT, "when a process died, and how", "crashes and the end of a stop"),
    need(hook::INET_SOCK_SET_STATE, "how connections and listeners close", "every unanswered request"),
    need(hook::TCP_SEND_RESET, "refused connections, late data, dropped accept queues", "every refused request"),
    need(
        hook::TCP_RECEIVE_RESET,
        "resets by the other side",
        "the difference between a client that gave up and a server that did",
    ),
    want(hook::TCP_RETRANSMIT_SKB, "connections that nobody answers", "SYNs dropped by a full accept queue"),
    want(hook::MARK_VICTIM, "choices of the OOM killer", "the difference between an OOM kill and another SIGKILL"),
    want(
        hook::KFREE_SKB,
        "requests and connections that a closing AF_UNIX server throws away",
        "every request over a unix socket that its server did not answer",
    ),
    want(
        hook::UNIX_STREAM_CONNECT,
        "connects to AF_UNIX servers that fail",
        "connects to a unix socket that nobody accepts: no such path, nobody listens, a full accept queue",
    ),
    instead(
        hook::SYS_EXIT,
        hook::UNIX_STREAM_CONNECT,
        "the same from the end of connect(2), which costs every system call of the node",
        "nothing that unix_stream_connect does not show",
    ),
    want(
        hook::NGX_LOG,
        "what nginx itself says of a failure",
        "nginx's own reason for a 502: kernel facts stand alone",
    ),
    want(
        hook::NGX_ERROR_PAGE,
        "the 5xx that nginx makes itself",
        "the status that nginx answered: it is only said when a log tells",
    ),
];

const _: () = {
    assert!(PLAN.len() == HOOKS.len());
    let mut i = 0;
    while i < PLAN.len() {
        assert!(PLAN[i].hook as usize == i);
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hooks_without_which_verdicts_lie_are_required() {
        let required: Vec<&str> = PLAN.iter().filter(|r| r.required).map(Row::name).collect();
        for name in ["signal_generate", "inet_sock_set_state", "tcp_send_reset", "tcp_receive_reset"] {
            assert!(required.contains(&name), "{name}");
        }
        // fexit is not there on every kernel, uprobes not with every right.
        assert!(PLAN.iter().all(|r| r.at() == At::Tracepoint || !r.required));
        assert!(PLAN.iter().all(|r| !r.why.is_empty() && !r.lost_without.is_empty()));
    }
}
