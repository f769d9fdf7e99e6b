//! Access control lists, which change with the permissions of their files.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::super::attr::AttrKey;
use super::super::format::acl::{
    ACCESS_NAME, AclDiskEntry, TAG_GROUP_OBJ, TAG_MASK, TAG_OTHER, TAG_USER_OBJ,
};
use super::super::format::attr::FLAG_ROOT;
use super::super::{Fs, Inode, MetaIo, corrupt};
use crate::error::Result;

/// The attribute with the list of a file.
pub(super) fn acl_key() -> AttrKey<'static> {
    AttrKey::new(FLAG_ROOT, ACCESS_NAME)
}

impl Fs {
    /// The list of a file with these permissions, where it has one, as posix_acl_chmod() makes it.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] when it is no list; those of reading.
    pub(super) fn acl_with(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        permissions: u16,
    ) -> Result<Option<Vec<u8>>> {
        if !self.has_attribute(io, inode, FLAG_ROOT, ACCESS_NAME)? {
            return Ok(None);
        }
        let mut found = None;
        self.each_attribute(io, inode, &mut |namespace, name, value| {
            if (namespace, name) == (FLAG_ROOT, ACCESS_NAME) {
                found = Some(value.to_vec());
            }
            Ok(())
        })?;
        let Some(mut value) = found else {
            return Ok(None);
        };
        match set_permissions(&mut value, permissions) {
            Some(()) => Ok(Some(value)),
            None => Err(corrupt(
                inode.addr_bytes,
                format!("{}: its access control list is damaged", inode.ino),
            )),
        }
    }
}

/// Changes the entries that the permissions of a file show. `None` for anything that is no list.
fn set_permissions(value: &mut [u8], permissions: u16) -> Option<()> {
    let (count, entries) = value.split_first_chunk_mut()?;
    let count = usize::try_from(u32::from_be_bytes(*count)).ok()?;
    let entries = <[AclDiskEntry]>::mut_from_bytes(entries).ok()?;
    if entries.len() != count || count == 0 {
        return None;
    }
    // With a mask, it has what the group's bits of the mode say.
    let has_mask = entries.iter().any(|entry| entry.tag.get() == TAG_MASK);
    let group = if has_mask { TAG_MASK } else { TAG_GROUP_OBJ };
    let mut has_group = false;
    for entry in entries {
        let shift = match entry.tag.get() {
            TAG_USER_OBJ => 6,
            TAG_OTHER => 0,
            tag if tag == group => {
                has_group = true;
                3
            }
            _ => continue,
        };
        entry.permissions = (permissions.wrapping_shr(shift) & 7).into();
    }
    has_group.then_some(())
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn list(entries: &[(u32, u16)]) -> Vec<u8> {
        let mut value = u32::try_from(entries.len()).unwrap().to_be_bytes().to_vec();
        for (tag, permissions) in entries {
            let entry = AclDiskEntry {
                tag: (*tag).into(),
                id: 7.into(),
                permissions: (*permissions).into(),
                pad: 0.into(),
            };
            value.extend_from_slice(entry.as_bytes());
        }
        value
    }

    #[test]
    fn the_mask_or_the_group_follows_the_mode() {
        let mut value = list(&[(1, 7), (2, 4), (4, 5), (0x10, 6), (0x20, 0)]);
        assert_eq!(set_permissions(&mut value, 0o4123), Some(()));
        let expected = list(&[(1, 1), (2, 4), (4, 5), (0x10, 2), (0x20, 3)]);
        assert_eq!(value, expected);
        let mut value = list(&[(1, 7), (4, 5), (0x20, 0)]);
        assert_eq!(set_permissions(&mut value, 0o640), Some(()));
        assert_eq!(value, list(&[(1, 6), (4, 4), (0x20, 0)]));
    }

    #[test]
    fn anything_else_is_no_list() {
        for value in [&[][..], &[0; 3], &[0; 4], &[0, 0, 0, 1], &[0xff; 16]] {
            assert_eq!(set_permissions(&mut value.to_vec(), 0o600), None);
        }
        let mut long = list(&[(1, 7), (4, 5), (0x20, 0)]);
        long.push(0);
        assert_eq!(set_permissions(&mut long, 0o600), None);
        let mut groupless = list(&[(1, 7), (0x20, 0)]);
        assert_eq!(set_permissions(&mut groupless, 0o600), None);
    }
}
