//! The model of a volatile write cache: what was written and is not durable, block by block.
//!
//! Blocks leave the cache by a flush, by a write with FUA, or at any time by themselves (an
//! overwritten version may or may not have reached the medium). At a power cut each block by itself
//! is kept or lost: one block is the atomic unit (AWUPF 0).

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::SmallRng;

use super::medium::{Medium, write_status};
use crate::nvme::spec::StatusField;

/// Most blocks that are kept; beyond it some are written to the medium, as a full cache does.
const LIMIT_BYTES: usize = 256 << 20;

/// Unflushed blocks; `None` is a block of zeroes.
#[derive(Debug)]
pub(super) struct WriteCache {
    lba_bytes: usize,
    blocks: BTreeMap<u64, Option<Box<[u8]>>>,
}

impl WriteCache {
    pub(super) fn new(lba_bytes: u32) -> Self {
        Self {
            lba_bytes: lba_bytes as usize,
            blocks: BTreeMap::new(),
        }
    }

    /// Lays the cached blocks over what the medium said. `bytes` starts at `lba`.
    pub(super) fn overlay(&self, lba: u64, bytes: &mut [u8]) {
        let blocks = (bytes.len() / self.lba_bytes) as u64;
        for (&at, block) in self.blocks.range(lba..lba + blocks) {
            let start = usize::try_from(at - lba).unwrap_or(0) * self.lba_bytes;
            let here = &mut bytes[start..start + self.lba_bytes];
            match block {
                Some(block) => here.copy_from_slice(block),
                None => here.fill(0),
            }
        }
    }

    /// Keeps one block (`None`: zeroes).
    pub(super) fn put(
        &mut self,
        medium: &mut Medium,
        rng: &mut SmallRng,
        lba: u64,
        block: Option<&[u8]>,
    ) -> Result<(), StatusField> {
        let old = self.blocks.insert(lba, block.map(Box::from));
        // The version before may have been written back already: one of the states a power cut may
        // leave.
        if let Some(old) = old
            && rng.random_ratio(1, 4)
        {
            self.write_back(medium, lba, old.as_deref())?;
        }
        if self.blocks.len() > LIMIT_BYTES / self.lba_bytes {
            self.evict(medium, rng)?;
        }
        Ok(())
    }

    fn evict(&mut self, medium: &mut Medium, rng: &mut SmallRng) -> Result<(), StatusField> {
        let from = rng.random_range(0..medium.len_bytes() / self.lba_bytes as u64);
        let next = self.blocks.range(from..).next();
        let Some(&lba) = next.or(self.blocks.iter().next()).map(|(lba, _)| lba) else {
            return Ok(());
        };
        let block = self.blocks.remove(&lba).flatten();
        self.write_back(medium, lba, block.as_deref())
    }

    fn write_back(
        &self,
        medium: &mut Medium,
        lba: u64,
        block: Option<&[u8]>,
    ) -> Result<(), StatusField> {
        let at = lba * self.lba_bytes as u64;
        match block {
            Some(block) => medium.copy_in(at, block).map_err(|e| write_status(&e)),
            None => medium.zero(at, self.lba_bytes as u64, true),
        }
    }

    /// Forgets blocks whose durable content replaces them.
    pub(super) fn forget(&mut self, lba: u64, blocks: u64) {
        if blocks < 64 {
            for at in lba..lba + blocks {
                self.blocks.remove(&at);
            }
        } else {
            self.blocks
                .retain(|&at, _| !(lba..lba + blocks).contains(&at));
        }
    }

    /// Writes everything to the medium. What fails stays cached.
    pub(super) fn flush(&mut self, medium: &mut Medium) -> Result<(), StatusField> {
        while let Some((lba, block)) = self.blocks.pop_first() {
            if let Err(status) = self.write_back(medium, lba, block.as_deref()) {
                self.blocks.insert(lba, block);
                return Err(status);
            }
        }
        Ok(())
    }

    /// The power goes: a seeded subset of the blocks reaches the medium, the rest is lost.
    pub(super) fn power_cut(
        &mut self,
        medium: &mut Medium,
        rng: &mut SmallRng,
    ) -> Result<(), StatusField> {
        // From nothing at all to nearly everything: a fair coin a block would hardly ever show the
        // extremes.
        let keep = rng.random_range(0..=4);
        while let Some((lba, block)) = self.blocks.pop_first() {
            if rng.random_ratio(keep, 4) {
                self.write_back(medium, lba, block.as_deref())?;
            }
        }
        Ok(())
    }
}
