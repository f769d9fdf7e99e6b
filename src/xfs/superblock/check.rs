//! The checks of the superblock's fields, as the kernel's xfs_validate_sb_common(),
//! xfs_validate_sb_read() and what xfs_mountfs() checks of it.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::super::format::superblock::{self as layout, SuperblockLayout};
use super::super::geometry::{FsBlock, Geometry, Ino};
use super::features::{Features, bit_names, known_mask};
use crate::error::{Error, ErrorKind, Result};

/// Refuses what this code cannot handle, by name.
pub(super) fn check_features(
    raw: &SuperblockLayout,
    features: &Features,
    norecovery: bool,
) -> Result<()> {
    let unsupported = |what: String| Err(Error::new(ErrorKind::Unsupported, what));
    let supported = layout::IN_FTYPE
        | layout::IN_SPARSE
        | layout::IN_META_UUID
        | layout::IN_BIGTIME
        | layout::IN_NEEDSREPAIR
        | layout::IN_NREXT64
        | layout::IN_EXCHANGE
        | layout::IN_PARENT
        // It says something of zoned filesystems only.
        | layout::IN_ZONE_GAPS;
    let other = features.incompat & !supported;
    if other != 0 {
        let names = bit_names(other, &layout::INCOMPAT, "incompat").join(", ");
        return unsupported(format!(
            "the filesystem has incompatible features that are not supported: {names}"
        ));
    }
    let version = raw.versionnum.get() & !layout::VERSION_KNOWN;
    if version != 0 {
        let bits = bit_names(version.into(), &[], "versionnum").join(", ");
        return unsupported(format!("the filesystem has unknown features: {bits}"));
    }
    let features2 = raw.features2.get() & !layout::FEATURES2_KNOWN;
    if features2 != 0 {
        let bits = bit_names(features2, &[], "features2").join(", ");
        return unsupported(format!("the filesystem has unknown features: {bits}"));
    }
    if raw.versionnum.get() & layout::VERSION_ASCII_CI != 0 {
        return unsupported(
            "the filesystem has the feature ascii-ci (mkfs.xfs -n version=ci): names that differ in case \
             only are the same, which is not supported"
                .to_owned(),
        );
    }
    if !features.ftype() {
        return unsupported("the filesystem lacks the feature ftype".to_owned());
    }
    if features.incompat & layout::IN_NEEDSREPAIR != 0 && !norecovery {
        return unsupported(
            "the filesystem is marked needsrepair: run xfs_repair on it first".to_owned(),
        );
    }
    if raw.rblocks.get() != 0 {
        return unsupported("the filesystem has a realtime section".to_owned());
    }
    if raw.logstart.get() == 0 {
        return unsupported("the filesystem has an external log".to_owned());
    }
    Ok(())
}

/// The size that a number and its logarithm agree on, when the logarithm is in range.
pub(super) fn check_log2(size: u32, log: u8, range: std::ops::RangeInclusive<u8>) -> Option<u32> {
    let expected = 1_u32.checked_shl(log.into())?;
    (range.contains(&log) && size == expected).then_some(size)
}

/// Why nothing may be written: bits that the kernel does not know either, and would not write the
/// superblock with.
pub(super) fn read_only_reason(raw: &SuperblockLayout, features: &Features) -> Option<String> {
    let unknown = |word: u32, known: u32, kind: &str| bit_names(word & !known, &[], kind);
    let mut names = unknown(
        features.ro_compat,
        known_mask(layout::RO_COMPAT.len()),
        "ro_compat",
    );
    names.extend(unknown(features.compat, 0, "compat"));
    names.extend(unknown(
        features.log_incompat,
        known_mask(layout::LOG_INCOMPAT.len()),
        "log_incompat",
    ));
    // The kernel takes these for features2, too, when it writes.
    names.extend(unknown(
        raw.bad_features2.get(),
        layout::FEATURES2_KNOWN,
        "bad_features2",
    ));
    (!names.is_empty())
        .then(|| format!("unknown read-only compatible feature: {}", names.join(", ")))
}

/// The inodes of the realtime section and of quotas, as xfs_internal_inum(); 0 is no inode.
pub(super) fn internal_inodes(raw: &SuperblockLayout) -> [u64; 5] {
    let quota = raw.versionnum.get() & layout::VERSION_QUOTA != 0;
    let quota = |ino: u64| if quota { ino } else { 0 };
    [
        raw.rbmino.get(),
        raw.rsumino.get(),
        quota(raw.uquotino.get()),
        quota(raw.gquotino.get()),
        quota(raw.pquotino.get()),
    ]
}

pub(super) fn check_geometry(
    raw: &SuperblockLayout,
    norecovery: bool,
) -> Result<Geometry, &'static str> {
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
        if raw.logsectsize.get() != 0 || raw.logsectlog != 0 {
            return Err("the sector size of the log is given, and should not be");
        }
        512
    } else {
        check_log2(raw.logsectsize.get().into(), raw.logsectlog, 9..=15)
            .filter(|sector| *sector <= sector_bytes)
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
        log_ignored: norecovery,
        log_stripe_bytes: raw.logsunit.get(),
        root_ino: Ino(raw.rootino.get()),
        stripe_unit_blocks: raw.unit.get(),
        stripe_width_blocks: raw.width.get(),
        inode_align_blocks: raw.inoalignmt.get(),
    };
    check_groups(&geometry)?;
    check_log(&geometry)?;
    if !norecovery {
        // Without recovery the kernel does not look for the log.
        check_log_place(&geometry)?;
    }
    check_inodes(raw, &geometry)?;
    check_realtime(raw)?;
    check_stripe(raw)?;
    if geometry.locate_inode(geometry.root_ino).is_none() {
        return Err("impossible number of the root inode");
    }
    if internal_inodes(raw).contains(&geometry.root_ino.0) {
        return Err("the root inode is also one of the realtime section or of quotas");
    }
    Ok(geometry)
}

/// What version 5 demands of the version and feature words, and small numbers.
fn check_words(raw: &SuperblockLayout) -> Result<(), &'static str> {
    let needed = layout::VERSION_NLINK
        | layout::VERSION_ALIGN
        | layout::VERSION_LOGV2
        | layout::VERSION_EXTFLG
        | layout::VERSION_DIRV2
        | layout::VERSION_MOREBITS;
    let needed2 = layout::FEATURES2_LAZY_COUNT
        | layout::FEATURES2_ATTR2
        | layout::FEATURES2_PROJID32
        | layout::FEATURES2_CRC;
    if raw.versionnum.get() & needed != needed || raw.features2.get() & needed2 != needed2 {
        return Err("lacks features that version 5 demands");
    }
    if raw.inprogress != 0 {
        return Err("mkfs.xfs or xfs_repair did not finish");
    }
    if raw.imax_pct > 100 {
        return Err("impossible share of inodes");
    }
    if raw.shared_vn != 0 {
        return Err("shared_vn is not 0");
    }
    if raw.qflags.get() & layout::QFLAGS_OLD != 0 {
        return Err("quota flags of older versions");
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
    const MAX_LOG_BYTES: u64 = (2 << 30) - (10 << 20);
    const MIN_LOG_BLOCKS: u32 = 512;
    const MAX_LOG_BLOCKS: u32 = 1 << 20;
    const MAX_STRIPE_BYTES: u32 = 256 * 1024;
    let bytes = geometry.bytes(geometry.log_blocks.into());
    let blocks = MIN_LOG_BLOCKS..=MAX_LOG_BLOCKS;
    if !blocks.contains(&geometry.log_blocks) || bytes > MAX_LOG_BYTES {
        return Err("impossible size of the log");
    }
    let stripe = geometry.log_stripe_bytes;
    if stripe > MAX_STRIPE_BYTES || stripe > 1 && !stripe.is_multiple_of(geometry.block_bytes) {
        return Err("impossible stripe unit of the log");
    }
    Ok(())
}

fn check_log_place(geometry: &Geometry) -> Result<(), &'static str> {
    let (ag, ag_block) = geometry.split(geometry.log_start);
    let end = u64::from(ag_block).saturating_add(geometry.log_blocks.into());
    if ag_block < geometry.first_data_ag_block() || end > geometry.ag_length(ag).into() {
        return Err("the log does not lie in one allocation group");
    }
    Ok(())
}

/// How inode chunks are aligned, when there are sparse ones.
fn check_inodes(raw: &SuperblockLayout, geometry: &Geometry) -> Result<(), &'static str> {
    const CHUNK_INODES: u32 = 64;
    const CLUSTER_BYTES: u32 = 8192;
    const LEAST_INODE_BYTES: u32 = 256;
    let blocks = |bytes: u32| bytes.checked_shr(geometry.block_log).unwrap_or(0);
    let align = raw.inoalignmt.get();
    let sparse_align = raw.spino_align.get();
    if raw.features_incompat.get() & layout::IN_SPARSE == 0 {
        return if sparse_align == 0 {
            Ok(())
        } else {
            Err("an alignment of sparse inode chunks, and there are none")
        };
    }
    if align != blocks(geometry.inode_bytes.saturating_mul(CHUNK_INODES)) {
        return Err("impossible alignment of inode chunks");
    }
    // As xfs_ialloc_setup_geometry().
    let scale = geometry
        .inode_bytes
        .checked_div(LEAST_INODE_BYTES)
        .unwrap_or(1);
    let scaled = CLUSTER_BYTES.saturating_mul(scale);
    let cluster = if align >= blocks(scaled) {
        scaled
    } else {
        CLUSTER_BYTES
    };
    if sparse_align != blocks(cluster) {
        return Err("impossible alignment of sparse inode chunks");
    }
    Ok(())
}

/// The fields of the realtime section, of which there is none.
fn check_realtime(raw: &SuperblockLayout) -> Result<(), &'static str> {
    // The kernel, too, counts in 32 bits.
    let extent_bytes = raw.rextsize.get().wrapping_mul(raw.blocksize.get());
    if !(4 << 10..=1 << 30).contains(&extent_bytes) {
        return Err("impossible extent size of the realtime section");
    }
    if raw.rextents.get() != 0
        || raw.rbmblocks.get() != 0
        || raw.rextslog != 0
        || raw.frextents.get() != 0
    {
        return Err("sizes of a realtime section, and there is none");
    }
    Ok(())
}

/// The stripe of the data, as xfs_validate_stripe_geometry().
fn check_stripe(raw: &SuperblockLayout) -> Result<(), &'static str> {
    let aligned = raw.versionnum.get() & layout::VERSION_DALIGN != 0;
    let bytes = |blocks: u32| u64::from(blocks).wrapping_shl(raw.blocklog.into());
    let (unit, width) = (bytes(raw.unit.get()), bytes(raw.width.get()));
    let whole = width.checked_rem(unit).map_or(width == 0, |rest| rest == 0);
    if aligned != (unit != 0) || i32::try_from(width).is_err() || unit > width || !whole {
        return Err("impossible stripe of the data");
    }
    Ok(())
}
