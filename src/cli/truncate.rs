//! `xtent truncate`.

use clap::Args;
use xtent::ErrorKind;
use xtent::volume::{Io, OpenOptions, Volume};

use super::changing::{not_created, with_volume};
use super::failure::{Failure, Failures, OPERATION, check_interrupted};
use super::{TargetArg, VolumePath};

#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("length").required(true).multiple(true).args(["size", "reference"]),
    after_help = "SIZE is a number of bytes, with K, M, G, ... for powers of 1024 or KB, MB, ... for powers of 1000. \
    Before it: + extends, - shortens, < sets at most, > sets at least, / rounds down to a multiple, % rounds up. \
    A file that becomes longer has a hole there. xtent cannot create files yet: a file that is missing is an \
    error, or is skipped with --no-create. The changes are durable when xtent ends.\n\n\
    Example: xtent truncate -s 1G disk.img /data/file"
)]
pub(super) struct TruncateArgs {
    #[command(flatten)]
    target: TargetArg,
    /// The files in the volume
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<VolumePath>,
    /// Set or change the length
    #[arg(short = 's', long, value_name = "SIZE", value_parser = Length::parse, allow_hyphen_values = true)]
    size: Option<Length>,
    /// Take the length of this file of the volume; a SIZE changes it then
    #[arg(short = 'r', long, value_name = "PATH")]
    reference: Option<VolumePath>,
    /// Skip files that are missing
    #[arg(short = 'c', long)]
    no_create: bool,
    /// SIZE counts blocks of the filesystem instead of bytes
    #[arg(short = 'o', long, requires = "size")]
    io_blocks: bool,
}

/// A length, or a change of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Exactly(u64),
    Extend(u64),
    Reduce(u64),
    AtMost(u64),
    AtLeast(u64),
    RoundDown(u64),
    RoundUp(u64),
}

impl Length {
    fn parse(text: &str) -> Result<Self, String> {
        let make = match text.chars().next() {
            Some('+') => Self::Extend,
            Some('-') => Self::Reduce,
            Some('<') => Self::AtMost,
            Some('>') => Self::AtLeast,
            Some('/') => Self::RoundDown,
            Some('%') => Self::RoundUp,
            _ => return super::sizes::bytes(text).map(Self::Exactly),
        };
        let length = make(super::sizes::bytes(&text[1..])?);
        match length {
            Self::RoundDown(0) | Self::RoundUp(0) => Err("a multiple of 0".to_owned()),
            length => Ok(length),
        }
    }

    /// The new length of a file; `None` when it would be too large. A size counts units of so many
    /// bytes.
    fn of(self, now: u64, unit: u64) -> Option<u64> {
        let bytes = |size: u64| size.checked_mul(unit);
        Some(match self {
            Self::Exactly(size) => bytes(size)?,
            Self::Extend(size) => now.checked_add(bytes(size)?)?,
            Self::Reduce(size) => now.saturating_sub(bytes(size)?),
            Self::AtMost(size) => now.min(bytes(size)?),
            Self::AtLeast(size) => now.max(bytes(size)?),
            Self::RoundDown(size) => now - now % bytes(size)?,
            Self::RoundUp(size) => now.checked_next_multiple_of(bytes(size)?)?,
        })
    }

    fn is_relative(self) -> bool {
        !matches!(self, Self::Exactly(_))
    }
}

pub(super) fn run(args: &TruncateArgs) -> Result<(), Failure> {
    if args.reference.is_some() && args.size.is_some_and(|size| !size.is_relative()) {
        return Err(Failure::usage(
            "with --reference, --size must change the length (+, -, <, >, / or %)",
        ));
    }
    with_volume(&args.target, |volume| {
        let mut io = volume.io()?;
        let reference = match &args.reference {
            Some(path) => Some(volume.metadata(&mut io, path)?.len_bytes),
            None => None,
        };
        let mut failures = Failures::default();
        for path in &args.paths {
            check_interrupted()?;
            match truncate(args, volume, &mut io, path, reference) {
                Ok(()) => {}
                Err(failure) => failures.note(failure)?,
            }
        }
        failures.result()
    })
}

fn truncate(
    args: &TruncateArgs,
    volume: &Volume,
    io: &mut Io,
    path: &VolumePath,
    reference: Option<u64>,
) -> Result<(), Failure> {
    let file = match OpenOptions::new().write(true).open(volume, io, path) {
        Err(error) if error.kind() == ErrorKind::NotFound && args.no_create => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(not_created(&error)),
        opened => opened?,
    };
    let unit = match args.io_blocks {
        true => u64::from(file.metadata().block_bytes),
        false => 1,
    };
    let base = reference.unwrap_or_else(|| file.len());
    let length = match args.size {
        Some(size) => size.of(base, unit),
        None => Some(base),
    };
    let Some(length) = length else {
        let text = format!("{}: the length would be too large", path.display());
        return Err(Failure::new(OPERATION, text));
    };
    Ok(file.set_len(io, length)?)
}

#[cfg(test)]
mod tests {
    use super::Length;

    #[test]
    fn lengths_as_coreutils_write_them() {
        let of = |text: &str, now: u64| Length::parse(text).unwrap().of(now, 1);
        assert_eq!(of("4K", 5), Some(4096));
        assert_eq!(of("+4K", 5), Some(4101));
        assert_eq!(of("-4K", 5), Some(0));
        assert_eq!(of("<100", 500), Some(100));
        assert_eq!(of(">100", 500), Some(500));
        assert_eq!(of("/100", 550), Some(500));
        assert_eq!(of("%100", 550), Some(600));
        assert_eq!(Length::parse("2").unwrap().of(0, 4096), Some(8192));
        assert_eq!(of("+1", u64::MAX), None);
        for wrong in ["", "+", "x", "/0", "%0", "--1"] {
            assert!(Length::parse(wrong).is_err(), "{wrong}");
        }
    }
}
