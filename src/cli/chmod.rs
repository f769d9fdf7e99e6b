//! `xtent chmod`.

use std::ffi::OsString;

use clap::Args;
use serde_json::json;
use xtent::internals::sys::umask;
use xtent::volume::{Io, Volume};

use super::VolumePath;
use super::changing::{
    ChangeArgs, ChangeOut, ChangeReport, ChangeWords, FileChange, change_all, path_of, reference,
    with_volume,
};
use super::failure::{Failure, Failures, OPERATION};
use super::file_mode::{ALL, ModeChange};
use super::output::permissions_text;
use super::quoting::quoted;
use super::tree::TreeNode;
use super::walk::{Follow, WalkEntry};

#[derive(Debug, Args)]
#[command(
    override_usage = "xtent chmod [OPTIONS] MODE TARGET PATH...\n       \
                      xtent chmod [OPTIONS] --reference PATH TARGET PATH...",
    after_help = "MODE is octal, or [ugoa]*([-+=]([rwxXst]*|[ugo]|[0-7]+))+ with commas between several, as \
    for coreutils' chmod. The umask of xtent counts where no class is named (+w).\n\n\
    A symbolic link that is named is followed; one that is found in a directory is left alone. The changes \
    are durable when xtent ends.\n\n\
    Example: xtent chmod -R u=rwX,go=rX disk.img /srv"
)]
pub(super) struct ChmodArgs {
    /// The mode, such as 640 or u=rw,go-w
    #[arg(value_name = "MODE", allow_hyphen_values = true)]
    first: OsString,
    /// The target, such as image:disk.img (see `xtent --help`)
    #[arg(value_name = "TARGET")]
    second: OsString,
    /// The files in the volume
    #[arg(value_name = "PATH", required_unless_present = "reference")]
    rest: Vec<VolumePath>,
    #[command(flatten)]
    change: ChangeArgs,
    /// Use the mode of this file of the volume
    #[arg(long, value_name = "PATH")]
    reference: Option<VolumePath>,
}

pub(super) fn run(args: &ChmodArgs) -> Result<(), Failure> {
    let words = ChangeWords::of(
        (&args.first, &args.second),
        &args.rest,
        args.reference.is_some(),
    )?;
    let text = words.change.map(|mode| mode.to_string_lossy().into_owned());
    let mode = text.as_deref().map(|text| {
        ModeChange::parse(text).ok_or_else(|| {
            Failure::usage(format!(
                "invalid mode {}: give an octal one up to 7777, or one as u=rw,go-w",
                quoted(text.as_bytes())
            ))
        })
    });
    let mode = mode.transpose()?;
    with_volume(&words.target, |volume| {
        let reference = reference(volume, args.reference.as_ref())?;
        let chmod = Chmod {
            volume,
            mode: match (mode, reference) {
                (Some(mode), _) => mode,
                (None, reference) => ModeChange::to(reference.map_or(0, |file| file.mode)),
            },
            umask: umask(),
            // `-w` as an option says less than it seems to, with a umask.
            explains: text.is_some_and(|text| text.starts_with('-')) && !is_after_dashes(),
        };
        change_all(volume, &args.change, Follow::Start, &words.paths, &chmod)
    })
}

/// Whether words after `--` were given: a mode there is no option.
fn is_after_dashes() -> bool {
    std::env::args_os().any(|word| word == "--")
}

struct Chmod<'a> {
    volume: &'a Volume,
    mode: ModeChange,
    umask: u32,
    /// A mode that differs from what it says, because of the umask, is a failure.
    explains: bool,
}

impl FileChange for Chmod<'_> {
    const AFTER_ENTRIES: bool = false;

    fn change(
        &self,
        io: &mut Io,
        file: &WalkEntry<'_>,
        out: &mut ChangeOut<'_>,
        failures: &mut Failures,
    ) -> Result<(), Failure> {
        let path = file.node.path();
        let name = quoted(&path);
        if file.metadata.is_symlink() {
            // Where the walk starts, a link was followed unless it leads nowhere.
            let dangling = (file.depth == 0).then(|| self.volume.metadata(io, path_of(&path)));
            let line = match dangling {
                Some(metadata) => {
                    failures.value_of(metadata)?;
                    self.cannot_access(&name)
                }
                None => format!("neither symbolic link {name} nor referent has been changed"),
            };
            return out.report(ChangeReport {
                path: &path,
                line,
                is_changed: false,
                json: None,
            });
        }
        let before = file.metadata.permissions();
        let is_dir = file.metadata.is_dir();
        let after = self.mode.apply(before, is_dir, self.umask);
        let result = match file.node {
            TreeNode::Path(path) => self.volume.set_permissions(io, path_of(path), after),
            TreeNode::Entry(entry) => entry.set_permissions(io, after),
        };
        let is_done = result.is_ok();
        if let Err(error) = result {
            failures.note(error)?;
        }
        let (old, new) = (shown(before), shown(after));
        out.report(ChangeReport {
            path: &path,
            line: match (is_done, before == after) {
                (false, _) => format!("failed to change mode of {name} from {old} to {new}"),
                (true, false) => format!("mode of {name} changed from {old} to {new}"),
                (true, true) => format!("mode of {name} retained as {old}"),
            },
            is_changed: is_done && before != after,
            json: is_done.then(|| {
                json!({
                    "permissions_before": format!("{before:04o}"),
                    "permissions": format!("{after:04o}"),
                })
            }),
        })?;
        let meant = self.mode.apply(before, is_dir, 0);
        if is_done && self.explains && after & !meant != 0 {
            let text = format!(
                "{}: the permissions are {} now, not {}: the umask protects bits where no class is named",
                path.escape_ascii(),
                permissions_text(after),
                permissions_text(meant)
            );
            failures.note(Failure::new(OPERATION, text))?;
        }
        Ok(())
    }

    fn cannot_access(&self, name: &str) -> String {
        format!("{name} could not be accessed")
    }
}

fn shown(mode: u32) -> String {
    format!("{:04o} ({})", mode & ALL, permissions_text(mode))
}
