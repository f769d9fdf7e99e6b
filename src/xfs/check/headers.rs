//! The headers of the groups: AGF, AGI and the free list.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::state::{At, Checker, Owned};
use crate::error::Result;
use crate::xfs::format::ag::{self as layout, Agf, AgflHeader, Agi};
use crate::xfs::format::btree::{RMAP_OWNER_AG, RMAP_OWNER_FS, RMAP_OWNER_LOG};

/// Fields that AGF and AGI both have.
struct GroupHead {
    magic: (u32, u32),
    version: u32,
    group: u32,
    length: u32,
}

impl Checker<'_> {
    /// Checks the headers of a group, and keeps those that can be used.
    pub(super) fn check_headers(&mut self, group: u32) -> Result<()> {
        self.own_fixed(group);
        self.check_agf(group)?;
        self.check_agi(group)?;
        self.check_free_list(group)
    }

    /// Blocks whose place the superblock gives.
    fn own_fixed(&mut self, group: u32) {
        let mut fixed = vec![(0, self.geometry.first_data_ag_block(), RMAP_OWNER_FS)];
        let (log_group, log_start) = self.geometry.split(self.geometry.log_start);
        if log_group == group {
            fixed.push((log_start, self.geometry.log_blocks, RMAP_OWNER_LOG));
        }
        for (start, blocks, owner) in fixed {
            let owned = Owned {
                start,
                blocks,
                owner,
                offset: 0,
            };
            self.own(group, owned);
        }
    }

    /// The sector of this index in a group.
    fn sector(&mut self, group: u32, index: u64) -> Result<(u64, Vec<u8>)> {
        let bytes = u64::from(self.geometry.sector_bytes);
        let start = self.geometry.ag_block_addr(group, 0);
        let addr = start.saturating_add(index.saturating_mul(bytes));
        let len = usize::try_from(bytes).unwrap_or(512);
        Ok((addr, self.read(addr, len)?))
    }

    /// Whether the header is one; other faults are only noted.
    fn check_head(&mut self, at: At, name: &str, group: u32, head: &GroupHead) -> bool {
        let (found, expected) = head.magic;
        if found != expected {
            self.finding(at, format!("{name}: no magic ({found:#x})"));
            return false;
        }
        if head.version != layout::AG_VERSION {
            self.finding(at, format!("{name}: unknown version {}", head.version));
        }
        if head.group != group {
            let detail = format!("{name}: of group {}, expected {group}", head.group);
            self.finding(at, detail);
        }
        let length = self.geometry.ag_length(group);
        if head.length != length {
            let detail = format!("{name}: {} blocks long, expected {length}", head.length);
            self.finding(at, detail);
        }
        true
    }

    fn check_agf(&mut self, group: u32) -> Result<()> {
        let (addr, sector) = self.sector(group, 1)?;
        let Ok((agf, _)) = Agf::read_from_prefix(&sector) else {
            return Ok(());
        };
        let at = At::group(group, addr);
        let head = GroupHead {
            magic: (agf.magicnum.get(), layout::AGF_MAGIC),
            version: agf.versionnum.get(),
            group: agf.seqno.get(),
            length: agf.length.get(),
        };
        if !self.check_head(at, "AGF", group, &head) {
            self.all_are_incomplete();
            return Ok(());
        }
        let seal = (layout::AGF_CRC_OFFSET, &agf.uuid, agf.lsn.get());
        self.check_seal(at, "AGF", &sector, seal);
        if let Some(group) = self.group(group) {
            group.agf = Some(agf);
        }
        Ok(())
    }

    fn check_agi(&mut self, group: u32) -> Result<()> {
        let (addr, sector) = self.sector(group, 2)?;
        let Ok((agi, _)) = Agi::read_from_prefix(&sector) else {
            return Ok(());
        };
        let at = At::group(group, addr);
        let head = GroupHead {
            magic: (agi.magicnum.get(), layout::AGI_MAGIC),
            version: agi.versionnum.get(),
            group: agi.seqno.get(),
            length: agi.length.get(),
        };
        if !self.check_head(at, "AGI", group, &head) {
            self.all_are_incomplete();
            return Ok(());
        }
        let seal = (layout::AGI_CRC_OFFSET, &agi.uuid, agi.lsn.get());
        self.check_seal(at, "AGI", &sector, seal);
        for (name, ino) in [("newest", agi.newino), ("directory", agi.dirino)] {
            let block = ino.get().wrapping_shr(self.geometry.inopb_log);
            if ino.get() != layout::NULL_AG && block >= self.geometry.ag_length(group) {
                let detail = format!("AGI: {name} inode {} is not in the group", ino.get());
                self.finding(at, detail);
            }
        }
        if let Some(group) = self.group(group) {
            group.agi = Some(agi);
        }
        Ok(())
    }

    /// Address of a group's AGF or AGI, for findings.
    pub(super) fn head_at(&self, group: u32, index: u64) -> At {
        let bytes = u64::from(self.geometry.sector_bytes);
        let start = self.geometry.ag_block_addr(group, 0);
        At::group(group, start.saturating_add(index.saturating_mul(bytes)))
    }

    /// The free list: as many blocks as the AGF says, in the circle that it says.
    fn check_free_list(&mut self, group: u32) -> Result<()> {
        let (addr, sector) = self.sector(group, 3)?;
        let at = At::group(group, addr);
        let Some(entries) = layout::agfl_entries(&sector) else {
            return Ok(());
        };
        let Ok((header, _)) = AgflHeader::read_from_prefix(&sector) else {
            return Ok(());
        };
        if header.magicnum.get() != layout::AGFL_MAGIC {
            self.finding(at, "free list: no magic");
            self.group_is_incomplete(group);
            return Ok(());
        }
        if header.seqno.get() != group {
            let detail = format!("free list: of group {}", header.seqno.get());
            self.finding(at, detail);
        }
        let seal = (layout::AGFL_CRC_OFFSET, &header.uuid, header.lsn.get());
        self.check_seal(at, "free list", &sector, seal);
        let Some(agf) = self.group(group).and_then(|group| group.agf) else {
            return Ok(());
        };
        let size = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let (first, last, count) = (agf.flfirst.get(), agf.fllast.get(), agf.flcount.get());
        let agf_at = self.head_at(group, 1);
        if first >= size || last >= size || count > size {
            let detail = format!(
                "AGF: free list of {count} blocks from entry {first} to {last}, of {size} entries"
            );
            self.finding(agf_at, detail);
            self.group_is_incomplete(group);
            return Ok(());
        }
        let span = last
            .saturating_add(size)
            .saturating_sub(first)
            .saturating_add(1);
        let span = if span > size {
            span.saturating_sub(size)
        } else {
            span
        };
        if count > 0 && span != count || count == 0 && span != size {
            let detail = format!(
                "AGF: free list of {count} blocks, but entries {first} to {last} are {span}"
            );
            self.finding(agf_at, detail);
        }
        for step in 0..count {
            let index = first.saturating_add(step).checked_rem(size).unwrap_or(0);
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            let block = entries
                .get(index)
                .map_or(layout::NULL_AG, |entry| entry.get());
            let place = self.geometry.fs_block(group, block);
            if let Err(why) = self.geometry.check_extent(place, 1) {
                let detail = format!("free list: entry {index}: block {block} is {why}");
                self.finding(at, detail);
                continue;
            }
            let owned = Owned {
                start: block,
                blocks: 1,
                owner: RMAP_OWNER_AG,
                offset: 0,
            };
            self.own(group, owned);
        }
        Ok(())
    }
}
