//! The command line of why502. See `why502 --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    why502::cli::main()
}
