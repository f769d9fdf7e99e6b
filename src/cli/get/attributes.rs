//! Attributes that -a keeps, read from the volume.

use xtent::volume::{Io, Metadata, Volume};

use super::job::{Archived, Attributes, KEPT_MODE};
use crate::cli::failure::Failure;
use crate::cli::xattr::Collected;

/// Tells a path when there is something to be said of it.
pub(super) type PathOf<'a> = &'a dyn Fn() -> Vec<u8>;

/// Owner, permissions, times and extended attributes. Attributes that cannot be read are noted: the
/// content can be.
pub(super) fn archived(
    volume: &Volume,
    io: &mut Io,
    metadata: &Metadata,
    path: PathOf<'_>,
    note: &mut dyn FnMut(Failure) -> Result<(), Failure>,
) -> Result<Attributes, Failure> {
    let mut attributes = Attributes::plain(metadata, metadata.permissions());
    let found = Collected::read(volume, io, metadata, |_| true);
    if found.result.is_err() || found.left_out > 0 {
        // A missing attribute may be an access control list: the group's rights are then not known.
        attributes.mode &= KEPT_MODE & !0o070;
    }
    if let Some(failure) = found.too_many(&path, "kept") {
        note(failure)?;
    }
    if let Err(error) = found.result {
        note(error.at_path(path()).into())?;
    }
    attributes.archive = Some(Box::new(Archived {
        uid: metadata.uid,
        gid: metadata.gid,
        xattrs: found.list,
        linked: (metadata.nlink > 1 && !metadata.is_dir()).then_some(metadata.ino),
    }));
    Ok(attributes)
}
