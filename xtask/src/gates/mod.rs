//! What may not leave this house: code that a kernel's verifier accepts and that panics the node all the same.
//!
//! Two such panics were reproduced:
//! - **Linux 5.10**: a program with a bpf-to-bpf call that takes a fault in a typed load. The main program has
//!   `num_exentries` but a NULL extable, `search_bpf_extables` reads through it. rustc makes such calls by itself:
//!   zero-filling 48 bytes becomes `call memset`. Gate: [`object`].
//! - **Linux 6.12 to 7.1**: a typed load through `signal_generate`'s siginfo, which may be the constants 0 or 1
//!   (SEND_SIG_NOINFO, SEND_SIG_PRIV). The verifier takes it as a trusted pointer and emits no exception table.
//!   Gate: [`source`].

pub(crate) mod object;
pub(crate) mod source;
