//! All extended attributes of an inode, with their values.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::layout::{self, Attribute, RemoteHeader, Value};
use super::{AttrContent, AttrSearch, bad_fork};
use crate::error::Result;
use crate::xfs::format::{BASIC_BLOCK_BYTES, checksum_ok};
use crate::xfs::fs::DirBlock;
use crate::xfs::{BlockKind, Fs, Inode, MetaIo};

/// Called for each attribute: namespace ([`layout::FLAG_ROOT`], [`layout::FLAG_SECURE`] or 0 for
/// `user`), name and value.
pub type AttrVisit<'a> = dyn FnMut(u8, &[u8], &[u8]) -> Result<()> + 'a;

impl Fs {
    /// Calls `visit` for each extended attribute of an inode, as listxattr and getxattr see them:
    /// without parent pointers and without those that are being made or removed. Holds one leaf and
    /// one value at a time.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) when the attribute fork is broken; those
    /// of the device and of `visit`.
    pub fn each_attribute(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        visit: &mut AttrVisit<'_>,
    ) -> Result<()> {
        let fork = match self.attribute_fork(inode)? {
            AttrContent::None => return Ok(()),
            AttrContent::Short(entries) => {
                for entry in entries {
                    if let (true, Value::Here(value)) = (is_visible(&entry), entry.value) {
                        visit(entry.flags & layout::NAMESPACE, entry.name, value)?;
                    }
                }
                return Ok(());
            }
            AttrContent::Blocks(fork) => fork,
        };
        let search = AttrSearch {
            fs: self,
            inode,
            fork: &fork,
            hash: 0,
        };
        let mut leaves = search.leaves(io)?;
        loop {
            let leaf = leaves.leaf.clone();
            let bad = |what| search.bad(&leaf, what);
            for entry in layout::leaf_attributes(&leaf.data).map_err(bad)? {
                let entry = entry.map_err(bad)?;
                if !is_visible(&entry) {
                    continue;
                }
                let namespace = entry.flags & layout::NAMESPACE;
                match entry.value {
                    Value::Here(value) => visit(namespace, entry.name, value)?,
                    Value::Remote { block, bytes } => {
                        let value = search.remote_value(io, &leaf, block.into(), bytes)?;
                        visit(namespace, entry.name, &value)?;
                    }
                }
            }
            if !search.next_leaf(io, &mut leaves)? {
                return Ok(());
            }
        }
    }
}

fn is_visible(entry: &Attribute<'_>) -> bool {
    entry.flags & (layout::FLAG_INCOMPLETE | layout::FLAG_PARENT) == 0
}

impl AttrSearch<'_> {
    /// The value in blocks of its own, as xfs_attr_rmtval_get(): each block begins with a header.
    fn remote_value(
        &self,
        io: &mut impl MetaIo,
        leaf: &DirBlock,
        block: u64,
        bytes: u32,
    ) -> Result<Vec<u8>> {
        if bytes > layout::VALUE_MAX_BYTES {
            return Err(self.bad(leaf, "a value longer than 64 KiB"));
        }
        let total = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut value = Vec::with_capacity(total);
        let mut at = block;
        while value.len() < total {
            let (fs, inode) = (self.fs, self.inode);
            let check =
                |block: &DirBlock| check(fs, inode, block).map_err(|what| self.bad(block, what));
            let block = fs
                .read_of_fork(
                    io,
                    (inode, self.fork),
                    (at, 1),
                    BlockKind::AttributeValue,
                    check,
                )?
                .ok_or_else(|| bad_fork(inode, "a value lies in a hole"))?;
            let bad = |what| self.bad(&block, what);
            let (header, rest) =
                RemoteHeader::ref_from_prefix(&block.data).map_err(|_| bad("too short"))?;
            let part = rest.len().min(total.saturating_sub(value.len()));
            let fits = header.magic.get() == layout::MAGIC_REMOTE
                && usize::try_from(header.offset.get()) == Ok(value.len())
                && usize::try_from(header.bytes.get()) == Ok(part);
            let part = rest.get(..part).filter(|part| fits && !part.is_empty());
            value.extend_from_slice(part.ok_or_else(|| bad("a part of another value"))?);
            at = at.saturating_add(1);
        }
        Ok(value)
    }
}

/// Identity and checksum, when a block of a value comes from the device.
fn check(fs: &Fs, inode: &Inode, block: &DirBlock) -> Result<(), &'static str> {
    let (header, _) = RemoteHeader::ref_from_prefix(&block.data).map_err(|_| "too short")?;
    if header.magic.get() != layout::MAGIC_REMOTE {
        return Err("a value without magic");
    }
    if !checksum_ok(&block.data, layout::REMOTE_CRC_OFFSET) {
        return Err("a value whose checksum is wrong");
    }
    if header.uuid != *fs.meta_uuid() {
        return Err("a value of another filesystem (uuid)");
    }
    if header.owner.get() != inode.ino.0 {
        return Err("a value of another owner");
    }
    if header.daddr.get().checked_mul(BASIC_BLOCK_BYTES) != Some(block.addr_bytes) {
        return Err("a value of another address");
    }
    Ok(())
}
