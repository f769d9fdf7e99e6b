//! `xtent touch`.

use clap::{Args, ValueEnum};
use xtent::ErrorKind;
use xtent::volume::{Io, SetTime, Timestamp, Volume};

use super::changing::{not_created, with_volume};
use super::failure::{Failure, Failures, check_interrupted};
use super::touch_time::{date, stamp};
use super::{TargetArg, VolumePath};

#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Dates and stamps are in the time zone of this host (TZ), unless they name one. xtent cannot create \
    files yet: a file that is missing is an error, or is skipped with --no-create. The changes are durable when \
    xtent ends.\n\n\
    Examples: xtent touch disk.img /data/file\n          \
    xtent touch -d '2026-11-28 12:00 UTC' disk.img /data/file"
)]
pub(super) struct TouchArgs {
    #[command(flatten)]
    target: TargetArg,
    /// The files in the volume
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<VolumePath>,
    /// Change only the time of the last access
    #[arg(short = 'a')]
    access: bool,
    /// Change only the time of the last change of the content
    #[arg(short = 'm')]
    modification: bool,
    /// As -a or -m
    #[arg(long, value_name = "WORD")]
    time: Option<TimeWord>,
    /// Skip files that are missing
    #[arg(short = 'c', long)]
    no_create: bool,
    /// Change symbolic links themselves
    #[arg(short = 'h', long)]
    no_dereference: bool,
    /// Use this time instead of now, such as '2026-11-28 12:00', 'yesterday' or @SECONDS; with
    /// --reference, relative to the times of that file
    #[arg(
        short = 'd',
        long,
        value_name = "STRING",
        allow_hyphen_values = true,
        conflicts_with = "stamp"
    )]
    date: Option<String>,
    /// Use this time instead of now: [[CC]YY]MMDDhhmm[.ss]
    #[arg(short = 't', value_name = "STAMP", conflicts_with = "reference")]
    stamp: Option<String>,
    /// Use the times of this file of the volume
    #[arg(short = 'r', long, value_name = "PATH")]
    reference: Option<VolumePath>,
    /// Ignored, as by coreutils
    #[arg(short = 'f', hide = true)]
    ignored: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TimeWord {
    #[value(aliases = ["atime", "use"])]
    Access,
    #[value(alias = "mtime")]
    Modify,
}

impl TouchArgs {
    /// Whether the times of access and of modification are set.
    fn which(&self) -> (bool, bool) {
        let access = self.access || self.time == Some(TimeWord::Access);
        let modification = self.modification || self.time == Some(TimeWord::Modify);
        match (access, modification) {
            (false, false) => (true, true),
            which => which,
        }
    }

    /// The time that the command line gives, without a reference.
    fn given(&self) -> Result<SetTime, Failure> {
        let time = match (&self.date, &self.stamp) {
            (Some(text), _) => date(text, None)?,
            (_, Some(text)) => stamp(text)?,
            _ => return Ok(SetTime::Now),
        };
        Ok(SetTime::At(time))
    }
}

pub(super) fn run(args: &TouchArgs) -> Result<(), Failure> {
    // A date that cannot be parsed is an error before the volume is opened.
    let given = args.given()?;
    with_volume(&args.target, |volume| {
        let mut io = volume.io()?;
        let (accessed, modified) = match &args.reference {
            None => (given, given),
            Some(path) => of_reference(args, volume, &mut io, path)?,
        };
        let (sets_accessed, sets_modified) = args.which();
        let accessed = sets_accessed.then_some(accessed);
        let modified = sets_modified.then_some(modified);
        let mut failures = Failures::default();
        for path in &args.paths {
            check_interrupted()?;
            let result = match args.no_dereference {
                true => volume.set_symlink_times(&mut io, path, accessed, modified),
                false => volume.set_times(&mut io, path, accessed, modified),
            };
            match result {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound && args.no_create => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    failures.note(not_created(&error))?;
                }
                Err(error) => failures.note(error)?,
            }
        }
        failures.result()
    })
}

/// The times of a reference file, or relative to them.
fn of_reference(
    args: &TouchArgs,
    volume: &Volume,
    io: &mut Io,
    path: &VolumePath,
) -> Result<(SetTime, SetTime), Failure> {
    let file = match args.no_dereference {
        true => volume.symlink_metadata(io, path)?,
        false => volume.metadata(io, path)?,
    };
    let time = |of: Timestamp| match &args.date {
        Some(text) => date(text, Some(of)).map(SetTime::At),
        None => Ok(SetTime::At(of)),
    };
    Ok((time(file.atime)?, time(file.mtime)?))
}
