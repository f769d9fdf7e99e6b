//! The superblock: read, checked field by field, turned into [`Geometry`] and [`Features`].
//!
//! Only the primary one counts, as for the kernel; the copies are for repair.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::format::superblock::{self as layout, SuperblockLayout};
use super::format::{self};
use super::geometry::Geometry;
use super::{MetaIo, corrupt, other};
use crate::error::{Error, ErrorKind, Result};

mod check;
mod features;

use check::{check_features, check_geometry, check_log2, internal_inodes, read_only_reason};
pub use features::Features;

/// What the first read fetches: any device block up to this size can be read, and every field is in
/// it.
const FIRST_READ_BYTES: usize = 4096;

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
    /// Inodes that may exist at most; 0 for no limit.
    pub(crate) most_inodes: u64,
    /// Log sequence number of its last change.
    pub(crate) lsn: u64,
    /// Inodes of the filesystem itself, which no directory may name.
    pub(crate) internal_inodes: [u64; 5],
    /// Quotas are kept for users, groups or projects.
    pub(crate) has_quotas: bool,
    /// Why nothing may be written, when unknown features or a RAID forbid it.
    pub(crate) read_only: Option<String>,
}

/// As `xfs_ialloc_setup_geometry`, which rounds down to whole chunks of inodes.
fn most_inodes(raw: &SuperblockLayout, geometry: &Geometry) -> u64 {
    const CHUNK_INODES: u64 = 64;
    let share = u128::from(geometry.data_blocks).saturating_mul(raw.imax_pct.into());
    let blocks = u64::try_from(share / 100).unwrap_or(u64::MAX);
    let per_block = geometry.block_bytes.checked_div(geometry.inode_bytes);
    let per_block = u64::from(per_block.unwrap_or(0));
    let inodes = blocks.saturating_mul(per_block);
    inodes.saturating_sub(inodes.checked_rem(CHUNK_INODES.max(per_block)).unwrap_or(0))
}

impl Superblock {
    /// Reads and checks the primary superblock.
    ///
    /// # Errors
    /// As [`Fs::open_with`](super::Fs::open_with).
    pub(crate) fn read(io: &mut impl MetaIo, norecovery: bool) -> Result<Self> {
        let device_block = usize::try_from(io.block_bytes()).unwrap_or(usize::MAX);
        let mut sector = vec![0; FIRST_READ_BYTES.max(device_block)];
        let too_small = || {
            Error::new(
                ErrorKind::Corrupt,
                "the device is too small to hold an XFS filesystem",
            )
        };
        if io.capacity_bytes() < sector.len() as u64 {
            // A small archive has a name, too.
            return Err(other::no_xfs(io));
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
                format!(
                    "XFS version {version}: only version 5 (mkfs.xfs -m crc=1) is supported; mount it with \
                     the kernel, and copy the files to a new filesystem"
                ),
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
        Self::check(&raw, io, norecovery)
    }

    fn check(raw: &SuperblockLayout, io: &mut impl MetaIo, norecovery: bool) -> Result<Self> {
        let features = Features {
            compat: raw.features_compat.get(),
            ro_compat: raw.features_ro_compat.get(),
            incompat: raw.features_incompat.get(),
            log_incompat: raw.features_log_incompat.get(),
        };
        check_features(raw, &features, norecovery)?;
        let geometry = check_geometry(raw, norecovery)
            .map_err(|what| corrupt(0, format!("superblock: {what}")))?;
        check_device(&geometry, io)?;
        let raid = other::raid_behind(io, geometry.bytes(geometry.data_blocks))?;
        let label_len = raw.fname.iter().position(|byte| *byte == 0);
        let label = raw.fname.get(..label_len.unwrap_or(raw.fname.len()));
        let most_inodes = most_inodes(raw, &geometry);
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
            most_inodes,
            lsn: raw.lsn.get(),
            read_only: read_only_reason(raw, &features).or(raid),
            internal_inodes: internal_inodes(raw),
            has_quotas: raw.qflags.get() != 0,
        })
    }
}

fn check_device(geometry: &Geometry, io: &mut impl MetaIo) -> Result<()> {
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
        if let Some(raid) = other::raid_behind(io, 0)? {
            return Err(Error::new(ErrorKind::Unsupported, raid));
        }
        return Err(corrupt(
            0,
            format!(
                "the filesystem has {needed} bytes, the device only {capacity}: it was cut off"
            ),
        ));
    }
    Ok(())
}
