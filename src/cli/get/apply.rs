//! Attributes of copies, and what of them the host does not take.

use std::ffi::CStr;
use std::io;

use xtent::internals::sys::HostNode;

use super::job::{Archived, Attributes, KEPT_MODE};
use crate::cli::failure::{Failure, OPERATION};

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
/// How XFS keeps access control lists on disk, which root sees as attributes, too. A filesystem
/// that keeps them otherwise may refuse these: nothing is lost then.
const ACL_ON_DISK: [&[u8]; 2] = [b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT"];

/// What -a was to keep and the host did not take.
#[derive(Debug, Default)]
pub(super) struct LostAttributes {
    pub(super) owners: LostCount,
    pub(super) xattrs: LostCount,
    pub(super) acls: LostCount,
    pub(super) devices: LostCount,
    pub(super) links: LostCount,
}

/// How many of a kind, and the first.
#[derive(Debug, Default)]
pub(super) struct LostCount {
    count: u64,
    first: String,
}

impl LostCount {
    pub(super) fn add(&mut self, path: &dyn Fn() -> Vec<u8>, why: &impl ToString) {
        if self.count == 0 {
            self.first = path().escape_ascii().to_string();
            let why = why.to_string();
            if !why.is_empty() {
                self.first.push_str(": ");
                self.first.push_str(&why);
            }
        }
        self.count += 1;
    }

    /// The message about them, if there are any.
    pub(super) fn failure(&self, what: &str) -> Option<Failure> {
        let Self { count, first } = self;
        let text = || format!("not kept: {what} {count}; first {first}");
        (*count > 0).then(|| Failure::new(OPERATION, text()))
    }
}

impl LostAttributes {
    /// A line for each kind.
    pub(super) fn failures(&self) -> impl Iterator<Item = Failure> {
        let kinds = [
            (&self.owners, "the owner or group of"),
            (&self.xattrs, "extended attributes:"),
            (&self.acls, "access control lists, with the group's rights:"),
            (&self.devices, "device nodes:"),
            (&self.links, "hard links (copied as files of their own):"),
        ];
        kinds
            .into_iter()
            .filter_map(|(kind, what)| kind.failure(what))
    }
}

/// A copy that gets its attributes.
pub(super) struct CopyTarget<'a> {
    pub(super) node: HostNode<'a>,
    /// It may have an access control list: an inherited one, or that of a directory that existed.
    pub(super) may_have_acl: bool,
    /// Its path, for messages.
    pub(super) path: &'a dyn Fn() -> Vec<u8>,
}

impl CopyTarget<'_> {
    /// Gives the copy its attributes. What only -a keeps is counted where it cannot be kept; an
    /// error of mode or times is returned.
    pub(super) fn apply(
        &self,
        attributes: &Attributes,
        lost: &mut LostAttributes,
    ) -> io::Result<()> {
        let mut mode = attributes.mode;
        if let Some(archive) = &attributes.archive {
            mode = self.archived(archive, attributes, lost)?;
        } else {
            // As cp --preserve=mode: the mode is then all that gives rights. The default list of a
            // directory stays: it concerns files to come.
            self.remove_acl(attributes, c"system.posix_acl_access")?;
        }
        if attributes.file_type != libc::S_IFLNK {
            self.node.set_mode(mode)?;
        }
        self.node.set_times(attributes.atime, attributes.mtime)
    }

    /// Owner, attributes and access control lists; the mode that is then right. The owner comes
    /// first: changing it takes capabilities and set-user-ID away. The mode comes last, as it says
    /// what the list's mask allows.
    fn archived(
        &self,
        archive: &Archived,
        attributes: &Attributes,
        lost: &mut LostAttributes,
    ) -> io::Result<u32> {
        let mut mode = attributes.mode;
        if let Err(error) = self.node.set_owner(archive.uid, archive.gid) {
            // As cp: then at least the group.
            let _ = self.node.set_owner(u32::MAX, archive.gid);
            lost.owners.add(self.path, &error);
            mode &= KEPT_MODE;
        }
        self.remove_acl(attributes, c"system.posix_acl_access")?;
        if attributes.file_type == libc::S_IFDIR {
            self.remove_acl(attributes, c"system.posix_acl_default")?;
        }
        for (xattr, value) in &archive.xattrs {
            let Err(error) = self.node.set_xattr(xattr, value) else {
                continue;
            };
            if ACL_ON_DISK.contains(&xattr.as_slice()) {
                continue;
            }
            if !xattr.starts_with(b"system.") {
                let why = format!("{}: {error}", xattr.escape_ascii());
                lost.xattrs.add(self.path, &why);
                continue;
            }
            lost.acls.add(self.path, &error);
            if xattr == ACCESS_ACL {
                // The mode's group bits are the list's mask, which may be more than its group has.
                mode &= !0o070;
            }
        }
        Ok(mode)
    }

    /// Removes an access control list that is not the source's: a change of the mode would raise
    /// its mask.
    fn remove_acl(&self, attributes: &Attributes, list: &CStr) -> io::Result<()> {
        if !self.may_have_acl || attributes.file_type == libc::S_IFLNK {
            return Ok(());
        }
        match self.node.remove_xattr(list) {
            // The filesystem has no access control lists.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            other => other,
        }
    }
}
