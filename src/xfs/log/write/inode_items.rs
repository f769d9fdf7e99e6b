//! Inodes in a checkpoint: the kernel's xfs_inode_item_format().
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::borrow::Cow;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::super::super::corrupt;
use super::super::super::format::BASIC_BLOCK_BYTES;
use super::super::super::format::ag::NULL_AG;
use super::super::super::format::btree::{BMBT_MAGIC, BmdrHeader, LongHeader};
use super::super::super::format::inode::{self as layout, InodeCore};
use super::super::super::format::log_items::{
    INODE, InodeItem, LOG_ABROOT, LOG_ADATA, LOG_AEXT, LOG_CORE, LOG_DBROOT, LOG_DDATA, LOG_DEV,
    LOG_DEXT, LoggedCore,
};
use super::items::LogItem;
use crate::error::Result;

/// Bytes of an extent in a fork, and of a key and a pointer of a fork's btree.
const RECORD_BYTES: usize = 16;

/// An inode that was changed.
#[derive(Debug, Clone, Copy)]
pub struct InodeChange<'a> {
    /// Where the buffer of inodes that it is in lies on the device. Cancelling that buffer cancels
    /// the inode's changes, when address and length are the same.
    pub cluster_addr_bytes: u64,
    /// Bytes of that buffer.
    pub cluster_bytes: u32,
    /// Where the inode lies in it.
    pub offset_bytes: u32,
    /// All of the inode as it is on disk. Checksum, log sequence number and the link of the
    /// unlinked list do not matter: replay sets or keeps them.
    pub dinode: &'a [u8],
    /// Whether the data fork was changed. When `forkoff` was, both forks were.
    pub data: bool,
    /// Whether the attribute fork was changed.
    pub attributes: bool,
}

/// A fork as it is logged.
struct LoggedFork<'a> {
    field: u32,
    content: Cow<'a, [u8]>,
}

/// The fields that a fork is logged by: as content, extents, root of a btree.
type ForkFields = [u32; 3];

impl LogItem {
    /// The core of an inode, and its forks as far as they were changed.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) for an inode whose sizes and counts do not
    /// fit it.
    pub fn inode(change: &InodeChange<'_>) -> Result<Self> {
        let at = change
            .cluster_addr_bytes
            .saturating_add(change.offset_bytes.into());
        let bad = |what: &str| corrupt(at, format!("an inode that is to be logged: {what}"));
        let (core, literal) =
            InodeCore::ref_from_prefix(change.dinode).map_err(|_| bad("too short"))?;
        if core.magic.get() != layout::MAGIC || core.version != layout::VERSION {
            return Err(bad("no inode"));
        }
        let data_bytes = match core.forkoff {
            0 => literal.len(),
            units => usize::from(units).saturating_mul(8),
        };
        let (data, attributes) = literal
            .split_at_checked(data_bytes)
            .ok_or_else(|| bad("the attribute fork begins outside of it"))?;
        let mut header = InodeItem::new_zeroed();
        let mut fields = LOG_CORE;
        let mut forks = [None, None];
        let [data_fork, attribute_fork] = &mut forks;
        if change.data && core.format == layout::FORMAT_DEV {
            let device = data.first_chunk().ok_or_else(|| bad("too short"))?;
            header.rdev = u32::from_be_bytes(*device).into();
            fields |= LOG_DEV;
        } else if change.data {
            *data_fork = data_fork_of(core, data).map_err(bad)?;
        }
        if change.attributes && core.forkoff != 0 {
            *attribute_fork = attribute_fork_of(core, attributes).map_err(bad)?;
        }
        let size = |fork: &Option<LoggedFork<'_>>| {
            let len = fork.as_ref().map_or(0, |fork| fork.content.len());
            u16::try_from(len).unwrap_or(u16::MAX)
        };
        header.item_type = INODE.into();
        header.dsize = size(data_fork).into();
        header.asize = size(attribute_fork).into();
        header.ino = core.ino.get().into();
        let blocks = |bytes: u64| bytes / BASIC_BLOCK_BYTES;
        header.blkno = blocks(change.cluster_addr_bytes).cast_signed().into();
        let len = blocks(change.cluster_bytes.into());
        header.len = i32::try_from(len).unwrap_or(i32::MAX).into();
        header.boffset = change.offset_bytes.cast_signed().into();
        let mut regions = 2_u16;
        let mut bytes = size_of::<InodeItem>().saturating_add(size_of::<LoggedCore>());
        for fork in forks.iter().flatten() {
            fields |= fork.field;
            regions = regions.saturating_add(1);
            bytes = bytes.saturating_add(fork.content.len());
        }
        header.fields = fields.into();
        header.regions = regions.into();
        let mut item = Self::with_room(regions.into(), bytes);
        item.push(header.as_bytes(), &[]);
        item.push(logged_core(core).as_bytes(), &[]);
        for fork in forks.iter().flatten() {
            item.push(&fork.content, &[]);
        }
        Ok(item)
    }
}

fn data_fork_of<'a>(
    core: &InodeCore,
    bytes: &'a [u8],
) -> Result<Option<LoggedFork<'a>>, &'static str> {
    const FIELDS: ForkFields = [LOG_DDATA, LOG_DEXT, LOG_DBROOT];
    let extents = match has_large_counters(core) {
        true => core.big_nextents.get(),
        false => core.nextents.get().into(),
    };
    let local = core.size.get();
    fork_of(core, core.format, FIELDS, bytes, (local, extents))
}

fn attribute_fork_of<'a>(
    core: &InodeCore,
    bytes: &'a [u8],
) -> Result<Option<LoggedFork<'a>>, &'static str> {
    const FIELDS: ForkFields = [LOG_ADATA, LOG_AEXT, LOG_ABROOT];
    let extents = match has_large_counters(core) {
        true => core.nextents.get().into(),
        false => u64::from(core.anextents.get()),
    };
    // Attributes in the inode begin with their size.
    let local = bytes.first_chunk().map(|size| u16::from_be_bytes(*size));
    let local = local.unwrap_or(0).into();
    fork_of(core, core.aformat, FIELDS, bytes, (local, extents))
}

fn has_large_counters(core: &InodeCore) -> bool {
    core.flags2.get() & layout::FLAG2_NREXT64 != 0
}

/// A fork that has so many bytes of content, or so many extents. `None` for an empty one.
fn fork_of<'a>(
    core: &InodeCore,
    format: u8,
    [data, list, root]: ForkFields,
    bytes: &'a [u8],
    (local, extents): (u64, u64),
) -> Result<Option<LoggedFork<'a>>, &'static str> {
    let (field, len) = match format {
        layout::FORMAT_LOCAL => (data, local),
        layout::FORMAT_EXTENTS => (list, extents.saturating_mul(RECORD_BYTES as u64)),
        layout::FORMAT_BTREE => {
            let content = root_in_memory(core, bytes).ok_or("the root of a btree is impossible")?;
            return Ok(Some(LoggedFork {
                field: root,
                content: Cow::Owned(content),
            }));
        }
        _ => return Err("a fork of an unknown form"),
    };
    let len = usize::try_from(len).map_err(|_| "a fork does not fit")?;
    let content = bytes.get(..len).ok_or("a fork does not fit")?;
    Ok((len > 0).then_some(LoggedFork {
        field,
        content: Cow::Borrowed(content),
    }))
}

/// The root of a fork's btree in the form that it has in the kernel's memory, a block that is as
/// large as it has to be: xfs_bmdr_to_bmbt().
fn root_in_memory(core: &InodeCore, root: &[u8]) -> Option<Vec<u8>> {
    const HALF: usize = RECORD_BYTES / 2;
    let (small, children) = BmdrHeader::ref_from_prefix(root).ok()?;
    let count = usize::from(small.numrecs.get());
    let most = children.len() / RECORD_BYTES;
    if small.level.get() == 0 || count == 0 || count > most {
        return None;
    }
    let mut header = LongHeader::new_zeroed();
    header.magic = BMBT_MAGIC.into();
    header.level = small.level;
    header.numrecs = small.numrecs;
    header.leftsib = u64::MAX.into();
    header.rightsib = u64::MAX.into();
    header.blkno = u64::MAX.into();
    header.uuid = core.uuid;
    header.owner = core.ino.get().into();
    let bytes = count.checked_mul(HALF)?;
    let pointers = children.get(most.checked_mul(HALF)?..)?.get(..bytes)?;
    let mut block = Vec::with_capacity(
        size_of::<LongHeader>()
            .checked_add(bytes)?
            .checked_add(bytes)?,
    );
    block.extend_from_slice(header.as_bytes());
    block.extend_from_slice(children.get(..bytes)?);
    block.extend_from_slice(pointers);
    Some(block)
}

/// The core as it is logged: xfs_inode_to_log_dinode().
fn logged_core(core: &InodeCore) -> LoggedCore {
    let mut logged = LoggedCore::new_zeroed();
    let is_bigtime = core.flags2.get() & layout::FLAG2_BIGTIME != 0;
    let time = |raw: u64| match is_bigtime {
        true => raw,
        // Seconds and nanoseconds, each a number of 32 bits in the order of the machine.
        false => raw.rotate_left(32),
    };
    logged.magic = core.magic.get().into();
    logged.mode = core.mode.get().into();
    logged.version = core.version;
    logged.format = core.format;
    logged.metatype = core.onlink.get().into();
    logged.uid = core.uid.get().into();
    logged.gid = core.gid.get().into();
    logged.nlink = core.nlink.get().into();
    logged.projid_lo = core.projid_lo.get().into();
    logged.projid_hi = core.projid_hi.get().into();
    if has_large_counters(core) {
        logged.big_nextents = core.big_nextents.get().into();
    }
    logged.atime = time(core.atime.get()).into();
    logged.mtime = time(core.mtime.get()).into();
    logged.ctime = time(core.ctime.get()).into();
    logged.size = core.size.get().into();
    logged.nblocks = core.nblocks.get().into();
    logged.extsize = core.extsize.get().into();
    logged.nextents = core.nextents.get().into();
    logged.anextents = core.anextents.get().into();
    logged.forkoff = core.forkoff;
    logged.aformat = core.aformat;
    logged.dmevmask = core.dmevmask.get().into();
    logged.dmstate = core.dmstate.get().into();
    logged.flags = core.flags.get().into();
    logged.generation = core.generation.get().into();
    logged.next_unlinked = NULL_AG.into();
    logged.changecount = core.changecount.get().into();
    logged.flags2 = core.flags2.get().into();
    logged.cowextsize = core.cowextsize.get().into();
    logged.crtime = time(core.crtime.get()).into();
    logged.ino = core.ino.get().into();
    logged.uuid = core.uuid;
    logged
}
