//! Reading an inode: found through the inode btree, checked, decoded.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::OnceLock;

use zerocopy::FromBytes;

use super::attr_fork::AttrFork;
use super::extents::ExtentMap;
use super::format::btree::BmbtRecord;
use super::format::inode::{self as layout, InodeCore, InodeTimestamp};
use super::format::{self};
use super::fs::Fs;
use super::geometry::{Geometry, Ino};
use super::inode::{Fork, Inode, InodeType};
use super::{MetaIo, corrupt};
use crate::error::{Error, ErrorKind, Result};

impl Inode {
    /// Decodes and checks the inode in `raw`, exactly the bytes of an inode, which lie at
    /// `addr_bytes`.
    pub(super) fn parse(fs: &Fs, ino: Ino, addr_bytes: u64, raw: &[u8]) -> Result<Self> {
        let bad = |what: &str| corrupt(addr_bytes, format!("{ino}: {what}"));
        let (core, literal) = InodeCore::ref_from_prefix(raw).map_err(|_| bad("too short"))?;
        check_identity(fs, ino, raw, core).map_err(bad)?;
        let mode = core.mode.get();
        let file_type = InodeType::from_mode(mode).ok_or_else(|| bad("unknown file type"))?;
        check_flags(fs, core).map_err(bad)?;
        if core.flags.get() & layout::FLAG_REALTIME != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{ino} lies in the realtime section"),
            ));
        }
        let flags2 = core.flags2.get();
        let large = flags2 & layout::FLAG2_NREXT64 != 0;
        let nextents = if large {
            core.big_nextents.get()
        } else {
            core.nextents.get().into()
        };
        if nextents > core.nblocks.get() {
            return Err(bad("more extents than blocks"));
        }
        check_size(file_type, core.size.get()).map_err(bad)?;
        let fork = data_fork(core, literal).map_err(bad)?;
        let data = match core.format {
            layout::FORMAT_DEV => Fork::Special,
            layout::FORMAT_LOCAL => Fork::Local(local_fork(core, fork).map_err(bad)?),
            layout::FORMAT_EXTENTS => {
                Fork::Extents(extent_fork(fs.geometry(), fork, nextents, addr_bytes)?)
            }
            _ => Fork::Btree(fork.into()),
        };
        check_format(file_type, &data).map_err(bad)?;
        let time = |raw: u64| InodeTimestamp::decode(raw, flags2 & layout::FLAG2_BIGTIME != 0);
        // As the kernel shows an owner that cannot be one.
        let owner = |id: u32| if id == u32::MAX { 65_534 } else { id };
        // As xfs_inode_from_disk().
        let size = if matches!(data, Fork::Special) {
            0
        } else {
            core.size.get()
        };
        let blocks_used = core.nblocks.get();
        Ok(Self {
            ino,
            file_type,
            mode,
            uid: owner(core.uid.get()),
            gid: owner(core.gid.get()),
            nlink: core.nlink.get(),
            projid: u32::from(core.projid_hi.get()).wrapping_shl(16)
                | u32::from(core.projid_lo.get()),
            size,
            blocks_used,
            blocks_512: blocks_used.wrapping_shl(fs.geometry().block_log.saturating_sub(9)),
            atime: time(core.atime.get()),
            mtime: time(core.mtime.get()),
            ctime: time(core.ctime.get()),
            btime: time(core.crtime.get()),
            generation: core.generation.get(),
            flags: core.flags.get(),
            flags2,
            extsize_blocks: core.extsize.get(),
            rdev: device_number(file_type, fork),
            nextents,
            attributes: AttrFork::of(core, literal),
            addr_bytes,
            data,
            extents: OnceLock::new(),
        })
    }
}

fn check_identity(fs: &Fs, ino: Ino, raw: &[u8], core: &InodeCore) -> Result<(), &'static str> {
    if core.magic.get() != layout::MAGIC {
        return Err("no magic");
    }
    if core.version != layout::VERSION {
        return Err("not of version 3");
    }
    if !format::checksum_ok(raw, layout::CRC_OFFSET) {
        return Err("the checksum is wrong");
    }
    if core.uuid != *fs.meta_uuid() {
        return Err("of another filesystem (uuid)");
    }
    if core.ino.get() != ino.0 {
        return Err("its number is another one");
    }
    if core.mode.get() == 0 {
        return Err("is free, though the inode btree says that it is in use");
    }
    Ok(())
}

/// Flags of an inode need the filesystem's features.
fn check_flags(fs: &Fs, core: &InodeCore) -> Result<(), &'static str> {
    let flags2 = core.flags2.get();
    let features = fs.features();
    let wrong = |flag: u64, feature: bool| flags2 & flag != 0 && !feature;
    if wrong(layout::FLAG2_BIGTIME, features.bigtime()) {
        return Err("has large time stamps, the filesystem has not");
    }
    if wrong(layout::FLAG2_NREXT64, features.nrext64()) {
        return Err("has large extent counters, the filesystem has not");
    }
    if wrong(layout::FLAG2_REFLINK, features.reflink()) {
        return Err("has shared blocks, the filesystem has not");
    }
    if flags2 & layout::FLAG2_METADATA != 0 {
        return Err("is of a metadata directory, the filesystem has none");
    }
    if flags2 & layout::FLAG2_NREXT64 == 0 && core.big_nextents.get() != 0 {
        // Unused without large counters; the kernel writes zeroes.
        return Err("has both kinds of extent counters");
    }
    Ok(())
}

fn check_size(file_type: InodeType, size: u64) -> Result<(), &'static str> {
    const MAX_DIRECTORY_BYTES: u64 = 32 << 30;
    const MAX_SYMLINK_BYTES: u64 = 1024;
    let range = match file_type {
        InodeType::Regular => 0..=Geometry::MAX_FILE_BYTES,
        InodeType::Directory => 1..=MAX_DIRECTORY_BYTES,
        InodeType::Symlink => 1..=MAX_SYMLINK_BYTES,
        // Pipes and devices may have any; it is not used.
        _ => 0..=Geometry::MAX_FILE_BYTES,
    };
    if range.contains(&size) {
        Ok(())
    } else {
        Err("impossible size")
    }
}

/// The bytes of the data fork, in the area behind the core.
fn data_fork<'a>(core: &InodeCore, literal: &'a [u8]) -> Result<&'a [u8], &'static str> {
    if core.forkoff == 0 {
        return Ok(literal);
    }
    if !matches!(
        core.aformat,
        layout::FORMAT_LOCAL | layout::FORMAT_EXTENTS | layout::FORMAT_BTREE
    ) {
        return Err("unknown form of the attribute fork");
    }
    let end = usize::from(core.forkoff).wrapping_mul(8);
    if end >= literal.len() {
        return Err("the attribute fork begins outside the inode");
    }
    literal.get(..end).ok_or("too short")
}

fn local_fork(core: &InodeCore, fork: &[u8]) -> Result<Box<[u8]>, &'static str> {
    usize::try_from(core.size.get())
        .ok()
        .and_then(|size| fork.get(..size))
        .map(Into::into)
        .ok_or("its content does not fit into the inode")
}

pub(super) fn extent_fork(
    geometry: &Geometry,
    fork: &[u8],
    nextents: u64,
    addr_bytes: u64,
) -> Result<ExtentMap> {
    let mut map = ExtentMap::default();
    let records = usize::try_from(nextents)
        .ok()
        .and_then(|count| <[BmbtRecord]>::ref_from_prefix_with_elems(fork, count).ok())
        .ok_or_else(|| corrupt(addr_bytes, "more extents than fit into the inode"))?;
    for record in records.0 {
        map.push(geometry, record, addr_bytes)?;
    }
    Ok(map)
}

/// Which forms a type of file can have.
fn check_format(file_type: InodeType, data: &Fork) -> Result<(), &'static str> {
    let fits = match file_type {
        InodeType::Regular => matches!(data, Fork::Extents(_) | Fork::Btree(_)),
        InodeType::Directory | InodeType::Symlink => !matches!(data, Fork::Special),
        _ => matches!(data, Fork::Special),
    };
    if fits {
        Ok(())
    } else {
        Err("its type cannot have such a data fork")
    }
}

/// Major and minor number: 14 and 18 bits in the fork's first word.
fn device_number(file_type: InodeType, fork: &[u8]) -> (u32, u32) {
    if !matches!(file_type, InodeType::BlockDevice | InodeType::CharDevice) {
        return (0, 0);
    }
    let word = fork
        .first_chunk()
        .map_or(0, |bytes| u32::from_be_bytes(*bytes));
    (word.wrapping_shr(18) & 0x3fff, word & 0x3_ffff)
}

impl Fs {
    /// Reads an inode. Its number may come from anywhere: it is looked up in the inode btree first,
    /// so that one that is free or never existed is told from a broken one.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a number that no inode can have or that is free,
    /// [`ErrorKind::Corrupt`] when the inode or the way to it is broken, [`ErrorKind::Unsupported`]
    /// for a file of the realtime section.
    pub fn read_inode(&self, io: &mut impl MetaIo, ino: Ino) -> Result<Inode> {
        let place = self
            .geometry()
            .locate_inode(ino)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there can be no {ino}")))?;
        let chunk = self.find_chunk(io, ino, &place)?;
        let addr = self
            .geometry()
            .ag_block_addr(place.ag, place.ag_block)
            .saturating_add(place.offset_bytes.into());
        if let Some(raw) = self.inode_in_memory(ino) {
            return Inode::parse(self, ino, addr, &raw);
        }
        let (cluster_addr, data) = self.read_cluster(io, &place, chunk)?;
        let start = usize::try_from(addr.saturating_sub(cluster_addr)).unwrap_or(usize::MAX);
        let len = usize::try_from(self.geometry().inode_bytes).unwrap_or(usize::MAX);
        let raw = data
            .get(start..start.saturating_add(len))
            .ok_or_else(|| corrupt(addr, format!("{ino} lies outside its chunk")))?;
        Inode::parse(self, ino, addr, raw)
    }
}
