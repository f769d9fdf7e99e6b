//! Sectors of metadata that are newer than those on the device.
//!
//! Replay of the log works on an overlay. It is then either written in place or kept in memory, for
//! a filesystem that must not be changed.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;

use super::format::BASIC_BLOCK_BYTES;
use super::{MetaIo, corrupt};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of an entry: a basic block.
const BB: usize = 512;
/// Bytes of memory that an entry takes, about: its content, and its share of the tree's nodes.
const ENTRY_BYTES: u64 = 512 + 48;
/// Most bytes that are written at once.
const WRITE_BYTES: usize = 1 << 20;

/// Basic blocks by their number on the device.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    blocks: BTreeMap<u64, Box<[u8; BB]>>,
    limit_bytes: u64,
}

impl Overlay {
    /// An empty overlay of at most `limit_bytes` of memory.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self {
            blocks: BTreeMap::new(),
            limit_bytes,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Replaces bytes that were read from `addr_bytes`, a multiple of a basic block, by newer ones.
    pub(crate) fn patch(&self, addr_bytes: u64, buf: &mut [u8]) {
        if self.blocks.is_empty() || buf.is_empty() {
            return;
        }
        let first = addr_bytes / BASIC_BLOCK_BYTES;
        let count = (buf.len() as u64).div_ceil(BASIC_BLOCK_BYTES);
        for (number, block) in self.blocks.range(first..first.saturating_add(count)) {
            let at = number
                .saturating_sub(first)
                .saturating_mul(BASIC_BLOCK_BYTES);
            let rest = usize::try_from(at).ok().and_then(|at| buf.get_mut(at..));
            for (to, from) in rest.unwrap_or_default().iter_mut().zip(block.iter()) {
                *to = *from;
            }
        }
    }

    /// Keeps the content of a buffer, whole basic blocks.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] when the limit is reached.
    pub(crate) fn put(&mut self, addr_bytes: u64, content: &[u8]) -> Result<()> {
        let mut number = addr_bytes / BASIC_BLOCK_BYTES;
        for block in content.chunks_exact(BB) {
            let Ok(block) = <[u8; BB]>::try_from(block) else {
                continue;
            };
            self.blocks.insert(number, Box::new(block));
            number = number.saturating_add(1);
        }
        let used = (self.blocks.len() as u64).saturating_mul(ENTRY_BYTES);
        if used > self.limit_bytes {
            return Err(too_large(self.limit_bytes));
        }
        Ok(())
    }

    /// The newest content of a buffer, of the overlay or else of the device.
    pub(crate) fn read(
        &self,
        io: &mut impl MetaIo,
        addr_bytes: u64,
        len: usize,
    ) -> Result<Vec<u8>> {
        if addr_bytes.saturating_add(len as u64) > io.capacity_bytes() {
            return Err(corrupt(addr_bytes, "metadata beyond the end of the device"));
        }
        let mut buf = vec![0; len];
        if !self.covers(addr_bytes, len) {
            io.read_at(addr_bytes, &mut buf)?;
        }
        self.patch(addr_bytes, &mut buf);
        Ok(buf)
    }

    /// Whether nothing of the range has to be read from the device.
    fn covers(&self, addr_bytes: u64, len: usize) -> bool {
        let first = addr_bytes / BASIC_BLOCK_BYTES;
        let count = (len as u64).div_ceil(BASIC_BLOCK_BYTES);
        let range = first..first.saturating_add(count);
        self.blocks.range(range).count() as u64 == count
    }

    /// Writes all of it in place, by ascending addresses. Waits for the device.
    ///
    /// # Errors
    /// The device's. What was written then may be any part.
    pub(crate) fn write_in_place(&self, io: &mut impl MetaIo) -> Result<()> {
        let mut run = Vec::new();
        let mut start = 0_u64;
        for (number, block) in &self.blocks {
            let end = start.saturating_add((run.len() as u64) / BASIC_BLOCK_BYTES);
            if !run.is_empty() && (end != *number || run.len() >= WRITE_BYTES) {
                io.write_at(start.saturating_mul(BASIC_BLOCK_BYTES), &run)?;
                run.clear();
            }
            if run.is_empty() {
                start = *number;
            }
            run.extend_from_slice(&block[..]);
        }
        if run.is_empty() {
            return Ok(());
        }
        io.write_at(start.saturating_mul(BASIC_BLOCK_BYTES), &run)
    }
}

#[cold]
pub(crate) fn too_large(limit_bytes: u64) -> Error {
    Error::new(
        ErrorKind::OutOfMemory,
        format!(
            "replaying the log needs more than {} MiB of memory: mount the filesystem once with the \
             kernel and unmount it",
            limit_bytes >> 20
        ),
    )
}

/// A device seen through an overlay, for reading.
pub(crate) struct Overlaid<'a, I> {
    pub(crate) io: &'a mut I,
    pub(crate) overlay: &'a Overlay,
}

impl<I: MetaIo> MetaIo for Overlaid<'_, I> {
    fn read_at(&mut self, addr_bytes: u64, buf: &mut [u8]) -> Result<()> {
        self.io.read_at(addr_bytes, buf)?;
        self.overlay.patch(addr_bytes, buf);
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.io.capacity_bytes()
    }

    fn block_bytes(&self) -> u32 {
        self.io.block_bytes()
    }

    fn mbr_sector_bytes(&self) -> Option<u32> {
        self.io.mbr_sector_bytes()
    }
}

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may panic"
)]
mod tests {
    use super::*;

    struct Disk {
        bytes: Vec<u8>,
        writes: Vec<(u64, usize)>,
    }

    impl MetaIo for Disk {
        fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> Result<()> {
            let at = usize::try_from(addr).unwrap();
            buf.copy_from_slice(&self.bytes[at..at + buf.len()]);
            Ok(())
        }

        fn write_at(&mut self, addr: u64, buf: &[u8]) -> Result<()> {
            let at = usize::try_from(addr).unwrap();
            self.bytes[at..at + buf.len()].copy_from_slice(buf);
            self.writes.push((addr, buf.len()));
            Ok(())
        }

        fn capacity_bytes(&self) -> u64 {
            self.bytes.len() as u64
        }
    }

    #[test]
    fn newer_blocks_are_seen_and_then_written_in_runs() {
        let mut disk = Disk {
            bytes: vec![1; 16 * BB],
            writes: Vec::new(),
        };
        let mut overlay = Overlay::new(1 << 20);
        overlay.put(2 * 512, &[2; 2 * BB]).unwrap();
        overlay.put(4 * 512, &[3; BB]).unwrap();
        overlay.put(9 * 512, &[4; BB]).unwrap();
        let seen = overlay.read(&mut disk, 512, 4 * BB).unwrap();
        let firsts: Vec<u8> = seen.chunks(BB).map(|block| block[0]).collect();
        assert_eq!(firsts, [1, 2, 2, 3]);
        let mut view = Overlaid {
            io: &mut disk,
            overlay: &overlay,
        };
        let mut part = vec![0; BB];
        view.read_at(9 * 512, &mut part).unwrap();
        assert_eq!(part, [4; BB]);
        assert!(disk.bytes.iter().all(|byte| *byte == 1), "in memory only");
        overlay.write_in_place(&mut disk).unwrap();
        assert_eq!(disk.writes, [(2 * 512, 3 * BB), (9 * 512, BB)]);
        assert_eq!(overlay.read(&mut disk, 512, 4 * BB).unwrap(), seen);
        let beyond = overlay.read(&mut disk, 15 * 512, 2 * BB).unwrap_err();
        assert_eq!(beyond.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn memory_is_limited() {
        let mut overlay = Overlay::new(2 * ENTRY_BYTES);
        overlay.put(0, &[0; 2 * BB]).unwrap();
        overlay.put(0, &[1; 2 * BB]).unwrap();
        let error = overlay.put(4096, &[0; BB]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    }
}
