//! A namespace: blocks on a medium, behind a cache or not.

use rand::rngs::SmallRng;

use super::cache::WriteCache;
use super::medium::{Medium, Transfer};
use crate::nvme::spec::{SC_UNRECOVERED_READ, StatusField};

/// More blocks than this are deallocated on the medium at once, rather than one by one in the
/// cache.
const MOST_CACHED_ZEROES: u64 = 65536;

#[derive(Debug)]
pub(super) struct EmuNamespace {
    pub(super) medium: Medium,
    pub(super) lba_bytes: u32,
    pub(super) blocks: u64,
    pub(super) read_only: bool,
    cache: Option<WriteCache>,
    /// Data on its way through the cache.
    bounce: Vec<u8>,
}

impl EmuNamespace {
    pub(super) fn new(medium: Medium, lba_bytes: u32, read_only: bool, cached: bool) -> Self {
        Self {
            lba_bytes,
            blocks: medium.len_bytes() / u64::from(lba_bytes),
            read_only: read_only || medium.is_read_only(),
            cache: cached.then(|| WriteCache::new(lba_bytes)),
            bounce: Vec::new(),
            medium,
        }
    }

    /// Another size, as far as the medium reaches. What lies beyond the end is kept.
    pub(super) fn resize(&mut self, blocks: u64) -> u64 {
        let most = self.medium.len_bytes() / u64::from(self.lba_bytes);
        self.blocks = blocks.clamp(1, most);
        self.blocks
    }

    /// Blocks of another size, as many as there is room for. What was written stays on the medium.
    pub(super) fn format(&mut self, lba_bytes: u32) -> Result<(), StatusField> {
        self.flush()?;
        self.lba_bytes = lba_bytes;
        self.blocks = self.medium.len_bytes() / u64::from(lba_bytes);
        self.cache = self.cache.is_some().then(|| WriteCache::new(lba_bytes));
        Ok(())
    }

    fn bytes(&self, blocks: u64) -> u64 {
        blocks * u64::from(self.lba_bytes)
    }

    /// Reads into host memory. The blocks are inside the namespace, as for all that follow.
    pub(super) fn read(
        &mut self,
        lba: u64,
        blocks: u64,
        transfer: Transfer<'_>,
    ) -> Result<(), StatusField> {
        let at = self.bytes(lba);
        let len = self.bytes(blocks);
        let Some(cache) = &self.cache else {
            return self.medium.read(at, transfer);
        };
        self.bounce.resize(usize::try_from(len).unwrap_or(0), 0);
        self.medium
            .copy_out(at, &mut self.bounce)
            .map_err(|_| SC_UNRECOVERED_READ)?;
        cache.overlay(lba, &mut self.bounce);
        transfer.scatter(&self.bounce)
    }

    /// Writes from host memory; with `durable` it is on the medium on return.
    pub(super) fn write(
        &mut self,
        lba: u64,
        blocks: u64,
        transfer: Transfer<'_>,
        durable: bool,
        rng: &mut SmallRng,
    ) -> Result<(), StatusField> {
        let at = self.bytes(lba);
        let len = self.bytes(blocks);
        match &mut self.cache {
            Some(cache) if !durable => {
                self.bounce.resize(usize::try_from(len).unwrap_or(0), 0);
                transfer.gather(&mut self.bounce)?;
                let chunks = self.bounce.chunks_exact(self.lba_bytes as usize);
                for (at, block) in (lba..).zip(chunks) {
                    cache.put(&mut self.medium, rng, at, Some(block))?;
                }
                Ok(())
            }
            cache => {
                self.medium.write(at, transfer)?;
                if let Some(cache) = cache {
                    cache.forget(lba, blocks);
                }
                self.settle(durable)
            }
        }
    }

    /// Makes blocks read as zeroes; with `free` their space may be given up.
    pub(super) fn zero(
        &mut self,
        lba: u64,
        blocks: u64,
        free: bool,
        durable: bool,
        rng: &mut SmallRng,
    ) -> Result<(), StatusField> {
        let (at, len) = (self.bytes(lba), self.bytes(blocks));
        match &mut self.cache {
            Some(cache) if !durable && blocks <= MOST_CACHED_ZEROES => {
                for at in lba..lba + blocks {
                    cache.put(&mut self.medium, rng, at, None)?;
                }
                Ok(())
            }
            cache => {
                self.medium.zero(at, len, free)?;
                if let Some(cache) = cache {
                    cache.forget(lba, blocks);
                }
                self.settle(durable)
            }
        }
    }

    fn settle(&mut self, durable: bool) -> Result<(), StatusField> {
        if durable {
            self.medium.settle()
        } else {
            Ok(())
        }
    }

    /// Makes everything written so far durable.
    pub(super) fn flush(&mut self) -> Result<(), StatusField> {
        if let Some(cache) = &mut self.cache {
            cache.flush(&mut self.medium)?;
        }
        self.medium.flush()
    }

    /// Loses a random part of the volatile data. Returns the medium.
    pub(super) fn power_cut(mut self, rng: &mut SmallRng) -> Result<Medium, StatusField> {
        if let Some(cache) = &mut self.cache {
            cache.power_cut(&mut self.medium, rng)?;
        }
        Ok(self.medium)
    }
}
