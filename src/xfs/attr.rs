//! Extended attributes: whether an inode has one of a name, and all that it has.
//!
//! Few lie in the inode (short form); more in one leaf block; then in several, with a tree of
//! hashes above (the same nodes as of a directory). A walk goes down one level each step and then
//! along the leaves while the hash goes on, so that it ends on any disk.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod blocks;
mod change;
mod index;
mod key;
mod list;
mod remote;
mod remove;
mod short;

pub use change::SetHow;
pub(super) use change::{remove, set};
pub(super) use key::AttrKey;
pub use list::AttrVisit;

use zerocopy::FromBytes;

use super::circle::Circle;
use super::format::attr::{self as layout, AttrLeafHeader, Attribute};
use super::format::dir::{self as da, DaHeader, hash_name};
use super::format::inode;
use super::format::{BASIC_BLOCK_BYTES, checksum_ok};
use super::fs::DirBlock;
use super::inode::Fork;
use super::inode_read::extent_fork;
use super::{BlockKind, Fs, Inode, MetaIo, corrupt};
use crate::error::{Error, Result};

impl Fs {
    /// Whether an inode has the attribute `name` in a namespace ([`layout::FLAG_SECURE`], ...), as
    /// getxattr sees it: not while it is being made or removed.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) when the attribute fork is broken; what
    /// the device reports.
    pub fn has_attribute(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        namespace: u8,
        name: &[u8],
    ) -> Result<bool> {
        let is_it = |entry: &Attribute<'_>| {
            entry.flags & layout::NAMESPACE == namespace
                && entry.flags & layout::FLAG_INCOMPLETE == 0
                && entry.name == name
        };
        let fork = match self.attribute_fork(inode)? {
            AttrContent::None => return Ok(false),
            AttrContent::Short(entries) => return Ok(entries.iter().any(is_it)),
            AttrContent::Blocks(fork) => fork,
        };
        let search = AttrSearch {
            fs: self,
            inode,
            fork: &fork,
            hash: hash_name(name),
        };
        search.any(io, is_it)
    }

    /// What the attribute fork of an inode holds.
    fn attribute_fork<'a>(&self, inode: &'a Inode) -> Result<AttrContent<'a>> {
        let Some(fork) = &inode.attributes else {
            return Ok(AttrContent::None);
        };
        Ok(match fork.form {
            inode::FORMAT_LOCAL => AttrContent::Short(
                layout::short_entries(&fork.raw).map_err(|what| bad_fork(inode, what))?,
            ),
            inode::FORMAT_EXTENTS if fork.nextents == 0 => AttrContent::None,
            inode::FORMAT_EXTENTS => {
                let (raw, addr) = (&fork.raw, inode.addr_bytes);
                let map = extent_fork(self.geometry(), raw, fork.nextents, addr)?;
                AttrContent::Blocks(Fork::Extents(map))
            }
            inode::FORMAT_BTREE => AttrContent::Blocks(Fork::Btree(fork.raw.clone())),
            _ => return Err(bad_fork(inode, "unknown form")),
        })
    }
}

/// What an attribute fork holds.
enum AttrContent<'a> {
    None,
    Short(Vec<Attribute<'a>>),
    Blocks(Fork),
}

#[cold]
fn bad_fork(inode: &Inode, what: &str) -> Error {
    corrupt(
        inode.addr_bytes,
        format!("{}: attribute fork: {what}", inode.ino),
    )
}

struct AttrSearch<'a> {
    fs: &'a Fs,
    inode: &'a Inode,
    fork: &'a Fork,
    hash: u32,
}

/// Where a walk along the leaves stands.
struct Leaves {
    circle: Circle,
    /// Block of the attribute fork.
    at: u64,
    leaf: DirBlock,
}

impl AttrSearch<'_> {
    /// Whether an entry of the hash is the one.
    fn any(&self, io: &mut impl MetaIo, is_it: impl Fn(&Attribute<'_>) -> bool) -> Result<bool> {
        let mut leaves = self.leaves(io)?;
        loop {
            let leaf = &leaves.leaf;
            let bad = |what| self.bad(leaf, what);
            let entries = layout::leaf_entries(&leaf.data).map_err(bad)?;
            let first = entries.partition_point(|entry| entry.hash.get() < self.hash);
            for entry in entries.iter().skip(first) {
                if entry.hash.get() != self.hash {
                    return Ok(false);
                }
                if is_it(&layout::leaf_entry(&leaf.data, entry).map_err(bad)?) {
                    return Ok(true);
                }
            }
            if !self.next_leaf(io, &mut leaves)? {
                return Ok(false);
            }
        }
    }

    /// The leaves from the first one that can have the hash.
    fn leaves(&self, io: &mut impl MetaIo) -> Result<Leaves> {
        let (at, leaf) = self.first_leaf(io)?;
        Ok(Leaves {
            circle: Circle::new(at),
            at,
            leaf,
        })
    }

    /// Goes on to the next leaf; false at the last one.
    fn next_leaf(&self, io: &mut impl MetaIo, leaves: &mut Leaves) -> Result<bool> {
        let leaf = &leaves.leaf;
        let bad = |what| self.bad(leaf, what);
        let entries = layout::leaf_entries(&leaf.data).map_err(bad)?;
        let (header, _) =
            AttrLeafHeader::ref_from_prefix(&leaf.data).map_err(|_| bad("too short"))?;
        let next_at = u64::from(header.info.forw.get());
        let last_hash = entries.last().map_or(0, |entry| entry.hash.get());
        if next_at == 0 {
            return Ok(false);
        }
        if leaves.circle.closes_at(next_at) {
            return Err(bad("the leaves go in a circle"));
        }
        let next = self.read(io, next_at)?;
        if magic(&next) != layout::MAGIC_LEAF {
            return Err(bad("a leaf's neighbour is no leaf"));
        }
        let (header, _) = AttrLeafHeader::ref_from_prefix(&next.data)
            .map_err(|_| self.bad(&next, "too short"))?;
        if u64::from(header.info.back.get()) != leaves.at {
            return Err(self.bad(&next, "a leaf that does not point back to its neighbour"));
        }
        let entries = layout::leaf_entries(&next.data).map_err(|what| self.bad(&next, what))?;
        if entries
            .first()
            .is_some_and(|entry| entry.hash.get() < last_hash)
        {
            return Err(self.bad(&next, "leaves whose hashes are out of order"));
        }
        leaves.at = next_at;
        leaves.leaf = next;
        Ok(true)
    }

    /// The first leaf that can have the hash.
    fn first_leaf(&self, io: &mut impl MetaIo) -> Result<(u64, DirBlock)> {
        let mut at = 0;
        let mut block = self.read(io, at)?;
        let mut level_above = None;
        while magic(&block) != layout::MAGIC_LEAF {
            let (header, entries) =
                da::node(&block.data).map_err(|error| error.at_offset(block.addr_bytes))?;
            da::check_node_entries(entries).map_err(|error| error.at_offset(block.addr_bytes))?;
            let level = header.level.get();
            let fits = match level_above {
                Some(above) => level.checked_add(1) == Some(above),
                None => level <= da::MAX_TREE_LEVELS,
            };
            if !fits || level == 0 {
                return Err(self.bad(&block, "a node at an impossible height"));
            }
            let child = entries.partition_point(|entry| entry.hash.get() < self.hash);
            // Beyond the greatest hash the last child answers.
            let child = entries.get(child).or(entries.last());
            let child = child.ok_or_else(|| self.bad(&block, "a node without entries"))?;
            level_above = Some(level);
            at = u64::from(child.before.get());
            block = self.read(io, at)?;
        }
        if level_above.is_some_and(|level| level != 1) {
            return Err(self.bad(&block, "a leaf at the height of a node"));
        }
        Ok((at, block))
    }

    fn read(&self, io: &mut impl MetaIo, at: u64) -> Result<DirBlock> {
        let (fs, inode) = (self.fs, self.inode);
        let check =
            |block: &DirBlock| check(fs, inode, block).map_err(|what| self.bad(block, what));
        fs.read_of_fork(io, (inode, self.fork), (at, 1), BlockKind::Attribute, check)?
            .ok_or_else(|| bad_fork(inode, "its index points to a hole"))
    }

    #[cold]
    fn bad(&self, block: &DirBlock, what: &str) -> Error {
        let detail = format!("attributes of {}: {what}", self.inode.ino);
        corrupt(block.addr_bytes, detail)
    }
}

fn magic(block: &DirBlock) -> u16 {
    DaHeader::ref_from_prefix(&block.data).map_or(0, |(header, _)| header.magic.get())
}

/// Identity and checksum, when a block comes from the device.
fn check(fs: &Fs, inode: &Inode, block: &DirBlock) -> Result<(), &'static str> {
    let (header, _) = DaHeader::ref_from_prefix(&block.data).map_err(|_| "too short")?;
    if !matches!(header.magic.get(), layout::MAGIC_LEAF | da::MAGIC_NODE) {
        return Err("no magic");
    }
    if !checksum_ok(&block.data, da::DA_CRC_OFFSET) {
        return Err("the checksum is wrong");
    }
    if header.uuid != *fs.meta_uuid() {
        return Err("of another filesystem (uuid)");
    }
    if header.owner.get() != inode.ino.0 {
        return Err("of another owner");
    }
    if header.daddr.get().checked_mul(BASIC_BLOCK_BYTES) != Some(block.addr_bytes) {
        return Err("of another address");
    }
    Ok(())
}
