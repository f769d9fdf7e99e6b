//! Extended attributes: whether an inode has one of a name.
//!
//! Few lie in the inode (short form); more in one leaf block; then in several, with a tree of hashes above
//! (the same nodes as of a directory). A walk goes down one level each step and then along the leaves while
//! the hash goes on, so that it ends on any disk.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::circle::Circle;
use super::format::attr::{self as layout, LeafHeader};
use super::format::dir::{self as da, DaHeader, hash_name};
use super::format::inode::{self, InodeCore};
use super::format::{BASIC_BLOCK_BYTES, checksum_ok};
use super::fs::DirBlock;
use super::inode::{Fork, extent_fork};
use super::{BlockKind, Fs, Inode, MetaIo, corrupt};
use crate::error::{Error, Result};

/// The attribute fork as it stands in the inode.
#[derive(Debug, Clone)]
pub(super) struct AttrFork {
    form: u8,
    nextents: u64,
    raw: Box<[u8]>,
}

impl AttrFork {
    /// That of an inode, if there is one. It is checked when it is used: one that is broken must not
    /// hide the file's content.
    pub(super) fn of(core: &InodeCore, literal: &[u8]) -> Option<Self> {
        let start = usize::from(core.forkoff).saturating_mul(8);
        if start == 0 {
            return None;
        }
        let large = core.flags2.get() & inode::FLAG2_NREXT64 != 0;
        Some(Self {
            form: core.aformat,
            nextents: if large {
                core.nextents.get().into()
            } else {
                core.anextents.get().into()
            },
            raw: literal.get(start..)?.into(),
        })
    }
}

impl Fs {
    /// Whether an inode has the attribute `name` in a namespace ([`layout::FLAG_SECURE`], ...), as getxattr
    /// sees it: not while it is being made or removed.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) when the attribute fork is broken; what the device
    /// reports.
    pub fn has_attribute(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        namespace: u8,
        name: &[u8],
    ) -> Result<bool> {
        let Some(fork) = &inode.attributes else {
            return Ok(false);
        };
        let is_it = |flags: u8, other: &[u8]| {
            flags & layout::NAMESPACE == namespace
                && flags & layout::FLAG_INCOMPLETE == 0
                && other == name
        };
        let fork = match fork.form {
            inode::FORMAT_LOCAL => {
                let names = layout::short_names(&fork.raw).map_err(|what| bad_fork(inode, what))?;
                return Ok(names.into_iter().any(|(flags, name)| is_it(flags, name)));
            }
            inode::FORMAT_EXTENTS if fork.nextents == 0 => return Ok(false),
            inode::FORMAT_EXTENTS => {
                let (raw, addr) = (&fork.raw, inode.addr_bytes);
                Fork::Extents(extent_fork(self.geometry(), raw, fork.nextents, addr)?)
            }
            inode::FORMAT_BTREE => Fork::Btree(fork.raw.clone()),
            _ => return Err(bad_fork(inode, "unknown form")),
        };
        let search = Search {
            fs: self,
            inode,
            fork: &fork,
            hash: hash_name(name),
        };
        search.any(io, is_it)
    }
}

#[cold]
fn bad_fork(inode: &Inode, what: &str) -> Error {
    corrupt(
        inode.addr_bytes,
        format!("{}: attribute fork: {what}", inode.ino),
    )
}

struct Search<'a> {
    fs: &'a Fs,
    inode: &'a Inode,
    fork: &'a Fork,
    hash: u32,
}

impl Search<'_> {
    /// Whether an entry of the hash is the one.
    fn any(&self, io: &mut impl MetaIo, is_it: impl Fn(u8, &[u8]) -> bool) -> Result<bool> {
        let (mut leaf_at, mut leaf) = self.first_leaf(io)?;
        let mut circle = Circle::new(leaf_at);
        loop {
            let bad = |what| self.bad(&leaf, what);
            let entries = layout::leaf_entries(&leaf.data).map_err(bad)?;
            let first = entries.partition_point(|entry| entry.hash.get() < self.hash);
            for entry in entries.iter().skip(first) {
                if entry.hash.get() != self.hash {
                    return Ok(false);
                }
                let name = layout::leaf_name(&leaf.data, entry).map_err(bad)?;
                if is_it(entry.flags, name) {
                    return Ok(true);
                }
            }
            let (header, _) =
                LeafHeader::ref_from_prefix(&leaf.data).map_err(|_| bad("too short"))?;
            let next_at = u64::from(header.info.forw.get());
            let last_hash = entries.last().map_or(0, |entry| entry.hash.get());
            if next_at == 0 {
                return Ok(false);
            }
            if circle.closes_at(next_at) {
                return Err(bad("the leaves go in a circle"));
            }
            let next = self.read(io, next_at)?;
            if magic(&next) != layout::MAGIC_LEAF {
                return Err(bad("a leaf's neighbour is no leaf"));
            }
            let (header, _) = LeafHeader::ref_from_prefix(&next.data)
                .map_err(|_| self.bad(&next, "too short"))?;
            if u64::from(header.info.back.get()) != leaf_at {
                return Err(self.bad(&next, "a leaf that does not point back to its neighbour"));
            }
            let entries = layout::leaf_entries(&next.data).map_err(|what| self.bad(&next, what))?;
            if entries
                .first()
                .is_some_and(|entry| entry.hash.get() < last_hash)
            {
                return Err(self.bad(&next, "leaves whose hashes are out of order"));
            }
            leaf_at = next_at;
            leaf = next;
        }
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
