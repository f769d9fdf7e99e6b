//! What `chmod`, `chown` and `touch` share: the volume, options and reports.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use serde_json::{Map, Value};
use xtent::target::ControllerMode;
use xtent::volume::{Io, Metadata, MountOptions, Volume};

use super::failure::{Failure, Failures, OPERATION, check_interrupted};
use super::output::{RawOut, put_name};
use super::walk::{Follow, Go, TreeWalk, WalkEntry};
use super::{TargetArg, VolumePath};
use crate::bench::terminal::TextOut;

/// Options of chmod and chown.
#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    /// Change files and directories recursively
    #[arg(short = 'R', long)]
    pub(super) recursive: bool,
    /// Print a line for every file
    #[arg(short, long, overrides_with = "changes")]
    verbose: bool,
    /// Print a line for every file that changes
    #[arg(short, long, overrides_with = "verbose")]
    changes: bool,
    /// Print no messages about files that cannot be changed; the exit status stays the same, and
    /// errors of the device and a corrupt filesystem are reported
    #[arg(short = 'f', long = "silent", visible_alias = "quiet")]
    silent: bool,
    /// Print JSON: an array with one object for each file that was changed; with --changes only
    /// those that are different now
    #[arg(long)]
    json: bool,
    /// Refuse to work on `/` recursively
    #[arg(long, overrides_with = "no_preserve_root")]
    preserve_root: bool,
    /// Work on `/` like on any other directory (the default)
    #[arg(long, overrides_with = "preserve_root")]
    no_preserve_root: bool,
}

/// Target and files, where an option may stand in for the first word.
pub(super) struct ChangeWords<'a> {
    /// The mode, or the owner; `None` with --reference.
    pub(super) change: Option<&'a OsStr>,
    pub(super) target: TargetArg,
    pub(super) paths: Vec<&'a VolumePath>,
}

impl<'a> ChangeWords<'a> {
    /// From the words of the command line: the first one is the change, unless there is a
    /// reference.
    pub(super) fn of(
        (first, second): (&'a OsString, &'a OsString),
        rest: &'a [VolumePath],
        has_reference: bool,
    ) -> Result<Self, Failure> {
        let (change, target, path) = match has_reference {
            false => (Some(&**first), second, None),
            true => (None, first, Some(second)),
        };
        let Some(target) = target.to_str() else {
            return Err(Failure::usage("the target is not UTF-8"));
        };
        Ok(Self {
            change,
            target: TargetArg {
                target: target.to_owned(),
            },
            paths: path.into_iter().chain(rest).collect(),
        })
    }
}

/// Opens the volume for `work` and closes it, which makes the changes durable: also those before a
/// failure or an interruption.
pub(super) fn with_volume(
    target: &TargetArg,
    work: impl FnOnce(&Volume) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let options = super::copying().controller(ControllerMode::Inline);
    let volume = target.open(&options, &MountOptions::new())?;
    let result = work(&volume);
    super::events::tell(&volume);
    match volume.close() {
        Ok(()) => result,
        Err(error) => {
            if let Err(failure) = result {
                failure.told();
            }
            // The status of the close: changes may be lost.
            Err(Failure::from(error).told())
        }
    }
}

/// Of touch and truncate: a file that is missing, which they would create.
pub(super) fn not_created(error: &xtent::Error) -> Failure {
    let text =
        format!("{error}: creating files is not possible yet (--no-create skips missing files)");
    Failure::new(OPERATION, text)
}

/// What a change did to a file, or would have done.
pub(super) struct ChangeReport<'a> {
    pub(super) path: &'a [u8],
    /// As for coreutils' -v.
    pub(super) line: String,
    pub(super) is_changed: bool,
    /// What JSON has of it; `None` for a file that was not changed.
    pub(super) json: Option<Value>,
}

/// The output of chmod and chown.
pub(super) struct ChangeOut<'a> {
    args: &'a ChangeArgs,
    out: TextOut<RawOut>,
    objects: Vec<Value>,
}

impl<'a> ChangeOut<'a> {
    pub(super) fn new(args: &'a ChangeArgs) -> Result<Self, Failure> {
        Ok(Self {
            args,
            out: super::output::text_stdout()?,
            objects: Vec::new(),
        })
    }

    pub(super) fn report(&mut self, report: ChangeReport<'_>) -> Result<(), Failure> {
        let is_wanted = self.args.verbose || self.args.changes && report.is_changed;
        if !self.args.json {
            if is_wanted {
                writeln!(self.out, "{}", report.line)?;
            }
            return Ok(());
        }
        if let Some(Value::Object(fields)) = report.json
            && (is_wanted || !self.args.changes)
        {
            let mut object = Map::new();
            put_name(&mut object, "path", report.path);
            object.extend(fields);
            object.insert("changed".into(), report.is_changed.into());
            self.objects.push(Value::Object(object));
        }
        Ok(())
    }

    /// To be called at the end, also after a failure.
    fn finish(mut self) -> Result<(), Failure> {
        self.out.flush()?;
        if self.args.json {
            super::output::print_json(&Value::Array(self.objects))?;
        }
        Ok(())
    }
}

/// A change of one file.
pub(super) trait FileChange {
    /// Changes the file and reports it.
    fn change(
        &self,
        io: &mut Io,
        file: &WalkEntry<'_>,
        out: &mut ChangeOut<'_>,
        failures: &mut Failures,
    ) -> Result<(), Failure>;

    /// A directory is changed after the files in it, as chown does.
    const AFTER_ENTRIES: bool;

    /// The words of -v for a file that is not there.
    fn cannot_access(&self, name: &str) -> String;
}

/// Changes files, or trees.
pub(super) fn change_all(
    volume: &Volume,
    args: &ChangeArgs,
    follow: Follow,
    paths: &[&VolumePath],
    change: &impl FileChange,
) -> Result<(), Failure> {
    let mut out = ChangeOut::new(args)?;
    let mut walk = TreeWalk {
        follow,
        ..TreeWalk::new(volume)?
    };
    if args.silent {
        walk.failures = Failures::silent();
    }
    let result = change_paths(args, paths, change, &mut walk, &mut out);
    let finished = out.finish();
    result.and(finished).and(walk.failures.result())
}

fn change_paths<C: FileChange>(
    args: &ChangeArgs,
    paths: &[&VolumePath],
    change: &C,
    walk: &mut TreeWalk<'_>,
    out: &mut ChangeOut<'_>,
) -> Result<(), Failure> {
    let root = match args.preserve_root && args.recursive {
        true => Some(walk.volume.metadata(&mut walk.io, "/")?.ino),
        false => None,
    };
    for path in paths {
        check_interrupted()?;
        let path = path.as_encoded_bytes();
        let mut is_seen = false;
        walk.tree(path, &mut |io, failures, file| {
            is_seen = true;
            if root == Some(file.metadata.ino) {
                failures.note(is_root(file))?;
                return Ok(Go::On);
            }
            if !args.recursive || !file.metadata.is_dir() {
                change.change(io, file, out, failures)?;
                return Ok(Go::On);
            }
            if file.after == C::AFTER_ENTRIES {
                change.change(io, file, out, failures)?;
            }
            Ok(Go::Down)
        })?;
        if !is_seen {
            out.report(ChangeReport {
                path,
                line: change.cannot_access(&super::quoting::quoted(path)),
                is_changed: false,
                json: None,
            })?;
        }
    }
    Ok(())
}

fn is_root(file: &WalkEntry<'_>) -> Failure {
    let path = file.node.path().escape_ascii().to_string();
    let text = format!("{path}: is the root directory, and is left as it is (--preserve-root)");
    Failure::new(OPERATION, text)
}

/// Metadata of a reference file, to which links lead.
pub(super) fn reference(
    volume: &Volume,
    path: Option<&VolumePath>,
) -> Result<Option<Metadata>, Failure> {
    let Some(path) = path else {
        return Ok(None);
    };
    let mut io = volume.io()?;
    Ok(Some(volume.metadata(&mut io, path)?))
}

/// The path of a file in the walk, for the calls that take one.
pub(super) fn path_of(path: &[u8]) -> &OsStr {
    OsStr::from_bytes(path)
}
