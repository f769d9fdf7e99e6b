//! The superblock: read, checked field by field, turned into [`Geometry`] and [`Features`].
//!
//! Only the primary one counts, as for the kernel; the copies are for repair.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use serde::Serialize;
use zerocopy::FromBytes;

use super::format::superblock::{self as layout, SuperblockLayout};
use super::format::{self};
use super::geometry::{FsBlock, Geometry, Ino};
use super::{MetaIo, corrupt, other};
use crate::error::{Error, ErrorKind, Result};

/// What the first read fetches: any device block up to this size can be read, and every field is in it.
const FIRST_READ_BYTES: usize = 4096;

/// Feature words of the superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Features {
    /// Compatible.
    pub compat: u32,
    /// Unknown bits allow reading only.
    pub ro_compat: u32,
    /// Unknown bits forbid any use.
    pub incompat: u32,
    /// Unknown bits forbid replaying the log.
    pub log_incompat: u32,
}

impl Features {
    /// Free inode btree.
    pub fn finobt(&self) -> bool {
        self.ro_compat & layout::RO_FINOBT != 0
    }

    /// Shared blocks.
    pub fn reflink(&self) -> bool {
        self.ro_compat & layout::RO_REFLINK != 0
    }

    /// Reverse mapping btree.
    pub fn rmapbt(&self) -> bool {
        self.ro_compat & layout::RO_RMAPBT != 0
    }

    /// File type in directory entries.
    pub fn ftype(&self) -> bool {
        self.incompat & layout::IN_FTYPE != 0
    }

    /// Sparse inode chunks.
    pub fn sparse(&self) -> bool {
        self.incompat & layout::IN_SPARSE != 0
    }

    /// 64-bit time stamps.
    pub fn bigtime(&self) -> bool {
        self.incompat & layout::IN_BIGTIME != 0
    }

    /// Large extent counters.
    pub fn nrext64(&self) -> bool {
        self.incompat & layout::IN_NREXT64 != 0
    }

    /// The names of all features that are on, as mkfs.xfs calls them; unknown ones as `ro_compat bit 9`.
    pub fn names(&self) -> Vec<String> {
        let mut names = bit_names(self.ro_compat, &layout::RO_COMPAT, "ro_compat");
        names.extend(bit_names(self.incompat, &layout::INCOMPAT, "incompat"));
        names.extend(bit_names(
            self.log_incompat,
            &layout::LOG_INCOMPAT,
            "log_incompat",
        ));
        names.extend(bit_names(self.compat, &[], "compat"));
        names
    }
}

fn bit_names(word: u32, known: &[&str], kind: &str) -> Vec<String> {
    (0..u32::BITS)
        .filter(|bit| word.wrapping_shr(*bit) & 1 == 1)
        .map(|bit| {
            let name = usize::try_from(bit).ok().and_then(|bit| known.get(bit));
            name.map_or_else(|| format!("{kind} bit {bit}"), |name| (*name).to_owned())
        })
        .collect()
}

fn known_mask(names: usize) -> u32 {
    let bits = u32::try_from(names).unwrap_or(u32::BITS);
    1_u32
        .checked_shl(bits)
        .map_or(u32::MAX, |bit| bit.wrapping_sub(1))
}

/// A superblock that passed its checks.
#[derive(Debug, Clone)]
pub(crate) struct Superblock {
    pub(crate) geometry: Geometry,
    pub(crate) features: Features,
    /// The filesystem's uuid, as `blkid` shows it; in log records.
    pub(crate) uuid: [u8; 16],
    /// The uuid that metadata blocks carry.
    pub(crate) meta_uuid: [u8; 16],
    pub(crate) label: Vec<u8>,
    pub(crate) inodes: u64,
    pub(crate) free_inodes: u64,
    pub(crate) free_blocks: u64,
    /// Log sequence number of its last change.
    pub(crate) lsn: u64,
    /// Why nothing may be written, when unknown features forbid it.
    pub(crate) read_only: Option<String>,
}

impl Superblock {
    /// Reads and checks the primary superblock.
    pub(crate) fn read(io: &mut impl MetaIo) -> Result<Self> {
        let device_block = usize::try_from(io.block_bytes()).unwrap_or(usize::MAX);
        let mut sector = vec![0; FIRST_READ_BYTES.max(device_block)];
        let too_small = || {
            Error::new(
                ErrorKind::Corrupt,
                "the device is too small to hold an XFS filesystem",
            )
        };
        if io.capacity_bytes() < sector.len() as u64 {
            return Err(too_small());
        }
        io.read_at(0, &mut sector)?;
        let (raw, _) = SuperblockLayout::read_from_prefix(&sector).map_err(|_| too_small())?;
        if raw.magicnum.get() != layout::MAGIC {
            return Err(other::no_xfs(io));
        }
        let version = raw.versionnum.get() & layout::VERSION_MASK;
        if version != 5 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("XFS version {version}: only version 5 (mkfs.xfs -m crc=1) is supported"),
            ));
        }
        let sector_bytes = check_log2(raw.sectsize.get().into(), raw.sectlog, 9..=15)
            .ok_or_else(|| corrupt(0, "superblock: impossible sector size"))?;
        let sector_len = usize::try_from(sector_bytes).unwrap_or(usize::MAX);
        if sector_len > sector.len() {
            if io.capacity_bytes() < u64::from(sector_bytes) {
                return Err(too_small());
            }
            sector.resize(sector_len, 0);
            io.read_at(0, &mut sector)?;
        }
        let whole = sector.get(..sector_len).unwrap_or_default();
        if !format::checksum_ok(whole, layout::CRC_OFFSET) {
            return Err(corrupt(0, "superblock: the checksum is wrong"));
        }
        Self::check(&raw, io)
    }

    fn check(raw: &SuperblockLayout, io: &impl MetaIo) -> Result<Self> {
        let features = Features {
            compat: raw.features_compat.get(),
            ro_compat: raw.features_ro_compat.get(),
            incompat: raw.features_incompat.get(),
            log_incompat: raw.features_log_incompat.get(),
        };
        check_features(raw, &features)?;
        let geometry =
            check_geometry(raw).map_err(|what| corrupt(0, format!("superblock: {what}")))?;
        check_device(&geometry, io)?;
        let unknown = features.ro_compat & !known_mask(layout::RO_COMPAT.len());
        let read_only = (unknown != 0).then(|| {
            format!(
                "unknown read-only compatible feature: {}",
                bit_names(unknown, &[], "ro_compat").join(", ")
            )
        });
        let label_len = raw.fname.iter().position(|byte| *byte == 0);
        let label = raw.fname.get(..label_len.unwrap_or(raw.fname.len()));
        Ok(Self {
            geometry,
            features,
            uuid: raw.uuid,
            meta_uuid: if features.incompat & layout::IN_META_UUID != 0 {
                raw.meta_uuid
            } else {
                raw.uuid
            },
            label: label.unwrap_or_default().to_vec(),
            inodes: raw.icount.get(),
            free_inodes: raw.ifree.get(),
            free_blocks: raw.fdblocks.get(),
            lsn: raw.lsn.get(),
            read_only,
        })
    }
}

/// Refuses what this code cannot handle, by name.
fn check_features(raw: &SuperblockLayout, features: &Features) -> Result<()> {
    let unsupported = |what: String| Err(Error::new(ErrorKind::Unsupported, what));
    let supported = layout::IN_FTYPE
        | layout::IN_SPARSE
        | layout::IN_META_UUID
        | layout::IN_BIGTIME
        | layout::IN_NEEDSREPAIR
        | layout::IN_NREXT64
        | layout::IN_EXCHANGE
        | layout::IN_PARENT;
    let other = features.incompat & !supported;
    if other != 0 {
        let names = bit_names(other, &layout::INCOMPAT, "incompat").join(", ");
        return unsupported(format!(
            "the filesystem has incompatible features that are not supported: {names}"
        ));
    }
    if features.incompat & layout::IN_NEEDSREPAIR != 0 {
        return unsupported(
            "the filesystem is marked needsrepair: run xfs_repair on it first".to_owned(),
        );
    }
    if raw.rblocks.get() != 0 || raw.rextents.get() != 0 {
        return unsupported("the filesystem has a realtime section".to_owned());
    }
    if raw.logstart.get() == 0 {
        return unsupported("the filesystem has an external log".to_owned());
    }
    Ok(())
}

/// The size that a number and its logarithm agree on, when the logarithm is in range.
fn check_log2(size: u32, log: u8, range: std::ops::RangeInclusive<u8>) -> Option<u32> {
    let expected = 1_u32.checked_shl(log.into())?;
    (range.contains(&log) && size == expected).then_some(size)
}

fn check_geometry(raw: &SuperblockLayout) -> Result<Geometry, &'static str> {
    check_words(raw)?;
    let block_bytes =
        check_log2(raw.blocksize.get(), raw.blocklog, 10..=16).ok_or("impossible block size")?;
    let sector_bytes = check_log2(raw.sectsize.get().into(), raw.sectlog, 9..=15)
        .filter(|sector| *sector <= block_bytes)
        .ok_or("impossible sector size")?;
    let inode_bytes = check_log2(raw.inodesize.get().into(), raw.inodelog, 9..=11)
        .filter(|inode| *inode <= block_bytes)
        .ok_or("impossible inode size")?;
    if raw.inopblog != raw.blocklog.saturating_sub(raw.inodelog)
        || Some(u32::from(raw.inopblock.get())) != block_bytes.checked_div(inode_bytes)
    {
        return Err("wrong number of inodes in a block");
    }
    let dir_log = raw.blocklog.checked_add(raw.dirblklog);
    let dir_block_bytes = dir_log
        .filter(|log| *log <= 16)
        .and_then(|log| 1_u32.checked_shl(log.into()))
        .ok_or("impossible directory block size")?;
    let log_sector_bytes = if raw.versionnum.get() & layout::VERSION_SECTOR == 0 {
        512
    } else {
        check_log2(raw.logsectsize.get().into(), raw.logsectlog, 9..=15)
            .filter(|sector| *sector <= block_bytes)
            .ok_or("impossible sector size of the log")?
    };
    let geometry = Geometry {
        block_bytes,
        block_log: raw.blocklog.into(),
        sector_bytes,
        inode_bytes,
        inode_log: raw.inodelog.into(),
        inopb_log: raw.inopblog.into(),
        dir_block_bytes,
        dir_block_blocks: 1_u32.checked_shl(raw.dirblklog.into()).unwrap_or(1),
        data_blocks: raw.dblocks.get(),
        ag_blocks: raw.agblocks.get(),
        ag_block_log: raw.agblklog.into(),
        ag_count: raw.agcount.get(),
        log_start: FsBlock(raw.logstart.get()),
        log_blocks: raw.logblocks.get(),
        log_sector_bytes,
        log_stripe_bytes: raw.logsunit.get(),
        root_ino: Ino(raw.rootino.get()),
        stripe_unit_blocks: raw.unit.get(),
        stripe_width_blocks: raw.width.get(),
        inode_align_blocks: raw.inoalignmt.get(),
    };
    check_groups(&geometry)?;
    check_log(&geometry)?;
    if geometry.locate_inode(geometry.root_ino).is_none() {
        return Err("impossible number of the root inode");
    }
    Ok(geometry)
}

/// What version 5 demands of the version and feature words, and small numbers.
fn check_words(raw: &SuperblockLayout) -> Result<(), &'static str> {
    let needed = layout::VERSION_LOGV2
        | layout::VERSION_EXTFLG
        | layout::VERSION_DIRV2
        | layout::VERSION_MOREBITS;
    if raw.versionnum.get() & needed != needed || raw.features2.get() & layout::FEATURES2_CRC == 0 {
        return Err("lacks features that version 5 demands");
    }
    if raw.inprogress != 0 {
        return Err("mkfs.xfs or xfs_repair did not finish");
    }
    if raw.imax_pct > 100 {
        return Err("impossible share of inodes");
    }
    Ok(())
}

fn check_groups(geometry: &Geometry) -> Result<(), &'static str> {
    const MIN_AG_BLOCKS: u32 = 64;
    const MIN_AG_BYTES: u64 = 16 << 20;
    const MAX_AG_BYTES: u64 = 1 << 40;
    let ag_bytes = geometry.bytes(geometry.ag_blocks.into());
    if geometry.ag_blocks < MIN_AG_BLOCKS || !(MIN_AG_BYTES..=MAX_AG_BYTES).contains(&ag_bytes) {
        return Err("impossible size of an allocation group");
    }
    let log = geometry.ag_blocks.checked_next_power_of_two();
    if log.map(u32::trailing_zeros) != Some(geometry.ag_block_log) {
        return Err("wrong logarithm of the size of an allocation group");
    }
    let most = u64::from(geometry.ag_count).saturating_mul(geometry.ag_blocks.into());
    let least = u64::from(geometry.ag_count.saturating_sub(1))
        .saturating_mul(geometry.ag_blocks.into())
        .saturating_add(MIN_AG_BLOCKS.into());
    if geometry.ag_count == 0 || !(least..=most).contains(&geometry.data_blocks) {
        return Err("the number of blocks and the allocation groups contradict each other");
    }
    if geometry.data_blocks > u64::MAX.wrapping_shr(geometry.block_log) {
        return Err("impossible number of blocks");
    }
    Ok(())
}

fn check_log(geometry: &Geometry) -> Result<(), &'static str> {
    const MAX_LOG_BYTES: u64 = 1 << 31;
    const MIN_LOG_BLOCKS: u32 = 512;
    const MAX_STRIPE_BYTES: u32 = 256 * 1024;
    let bytes = geometry.bytes(geometry.log_blocks.into());
    if geometry.log_blocks < MIN_LOG_BLOCKS || bytes > MAX_LOG_BYTES {
        return Err("impossible size of the log");
    }
    let (ag, ag_block) = geometry.split(geometry.log_start);
    let end = u64::from(ag_block).saturating_add(geometry.log_blocks.into());
    if ag_block < geometry.first_data_ag_block() || end > geometry.ag_length(ag).into() {
        return Err("the log does not lie in one allocation group");
    }
    if geometry.log_stripe_bytes > MAX_STRIPE_BYTES {
        return Err("impossible stripe unit of the log");
    }
    Ok(())
}

fn check_device(geometry: &Geometry, io: &impl MetaIo) -> Result<()> {
    let device_block = io.block_bytes();
    if geometry.sector_bytes < device_block || geometry.log_sector_bytes < device_block {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the filesystem has sectors of {} bytes, the device has blocks of {device_block}: \
                 make the filesystem with mkfs.xfs -s size={device_block}, or open it with \
                 blocks of at most its sector size",
                geometry.sector_bytes.min(geometry.log_sector_bytes)
            ),
        ));
    }
    let needed = geometry.bytes(geometry.data_blocks);
    let capacity = io.capacity_bytes();
    if needed > capacity {
        return Err(corrupt(
            0,
            format!(
                "the filesystem has {needed} bytes, the device only {capacity}: it was cut off"
            ),
        ));
    }
    Ok(())
}
