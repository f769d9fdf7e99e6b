//! The records from the tail to the head, their payload as it was before cycle numbers were put
//! into it: the loop of the kernel's xlog_do_recovery_pass() and xlog_unpack_data().

use zerocopy::FromBytes;

use super::super::super::MetaIo;
use super::super::super::format::BASIC_BLOCK_BYTES;
use super::super::super::format::log::{self as layout, RecordHeader};
use super::super::records::checksum_fits;
use super::super::{BB, LogSpan, XfsLog, word_offset};
use super::ReplayStart;
use crate::error::{Error, ErrorKind, Result};

/// A record of the log.
#[derive(Debug)]
pub(super) struct PayloadRecord {
    /// Block in the log, for messages.
    pub(super) block: u64,
    pub(super) lsn: u64,
    /// Operations in the payload.
    pub(super) operations: u32,
    pub(super) payload: Vec<u8>,
}

/// Where the next record begins.
#[derive(Debug)]
pub(super) struct Records {
    block: u64,
    /// Basic blocks from there to the head.
    left: u64,
    /// As the first record says for all of them.
    size: u32,
    header_blocks: u64,
    /// The log sequence number of the first record.
    first_lsn: u64,
}

impl Records {
    /// The records of a span that is not empty.
    pub(super) fn new(io: &mut impl MetaIo, log: &XfsLog, span: &LogSpan) -> Result<Self> {
        let first = log.read(io, span.tail, 1)?;
        let (header, _) = RecordHeader::ref_from_prefix(&first)
            .map_err(|_| log.bad(span.tail, "no record at the tail"))?;
        let size = log.buffer_size(header);
        if header.magicno.get() != layout::RECORD_MAGIC || size > layout::MAX_RECORD_BYTES {
            return Err(log.bad(span.tail, "no record at the tail"));
        }
        Ok(Self {
            block: span.tail,
            left: log.distance(span.tail, span.head),
            size,
            header_blocks: layout::header_blocks(header.version.get(), size),
            first_lsn: header.lsn.get(),
        })
    }

    /// Where they begin.
    pub(super) fn start(&self) -> ReplayStart {
        ReplayStart {
            lsn: self.first_lsn,
            record_bytes: self.size,
        }
    }

    /// The next record; `None` at the head.
    pub(super) fn next(
        &mut self,
        io: &mut impl MetaIo,
        log: &XfsLog,
    ) -> Result<Option<PayloadRecord>> {
        if self.left == 0 {
            return Ok(None);
        }
        let block = self.block;
        let headers = log.read_ring(io, block, self.header_blocks)?;
        let (header, _) = RecordHeader::ref_from_prefix(&headers)
            .map_err(|_| log.bad(block, "a record is cut off"))?;
        if !header.is_valid(self.size) {
            return Err(log.bad(block, "a record without a valid header"));
        }
        if header.fs_uuid != log.uuid {
            return Err(log.bad(block, "a record of another filesystem (uuid)"));
        }
        if header.fmt.get() != layout::FORMAT_LITTLE_ENDIAN {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the log was written by a machine of another byte order: mount the filesystem once on \
                 such a machine and unmount it",
            ));
        }
        let len = header.len.get();
        let blocks = u64::from(len).div_ceil(BASIC_BLOCK_BYTES);
        let all = self.header_blocks.saturating_add(blocks);
        if all > self.left {
            return Err(log.bad(block, "a record reaches beyond the head"));
        }
        let start = block.saturating_add(self.header_blocks);
        let mut payload = log.read_ring(io, start, blocks)?;
        // What passes for torn without a checksum does not pass here, as in xlog_recover_process().
        if header.crc.get() == 0 || !checksum_fits(header, &headers, &payload) {
            return Err(log.bad(block, "the checksum of a record is wrong"));
        }
        restore_words(&headers, &mut payload);
        payload.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        self.block = log.wrap(block.saturating_add(all));
        self.left = self.left.saturating_sub(all);
        Ok(Some(PayloadRecord {
            block,
            lsn: header.lsn.get(),
            operations: header.num_logops.get(),
            payload,
        }))
    }
}

/// Puts the first word of each block of the payload back, where the cycle number is.
fn restore_words(headers: &[u8], payload: &mut [u8]) {
    for (index, block) in payload.chunks_mut(BB).enumerate() {
        let word = headers
            .get(word_offset(index)..)
            .and_then(|rest| rest.first_chunk::<4>());
        if let (Some(word), Some(to)) = (word, block.first_chunk_mut::<4>()) {
            *to = *word;
        }
    }
}
