//! `--unix-connect`: how failed connects to AF_UNIX servers are seen.

use crate::model::input::{Degraded, HookState, HookStatus};
use why502_ebpf::names::{HOOKS, hook};

/// How failed connects to AF_UNIX servers are seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum UnixConnect {
    /// At the end of unix_stream_connect(), where this kernel can trace functions; else not at all
    #[default]
    Auto,
    /// At the end of every system call, on any kernel: costs every process of the node
    Syscalls,
    /// Not at all
    Off,
}

impl UnixConnect {
    /// The hooks that are left out, and why.
    pub(super) fn unwanted(self) -> &'static [(u32, &'static str)] {
        const OFF: &str = "--unix-connect off";
        match self {
            UnixConnect::Auto => &[(
                hook::SYS_EXIT,
                "only with --unix-connect syscalls: it costs every system call of the node about 0.1 µs",
            )],
            UnixConnect::Syscalls => &[(hook::UNIX_STREAM_CONNECT, "--unix-connect syscalls takes sys_exit instead")],
            UnixConnect::Off => &[(hook::UNIX_STREAM_CONNECT, OFF), (hook::SYS_EXIT, OFF)],
        }
    }

    /// What it leaves unseen, or costs.
    pub(super) fn degraded(self, hooks: &[HookStatus]) -> Option<Degraded> {
        let attached = |hook: u32| {
            let name = HOOKS[hook as usize].name;
            hooks.iter().any(|s| s.hook == name && s.state == HookState::Attached)
        };
        const UNSEEN: &str = "failed connects to unix sockets (php-fpm is gone, or its queue is full) are not seen";
        let (id, text) = if attached(hook::SYS_EXIT) {
            let text = "failed connects to unix sockets are seen at the end of system calls: each one of every process \
                        of this node takes about 0.1 µs longer";
            ("unix-connect-syscalls", text.to_owned())
        } else if attached(hook::UNIX_STREAM_CONNECT) {
            return None;
        } else if self == UnixConnect::Auto {
            let text = format!(
                "{UNSEEN}: this kernel cannot trace unix_stream_connect(). --unix-connect syscalls sees them, and costs \
                 every system call of the node about 0.1 µs"
            );
            ("no-unix-connect", text)
        } else {
            ("no-unix-connect", UNSEEN.to_owned())
        };
        Some(Degraded { id: id.to_owned(), text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unseen_or_costs_is_said() {
        let hooks = |attached: &[u32]| -> Vec<HookStatus> {
            let state = |n: usize| match attached.contains(&(n as u32)) {
                true => HookState::Attached,
                false => HookState::Skipped { why: String::new() },
            };
            HOOKS.iter().enumerate().map(|(n, h)| HookStatus { hook: h.name.to_owned(), state: state(n) }).collect()
        };
        let said = |how: UnixConnect, attached: &[u32]| how.degraded(&hooks(attached)).map(|d| d.id);
        assert_eq!(said(UnixConnect::Auto, &[hook::UNIX_STREAM_CONNECT]), None);
        assert_eq!(said(UnixConnect::Auto, &[]).as_deref(), Some("no-unix-connect"));
        assert_eq!(said(UnixConnect::Off, &[]).as_deref(), Some("no-unix-connect"));
        assert_eq!(said(UnixConnect::Syscalls, &[hook::SYS_EXIT]).as_deref(), Some("unix-connect-syscalls"));
        assert!(UnixConnect::Auto.degraded(&hooks(&[])).is_some_and(|d| d.text.contains("--unix-connect syscalls")));
    }
}
