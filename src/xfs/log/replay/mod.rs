//! Replay of a dirty log, as the kernel's xlog_do_log_recovery() does it, into an overlay: nothing
//! is written here.
//!
//! Two passes over the records from the tail to the head. The first collects the buffers that were
//! freed, whose older changes must not be replayed. The second applies each complete checkpoint in
//! order: buffers and new inode chunks, then inodes, then links of unlinked lists, then the ends of
//! cancellations. A change is applied only to metadata that is older.
//!
//! The log is hostile input, like the rest of the disk: every address, length and count is checked
//! against the filesystem's geometry, and memory is limited.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::{BTreeMap, HashMap};

use zerocopy::FromBytes;

use super::super::format::buffer::{self, BufferLayout};
use super::super::format::log_items::{self as layout, BufItem};
use super::super::format::superblock::SuperblockLayout;
use super::super::format::{self, BASIC_BLOCK_BYTES};
use super::super::geometry::Geometry;
use super::super::overlay::{Overlay, too_large};
use super::super::superblock::Superblock;
use super::super::{MetaIo, corrupt};
use super::{LogSpan, XfsLog};
use crate::error::{Error, ErrorKind, Result};
use checkpoints::{Checkpoint, Checkpoints, Item, RecordFault};
pub(crate) use intents::{PendingIntent, Unfinished};
use records::Records;

mod buffers;
mod checkpoints;
mod chunks;
mod inodes;
mod intents;
mod records;

/// A buffer's address and length, in basic blocks.
type BufferPlace = (u64, u64);

/// What a log held.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// Metadata as it is after the replay.
    pub(crate) overlay: Overlay,
    pub(crate) checkpoints: u64,
    /// Changes that were begun in the log and are not finished in it.
    pub(crate) unfinished: Unfinished,
    /// Whether there were quota records, which are not replayed.
    pub(crate) quotas: bool,
    /// Where it began.
    pub(crate) start: ReplayStart,
}

/// Where a replay began, which the records behind the head have to fit.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ReplayStart {
    /// The log sequence number of the first record.
    pub(crate) lsn: u64,
    /// Bytes of the buffer that this record was written from. All records of a dirty log have as
    /// many blocks of headers.
    pub(crate) record_bytes: u32,
}

/// A buffer that was changed by checkpoints of the current log sequence number.
#[derive(Debug, Clone, Copy)]
struct Changed {
    len: usize,
    layout: BufferLayout,
}

/// The second pass.
struct Replay<'a> {
    superblock: &'a Superblock,
    /// Grows with the superblock in the log.
    geometry: Geometry,
    /// Freed buffers, with the number of times that the rest of the log frees each.
    cancelled: HashMap<BufferPlace, u32>,
    /// Buffers, by address in bytes, that still have to get checksum and log sequence number. They
    /// get them when a checkpoint of another sequence number follows: until then they are older
    /// than all checkpoints of this one.
    changed: BTreeMap<u64, Changed>,
    /// Buffers that were torn when the power went, by address: sequence number and checksum of the
    /// whole new one, which stand in its first sector, and which the replay must come to.
    torn: BTreeMap<u64, (u64, u32)>,
    lsn: u64,
    capacity_bytes: u64,
    limit_bytes: u64,
    result: Replayed,
}

/// Replays a span of the log that is not empty.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for a log that is corrupt or does not fit the filesystem,
/// [`ErrorKind::Unsupported`] for items that are not replayed, [`ErrorKind::OutOfMemory`] when the
/// result needs more than `limit_bytes`, and the device's errors.
pub(super) fn replay(
    io: &mut impl MetaIo,
    log: &XfsLog,
    span: &LogSpan,
    superblock: &Superblock,
    limit_bytes: u64,
) -> Result<Replayed> {
    let mut replay = Replay {
        superblock,
        geometry: superblock.geometry.clone(),
        cancelled: HashMap::new(),
        changed: BTreeMap::new(),
        torn: BTreeMap::new(),
        lsn: 0,
        capacity_bytes: io.capacity_bytes(),
        limit_bytes,
        result: Replayed {
            overlay: Overlay::new(limit_bytes),
            ..Replayed::default()
        },
    };
    replay.result.start = each_checkpoint(io, log, span, limit_bytes, |_, checkpoint| {
        replay.collect_cancelled(&checkpoint)
    })?;
    each_checkpoint(io, log, span, limit_bytes, |io, checkpoint| {
        replay.apply(io, checkpoint)
    })?;
    replay.seal_changed(io)?;
    if let Some((addr, _)) = replay.torn.first_key_value() {
        return Err(corrupt(
            *addr,
            "a metadata block is damaged: its checksum is wrong, and the log does not hold all of it; \
             run xfs_repair",
        ));
    }
    Ok(replay.result)
}

/// One pass. Where it began.
fn each_checkpoint<I: MetaIo>(
    io: &mut I,
    log: &XfsLog,
    span: &LogSpan,
    limit_bytes: u64,
    mut visit: impl FnMut(&mut I, Checkpoint) -> Result<()>,
) -> Result<ReplayStart> {
    let mut records = Records::new(io, log, span)?;
    let start = records.start();
    let mut checkpoints = Checkpoints::new(limit_bytes);
    while let Some(record) = records.next(io, log)? {
        if record.lsn > span.lsn {
            return Err(log.bad(record.block, "a record is newer than the head"));
        }
        checkpoints
            .add(&record, |checkpoint| visit(io, checkpoint))
            .map_err(|fault| match fault {
                RecordFault::Corrupt(what) => log.bad(record.block, what),
                RecordFault::TooLarge => too_large(limit_bytes),
            })??;
    }
    Ok(start)
}

impl Replay<'_> {
    /// The first pass.
    fn collect_cancelled(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        for item in &checkpoint.items {
            if item.item_type() != layout::BUF {
                continue;
            }
            let header = buf_item(item)?;
            if header.flags.get() & layout::BUF_CANCEL != 0 {
                let count = self.cancelled.entry(place_of(header)?).or_default();
                *count = count.saturating_add(1);
            }
        }
        self.check_memory(self.cancelled.len())
    }

    /// Whether tables of `entries` fit in memory.
    fn check_memory(&self, entries: usize) -> Result<()> {
        const ENTRY_BYTES: u64 = 64;
        match (entries as u64).saturating_mul(ENTRY_BYTES) > self.limit_bytes {
            true => Err(too_large(self.limit_bytes)),
            false => Ok(()),
        }
    }

    fn is_cancelled(&self, place: BufferPlace) -> bool {
        self.cancelled.contains_key(&place)
    }

    /// Applies a checkpoint, its items in the order of xlog_recover_reorder_trans().
    fn apply(&mut self, io: &mut impl MetaIo, checkpoint: Checkpoint) -> Result<()> {
        if checkpoint.lsn != self.lsn {
            self.seal_changed(io)?;
            self.lsn = checkpoint.lsn;
        }
        self.result.checkpoints = self.result.checkpoints.saturating_add(1);
        let mut phases: [Vec<Item>; 4] = Default::default();
        for item in checkpoint.items {
            if let Some(phase) = phases.get_mut(phase_of(&item)?) {
                phase.push(item);
            }
        }
        for item in phases.iter().flatten() {
            match item.item_type() {
                layout::BUF => self.buffer(io, item)?,
                layout::ICREATE => self.chunk(item)?,
                layout::INODE => self.inode(io, item)?,
                kind => self.other(kind, item)?,
            }
        }
        Ok(())
    }

    /// Intents, and quota records, which are skipped as by a kernel that mounts without quotas.
    fn other(&mut self, kind: u16, item: &Item) -> Result<()> {
        match kind {
            layout::EFI | layout::RUI | layout::CUI | layout::BUI | layout::ATTRI | layout::XMI => {
                self.result.unfinished.add(item)?;
            }
            layout::EFD | layout::RUD | layout::CUD | layout::BUD | layout::ATTRD | layout::XMD => {
                self.result.unfinished.end(item)?;
            }
            layout::DQUOT | layout::QUOTAOFF => self.result.quotas = true,
            _ => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "the log holds a change of an unknown kind ({kind:#x}): mount the filesystem \
                         once with the kernel and unmount it"
                    ),
                ));
            }
        }
        match self.result.unfinished.memory_bytes() > self.limit_bytes {
            true => Err(too_large(self.limit_bytes)),
            false => Ok(()),
        }
    }

    /// Notes that a buffer was changed.
    fn put(&mut self, addr_bytes: u64, content: &[u8], layout: Option<BufferLayout>) -> Result<()> {
        self.result.overlay.put(addr_bytes, content)?;
        let len = content.len();
        match layout {
            Some(layout) => self.changed.insert(addr_bytes, Changed { len, layout }),
            None => self.changed.remove(&addr_bytes),
        };
        Ok(())
    }

    /// Gives the buffers that were changed since the last call log sequence number and checksum.
    fn seal_changed(&mut self, io: &mut impl MetaIo) -> Result<()> {
        for (addr, Changed { len, layout }) in std::mem::take(&mut self.changed) {
            let mut content = self.result.overlay.read(io, addr, len)?;
            let bad = |what: &str| corrupt(addr, format!("after the replay of the log: {what}"));
            if !layout.fits(&content) {
                return Err(bad("a buffer has another magic number than its kind"));
            }
            if !self.is_own(&layout, &content) {
                return Err(bad("a buffer of another filesystem (uuid)"));
            }
            if let Some(at) = layout.blkno
                && buffer::be64(&content, at) != Some(addr / BASIC_BLOCK_BYTES)
            {
                return Err(bad("a buffer has the address of another one"));
            }
            let lsn = content
                .get_mut(layout.lsn..)
                .and_then(|rest| rest.first_chunk_mut::<8>());
            *lsn.ok_or_else(|| bad("a buffer is too short"))? = self.lsn.to_be_bytes();
            if !format::set_checksum(&mut content, layout.crc) {
                return Err(bad("a buffer is too short"));
            }
            if let Some(&(lsn, crc)) = self.torn.get(&addr)
                && lsn == self.lsn
            {
                if buffer::le32(&content, layout.crc) != Some(crc) {
                    return Err(bad("a torn block has not the checksum of the whole one"));
                }
                self.torn.remove(&addr);
            }
            self.result.overlay.put(addr, &content)?;
        }
        Ok(())
    }

    /// Takes over the size from a superblock in the log: later items may be in new groups, as in
    /// xlog_recover_update_agcount(). Nothing else of the geometry may change.
    fn grow(&mut self, io: &mut impl MetaIo, content: &[u8]) -> Result<()> {
        let now = self.result.overlay.read(io, 0, content.len())?;
        let old = SuperblockLayout::ref_from_prefix(&now)
            .map_err(|_| bad_item("too short"))?
            .0;
        let new = SuperblockLayout::ref_from_prefix(content)
            .map_err(|_| bad_item("too short"))?
            .0;
        let sizes = |sb: &SuperblockLayout| {
            (
                (
                    sb.blocksize,
                    sb.logstart,
                    sb.rootino,
                    sb.agblocks,
                    sb.logblocks,
                ),
                (
                    sb.sectsize,
                    sb.inodesize,
                    sb.inopblock,
                    sb.blocklog,
                    sb.sectlog,
                ),
                (
                    sb.inodelog,
                    sb.inopblog,
                    sb.agblklog,
                    sb.inoalignmt,
                    sb.dirblklog,
                ),
                (sb.logsectlog, sb.logsectsize, sb.logsunit),
            )
        };
        let (blocks, groups) = (new.dblocks.get(), new.agcount.get());
        let most = u64::from(groups).saturating_mul(self.geometry.ag_blocks.into());
        let fits = blocks >= self.geometry.data_blocks
            && groups >= self.geometry.ag_count
            && blocks <= most
            && self.geometry.bytes(blocks) <= self.capacity_bytes;
        if sizes(old) != sizes(new) || !fits {
            return Err(bad_item("a superblock with another geometry"));
        }
        self.geometry.data_blocks = blocks;
        self.geometry.ag_count = groups;
        Ok(())
    }

    /// Whether a buffer carries the filesystem's uuid.
    fn is_own(&self, layout: &BufferLayout, content: &[u8]) -> bool {
        let sb = self.superblock;
        if layout.is_superblock() {
            // The one that it carries in any case; `meta_uuid` is empty without the feature.
            let at = std::mem::offset_of!(SuperblockLayout, uuid);
            return content.get(at..).and_then(|rest| rest.first_chunk()) == Some(&sb.uuid);
        }
        content
            .get(layout.uuid..)
            .and_then(|rest| rest.first_chunk())
            == Some(&sb.meta_uuid)
    }

    /// The byte address and length of a buffer that the log names, if the filesystem can have one
    /// there.
    fn check_place(&self, (blkno, len): BufferPlace) -> Result<(u64, usize)> {
        const LARGEST: u64 = 64 << 10;
        let geometry = &self.geometry;
        let bad = |what: &str| {
            bad_item(&format!(
                "a buffer of {len} basic blocks at {blkno}: {what}"
            ))
        };
        let sector = u64::from(geometry.sector_bytes);
        let addr = blkno
            .checked_mul(BASIC_BLOCK_BYTES)
            .ok_or_else(|| bad("impossible address"))?;
        let bytes = len.saturating_mul(BASIC_BLOCK_BYTES);
        let end = addr.saturating_add(bytes);
        if bytes == 0 || bytes > LARGEST {
            return Err(bad("impossible length"));
        }
        let odd = |bytes: u64| bytes.checked_rem(sector) != Some(0);
        if odd(addr) || odd(bytes) {
            return Err(bad("not of whole sectors"));
        }
        if end
            > geometry
                .bytes(geometry.data_blocks)
                .min(self.capacity_bytes)
        {
            return Err(bad("beyond the end of the filesystem"));
        }
        let log = geometry.block_addr(geometry.log_start);
        let log_end = log.saturating_add(geometry.bytes(geometry.log_blocks.into()));
        if addr < log_end && end > log {
            return Err(bad("inside the log"));
        }
        Ok((addr, usize::try_from(bytes).unwrap_or(usize::MAX)))
    }
}

/// When the items of a checkpoint are applied.
fn phase_of(item: &Item) -> Result<usize> {
    Ok(match item.item_type() {
        layout::BUF => {
            let flags = buf_item(item)?.flags.get();
            if flags & layout::BUF_CANCEL != 0 {
                3
            } else if flags & layout::BUF_INODES != 0 {
                2
            } else {
                0
            }
        }
        layout::ICREATE => 0,
        _ => 1,
    })
}

fn buf_item(item: &Item) -> Result<&BufItem> {
    BufItem::ref_from_prefix(item.region(0))
        .map(|(header, _)| header)
        .map_err(|_| bad_item("the item of a buffer is too short"))
}

fn place_of(header: &BufItem) -> Result<BufferPlace> {
    let blkno = u64::try_from(header.blkno.get());
    let blkno = blkno.map_err(|_| bad_item("a buffer at a negative address"))?;
    Ok((blkno, header.len.get().into()))
}

#[cold]
fn bad_item(what: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the log cannot be replayed: {what}"),
    )
}
