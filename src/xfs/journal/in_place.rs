//! Writing buffers in place, which moves the tail of the log.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::super::MetaIo;
use super::super::buf::{self, BufKind};
use super::{Journal, counted_superblock, superblock_place};
use crate::error::Result;

/// Bytes of images that are taken at once.
const BATCH_BYTES: usize = 16 << 20;
/// Most bytes of one write.
const WRITE_BYTES: usize = 1 << 20;

/// The content of a buffer at its last checkpoint.
struct Image {
    addr_bytes: u64,
    version: u64,
    bytes: Box<[u8]>,
}

impl Journal {
    /// Writes in place, by ascending addresses, what was logged last by checkpoints that started
    /// before `below`, and makes it durable. For the thread that holds the writer.
    pub(super) fn write_in_place(&self, io: &mut dyn MetaIo, below: u64) -> Result<()> {
        let mut addrs = self.state().buffers.logged_before(below);
        addrs.sort_unstable();
        let mut rest = addrs.as_slice();
        while !rest.is_empty() {
            let (images, count) = self.images(rest);
            rest = rest.get(count..).unwrap_or_default();
            write_images(io, &images)?;
            io.flush()?;
            let mut state = self.state();
            for image in &images {
                state.buffers.note_in_place(image.addr_bytes, image.version);
            }
            // Before they can be evicted: a reader that read the device before them must notice.
            self.changes.fetch_add(1, Ordering::Release);
            state.buffers.evict();
        }
        // Last, for those that were discarded while the others were written.
        self.write_pinned(io)
    }

    /// Writes in place what was discarded since, while no checkpoint has the discarding: without
    /// it the log could not be left behind. Their blocks have no other owner before that
    /// checkpoint, which the caller keeps from being written.
    fn write_pinned(&self, io: &mut dyn MetaIo) -> Result<()> {
        let mut images: Vec<_> = self
            .state()
            .pinned
            .iter()
            .map(|pin| Image {
                addr_bytes: pin.addr_bytes,
                version: pin.buffer.version,
                bytes: pin.buffer.image(),
            })
            .collect();
        if images.is_empty() {
            return Ok(());
        }
        images.sort_unstable_by_key(|image| image.addr_bytes);
        write_images(io, &images)?;
        io.flush()?;
        let written: BTreeSet<u64> = images.iter().map(|image| image.addr_bytes).collect();
        let mut state = self.state();
        state
            .pinned
            .retain(|pin| !written.contains(&pin.addr_bytes));
        Ok(())
    }

    /// Images of the first of these buffers, and how many addresses they are for.
    fn images(&self, addrs: &[u64]) -> (Vec<Image>, usize) {
        let state = self.state();
        let (mut images, mut bytes, mut count) = (Vec::new(), 0_usize, 0_usize);
        for addr in addrs {
            if bytes >= BATCH_BYTES {
                break;
            }
            count = count.saturating_add(1);
            // It may have been freed meanwhile.
            let Some(buffer) = state.buffers.get(*addr).filter(|b| b.lsn.is_some()) else {
                continue;
            };
            bytes = bytes.saturating_add(buffer.bytes.len());
            images.push(Image {
                addr_bytes: *addr,
                version: buffer.version,
                bytes: buffer.image(),
            });
        }
        (images, count)
    }

    /// Writes the superblock with the counters as they are now, as a filesystem whose log is clean
    /// has them.
    pub(super) fn write_superblock(&self, io: &mut dyn MetaIo) -> Result<()> {
        let mut state = self.state();
        let place = superblock_place(&state);
        let identity = state.identity();
        let mut buffer = buf::load(io, place, BufKind::Superblock, &identity)?;
        counted_superblock(&mut buffer, &state)?;
        buffer.lsn = Some(state.newest_lsn);
        io.write_at(place.addr_bytes, &buffer.image())?;
        state.buffers.remove(place.addr_bytes);
        self.changes.fetch_add(1, Ordering::Release);
        Ok(())
    }
}

/// Writes images that are in the order of their addresses; neighbours together.
fn write_images(io: &mut dyn MetaIo, images: &[Image]) -> Result<()> {
    let mut run: Vec<u8> = Vec::new();
    let mut start = 0_u64;
    for image in images {
        let end = start.saturating_add(run.len() as u64);
        if !run.is_empty() && (end != image.addr_bytes || run.len() >= WRITE_BYTES) {
            io.write_at(start, &run)?;
            run.clear();
        }
        if run.is_empty() {
            start = image.addr_bytes;
        }
        run.extend_from_slice(&image.bytes);
    }
    if run.is_empty() {
        return Ok(());
    }
    io.write_at(start, &run)
}
