//! `xtent man` and `xtent completions`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::failure::Failure;
use super::{Cli, LocalPath};

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Where to write them: xtent.1, xtent-ls.1, ...; made when missing
    #[arg(value_name = "DIR")]
    dir: LocalPath,
}

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    let failed = |error| Failure::local("cannot write the man pages to", &args.dir, error);
    std::fs::create_dir_all(&args.dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.dir).map_err(failed)
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "xtent", &mut text);
    std::io::Write::write_all(&mut std::io::stdout(), &text)?;
    Ok(())
}
