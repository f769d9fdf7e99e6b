//! The state of one direct operation, and what goes in and out.

use super::source::Source;
use super::sources::{NO_SOURCE, Sources};
use super::{FLUSH_BLOCK, OperationToken, SLOT_BITS, internal};
use crate::block::{Completion, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{DmaBuf, Lent};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// File into memory, from [`DirectRequest::offset`].
    Read,
    /// Memory onto the file, from [`DirectRequest::offset`]: an overwrite.
    Write {
        /// Durable when it ends.
        dsync: bool,
        /// It may reach beyond the file's size to the end of its last block; the caller has zeroed
        /// that part.
        through_last_block: bool,
    },
    /// What was completed before becomes durable. No memory.
    Flush,
    /// Device bytes into memory, from device byte [`DirectRequest::offset`]: for metadata.
    DeviceRead,
    /// Memory onto the device, to device byte [`DirectRequest::offset`]: for metadata.
    DeviceWrite {
        /// Durable when it ends.
        dsync: bool,
    },
    /// The content of so many device bytes from device byte [`DirectRequest::offset`] is no longer
    /// needed. No memory.
    Discard {
        /// Length in bytes.
        len_bytes: u64,
    },
}

/// A direct I/O request.
#[derive(Debug)]
pub struct DirectRequest<'a, S> {
    /// What to do.
    pub what: What,
    /// The file; a flush or a device read goes without.
    pub source: Option<&'a S>,
    /// First byte.
    pub offset: u64,
    /// Memory; its length is the operation's.
    pub buf: DmaBuf,
    /// Comes back in [`Ended`].
    pub user_data: u64,
}

/// An operation that was not started.
#[derive(Debug)]
pub struct Rejected {
    /// Its memory.
    pub buf: DmaBuf,
    /// Why; `None` when every slot is taken: poll, then try again. `None` also where
    /// [`Rejected::is_no_overwrite`] says it.
    pub error: Option<Error>,
    /// It is a write, and was seen at one look to be no overwrite.
    pub is_no_overwrite: bool,
}

impl Rejected {
    /// Whether it is a write to where the file has no written blocks of its own.
    #[inline]
    pub fn needs_blocks(&self, what: What) -> bool {
        let error = self.error.as_ref();
        self.is_no_overwrite
            || matches!(what, What::Write { .. })
                && error.is_some_and(|error| error.kind() == ErrorKind::NotOverwrite)
    }

    /// With no reason but that every slot is taken.
    #[cold]
    pub fn full(buf: DmaBuf) -> Self {
        Self {
            buf,
            error: None,
            is_no_overwrite: false,
        }
    }

    pub(super) fn no_overwrite(buf: DmaBuf) -> Self {
        Self {
            is_no_overwrite: true,
            ..Self::full(buf)
        }
    }

    /// With a reason.
    #[cold]
    pub fn error(error: Error, buf: DmaBuf) -> Self {
        Self {
            error: Some(error),
            ..Self::full(buf)
        }
    }
}

/// An operation that has ended.
#[derive(Debug)]
pub struct Ended {
    /// What it was submitted with.
    pub user_data: u64,
    /// Its memory; empty when the device could not be kept from it ([`Status::Unfenced`]).
    pub buf: DmaBuf,
    /// Bytes done: all of them, up to the end of the file. Otherwise the error, with the bytes
    /// before it ([`Error::bytes_done`]).
    pub result: Result<usize>,
    /// What it was.
    pub kind: OperationKind,
    /// Its first byte.
    pub offset: u64,
    /// It is a write to allocated blocks, and the file was changed with it.
    pub is_noted: bool,
}

/// A write of [`Direct::submit_allocated`](super::Direct::submit_allocated) whose data is on the
/// device; its file is to be changed.
#[derive(Debug)]
pub struct WrittenData<S> {
    /// To be given to [`Direct::end_written`](super::Direct::end_written).
    pub operation: OperationToken,
    /// The file.
    pub source: S,
    /// The bytes of the file that have data now.
    pub range: std::ops::Range<u64>,
    /// The change is to be durable.
    pub dsync: bool,
}

/// Takes operations that have ended. A trait and not a closure, so that it can ask to be inlined.
pub trait Hear<S: Source> {
    /// An operation has ended.
    fn hear(&mut self, ended: Ended, of: Of<'_, S>);
}

/// The file of an operation that has ended; looked up where it is needed.
#[derive(Debug)]
pub struct Of<'a, S: Source> {
    pub(super) sources: &'a Sources<S>,
    pub(super) number: u32,
}

impl<'a, S: Source> Of<'a, S> {
    /// The file; none of an operation without one.
    #[inline(always)]
    pub fn source(&self) -> Option<&'a S> {
        self.sources.get(self.number)
    }
}

/// What kind of operation a slot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OperationKind {
    /// A read.
    #[default]
    Read,
    /// A write.
    Write,
    /// A flush.
    Flush,
    /// A read of the device.
    DeviceRead,
    /// A write to the device.
    DeviceWrite,
    /// Blocks of the device are deallocated.
    Discard,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum DirectStage {
    #[default]
    Free,
    /// One chain, which was submitted, is all of a read or write that [`super::Direct::poll_queue`]
    /// hands over. Only the first part of the slot holds for it, until [`DirectSlot::unfold`].
    Simple,
    /// More is to be submitted.
    Running,
    /// Everything is submitted.
    Submitted,
    /// Every chain of a write to allocated blocks has ended well; its file is to be changed.
    Written,
    /// Every chain has ended.
    Ended,
}

/// One operation. A slot is free, or has what it needs. What [`DirectStage::Simple`] needs is in
/// the first cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct DirectSlot {
    pub(super) stage: DirectStage,
    pub(super) kind: OperationKind,
    /// Stays until it is taken, instead of being handed over by poll. Not so for a free slot.
    pub(super) kept: bool,
    /// A write that is durable when it ends.
    pub(super) dsync: bool,
    /// Such a write of which not every chain was sent with FUA: where there is a write cache when
    /// it has ended, a flush is due.
    pub(super) without_fua: bool,
    /// A write that is in its flush.
    pub(super) flush_after: bool,
    /// A write to blocks that were allocated for it, until the file was changed.
    pub(super) is_allocated: bool,
    /// The next one in the list of free slots.
    pub(super) next_free: u16,
    /// Chains submitted and not ended; 0 for a free slot.
    pub(super) in_flight: u32,
    /// The file's number in [`super::sources::Sources`].
    pub(super) source: u32,
    /// First byte.
    pub(super) start: u64,
    /// Bytes to report when all goes well.
    pub(super) report: u64,
    pub(super) user_data: u64,
    /// Empty for a free slot.
    pub(super) lent: Lent,
    /// Next byte to submit.
    pub(super) pos: u64,
    /// First byte not to submit.
    pub(super) end: u64,
    /// For [`DirectSlot::is_allocated`]: the end of the data.
    pub(super) data_end: u64,
    /// Bytes before the first failure; `u64::MAX` without one.
    pub(super) failed_at: u64,
    pub(super) error: Option<Error>,
    /// The device may still be at it after its end, and access memory and blocks.
    pub(super) is_stuck: bool,
}
const _: () = assert!(std::mem::offset_of!(DirectSlot, pos) <= 64);

impl DirectSlot {
    /// A slot that is free.
    pub(super) fn free(next_free: u16) -> Self {
        Self {
            stage: DirectStage::Free,
            kind: OperationKind::Read,
            kept: false,
            dsync: false,
            without_fua: false,
            flush_after: false,
            is_allocated: false,
            next_free,
            in_flight: 0,
            source: NO_SOURCE,
            start: 0,
            report: 0,
            user_data: 0,
            lent: Lent::none(),
            pos: 0,
            end: 0,
            data_end: 0,
            failed_at: u64::MAX,
            error: None,
            is_stuck: false,
        }
    }

    /// Fills in what [`DirectStage::Simple`] leaves out, for an operation whose one chain has `len`
    /// bytes.
    pub(super) fn unfold(&mut self, len: u64) {
        self.stage = DirectStage::Submitted;
        self.kept = false;
        self.dsync = false;
        self.without_fua = false;
        self.flush_after = false;
        self.is_allocated = false;
        self.in_flight = 1;
        self.end = self.start.saturating_add(len);
        self.pos = self.end;
        self.failed_at = u64::MAX;
        self.is_stuck = false;
    }

    /// Makes the slot ready for an operation. Its kind, end, memory and file are the caller's to
    /// set.
    #[inline]
    pub(super) fn begin(&mut self, kept: bool, offset: u64, user_data: u64) {
        self.stage = DirectStage::Running;
        self.kept = kept;
        self.dsync = false;
        self.without_fua = false;
        self.flush_after = false;
        self.is_allocated = false;
        self.in_flight = 0;
        self.start = offset;
        self.pos = offset;
        self.end = offset;
        self.report = 0;
        self.failed_at = u64::MAX;
        self.is_stuck = false;
        self.user_data = user_data;
    }

    /// Turns a durable write whose chains have all ended, some of them sent without FUA, into its
    /// flush, unless it is that already or wrote nothing that counts.
    #[cold]
    pub(super) fn needs_flush(&mut self) -> bool {
        let writes = matches!(self.kind, OperationKind::Write | OperationKind::DeviceWrite);
        if !writes || self.failed_at == 0 || self.report == 0 {
            return false;
        }
        self.kind = OperationKind::Flush;
        self.flush_after = true;
        self.stage = DirectStage::Running;
        true
    }

    /// Notes a chain's failure.
    #[cold]
    pub(super) fn fail_chain(&mut self, completion: Completion, block_shift: u32) {
        let block = completion.token >> SLOT_BITS;
        let at = if block == FLUSH_BLOCK {
            0
        } else {
            block << block_shift
        };
        let Some(error) = completion.status.error() else {
            return;
        };
        if completion.status == Status::Unfenced {
            // Leaked, on purpose: the device may still write to it. Of what it holds nothing can be
            // reported.
            self.lent = Lent::none();
            self.is_stuck = true;
            return self.fail(0, error);
        }
        self.fail(at, error);
    }

    /// Notes a failure; the one that is first in the file counts.
    #[cold]
    pub(super) fn fail(&mut self, at: u64, error: Error) {
        if at < self.failed_at {
            self.failed_at = at;
            self.error = Some(error.at_offset(self.start.saturating_add(at)));
        }
    }

    /// Zeroes what was read beyond the end of the file. Nothing is in flight.
    #[cold]
    pub(super) fn zero_tail(&mut self) {
        let range = usize::try_from(self.report)
            .ok()
            .zip(usize::try_from(self.end - self.start).ok());
        if let Some((from, to)) = range {
            self.lent.zero(from..to);
        }
    }

    /// Started, and not ended.
    pub(super) fn is_unfinished(&self) -> bool {
        matches!(
            self.stage,
            DirectStage::Simple
                | DirectStage::Running
                | DirectStage::Submitted
                | DirectStage::Written
        )
    }

    /// The operation will not end: its memory is leaked where chains of it are in flight.
    #[cold]
    pub(super) fn give_up(&mut self) {
        if self.stage == DirectStage::Simple {
            self.unfold(self.report);
        }
        if self.in_flight > 0 {
            self.lent = Lent::none();
            self.is_stuck = true;
        }
        let why = "the operation had not ended when its queue was closed";
        self.fail(0, Error::new(ErrorKind::DeviceGone, why));
    }

    /// Nothing was started: the memory goes back.
    #[cold]
    pub(super) fn reject(&mut self, error: Error) -> Rejected {
        self.stage = DirectStage::Free;
        self.kept = false;
        Rejected::error(error, self.lent.replace_by_none().take_back())
    }

    /// Every chain has ended: the memory goes back, with the result.
    pub(super) fn finish(&mut self) -> Ended {
        self.stage = DirectStage::Free;
        self.kept = false;
        self.in_flight = 0;
        let result = if self.failed_at == u64::MAX {
            Ok(usize::try_from(self.report).unwrap_or(usize::MAX))
        } else {
            self.failure()
        };
        Ended {
            user_data: self.user_data,
            buf: self.lent.replace_by_none().take_back(),
            result,
            kind: if self.flush_after {
                OperationKind::Write
            } else {
                self.kind
            },
            offset: self.start,
            is_noted: self.is_allocated && self.failed_at == u64::MAX,
        }
    }

    /// As [`DirectSlot::finish`], for [`DirectStage::Simple`] whose chain ended well.
    #[inline(always)]
    pub(super) fn finish_simple(&mut self) -> Ended {
        self.stage = DirectStage::Free;
        Ended {
            user_data: self.user_data,
            buf: self.lent.replace_by_none().take_back(),
            result: Ok(usize::try_from(self.report).unwrap_or(usize::MAX)),
            kind: self.kind,
            offset: self.start,
            is_noted: false,
        }
    }

    #[cold]
    fn failure(&mut self) -> Result<usize> {
        let error = self.error.take();
        let error = error.unwrap_or_else(|| internal("the operation failed without an error"));
        if !matches!(self.kind, OperationKind::Read | OperationKind::Write) && !self.flush_after {
            return Err(error);
        }
        // The file has nothing of a write to allocated blocks before all of it is there.
        let good = match self.is_allocated {
            true => 0,
            false => self.failed_at.min(self.report),
        };
        Err(error.with_bytes_done(usize::try_from(good).unwrap_or(usize::MAX)))
    }
}
