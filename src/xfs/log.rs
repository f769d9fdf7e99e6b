//! The log, as far as reading needs it: is it clean?
//!
//! "Journaling Log". The log is a ring of basic blocks, each with the number of the pass (cycle) that wrote it
//! in its first word, or second, where a record begins. The head, where the next record would go, is where
//! that number drops by one; near it, blocks of the pass before may be left between newer ones, by writes that
//! were in flight when the power went. Clean means that the last whole record before the head is the one that
//! unmounting writes, or that nothing was ever written.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::format::log::{self as layout, OpHeader, RecordHeader};
use super::format::{self};
use super::geometry::Geometry;
use super::{MetaIo, corrupt};
use crate::error::{Error, Result};

/// Bytes of a basic block.
const BB: usize = 512;
/// Basic blocks before the head in which writes can have been in flight.
const IN_FLIGHT_BLOCKS: u64 =
    (layout::MAX_IN_FLIGHT * layout::MAX_RECORD_BYTES) as u64 / format::BASIC_BLOCK_BYTES;
/// Basic blocks before the head that are looked at: those, and the longest record before them.
const WINDOW_BLOCKS: u64 = IN_FLIGHT_BLOCKS + 1024;

/// Whether the log holds changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogState {
    /// Nothing to replay.
    Clean,
    /// Changes that the rest of the disk may not have yet.
    Dirty,
}

/// Finds the head of the log and looks at the record before it.
pub(super) fn state(
    io: &mut impl MetaIo,
    geometry: &Geometry,
    uuid: &[u8; 16],
) -> Result<LogState> {
    let log = Log {
        addr_bytes: geometry.block_addr(geometry.log_start),
        blocks: geometry.bytes(geometry.log_blocks.into()) / format::BASIC_BLOCK_BYTES,
        sector_bytes: geometry.sector_bytes.max(geometry.log_sector_bytes).into(),
    };
    match log.find_head(io)? {
        None => Ok(LogState::Clean),
        Some(head) => log.read_window(io, &head)?.state(uuid),
    }
}

/// Where the log lies.
#[derive(Debug)]
struct Log {
    addr_bytes: u64,
    blocks: u64,
    sector_bytes: u64,
}

/// The head as the cycle numbers show it at first glance.
#[derive(Debug)]
struct Head {
    /// First block that the newest pass did not write; `Log::blocks` when it wrote all.
    block: u64,
    /// The newest pass.
    cycle: u32,
    /// Whether there is an older pass behind the head, rather than zeroes.
    wrapped: bool,
}

/// The cycle number of a basic block.
fn cycle_of(block: &[u8]) -> u32 {
    let word = |at: usize| {
        block
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .map_or(0, |bytes| u32::from_be_bytes(*bytes))
    };
    match word(0) {
        layout::RECORD_MAGIC => word(4),
        cycle => cycle,
    }
}

impl Log {
    fn bad(&self, block: u64, what: &str) -> Error {
        let into = block.saturating_mul(format::BASIC_BLOCK_BYTES);
        corrupt(
            self.addr_bytes.saturating_add(into),
            format!("log: {what}; xfs_repair can replace the log"),
        )
    }

    /// Reads `count` basic blocks from block `first`, whole sectors of them.
    fn read(&self, io: &mut impl MetaIo, first: u64, count: u64) -> Result<Vec<u8>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let start = first.saturating_mul(format::BASIC_BLOCK_BYTES);
        let end = start.saturating_add(count.saturating_mul(format::BASIC_BLOCK_BYTES));
        let skip = start.checked_rem(self.sector_bytes).unwrap_or(0);
        let from = start.saturating_sub(skip);
        let to = end
            .checked_next_multiple_of(self.sector_bytes)
            .unwrap_or(end);
        let len = usize::try_from(to.saturating_sub(from)).unwrap_or(0);
        let mut buf = vec![0; len];
        io.read_at(self.addr_bytes.saturating_add(from), &mut buf)?;
        let skip = usize::try_from(skip).unwrap_or(0);
        buf.drain(..skip);
        buf.truncate(usize::try_from(end.saturating_sub(start)).unwrap_or(0));
        Ok(buf)
    }

    fn cycle(&self, io: &mut impl MetaIo, block: u64) -> Result<u32> {
        Ok(cycle_of(&self.read(io, block, 1)?))
    }

    /// The head; `None` for a log that was never written.
    fn find_head(&self, io: &mut impl MetaIo) -> Result<Option<Head>> {
        let last_block = self.blocks.saturating_sub(1);
        let first = self.cycle(io, 0)?;
        let last = self.cycle(io, last_block)?;
        if first == 0 {
            return if last == 0 {
                Ok(None)
            } else {
                Err(self.bad(0, "its first block is empty, its last is not"))
            };
        }
        if last == 0 && first != 1 {
            return Err(self.bad(last_block, "empty at the end after more than one pass"));
        }
        if first == last {
            return Ok(Some(Head {
                block: self.blocks,
                cycle: first,
                wrapped: true,
            }));
        }
        if first.wrapping_sub(1) != last {
            return Err(self.bad(last_block, "its first and last cycle do not fit together"));
        }
        let (mut newest, mut older) = (0, last_block);
        while older.saturating_sub(newest) > 1 {
            let middle = newest.midpoint(older);
            if self.cycle(io, middle)? == last {
                older = middle;
            } else {
                newest = middle;
            }
        }
        Ok(Some(Head {
            block: older,
            cycle: first,
            wrapped: last != 0,
        }))
    }

    /// Reads the blocks before the head, in the order they were written.
    fn read_window(&self, io: &mut impl MetaIo, head: &Head) -> Result<Window<'_>> {
        let wanted = WINDOW_BLOCKS.min(self.blocks);
        let near = head.block.min(wanted);
        let far = if head.wrapped {
            wanted.saturating_sub(near)
        } else {
            0
        };
        let far_start = self.blocks.saturating_sub(far);
        let mut data = self.read(io, far_start, far)?;
        data.extend(self.read(io, head.block.saturating_sub(near), near)?);
        Ok(Window {
            log: self,
            first_block: if far > 0 {
                far_start
            } else {
                head.block.saturating_sub(near)
            },
            far_blocks: usize::try_from(far).unwrap_or(0),
            cycle: head.cycle,
            data,
        })
    }
}

/// The blocks before the head, the oldest first.
#[derive(Debug)]
struct Window<'a> {
    log: &'a Log,
    /// The log block of the first one.
    first_block: u64,
    /// How many of them lie at the end of the log, from the pass before.
    far_blocks: usize,
    /// The newest pass.
    cycle: u32,
    data: Vec<u8>,
}

impl Window<'_> {
    fn len(&self) -> usize {
        self.data.len() / BB
    }

    fn block(&self, index: usize) -> &[u8] {
        let rest = self.data.get(index.saturating_mul(BB)..);
        rest.and_then(|rest| rest.get(..BB)).unwrap_or_default()
    }

    /// The log block behind an index, for messages and addresses.
    fn log_block(&self, index: usize) -> u64 {
        let block = self.first_block.saturating_add(index as u64);
        block.checked_rem(self.log.blocks).unwrap_or(0)
    }

    fn bad(&self, index: usize, what: &str) -> Error {
        self.log.bad(self.log_block(index), what)
    }

    /// The cycle that a block must have.
    fn expected(&self, index: usize) -> u32 {
        if index < self.far_blocks {
            self.cycle.wrapping_sub(1)
        } else {
            self.cycle
        }
    }

    /// The index behind the last block that was written without a gap before it.
    fn head(&self) -> Result<usize> {
        let in_flight = usize::try_from(IN_FLIGHT_BLOCKS).unwrap_or(usize::MAX);
        for index in self.len().saturating_sub(in_flight)..self.len() {
            let (found, expected) = (cycle_of(self.block(index)), self.expected(index));
            if found == expected.wrapping_sub(1) {
                return Ok(index);
            }
            if found != expected {
                return Err(self.bad(index, "a block of an impossible cycle"));
            }
        }
        Ok(self.len())
    }

    /// The index of the last record header before `head`.
    fn last_record(&self, head: usize) -> Result<(usize, &RecordHeader)> {
        for index in (0..head).rev() {
            let (header, _) = RecordHeader::ref_from_prefix(self.block(index))
                .map_err(|_| self.bad(index, "too short"))?;
            if header.magicno.get() == layout::RECORD_MAGIC {
                return Ok((index, header));
            }
        }
        Err(self.bad(head, "no record before the head"))
    }

    fn state(&self, uuid: &[u8; 16]) -> Result<LogState> {
        let mut head = self.head()?;
        let (mut index, mut header) = self.last_record(head)?;
        self.check_record(index, header, uuid)?;
        if record_end(index, header) != Some(head) {
            // The last record was not written whole: it does not count.
            head = index;
            (index, header) = self.last_record(head)?;
            self.check_record(index, header, uuid)?;
        }
        let clean = record_end(index, header) == Some(head) && self.is_unmount(index, header);
        Ok(if clean {
            LogState::Clean
        } else {
            LogState::Dirty
        })
    }

    fn check_record(&self, index: usize, header: &RecordHeader, uuid: &[u8; 16]) -> Result<()> {
        let lsn = u64::from(header.cycle.get()).wrapping_shl(32) | self.log_block(index);
        let known = layout::RECORD_VERSION_2 | 1;
        let what = if header.version.get() == 0 || header.version.get() & !known != 0 {
            "a record of an unknown version"
        } else if header.len.get() == 0 || header.len.get() > layout::MAX_RECORD_BYTES {
            "a record of an impossible length"
        } else if header.fs_uuid != *uuid {
            "a record of another filesystem (uuid)"
        } else if header.lsn.get() != lsn {
            "a record of another place"
        } else {
            return Ok(());
        };
        Err(self.bad(index, what))
    }

    /// Whether a record consists of the unmount operation, with the right checksum.
    fn is_unmount(&self, index: usize, header: &RecordHeader) -> bool {
        let payload = index.saturating_add(header_blocks(header));
        let operation = OpHeader::ref_from_prefix(self.block(payload));
        let flags = operation.map_or(0, |(operation, _)| operation.flags);
        // mkfs.xfs leaves the checksum out.
        let stored = header.crc.get();
        header.num_logops.get() == 1
            && flags & layout::OP_UNMOUNT != 0
            && (stored == 0 || self.checksum_fits(index, header))
    }

    fn checksum_fits(&self, index: usize, header: &RecordHeader) -> bool {
        let short = size_of::<RecordHeader>();
        [layout::RECORD_CRC_BYTES, short]
            .into_iter()
            .any(|covered| {
                let first = self.block(index).get(..covered).unwrap_or_default();
                let mut crc = format::checksum(first, layout::RECORD_CRC_OFFSET).unwrap_or(0);
                for extended in 1..header_blocks(header) {
                    let block = self.block(index.saturating_add(extended));
                    let block = block.get(..layout::EXTENDED_CRC_BYTES).unwrap_or_default();
                    crc = crc32c::crc32c_append(crc, block);
                }
                let start = index
                    .saturating_add(header_blocks(header))
                    .saturating_mul(BB);
                let len = usize::try_from(header.len.get()).unwrap_or(usize::MAX);
                let payload = self.data.get(start..start.saturating_add(len));
                crc32c::crc32c_append(crc, payload.unwrap_or_default()) == header.crc.get()
            })
    }
}

/// Basic blocks of a record's headers.
fn header_blocks(header: &RecordHeader) -> usize {
    let size = header.size.get();
    if header.version.get() & layout::RECORD_VERSION_2 == 0 || size > layout::MAX_RECORD_BYTES {
        return 1;
    }
    usize::try_from(size.div_ceil(layout::HEADER_COVERS_BYTES)).map_or(1, |blocks| blocks.max(1))
}

/// The index behind a record.
fn record_end(index: usize, header: &RecordHeader) -> Option<usize> {
    let payload = usize::try_from(header.len.get()).ok()?.div_ceil(BB);
    index
        .checked_add(header_blocks(header))?
        .checked_add(payload)
}

#[cfg(test)]
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;
    use crate::error::ErrorKind;

    const BLOCKS: u64 = 8192;
    const UUID: [u8; 16] = *b"0123456789abcdef";

    /// A log in memory, written as the kernel writes it.
    struct Ring {
        bytes: Vec<u8>,
        /// Blocks written since the log was new.
        written: u64,
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

    impl Ring {
        fn new() -> Self {
            Self {
                bytes: vec![0; BLOCKS as usize * BB],
                written: 0,
            }
        }

        fn block(&mut self, number: u64) -> &mut [u8] {
            let start = (number % BLOCKS) as usize * BB;
            &mut self.bytes[start..start + BB]
        }

        /// Writes a record of `payload` basic blocks; all but the blocks in `lost`.
        fn record(&mut self, payload: u64, unmount: bool, lost: std::ops::Range<u64>) {
            let start = self.written;
            let cycle_at = |number: u64| (number / BLOCKS) as u32 + 1;
            let mut header = RecordHeader::new_zeroed();
            header.magicno = layout::RECORD_MAGIC.into();
            header.cycle = cycle_at(start).into();
            header.version = layout::RECORD_VERSION_2.into();
            header.len = (payload as u32 * 512).into();
            header.lsn = (u64::from(cycle_at(start)) << 32 | (start % BLOCKS)).into();
            header.num_logops = 1.into();
            header.fs_uuid = UUID;
            header.size = layout::HEADER_COVERS_BYTES.into();
            if !lost.contains(&0) {
                let block = self.block(start);
                block.fill(0);
                block[..size_of::<RecordHeader>()].copy_from_slice(header.as_bytes());
            }
            for into in 1..=payload {
                if lost.contains(&into) {
                    continue;
                }
                let block = self.block(start + into);
                block.fill(0x55);
                block[..4].copy_from_slice(&cycle_at(start + into).to_be_bytes());
                if into == 1 && unmount {
                    block[9] = layout::OP_UNMOUNT;
                } else {
                    block[9] = 0;
                }
            }
            self.written += payload + 1;
        }

        /// Fills the log up to `block` with records.
        fn fill_to(&mut self, block: u64) {
            while self.written < block {
                let payload = (block - self.written - 1).clamp(1, 60);
                self.record(payload, false, 0..0);
            }
        }

        fn state(&mut self) -> Result<LogState> {
            let log = Log {
                addr_bytes: 0,
                blocks: BLOCKS,
                sector_bytes: 4096,
            };
            match log.find_head(self)? {
                None => Ok(LogState::Clean),
                Some(head) => log.read_window(self, &head)?.state(&UUID),
            }
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

    #[test]
    fn garbage_is_corrupt() {
        let corrupted = |change: &dyn Fn(&mut Ring)| {
            let mut ring = Ring::new();
            ring.fill_to(BLOCKS + 3000);
            ring.record(1, true, 0..0);
            change(&mut ring);
            ring.state().map_err(|error| error.kind())
        };
        let last = 3000 + 2;
        assert_eq!(corrupted(&|_| ()), Ok(LogState::Clean));
        let cases: [&dyn Fn(&mut Ring); 5] = [
            &|ring| ring.block(0).fill(0),
            &|ring| ring.block(BLOCKS - 1).fill(9),
            &|ring| ring.block(2990).fill(0x77),
            &|ring| ring.block(last - 2)[304] ^= 1,
            &|ring| ring.block(last - 2)[23] ^= 1,
        ];
        for (index, case) in cases.iter().enumerate() {
            assert_eq!(corrupted(*case), Err(ErrorKind::Corrupt), "case {index}");
        }
    }

    #[test]
    fn a_torn_unmount_record_does_not_count() {
        let mut ring = Ring::new();
        ring.fill_to(100);
        ring.record(1, true, 0..0);
        // A checksum that is given must be right.
        ring.block(100)[layout::RECORD_CRC_OFFSET] = 1;
        assert_eq!(ring.state().unwrap(), LogState::Dirty);
    }
}
