//! The `xtent` command.
//!
//! Layer 7: parses, prints, decides exit codes. The work is done in the library.
#![forbid(unsafe_code)]

mod bench;
mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
