//! The log in memory, written as the kernel and xfsprogs write it. tests/xfs_log.rs asks these
//! themselves.
#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

use zerocopy::{FromZeros, IntoBytes};

use super::super::format::log::RecordHeader;
use super::*;
use crate::error::ErrorKind;

const BLOCKS: u64 = 8192;
const UUID: [u8; 16] = *b"0123456789abcdef";

/// A log in memory.
struct Ring {
    bytes: Vec<u8>,
    /// Blocks written since the log was new.
    written: u64,
    /// Bytes of the buffers that records are written from.
    buffer_bytes: u32,
}

impl MetaIo for Ring {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> Result<()> {
        let addr = addr as usize;
        buf.copy_from_slice(&self.bytes[addr..addr + buf.len()]);
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
}

fn cycle_at(number: u64) -> u32 {
    (number / BLOCKS) as u32 + 1
}

impl Ring {
    fn new() -> Self {
        Self {
            bytes: vec![0; BLOCKS as usize * BB],
            written: 0,
            buffer_bytes: layout::HEADER_COVERS_BYTES,
        }
    }

    fn block(&mut self, number: u64) -> &mut [u8] {
        let start = (number % BLOCKS) as usize * BB;
        &mut self.bytes[start..start + BB]
    }

    /// Writes a record of `payload` basic blocks; all but the blocks in `lost`.
    fn record(&mut self, payload: u64, unmount: bool, lost: std::ops::Range<u64>) {
        let start = self.written;
        let mut header = RecordHeader::new_zeroed();
        header.magicno = layout::RECORD_MAGIC.into();
        header.cycle = cycle_at(start).into();
        header.version = layout::RECORD_VERSION_2.into();
        header.len = (payload as u32 * 512).into();
        header.lsn = (u64::from(cycle_at(start)) << 32 | (start % BLOCKS)).into();
        header.tail_lsn = header.lsn;
        header.num_logops = 1.into();
        header.fs_uuid = UUID;
        header.size = self.buffer_bytes.into();
        let headers = header.header_blocks();
        let mut blocks = vec![vec![0_u8; BB]; (headers + payload) as usize];
        for (into, block) in blocks.iter_mut().enumerate() {
            let into = into as u64;
            if into >= headers {
                block.fill(0x55);
                block[9] = if into == headers && unmount {
                    layout::OP_UNMOUNT
                } else {
                    0
                };
            }
            block[..4].copy_from_slice(&cycle_at(start + into).to_be_bytes());
        }
        blocks[0][..size_of::<RecordHeader>()].copy_from_slice(header.as_bytes());
        // As xlog_cksum(): the extended headers that the payload needs.
        let mut crc = crc32c::crc32c(&blocks[0][..layout::RECORD_CRC_BYTES]);
        let used = (payload as u32 * 512).div_ceil(layout::HEADER_COVERS_BYTES) as usize;
        for extended in blocks.iter().take(used).skip(1) {
            crc = crc32c::crc32c_append(crc, &extended[..layout::EXTENDED_CRC_BYTES]);
        }
        for block in &blocks[headers as usize..] {
            crc = crc32c::crc32c_append(crc, block);
        }
        blocks[0][layout::RECORD_CRC_OFFSET..][..4].copy_from_slice(&crc.to_le_bytes());
        for (into, from) in blocks.iter().enumerate() {
            if !lost.contains(&(into as u64)) {
                self.block(start + into as u64).copy_from_slice(from);
            }
        }
        self.written += headers + payload;
    }

    /// Fills the log up to `block` with records.
    fn fill_to(&mut self, block: u64) {
        let headers = u64::from(self.buffer_bytes.div_ceil(layout::HEADER_COVERS_BYTES));
        while self.written < block {
            let left = block - self.written;
            let mut payload = left.saturating_sub(headers).clamp(1, 60);
            if (1..=headers).contains(&left.saturating_sub(headers + payload)) {
                payload = payload.saturating_sub(headers + 1).max(1);
            }
            self.record(payload, false, 0..0);
        }
    }

    fn log() -> XfsLog {
        XfsLog {
            addr_bytes: 0,
            blocks: BLOCKS,
            sector_bytes: 4096,
            unit_bytes: 512,
            buffer_bytes: layout::MIN_BUFFER_BYTES,
            uuid: UUID,
        }
    }

    fn end(&mut self) -> Result<LogEnd> {
        Self::log().end(self)
    }

    fn state(&mut self) -> Result<LogState> {
        self.end().map(|end| end.state)
    }
}

#[test]
fn a_log_never_written_is_clean() {
    assert_eq!(Ring::new().state().unwrap(), LogState::Clean);
}

#[test]
fn the_unmount_record_alone_makes_it_clean_wherever_the_head_is() {
    let near_wraps = (1..4).flat_map(|pass| (0..8).map(move |by| pass * BLOCKS - 4 + by));
    for head in [2, 10, 700, 5000, 8100].into_iter().chain(near_wraps) {
        let mut ring = Ring::new();
        ring.fill_to(head);
        assert_eq!(ring.state().unwrap(), LogState::Dirty, "head {head}");
        ring.record(1, true, 0..0);
        assert_eq!(ring.state().unwrap(), LogState::Clean, "head {head}");
        ring.record(1, false, 0..0);
        assert_eq!(ring.state().unwrap(), LogState::Dirty, "head {head}");
    }
}

#[test]
fn what_was_in_flight_after_the_unmount_record_does_not_count() {
    for head in [
        3,
        500,
        4500,
        BLOCKS - 1,
        BLOCKS,
        2 * BLOCKS - 30,
        2 * BLOCKS + 9,
    ] {
        for lost in [0..1, 7..8, 20..21] {
            let mut ring = Ring::new();
            ring.fill_to(head);
            ring.record(1, true, 0..0);
            // A record that was not written whole, and one behind it that was.
            ring.record(20, false, lost.clone());
            ring.record(5, false, 0..0);
            let state = ring.state().unwrap();
            assert_eq!(state, LogState::Clean, "head {head}, lost {lost:?}");
        }
    }
}

/// The kernel does not mount such a log.
#[test]
fn a_torn_record_at_the_start_of_the_log_is_corrupt() {
    let torn_at = |head: u64| {
        let mut ring = Ring::new();
        ring.fill_to(head - 2);
        ring.record(1, true, 0..0);
        ring.record(20, false, 0..0);
        ring.block(head + 9)[100] ^= 1;
        ring.state().map_err(|error| error.kind())
    };
    for pass in 1..3 {
        assert_eq!(torn_at(pass * BLOCKS), Err(ErrorKind::Corrupt));
        assert_eq!(torn_at(pass * BLOCKS + 1), Ok(LogState::Clean));
    }
}

#[test]
fn every_buffer_size_is_clean_after_the_unmount_record() {
    for buffer_bytes in [32, 64, 128, 256].map(|kib| kib << 10) {
        for head in [20, 3000, BLOCKS - 5, BLOCKS + 1, 3 * BLOCKS - 9] {
            let mut ring = Ring::new();
            ring.buffer_bytes = buffer_bytes;
            ring.fill_to(head);
            // As long as a stripe unit of 256 KiB makes it: the extended headers count.
            for payload in [1, u64::from(buffer_bytes) / 512 - 8] {
                ring.record(payload, true, 0..0);
                let written = ring.written;
                let what = format!("{buffer_bytes} bytes, head {head}, {payload} blocks");
                let lsn = u64::from(cycle_at(written)) << 32 | (written % BLOCKS);
                let end = ring.end().unwrap();
                assert_eq!((end.state, end.lsn), (LogState::Clean, lsn), "{what}");
            }
            // Behind it one that is whole, but whose checksum is wrong, as after a torn write: the
            // unmount record is the last one again, and now its own checksum counts.
            let at = ring.written;
            ring.record(3, false, 0..0);
            ring.block(at + 9)[100] ^= 1;
            ring.block(at)[200] ^= 1;
            let end = ring.end().unwrap();
            let lsn = u64::from(cycle_at(at)) << 32 | (at % BLOCKS);
            assert_eq!((end.state, end.lsn), (LogState::Clean, lsn), "head {head}");
            ring.block(at - 1)[100] ^= 1;
            assert_eq!(ring.state().unwrap(), LogState::Dirty, "head {head}");
        }
    }
}

#[test]
fn a_log_that_xfsprogs_cleared_is_clean() {
    for cycle in [1, 2, 7] {
        let mut ring = Ring::new();
        ring.buffer_bytes = 256 << 10;
        ring.written = (cycle - 1) * BLOCKS;
        ring.record(if cycle == 1 { 1 } else { 504 }, true, 0..0);
        let end = ring.written;
        if cycle > 1 {
            // As libxfs_log_clear(): zeroes in the rest of that record, and records of the cycle
            // before.
            for block in end - 503..end {
                ring.block(block).fill(0);
            }
            ring.block(end - 512)[layout::RECORD_CRC_OFFSET..][..4].fill(0);
            for block in end..cycle * BLOCKS {
                let before = (cycle as u32 - 1).to_be_bytes();
                let raw = ring.block(block);
                raw[..4].copy_from_slice(&before);
                if block % 512 == 0 {
                    raw[..4].copy_from_slice(&layout::RECORD_MAGIC.to_be_bytes());
                    raw[4..8].copy_from_slice(&before);
                    raw[304..320].copy_from_slice(&UUID);
                }
            }
        }
        let lsn = cycle << 32 | (end % BLOCKS);
        let end = ring.end().unwrap();
        assert_eq!((end.state, end.lsn), (LogState::Clean, lsn));
        assert!(!end.is_behind(lsn) && !end.is_behind(u64::MAX) && end.is_behind(lsn + 1));
    }
}

#[test]
fn garbage_in_the_last_records_is_corrupt() {
    let corrupted = |change: &dyn Fn(&mut Ring)| {
        let mut ring = Ring::new();
        ring.fill_to(BLOCKS + 3000);
        ring.record(1, true, 0..0);
        change(&mut ring);
        ring.state().map_err(|error| error.kind())
    };
    let last = 3000 + 2;
    assert_eq!(corrupted(&|_| ()), Ok(LogState::Clean));
    let uuid: &dyn Fn(&mut Ring) = &|ring| ring.block(last - 2)[304] ^= 1;
    let headers: &dyn Fn(&mut Ring) = &|ring| {
        (0..BLOCKS).for_each(|block| ring.block(block).fill(7));
    };
    for (index, case) in [uuid, headers].iter().enumerate() {
        assert_eq!(corrupted(*case), Err(ErrorKind::Corrupt), "case {index}");
    }
    // The kernel looks neither at blocks that are farther away nor at the unmount record's
    // checksum.
    let far: &dyn Fn(&mut Ring) = &|ring| ring.block(2990).fill(0x77);
    let checksum: &dyn Fn(&mut Ring) = &|ring| ring.block(last - 2)[layout::RECORD_CRC_OFFSET] ^= 1;
    for (index, case) in [far, checksum].iter().enumerate() {
        assert_eq!(corrupted(*case), Ok(LogState::Clean), "case {index}");
    }
    // A log that begins with zeroes counts as new, and is behind what was logged.
    let mut ring = Ring::new();
    ring.fill_to(BLOCKS + 3000);
    ring.block(0).fill(0);
    let end = ring.end().unwrap();
    assert_eq!(end.state, LogState::Clean);
    assert!(end.is_behind((1 << 32) + 1));
}
