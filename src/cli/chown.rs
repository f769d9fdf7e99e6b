//! `xtent chown`.

use std::ffi::OsString;

use clap::Args;
use serde_json::json;
use xtent::volume::{Io, Metadata, Volume};

use super::VolumePath;
use super::changing::{
    ChangeArgs, ChangeOut, ChangeReport, ChangeWords, FileChange, change_all, path_of, reference,
    with_volume,
};
use super::failure::{Failure, Failures};
use super::owner::Owner;
use super::quoting::quoted;
use super::tree::TreeNode;
use super::walk::{Follow, WalkEntry};

#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    override_usage = "xtent chown [OPTIONS] OWNER[:[GROUP]] TARGET PATH...\n       \
                      xtent chown [OPTIONS] :GROUP TARGET PATH...\n       \
                      xtent chown [OPTIONS] --reference PATH TARGET PATH...",
    after_help = "OWNER and GROUP are names of THIS HOST, not of the passwd file in the volume, or numbers; + before \
    a number keeps it from being looked up as a name (+1000). `OWNER:` takes the group that the user logs in with.\n\n\
    Set-user-ID and set-group-ID are taken away, except from directories. The changes are durable when xtent \
    ends.\n\n\
    Example: xtent chown -R +1000:+1000 disk.img /home/user"
)]
pub(super) struct ChownArgs {
    /// The owner, the group, or both
    #[arg(value_name = "OWNER")]
    first: OsString,
    /// The target, such as image:disk.img (see `xtent --help`)
    #[arg(value_name = "TARGET")]
    second: OsString,
    /// The files in the volume
    #[arg(value_name = "PATH", required_unless_present = "reference")]
    rest: Vec<VolumePath>,
    #[command(flatten)]
    change: ChangeArgs,
    /// Use owner and group of this file of the volume
    #[arg(long, value_name = "PATH")]
    reference: Option<VolumePath>,
    /// Change only files that have this owner and group; one of them may be omitted
    #[arg(long, value_name = "OWNER[:GROUP]")]
    from: Option<String>,
    /// Change symbolic links themselves
    #[arg(short = 'h', long, overrides_with = "dereference")]
    no_dereference: bool,
    /// Change what symbolic links lead to (the default without -R)
    #[arg(long, overrides_with = "no_dereference")]
    dereference: bool,
    /// With -R: enter a directory that a link on the command line leads to
    #[arg(short = 'H', overrides_with_all = ["all_links", "no_links"])]
    command_line_links: bool,
    /// With -R: enter every directory that a link leads to; each directory once
    #[arg(short = 'L', overrides_with_all = ["command_line_links", "no_links"])]
    all_links: bool,
    /// With -R: follow no links (the default)
    #[arg(short = 'P', overrides_with_all = ["command_line_links", "all_links"])]
    no_links: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl ChownArgs {
    /// Links that the walk follows, and whether what a link leads to is changed, not the link.
    fn links(&self) -> Result<(Follow, bool), Failure> {
        if !self.change.recursive {
            let follow = match self.no_dereference {
                true => Follow::Never,
                false => Follow::Start,
            };
            return Ok((follow, !self.no_dereference));
        }
        let follow = match (self.command_line_links, self.all_links) {
            (_, true) => Follow::All,
            (true, _) => Follow::Start,
            _ if self.dereference => {
                return Err(Failure::usage("-R --dereference needs -H or -L as well"));
            }
            _ => Follow::Never,
        };
        Ok((follow, follow != Follow::Never && !self.no_dereference))
    }
}

pub(super) fn run(args: &ChownArgs) -> Result<(), Failure> {
    let words = ChangeWords::of(
        (&args.first, &args.second),
        &args.rest,
        args.reference.is_some(),
    )?;
    let owner = words
        .change
        .map(|owner| Owner::parse(&owner.to_string_lossy()));
    let owner = owner.transpose()?;
    let from = args.from.as_deref().map(Owner::parse).transpose()?;
    let (follow, changes_referents) = args.links()?;
    with_volume(&words.target, |volume| {
        let reference = reference(volume, args.reference.as_ref())?;
        let reference = reference.map(|file| Owner::of(file.uid, file.gid));
        let chown = Chown {
            volume,
            owner: owner.or(reference).unwrap_or_default(),
            from: from.unwrap_or_default(),
            follow,
            changes_referents,
        };
        change_all(volume, &args.change, follow, &words.paths, &chown)
    })
}

struct Chown<'a> {
    volume: &'a Volume,
    owner: Owner,
    from: Owner,
    follow: Follow,
    changes_referents: bool,
}

impl Chown<'_> {
    /// Metadata of the file to change, where the walk found another one.
    fn changed_file(&self, io: &mut Io, file: &WalkEntry<'_>) -> xtent::Result<Option<Metadata>> {
        let path = file.node.path();
        let was_followed = match file.node {
            // The start, or a link that the walk followed, unless it leads nowhere.
            TreeNode::Path(_) => self.follow != Follow::Never && !file.metadata.is_symlink(),
            TreeNode::Entry(_) => false,
        };
        match (self.changes_referents, was_followed) {
            (true, false) if file.metadata.is_symlink() => {
                self.volume.metadata(io, path_of(&path)).map(Some)
            }
            (false, true) => self.volume.symlink_metadata(io, path_of(&path)).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether owner or group of the file became others.
    fn change_one(&self, io: &mut Io, file: &WalkEntry<'_>) -> xtent::Result<OwnerChange> {
        let other = self.changed_file(io, file)?;
        let metadata = other.as_ref().unwrap_or(file.metadata);
        let (uid, gid) = (metadata.uid, metadata.gid);
        let before = Some((uid, gid));
        if !self.from.is_of(uid, gid) {
            return Ok(OwnerChange {
                before,
                is_done: false,
                error: None,
            });
        }
        let Owner { uid, gid, .. } = self.owner;
        let result = match file.node {
            TreeNode::Entry(entry) if !file.metadata.is_symlink() || !self.changes_referents => {
                entry.set_owner(io, uid, gid)
            }
            node if self.changes_referents => {
                let path = node.path();
                self.volume.set_owner(io, path_of(&path), uid, gid)
            }
            node => {
                let path = node.path();
                self.volume.set_symlink_owner(io, path_of(&path), uid, gid)
            }
        };
        Ok(OwnerChange {
            before,
            is_done: result.is_ok(),
            error: result.err(),
        })
    }
}

/// What became of one file.
struct OwnerChange {
    before: Option<(u32, u32)>,
    /// The change was asked for and made.
    is_done: bool,
    error: Option<xtent::Error>,
}

impl FileChange for Chown<'_> {
    const AFTER_ENTRIES: bool = true;

    fn change(
        &self,
        io: &mut Io,
        file: &WalkEntry<'_>,
        out: &mut ChangeOut<'_>,
        failures: &mut Failures,
    ) -> Result<(), Failure> {
        let changed = self
            .change_one(io, file)
            .unwrap_or_else(|error| OwnerChange {
                before: Some((file.metadata.uid, file.metadata.gid)),
                is_done: false,
                error: Some(error),
            });
        let has_failed = changed.error.is_some();
        if let Some(error) = changed.error {
            failures.note(error)?;
        }
        let path = file.node.path();
        let name = quoted(&path);
        let differs = |(uid, gid)| !self.owner.is_of(uid, gid);
        let is_changed = changed.is_done && changed.before.is_some_and(differs);
        let json = changed.before.filter(|_| changed.is_done);
        out.report(ChangeReport {
            path: &path,
            line: match (has_failed, is_changed) {
                (true, _) => self.failed(&name, changed.before),
                (false, true) => self.changed(&name, changed.before),
                (false, false) => self.retained(&name, changed.before),
            },
            is_changed,
            json: json.map(|(uid, gid)| {
                json!({
                    "uid_before": uid,
                    "gid_before": gid,
                    "uid": self.owner.uid.unwrap_or(uid),
                    "gid": self.owner.gid.unwrap_or(gid),
                })
            }),
        })
    }

    fn cannot_access(&self, name: &str) -> String {
        self.failed(name, None)
    }
}

impl Chown<'_> {
    /// The part of the owner before that is asked to change.
    fn old(&self, before: Option<(u32, u32)>) -> Option<String> {
        let (uid, gid) = before?;
        let all = Owner::of(uid, gid);
        let old = Owner {
            user: all.user.filter(|_| self.owner.user.is_some()),
            group: all.group.filter(|_| self.owner.group.is_some()),
            ..Owner::default()
        };
        Some(old.text())
    }

    /// The noun of messages: ownership, or the group alone.
    fn subject(&self) -> &'static str {
        match (&self.owner.user, &self.owner.group) {
            (None, Some(_)) => "group",
            _ => "ownership",
        }
    }

    fn changed(&self, name: &str, before: Option<(u32, u32)>) -> String {
        let (subject, new) = (self.subject(), self.owner.text());
        let old = self.old(before).unwrap_or_default();
        format!("changed {subject} of {name} from {old} to {new}")
    }

    fn failed(&self, name: &str, before: Option<(u32, u32)>) -> String {
        let (subject, new) = (self.subject(), self.owner.text());
        let mut line = format!("failed to change {subject} of {name}");
        if let Some(old) = self.old(before).filter(|old| !old.is_empty()) {
            line.push_str(&format!(" from {old}"));
        }
        if !new.is_empty() {
            line.push_str(&format!(" to {new}"));
        }
        line
    }

    fn retained(&self, name: &str, before: Option<(u32, u32)>) -> String {
        let subject = self.subject();
        match self.old(before).filter(|old| !old.is_empty()) {
            Some(old) => format!("{subject} of {name} retained as {old}"),
            None => format!("{subject} of {name} retained"),
        }
    }
}
