//! Each inode that has blocks: in use or free as the inode btree says, its core, its forks.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::core::CheckedCore;
use super::state::{At, Checker};
use super::table::{InodeChunk, InodeState};
use crate::error::Result;
use crate::xfs::format::ag::NULL_AG;
use crate::xfs::format::btree::CHUNK_INODES;
use crate::xfs::format::inode::{self as layout, InodeCore};
use crate::xfs::{Ino, InodeType};

impl Checker<'_> {
    /// Checks all inodes. Directories are only listed.
    pub(super) fn check_inodes(&mut self) -> Result<()> {
        self.inodes.sort();
        for index in 0..self.inodes.chunks().len() {
            let Some(chunk) = self.inodes.chunks().get(index).copied() else {
                break;
            };
            self.check_chunk(&chunk)?;
        }
        Ok(())
    }

    fn check_chunk(&mut self, chunk: &InodeChunk) -> Result<()> {
        let inode_bytes = usize::try_from(self.geometry.inode_bytes).unwrap_or(usize::MAX);
        let mut index = 0;
        while index < CHUNK_INODES {
            let rest = chunk.present.wrapping_shr(index);
            let gap = rest.trailing_zeros();
            if gap > 0 {
                index = index.saturating_add(gap);
                continue;
            }
            // Inodes side by side that have blocks.
            let run = rest.trailing_ones().min(CHUNK_INODES.saturating_sub(index));
            let first = self.inode_number(chunk, index);
            let addr = self.inode_addr(first);
            let len = inode_bytes.saturating_mul(usize::try_from(run).unwrap_or(0));
            let raw = self.read_inodes(addr, len)?;
            for (into, raw) in (0..run).zip(raw.chunks_exact(inode_bytes)) {
                let number = index.saturating_add(into);
                let ino = first.saturating_add(into.into());
                let addr = addr.saturating_add(
                    u64::from(into).saturating_mul(self.geometry.inode_bytes.into()),
                );
                let is_used = chunk.used.wrapping_shr(number) & 1 == 1;
                self.check_inode(ino, addr, raw, is_used)?;
            }
            index = index.saturating_add(run);
        }
        Ok(())
    }

    fn inode_number(&self, chunk: &InodeChunk, index: u32) -> u64 {
        let bits = self
            .geometry
            .ag_block_log
            .saturating_add(self.geometry.inopb_log);
        let first = u64::from(chunk.group).wrapping_shl(bits) | u64::from(chunk.start);
        first.saturating_add(index.into())
    }

    /// Where an inode of a chunk lies on the device.
    pub(super) fn inode_addr(&self, ino: u64) -> u64 {
        self.geometry.locate_inode(Ino(ino)).map_or(0, |place| {
            self.geometry
                .ag_block_addr(place.ag, place.ag_block)
                .saturating_add(place.offset_bytes.into())
        })
    }

    /// Reads inodes, which may begin inside of a sector.
    fn read_inodes(&mut self, addr: u64, len: usize) -> Result<Vec<u8>> {
        let sector = u64::from(self.geometry.sector_bytes.max(1));
        let skip = addr.checked_rem(sector).unwrap_or(0);
        let start = addr.saturating_sub(skip);
        let skip = usize::try_from(skip).unwrap_or(0);
        let whole = skip
            .saturating_add(len)
            .next_multiple_of(usize::try_from(sector).unwrap_or(512));
        let mut raw = self.read(start, whole)?;
        raw.truncate(skip.saturating_add(len));
        raw.drain(..skip.min(raw.len()));
        Ok(raw)
    }

    /// Reads one inode.
    pub(super) fn read_one_inode(&mut self, ino: u64) -> Result<(u64, Vec<u8>)> {
        let addr = self.inode_addr(ino);
        let len = usize::try_from(self.geometry.inode_bytes).unwrap_or(512);
        Ok((addr, self.read_inodes(addr, len)?))
    }

    fn check_inode(&mut self, ino: u64, addr: u64, raw: &[u8], is_used: bool) -> Result<()> {
        let at = At::inode(ino, addr);
        let Ok((core, literal)) = InodeCore::ref_from_prefix(raw) else {
            return Ok(());
        };
        let is_one = self.check_inode_head(at, ino, core, raw);
        let mode = core.mode.get();
        let (geometry, features) = (self.geometry.clone(), *self.fs.features());
        let checked = CheckedCore {
            core,
            literal,
            geometry: &geometry,
            features: &features,
            is_internal: self.fs.is_internal(Ino(ino)),
        };
        let faults = if is_one { checked.faults() } else { Vec::new() };
        for fault in &faults {
            self.finding(at, fault.as_str());
        }
        if !is_used {
            if is_one && mode != 0 {
                self.finding(at, "is free by the inode btree, but has a mode");
            }
            return Ok(());
        }
        self.report.inodes = self.report.inodes.saturating_add(1);
        if is_one && mode == 0 {
            self.finding(at, "is in use by the inode btree, but has no mode");
        }
        let file_type = InodeType::from_mode(mode).filter(|_| is_one && faults.is_empty());
        let state = InodeState {
            file_type,
            is_broken: file_type.is_none(),
            next_unlinked: core.next_unlinked.get(),
            nlink: core.nlink.get(),
            may_share: core.flags2.get() & layout::FLAG2_REFLINK != 0,
            ..InodeState::default()
        };
        if let Some(slot) = self.inodes.state(&geometry, ino) {
            *slot = state;
        }
        let Some(file_type) = InodeType::from_mode(mode).filter(|_| is_one) else {
            self.all_are_incomplete();
            return Ok(());
        };
        self.check_contents(at, ino, (file_type, faults.is_empty()), &checked)
    }

    /// The forks of an inode, its counters, and the target of a symbolic link.
    fn check_contents(
        &mut self,
        at: At,
        ino: u64,
        (file_type, is_sound): (InodeType, bool),
        checked: &CheckedCore<'_>,
    ) -> Result<()> {
        let forks = self.check_forks(at, ino, checked)?;
        let blocks = checked.core.nblocks.get();
        if forks.is_whole && forks.blocks != blocks {
            let detail = format!("{blocks} blocks, expected {}", forks.blocks);
            self.finding(at, detail);
        }
        self.check_attributes(at, ino, checked, &forks.attributes)?;
        if file_type == InodeType::Directory {
            self.report.directories = self.report.directories.saturating_add(1);
            self.directories.push(ino);
        }
        let size = checked.core.size.get();
        if file_type == InodeType::Symlink && is_sound && size > 0 {
            if checked.core.format == layout::FORMAT_LOCAL {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                let target = checked.forks().0.get(..size).unwrap_or_default();
                self.check_short_target(at, target);
            } else if forks.is_whole {
                self.check_target_blocks((at, ino), size, &forks.data)?;
            }
        }
        Ok(())
    }

    /// Whether it is an inode with this number.
    fn check_inode_head(&mut self, at: At, ino: u64, core: &InodeCore, raw: &[u8]) -> bool {
        if core.magic.get() != layout::MAGIC || core.version != layout::VERSION {
            self.finding(at, "no magic, or not of version 3");
            return false;
        }
        let seal = (layout::CRC_OFFSET, &core.uuid, core.lsn.get());
        self.check_seal(at, "inode", raw, seal);
        if core.ino.get() != ino {
            self.finding(at, format!("its number is {}", core.ino.get()));
            return false;
        }
        let next = core.next_unlinked.get();
        let block = next.wrapping_shr(self.geometry.inopb_log);
        let group = self
            .geometry
            .split_inode(Ino(ino))
            .map_or(0, |(group, _)| group);
        if next != NULL_AG && block >= self.geometry.ag_length(group) {
            self.finding(at, format!("impossible next unlinked inode {next}"));
        }
        true
    }
}
