//! Extended attributes by the names that the system calls have.

use zerocopy::FromBytes;

use crate::error::{Error, ErrorKind, Result};
use crate::xfs::format::acl::{ACCESS_NAME, AclDiskEntry};
use crate::xfs::format::attr::{FLAG_ROOT, FLAG_SECURE};
use crate::xfs::{Fs, Ino, MetaIo};

/// `POSIX_ACL_XATTR_VERSION`.
const XATTR_VERSION: u32 = 2;
/// `ACL_USER` and `ACL_GROUP`, the entries with an id.
const TAGS_WITH_ID: [u32; 2] = [2, 8];

/// Called with a name and a value.
type XattrVisit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'a;

/// Calls `visit` with the name and the value of each extended attribute, as xfs_xattr_put_listent()
/// names them.
pub(super) fn each(
    fs: &Fs,
    io: &mut impl MetaIo,
    ino: Ino,
    visit: &mut XattrVisit<'_>,
) -> Result<()> {
    let inode = fs.read_inode(io, ino)?;
    let mut full = Vec::new();
    fs.each_attribute(io, &inode, &mut |namespace, name, value| {
        let prefix = match namespace {
            0 => &b"user."[..],
            FLAG_ROOT => b"trusted.",
            FLAG_SECURE => b"security.",
            // No kernel makes both.
            _ => return Ok(()),
        };
        full.clear();
        full.extend_from_slice(prefix);
        full.extend_from_slice(name);
        visit(&full, value)?;
        let acl = match (namespace, name) {
            (FLAG_ROOT, ACCESS_NAME) => &b"system.posix_acl_access"[..],
            (FLAG_ROOT, b"SGI_ACL_DEFAULT") => b"system.posix_acl_default",
            _ => return Ok(()),
        };
        let value = acl_value(value).ok_or_else(|| {
            let detail = format!("{ino}: an access control list that is no list");
            Error::new(ErrorKind::Corrupt, detail)
        })?;
        visit(acl, &value)
    })
}

/// The list in the form of the system calls: a version, and entries of tag (2 bytes), permissions
/// (2) and id (4), little-endian. As xfs_acl_from_disk() and posix_acl_to_xattr().
fn acl_value(disk: &[u8]) -> Option<Vec<u8>> {
    let (count, entries) = disk.split_first_chunk()?;
    let count = usize::try_from(u32::from_be_bytes(*count)).ok()?;
    let entries = <[AclDiskEntry]>::ref_from_bytes(entries).ok()?;
    if entries.len() != count {
        return None;
    }
    let mut value = XATTR_VERSION.to_le_bytes().to_vec();
    for entry in entries {
        let tag = entry.tag.get();
        let id = match TAGS_WITH_ID.contains(&tag) {
            true => entry.id.get(),
            false => u32::MAX,
        };
        value.extend_from_slice(&u16::try_from(tag).ok()?.to_le_bytes());
        value.extend_from_slice(&entry.permissions.get().to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::acl_value;

    #[test]
    fn a_list_on_disk_is_the_list_of_the_system_calls() {
        let entry = |tag: u32, id: u32, permissions: u16| {
            let mut entry = [tag.to_be_bytes(), id.to_be_bytes()].concat();
            entry.extend(permissions.to_be_bytes());
            entry.extend([0, 0]);
            entry
        };
        let mut disk = vec![0, 0, 0, 2];
        disk.extend(entry(1, 0, 6));
        disk.extend(entry(2, 1000, 4));
        let mut expected = vec![2, 0, 0, 0];
        expected.extend([1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff]);
        expected.extend([2, 0, 4, 0, 0xe8, 3, 0, 0]);
        assert_eq!(acl_value(&disk), Some(expected));
        assert_eq!(acl_value(&disk[..20]), None);
        assert_eq!(acl_value(&[0xff; 4]), None);
        assert_eq!(acl_value(&[]), None);
    }
}
