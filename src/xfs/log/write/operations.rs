//! Operations cut into records, as the kernel's xlog_write() does it.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::IntoBytes;

use super::super::super::format::log::OpHeader;
use super::super::super::format::log_items::{
    CLIENT_TRANSACTION, OP_CONTINUE, OP_END, OP_WAS_CONTINUED,
};
use super::LogWriter;
use super::record::{BuiltRecord, RecordFields};

/// Bytes of the header of an operation.
pub(super) const OP_BYTES: usize = size_of::<OpHeader>();
/// Regions are multiples of so many bytes, and so is every part of one.
pub(super) const ALIGN_BYTES: usize = 4;
/// Bytes of a record that are lost at most where the operations are cut: at its end, where not even
/// a header and the first bytes of a region fit, and for the header of the rest of a region.
pub(super) const WASTE_BYTES: usize = 2 * OP_BYTES;

/// The records of one checkpoint while they are made.
pub(super) struct Operations<'a> {
    writer: &'a mut LogWriter,
    tid: u32,
    tail_lsn: u64,
    /// Bytes of operations that are still to come, if no more regions are cut.
    expected: usize,
    /// The record that is being filled: room for its headers, then operations.
    record: Vec<u8>,
    count: u32,
    done: Vec<BuiltRecord>,
}

impl<'a> Operations<'a> {
    /// None yet. There will be about `bytes` bytes of them.
    pub(super) fn new(writer: &'a mut LogWriter, tid: u32, tail_lsn: u64, bytes: usize) -> Self {
        let count = bytes.checked_div(writer.log.record_bytes());
        let mut new = Self {
            writer,
            tid,
            tail_lsn,
            expected: bytes,
            record: Vec::new(),
            count: 0,
            done: Vec::with_capacity(count.unwrap_or(0).saturating_add(2)),
        };
        new.begin();
        new
    }

    fn begin(&mut self) {
        let log = &self.writer.log;
        let headers = log.header_bytes();
        let wanted = headers
            .saturating_add(self.expected)
            .saturating_add(WASTE_BYTES);
        let capacity = log.padded(wanted).min(log.record_bytes());
        self.record = Vec::with_capacity(capacity);
        self.record.resize(headers, 0);
        self.count = 0;
    }

    /// Bytes that the record can still take.
    fn room(&self) -> usize {
        let most = self.writer.log.record_bytes();
        most.saturating_sub(self.record.len())
    }

    fn end(&mut self) {
        let writer = &mut *self.writer;
        let fields = RecordFields {
            tail_lsn: self.tail_lsn,
            operations: self.count,
            previous_block: writer.previous_block,
        };
        let record = std::mem::take(&mut self.record);
        let operations = record.len().saturating_sub(writer.log.header_bytes());
        self.expected = self.expected.saturating_sub(operations);
        let record = writer.log.seal(record, writer.head, fields);
        writer.pass(&record);
        self.done.push(record);
    }

    /// Adds one operation.
    pub(super) fn add(&mut self, flags: u8, region: &[u8]) {
        let least = OP_BYTES.saturating_add(region.len().min(ALIGN_BYTES));
        if self.room() < least {
            self.end();
            self.begin();
        }
        let (first, mut rest) = self.split(region);
        match rest.is_empty() {
            true => self.put(flags, first),
            false => self.put(flags | OP_CONTINUE, first),
        }
        while !rest.is_empty() {
            self.end();
            self.begin();
            let (part, after) = self.split(rest);
            rest = after;
            let more = match rest.is_empty() {
                true => OP_END,
                false => OP_CONTINUE,
            };
            self.put(flags | OP_WAS_CONTINUED | more, part);
        }
    }

    /// The part of a region that fits in the record behind a header, and the rest.
    fn split<'b>(&self, region: &'b [u8]) -> (&'b [u8], &'b [u8]) {
        let room = self.room().saturating_sub(OP_BYTES) & !(ALIGN_BYTES - 1);
        region.split_at_checked(room).unwrap_or((region, &[]))
    }

    fn put(&mut self, flags: u8, region: &[u8]) {
        let mut header = OpHeader::new(CLIENT_TRANSACTION, flags, region.len());
        header.tid = self.tid.into();
        self.record.extend_from_slice(header.as_bytes());
        self.record.extend_from_slice(region);
        self.count = self.count.saturating_add(1);
    }

    /// The records, the last of which holds what was added last.
    pub(super) fn finish(mut self) -> Vec<BuiltRecord> {
        self.end();
        self.done
    }
}
