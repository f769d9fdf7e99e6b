//! Inodes in a checkpoint: the kernel's xlog_recover_inode_commit_pass2().

use std::mem::size_of;

use zerocopy::{FromBytes, IntoBytes};

use super::super::super::MetaIo;
use super::super::super::format;
use super::super::super::format::btree::{BMBT_MAGIC, BmdrHeader, LongHeader};
use super::super::super::format::inode::{self as layout, InodeCore};
use super::super::super::format::log::NULL_LSN;
use super::super::super::format::log_items::{
    InodeItem, LOG_ABROOT, LOG_ADATA, LOG_AEXT, LOG_AOWNER, LOG_DBROOT, LOG_DDATA, LOG_DEV,
    LOG_DEXT, LOG_DOWNER, LoggedCore,
};
use super::checkpoints::Item;
use super::{Replay, bad_item};
use crate::error::{Error, ErrorKind, Result};

const DATA_FORK: u32 = LOG_DDATA | LOG_DEXT | LOG_DBROOT;
const ATTRIBUTE_FORK: u32 = LOG_ADATA | LOG_AEXT | LOG_ABROOT;
/// Bytes of a key and a pointer of a fork's btree.
const CHILD_BYTES: usize = 16;

impl Replay<'_> {
    pub(super) fn inode(&mut self, io: &mut impl MetaIo, item: &Item) -> Result<()> {
        let (header, _) = InodeItem::ref_from_prefix(item.region(0))
            .map_err(|_| bad_item("the item of an inode is too short"))?;
        let bad = |what: &str| bad_item(&format!("inode {}: {what}", header.ino.get()));
        let blkno = u64::try_from(header.blkno.get()).map_err(|_| bad("negative address"))?;
        let blocks = u64::try_from(header.len.get()).map_err(|_| bad("negative length"))?;
        let place = (blkno, blocks);
        if self.is_cancelled(place) {
            return Ok(());
        }
        let (addr, len) = self.check_place(place)?;
        let size = usize::try_from(self.geometry.inode_bytes).unwrap_or(usize::MAX);
        let start = usize::try_from(header.boffset.get()).map_err(|_| bad("negative offset"))?;
        let end = start.saturating_add(size);
        if start.checked_rem(size) != Some(0) || end > len {
            return Err(bad("lies outside its buffer"));
        }
        // Only its own sectors, however large the buffer is.
        let sector = usize::try_from(self.geometry.sector_bytes).unwrap_or(512);
        let from = start.saturating_sub(start.checked_rem(sector).unwrap_or(0));
        let to = end.checked_next_multiple_of(sector).unwrap_or(end);
        let at = addr.saturating_add(from as u64);
        let mut content = self.result.overlay.read(io, at, to.saturating_sub(from))?;
        let raw = content
            .get_mut(start.saturating_sub(from)..end.saturating_sub(from))
            .ok_or_else(|| bad("lies outside its buffer"))?;
        if self.merge(header, item, raw).map_err(bad)? {
            self.result.overlay.put(at, &content)?;
        }
        if header.fields.get() & (LOG_DOWNER | LOG_AOWNER) != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the log holds an exchange of extents between files, which is not replayed: mount \
                 the filesystem once with the kernel and unmount it",
            ));
        }
        Ok(())
    }

    /// Puts what was logged into the inode on disk; false when that is newer.
    fn merge(&self, header: &InodeItem, item: &Item, raw: &mut [u8]) -> Result<bool, &'static str> {
        let (disk, _) = InodeCore::ref_from_prefix(raw).map_err(|_| "too short")?;
        if disk.magic.get() != layout::MAGIC {
            return Err("there is no inode on the disk");
        }
        if disk.ino.get() != header.ino.get() || disk.uuid != self.superblock.meta_uuid {
            return Err("another inode on the disk");
        }
        let lsn = disk.lsn.get();
        let is_newer = lsn != 0 && lsn != NULL_LSN && lsn > self.lsn;
        let is_whole = format::checksum_ok(raw, layout::CRC_OFFSET);
        let sector = usize::try_from(self.geometry.sector_bytes).unwrap_or(usize::MAX);
        if !is_whole && raw.len() <= sector {
            return Err("the checksum is wrong; run xfs_repair");
        }
        // A mixture of sectors is replayed: see `is_newer` of buffers.
        if is_newer && is_whole {
            return Ok(false);
        }
        let next_unlinked = disk.next_unlinked;
        let (logged, _) =
            LoggedCore::read_from_prefix(item.region(1)).map_err(|_| "the core is too short")?;
        if item.region(1).len() != size_of::<LoggedCore>() {
            return Err("the core is too long");
        }
        self.check_core(&logged, header.ino.get())?;
        let mut core = core_on_disk(&logged, self.lsn);
        core.next_unlinked = next_unlinked;
        let head = raw.get_mut(..layout::CORE_BYTES).ok_or("too short")?;
        head.copy_from_slice(core.as_bytes());
        self.forks(header, item, &core, raw)?;
        if !format::set_checksum(raw, layout::CRC_OFFSET) {
            return Err("too short");
        }
        Ok(true)
    }

    /// As the kernel does before and, by xfs_dinode_verify(), after.
    fn check_core(&self, core: &LoggedCore, ino: u64) -> Result<(), &'static str> {
        if core.magic.get() != layout::MAGIC || core.version != layout::VERSION {
            return Err("the logged core is none");
        }
        if core.ino.get() != ino || core.uuid != self.superblock.meta_uuid {
            return Err("the logged core is of another inode");
        }
        let is_large = core.flags2.get() & layout::FLAG2_NREXT64 != 0;
        let (data, attributes) = if is_large {
            (core.big_nextents.get(), core.nextents.get())
        } else {
            (core.nextents.get().into(), core.anextents.get().into())
        };
        if is_large != self.superblock.features.nrext64() && is_large {
            return Err("large extent counters, which the filesystem has not");
        }
        if !is_large && core.big_nextents.get() != 0 {
            return Err("both kinds of extent counters");
        }
        if data.saturating_add(attributes.into()) > core.nblocks.get() {
            return Err("more extents than blocks");
        }
        let literal = self.literal_bytes();
        if usize::from(core.forkoff).saturating_mul(8) >= literal {
            return Err("the attribute fork begins outside the inode");
        }
        let forms = [
            layout::FORMAT_DEV,
            layout::FORMAT_LOCAL,
            layout::FORMAT_EXTENTS,
            layout::FORMAT_BTREE,
        ];
        let fits = match core.mode.get() & layout::S_IFMT {
            0 => forms.contains(&core.format),
            layout::S_IFREG => matches!(core.format, layout::FORMAT_EXTENTS | layout::FORMAT_BTREE),
            layout::S_IFDIR | layout::S_IFLNK => matches!(
                core.format,
                layout::FORMAT_LOCAL | layout::FORMAT_EXTENTS | layout::FORMAT_BTREE
            ),
            _ => core.format == layout::FORMAT_DEV,
        };
        if !fits {
            return Err("its type cannot have such a data fork");
        }
        Ok(())
    }

    /// Bytes of both forks.
    fn literal_bytes(&self) -> usize {
        let size = usize::try_from(self.geometry.inode_bytes).unwrap_or(0);
        size.saturating_sub(layout::CORE_BYTES)
    }

    /// The forks that were logged.
    fn forks(
        &self,
        header: &InodeItem,
        item: &Item,
        core: &InodeCore,
        raw: &mut [u8],
    ) -> Result<(), &'static str> {
        let fields = header.fields.get();
        let literal = raw.get_mut(layout::CORE_BYTES..).ok_or("too short")?;
        let data_bytes = match core.forkoff {
            0 => literal.len(),
            units => usize::from(units).saturating_mul(8),
        };
        let (data, attributes) = literal
            .split_at_mut_checked(data_bytes)
            .ok_or("too short")?;
        if fields & LOG_DEV != 0 {
            let word = data.first_chunk_mut::<4>().ok_or("too short")?;
            *word = header.rdev.get().to_be_bytes();
        }
        let mut region = 2_usize;
        if fields & DATA_FORK != 0 {
            fork(fields & DATA_FORK == LOG_DBROOT, item.region(region), data)?;
            region = region.saturating_add(1);
        }
        if fields & ATTRIBUTE_FORK != 0 {
            let is_root = fields & ATTRIBUTE_FORK == LOG_ABROOT;
            fork(is_root, item.region(region), attributes)?;
        }
        Ok(())
    }
}

fn fork(is_root: bool, logged: &[u8], to: &mut [u8]) -> Result<(), &'static str> {
    if is_root {
        return root(logged, to).ok_or("the root of a btree does not fit");
    }
    let to = to.get_mut(..logged.len()).ok_or("a fork does not fit")?;
    to.copy_from_slice(logged);
    Ok(())
}

/// The root of a btree, which is logged as it is in the kernel's memory, a whole block, in the form
/// that it has in the inode: xfs_bmbt_to_bmdr().
fn root(logged: &[u8], to: &mut [u8]) -> Option<()> {
    let (header, body) = LongHeader::ref_from_prefix(logged).ok()?;
    let count = usize::from(header.numrecs.get());
    if header.magic.get() != BMBT_MAGIC || header.level.get() == 0 || count == 0 {
        return None;
    }
    let small = BmdrHeader {
        level: header.level,
        numrecs: header.numrecs,
    };
    let (head, children) = to.split_at_mut_checked(size_of::<BmdrHeader>())?;
    head.copy_from_slice(small.as_bytes());
    // Keys, room for more of them, then pointers: each form with its own room.
    let half = CHILD_BYTES / 2;
    let bytes = count.checked_mul(half)?;
    let logged_most = body.len() / CHILD_BYTES;
    let most = children.len() / CHILD_BYTES;
    if count > logged_most || count > most {
        return None;
    }
    let keys = body.get(..bytes)?;
    children.get_mut(..bytes)?.copy_from_slice(keys);
    let from = logged_most.checked_mul(half)?;
    let at = most.checked_mul(half)?;
    let pointers = body.get(from..from.checked_add(bytes)?)?;
    children
        .get_mut(at..at.checked_add(bytes)?)?
        .copy_from_slice(pointers);
    Some(())
}

/// The core as it is on disk, changed by a checkpoint of this sequence number:
/// xfs_log_dinode_to_disk().
fn core_on_disk(logged: &LoggedCore, lsn: u64) -> InodeCore {
    let mut core: InodeCore = zerocopy::FromZeros::new_zeroed();
    let is_bigtime = logged.flags2.get() & layout::FLAG2_BIGTIME != 0;
    let time = |raw: u64| {
        if is_bigtime {
            return raw;
        }
        // Seconds and nanoseconds, each a number of 32 bits in the order of the machine.
        let (seconds, nanoseconds) = (raw & u64::from(u32::MAX), raw.wrapping_shr(32));
        seconds.wrapping_shl(32) | nanoseconds
    };
    core.magic = logged.magic.get().into();
    core.mode = logged.mode.get().into();
    core.version = logged.version;
    core.format = logged.format;
    core.onlink = logged.metatype.get().into();
    core.uid = logged.uid.get().into();
    core.gid = logged.gid.get().into();
    core.nlink = logged.nlink.get().into();
    core.projid_lo = logged.projid_lo.get().into();
    core.projid_hi = logged.projid_hi.get().into();
    core.big_nextents = logged.big_nextents.get().into();
    core.atime = time(logged.atime.get()).into();
    core.mtime = time(logged.mtime.get()).into();
    core.ctime = time(logged.ctime.get()).into();
    core.size = logged.size.get().into();
    core.nblocks = logged.nblocks.get().into();
    core.extsize = logged.extsize.get().into();
    core.nextents = logged.nextents.get().into();
    core.anextents = logged.anextents.get().into();
    core.forkoff = logged.forkoff;
    core.aformat = logged.aformat;
    core.dmevmask = logged.dmevmask.get().into();
    core.dmstate = logged.dmstate.get().into();
    core.flags = logged.flags.get().into();
    core.generation = logged.generation.get().into();
    core.changecount = logged.changecount.get().into();
    core.lsn = lsn.into();
    core.flags2 = logged.flags2.get().into();
    core.cowextsize = logged.cowextsize.get().into();
    core.crtime = time(logged.crtime.get()).into();
    core.ino = logged.ino.get().into();
    core.uuid = logged.uuid;
    core
}
