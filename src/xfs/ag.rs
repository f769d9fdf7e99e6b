//! Allocation group headers: read when first needed, checked, kept in the cache.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::cache::BlockKind;
use super::format::ag::{self as layout, Agf, Agi};
use super::format::{self, btree};
use super::fs::Fs;
use super::{MetaIo, corrupt};
use crate::error::Result;

/// A btree inside an allocation group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Root {
    /// Block inside the group.
    pub(super) ag_block: u32,
    /// Number of levels, 1 for a leaf alone.
    pub(super) levels: u32,
}

impl Fs {
    /// Looks at the headers of the first group, as mounting does: features that the disk does not
    /// have show there.
    pub(super) fn check_first_group(&self, io: &mut impl MetaIo) -> Result<()> {
        self.inobt_root(io, 0)?;
        self.refcount_root(io, 0)?;
        Ok(())
    }

    /// The root of a group's inode btree.
    pub(super) fn inobt_root(&self, io: &mut impl MetaIo, ag: u32) -> Result<Root> {
        let agi = self.agi(io, ag)?;
        Ok(Root {
            ag_block: agi.root.get(),
            levels: agi.level.get(),
        })
    }

    /// A group's AGI.
    pub(super) fn agi(&self, io: &mut impl MetaIo, ag: u32) -> Result<Agi> {
        let (addr, data) = self.header(io, ag, 2, BlockKind::Agi, |fs, raw| {
            let (agi, _) = Agi::ref_from_prefix(raw).map_err(|_| "too short")?;
            if agi.magicnum.get() != layout::AGI_MAGIC {
                return Err("no magic");
            }
            fs.check_header(
                (raw, layout::AGI_CRC_OFFSET),
                &agi.uuid,
                agi.versionnum.get(),
                (agi.seqno.get(), ag),
                agi.length.get(),
                agi.lsn.get(),
            )?;
            if agi.freecount.get() > agi.count.get() {
                return Err("more free inodes than inodes");
            }
            fs.check_root(ag, agi.root.get(), agi.level.get())
        })?;
        let (agi, _) = Agi::read_from_prefix(&data).map_err(|_| corrupt(addr, "AGI: too short"))?;
        Ok(agi)
    }

    /// The root of a group's refcount btree.
    pub(super) fn refcount_root(&self, io: &mut impl MetaIo, ag: u32) -> Result<Root> {
        let (_, agf) = self.agf(io, ag)?;
        Ok(Root {
            ag_block: agf.refcount_root.get(),
            levels: agf.refcount_level.get(),
        })
    }

    /// A group's AGF and its address.
    pub(super) fn agf(&self, io: &mut impl MetaIo, ag: u32) -> Result<(u64, Agf)> {
        let (addr, data) = self.header(io, ag, 1, BlockKind::Agf, |fs, raw| {
            let (agf, _) = Agf::ref_from_prefix(raw).map_err(|_| "too short")?;
            if agf.magicnum.get() != layout::AGF_MAGIC {
                return Err("no magic");
            }
            fs.check_header(
                (raw, layout::AGF_CRC_OFFSET),
                &agf.uuid,
                agf.versionnum.get(),
                (agf.seqno.get(), ag),
                agf.length.get(),
                agf.lsn.get(),
            )?;
            if agf.freeblks.get() > agf.length.get() {
                return Err("more free blocks than blocks");
            }
            fs.check_root(ag, agf.bno_root.get(), agf.bno_level.get())?;
            fs.check_root(ag, agf.cnt_root.get(), agf.cnt_level.get())?;
            if fs.features().rmapbt() {
                fs.check_root(ag, agf.rmap_root.get(), agf.rmap_level.get())?;
            }
            if fs.features().reflink() {
                fs.check_root(ag, agf.refcount_root.get(), agf.refcount_level.get())?;
            }
            Ok(())
        })?;
        let (agf, _) = Agf::read_from_prefix(&data).map_err(|_| corrupt(addr, "AGF: too short"))?;
        Ok((addr, agf))
    }

    /// Reads the header in sector `index` of a group.
    fn header(
        &self,
        io: &mut impl MetaIo,
        ag: u32,
        index: u64,
        kind: BlockKind,
        check: impl FnOnce(&Self, &[u8]) -> Result<(), &'static str>,
    ) -> Result<(u64, std::sync::Arc<[u8]>)> {
        let sector = self.geometry().sector_bytes;
        let addr = self
            .geometry()
            .ag_block_addr(ag, 0)
            .saturating_add(index.saturating_mul(sector.into()));
        let len = usize::try_from(sector).unwrap_or(usize::MAX);
        let data = self.read_block(io, (addr, len), kind, ag.into(), |raw| {
            check(self, raw)
                .map_err(|what| corrupt(addr, format!("{kind:?} of group {ag}: {what}")))
        })?;
        Ok((addr, data))
    }

    fn check_header(
        &self,
        (raw, crc_offset): (&[u8], usize),
        uuid: &[u8; 16],
        version: u32,
        (seqno, ag): (u32, u32),
        length: u32,
        lsn: u64,
    ) -> Result<(), &'static str> {
        if !format::checksum_ok(raw, crc_offset) {
            return Err("the checksum is wrong");
        }
        if uuid != self.meta_uuid() {
            return Err("of another filesystem (uuid)");
        }
        if version != layout::AG_VERSION {
            return Err("unknown version");
        }
        if seqno != ag {
            return Err("of another allocation group");
        }
        if length != self.geometry().ag_length(ag) {
            return Err("wrong length of the group");
        }
        if self.is_ahead_of_log(lsn) {
            return Err("newer than the end of the log; run xfs_repair");
        }
        Ok(())
    }

    pub(super) fn check_root(&self, ag: u32, root: u32, levels: u32) -> Result<(), &'static str> {
        if levels == 0 || levels > btree::MAX_LEVELS {
            return Err("impossible height of a btree");
        }
        let root = self.geometry().fs_block(ag, root);
        self.geometry()
            .check_extent(root, 1)
            .map_err(|_| "impossible root of a btree")
    }
}
