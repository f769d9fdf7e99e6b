//! The superblock's copies, one in each group, and the primary one's reserved parts.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::state::{At, Checker};
use crate::error::Result;
use crate::xfs::format::checksum_ok;
use crate::xfs::format::superblock::{self as layout, SuperblockLayout};

/// What the copies must agree on: the shape of the filesystem. Counters, quotas, stripes, and what
/// the kernel sets in the primary one only may differ.
fn shape(raw: &SuperblockLayout) -> [(&'static str, u64); 28] {
    [
        ("block size", raw.blocksize.get().into()),
        ("number of blocks", raw.dblocks.get()),
        ("realtime blocks", raw.rblocks.get()),
        ("realtime extents", raw.rextents.get()),
        ("start of the log", raw.logstart.get()),
        ("realtime extent size", raw.rextsize.get().into()),
        ("blocks of a group", raw.agblocks.get().into()),
        ("number of groups", raw.agcount.get().into()),
        ("realtime bitmap blocks", raw.rbmblocks.get().into()),
        ("blocks of the log", raw.logblocks.get().into()),
        (
            "version",
            (raw.versionnum.get() & layout::VERSION_MASK).into(),
        ),
        ("sector size", raw.sectsize.get().into()),
        ("inode size", raw.inodesize.get().into()),
        ("inodes of a block", raw.inopblock.get().into()),
        ("logarithm of the block size", raw.blocklog.into()),
        ("logarithm of the sector size", raw.sectlog.into()),
        ("logarithm of the inode size", raw.inodelog.into()),
        ("logarithm of the inodes of a block", raw.inopblog.into()),
        ("logarithm of the group size", raw.agblklog.into()),
        ("directory block size", raw.dirblklog.into()),
        ("sector size of the log", raw.logsectsize.get().into()),
        ("stripe unit of the log", raw.logsunit.get().into()),
        ("compatible features", raw.features_compat.get().into()),
        (
            "read-only compatible features",
            raw.features_ro_compat.get().into(),
        ),
        (
            "incompatible features",
            (raw.features_incompat.get() & !layout::IN_NEEDSREPAIR).into(),
        ),
        ("alignment of inode chunks", raw.inoalignmt.get().into()),
        (
            "alignment of sparse inode chunks",
            raw.spino_align.get().into(),
        ),
        ("flags", raw.flags.into()),
    ]
}

impl Checker<'_> {
    /// Compares all copies with the primary superblock.
    pub(super) fn check_superblocks(&mut self) -> Result<()> {
        let len = usize::try_from(self.geometry.sector_bytes).unwrap_or(512);
        let sector = self.read(0, len)?;
        let Ok((primary, _)) = SuperblockLayout::read_from_prefix(&sector) else {
            return Ok(());
        };
        self.check_rest(0, 0, &primary, &sector);
        for group in 1..self.geometry.ag_count {
            let addr = self.geometry.ag_block_addr(group, 0);
            let sector = self.read(addr, len)?;
            if let Ok((copy, _)) = SuperblockLayout::read_from_prefix(&sector) {
                self.check_copy((group, addr), &primary, &copy, &sector);
            }
        }
        Ok(())
    }

    fn check_copy(
        &mut self,
        (group, addr): (u32, u64),
        primary: &SuperblockLayout,
        copy: &SuperblockLayout,
        sector: &[u8],
    ) {
        let at = At::group(group, addr);
        if copy.magicnum.get() != layout::MAGIC {
            self.finding(at, "copy of the superblock: no magic");
            return;
        }
        if !checksum_ok(sector, layout::CRC_OFFSET) {
            self.finding(at, "copy of the superblock: the checksum is wrong");
        }
        for ((name, theirs), (_, ours)) in shape(copy).into_iter().zip(shape(primary)) {
            if theirs != ours {
                let detail =
                    format!("copy of the superblock: {name} is {theirs:#x}, expected {ours:#x}");
                self.finding(at, detail);
            }
        }
        let uuid = |raw: &SuperblockLayout| match raw.features_incompat.get() {
            bits if bits & layout::IN_META_UUID != 0 => raw.meta_uuid,
            _ => raw.uuid,
        };
        if uuid(copy) != uuid(primary) {
            self.finding(at, "copy of the superblock: of another filesystem (uuid)");
        }
        let (unit, width) = (copy.unit.get(), copy.width.get());
        let has_stripe = copy.versionnum.get() & layout::VERSION_DALIGN != 0;
        if has_stripe != (unit != 0) || unit > width || unit != 0 && !width.is_multiple_of(unit) {
            self.finding(at, "copy of the superblock: impossible stripe of the data");
        }
        // mkfs.xfs leaves the mark in its copies, which no quota inode is written to then.
        let quotas = [copy.uquotino, copy.gquotino, copy.pquotino];
        let has_quota = quotas.iter().any(|ino| !matches!(ino.get(), 0 | u64::MAX));
        if copy.inprogress == 1 && (has_quota || copy.qflags.get() != 0) {
            self.finding(at, "copy of the superblock: quotas, which copies have not");
        }
        if copy.imax_pct > 100 {
            self.finding(at, "copy of the superblock: more than 100 % for inodes");
        }
        self.check_rest(group, addr, copy, sector);
    }

    /// What lies behind the last field is zero.
    fn check_rest(&mut self, group: u32, addr: u64, raw: &SuperblockLayout, sector: &[u8]) {
        let has_uuid = raw.features_incompat.get() & layout::IN_META_UUID != 0;
        let end = match has_uuid {
            true => size_of::<SuperblockLayout>(),
            false => size_of::<SuperblockLayout>().saturating_sub(16),
        };
        let rest = sector.get(end..).unwrap_or_default();
        if rest.iter().any(|byte| *byte != 0) {
            let at = At::group(group, addr);
            self.finding(
                at,
                "superblock: the bytes behind the last field are not zero",
            );
        }
        if group == 0 && raw.flags != 0 {
            self.finding(At::group(0, 0), "superblock: unknown flags");
        }
    }
}
