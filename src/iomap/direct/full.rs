//! Starting any operation, as far as the queue takes it.

use super::slot::{DirectStage, OperationKind, Rejected, What};
use super::sources::NO_SOURCE;
use super::{Direct, DirectRequest, Issued, Source, internal, issue};
use crate::block::Queue;
use crate::error::{Error, ErrorKind};
use crate::mem::DmaBuf;

/// How an operation is started by [`Direct::start_in_full`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct InFull {
    /// It stays after its end.
    pub(super) kept: bool,
    /// Of a write to allocated blocks: bytes at the end of the memory that are no data.
    pub(super) filler_bytes: Option<u16>,
}

impl<S: Source> Direct<S> {
    #[inline(never)]
    pub(super) fn start_in_full<Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: DirectRequest<'_, S>,
        how: InFull,
    ) -> Result<u16, Rejected> {
        let index = self.free;
        if self.slots.get(usize::from(index)).is_none() {
            return Err(Rejected::full(request.buf));
        }
        let len = request.buf.len() as u64;
        let offset = request.offset;
        let block_mask = self.grid.block_mask;
        if ((offset | len) & block_mask) | (request.buf.iova().0 & self.grid.dma_mask) != 0 {
            let error = self.misaligned(offset, &request.buf);
            return Err(Rejected::error(error, request.buf));
        }
        if how.filler_bytes.is_none() && !queue.limits().read_only && self.is_no_overwrite(&request)
        {
            return Err(Rejected::no_overwrite(request.buf));
        }
        let slot = &mut self.slots[usize::from(index)];
        slot.begin(how.kept, offset, request.user_data);
        slot.source = match request.source {
            None => NO_SOURCE,
            Some(source) if self.sources.begin(source).is_some() => self.sources.last(),
            Some(source) => self.sources.begin_in_full(source),
        };
        if request.what == What::Read {
            let version = self.sources.version(slot.source);
            slot.kind = OperationKind::Read;
            // Whole blocks are read, what lies beyond the size is zeroed and not reported.
            let size = version.map_or(0, S::size_bytes);
            slot.report = len.min(size.saturating_sub(offset));
            slot.end = offset + ((slot.report + block_mask) & !block_mask);
            if let Some(version) = version
                && let Err(error) = S::check_known(version, offset..slot.end)
            {
                slot.lent = request.buf.lend();
                return Err(self.reject(index, error));
            }
        } else if let Err(error) = self.prepare(index, &request, how, queue.limits().read_only) {
            let slot = &mut self.slots[usize::from(index)];
            slot.lent = request.buf.lend();
            return Err(self.reject(index, error));
        }
        let slot = &mut self.slots[usize::from(index)];
        slot.lent = request.buf.lend();
        // Operations that wait go first.
        if !self.waiting.is_empty() {
            return self.queue_up(index);
        }
        match self.issue(queue, index, true) {
            Ok(Issued::All) => {
                self.leave_free_list(index);
                let slot = &mut self.slots[usize::from(index)];
                slot.stage = DirectStage::Submitted;
                if slot.in_flight == 0 {
                    self.settle_early(index);
                }
            }
            Ok(Issued::Blocked) => {
                self.leave_free_list(index);
                self.wait_for_room(index);
            }
            Err(error) => self.fail_first(index, error)?,
        }
        Ok(index)
    }

    /// Whether a request is a write that is seen at one look to be no overwrite.
    fn is_no_overwrite(&mut self, request: &DirectRequest<'_, S>) -> bool {
        let is_plain = matches!(
            request.what,
            What::Write {
                through_last_block: false,
                ..
            }
        );
        let len = request.buf.len() as u64;
        let Some(source) = request.source.filter(|_| is_plain && len > 0) else {
            return false;
        };
        let Some(version) = self.sources.begin(source) else {
            return false;
        };
        let is_no_overwrite = S::is_no_overwrite(version, request.offset, len);
        self.sources.end(self.sources.last());
        is_no_overwrite
    }

    /// The first free slot has an operation now.
    pub(super) fn leave_free_list(&mut self, index: u16) {
        let slot = &self.slots[usize::from(index)];
        self.free = slot.next_free;
        if slot.kept {
            self.kept += 1;
        } else {
            self.polled += 1;
        }
    }

    /// The first free slot stays free: nothing of its operation was started.
    fn reject(&mut self, index: u16, error: Error) -> Rejected {
        let slot = &mut self.slots[usize::from(index)];
        self.sources.cancel(slot.source);
        slot.reject(error)
    }

    /// For operations other than reads: the rest of the slot, as far as it is known without
    /// mappings.
    #[inline(never)]
    fn prepare(
        &mut self,
        index: u16,
        request: &DirectRequest<'_, S>,
        how: InFull,
        read_only: bool,
    ) -> Result<(), Error> {
        let block_mask = self.grid.block_mask;
        let slot = &mut self.slots[usize::from(index)];
        let len = request.buf.len() as u64;
        let offset = request.offset;
        let is_write = !matches!(request.what, What::Read | What::DeviceRead | What::Flush);
        if is_write && read_only {
            return Err(read_only_device());
        }
        match request.what {
            What::Read => {}
            What::Write { dsync, .. } if let Some(filler_bytes) = how.filler_bytes => {
                let Some(behind) = offset.checked_add(len) else {
                    return Err(past_end(u64::MAX));
                };
                slot.kind = OperationKind::Write;
                slot.is_allocated = true;
                // The filesystem's log is made durable, and the data with it.
                slot.dsync = dsync;
                slot.report = len;
                slot.end = behind;
                slot.data_end = behind.saturating_sub(filler_bytes.into()).max(offset);
            }
            What::Write {
                dsync,
                through_last_block,
            } => {
                let Some(version) = self.sources.version(slot.source) else {
                    return Err(internal("a write needs a file"));
                };
                let size = S::size_bytes(version);
                let limit = if through_last_block {
                    size.saturating_add(block_mask) & !block_mask
                } else {
                    size
                };
                let end = offset.checked_add(len);
                // Nothing can be written anywhere.
                let Some(end) = end.filter(|&end| end <= limit || len == 0) else {
                    return Err(past_end(size));
                };
                slot.kind = OperationKind::Write;
                slot.dsync = dsync;
                slot.report = len;
                // What reaches beyond the size belongs to the last block, not to the file.
                slot.end = end.min(size).max(offset);
            }
            What::Flush => slot.kind = OperationKind::Flush,
            What::DeviceRead => {
                slot.kind = OperationKind::DeviceRead;
                slot.report = len;
                slot.end = offset.saturating_add(len);
            }
            What::DeviceWrite { dsync } => {
                slot.kind = OperationKind::DeviceWrite;
                slot.dsync = dsync;
                slot.report = len;
                slot.end = offset.saturating_add(len);
            }
            What::Discard { len_bytes } => {
                slot.kind = OperationKind::Discard;
                slot.end = offset.saturating_add(len_bytes & !block_mask);
            }
        }
        Ok(())
    }

    /// Behind others that wait. A write is looked at now: it is refused here or not at all.
    #[cold]
    fn queue_up(&mut self, index: u16) -> Result<u16, Rejected> {
        let slot = &self.slots[usize::from(index)];
        if slot.kind == OperationKind::Write
            && let Some(version) = self.sources.version(slot.source)
            && let Err(error) = issue::check_write::<S>(version, slot)
        {
            return Err(self.reject(index, error));
        }
        self.leave_free_list(index);
        self.wait_for_room(index);
        Ok(index)
    }

    /// The first attempt failed. A write of which nothing is on its way was not started; all else
    /// ends with the error.
    #[cold]
    fn fail_first(&mut self, index: u16, error: Error) -> Result<(), Rejected> {
        let slot = &mut self.slots[usize::from(index)];
        if slot.kind == OperationKind::Write && slot.in_flight == 0 {
            return Err(self.reject(index, error));
        }
        slot.fail(slot.pos - slot.start, error);
        slot.stage = DirectStage::Submitted;
        let idle = slot.in_flight == 0;
        self.leave_free_list(index);
        if idle {
            self.settle_early(index);
        }
        Ok(())
    }

    #[cold]
    fn misaligned(&self, offset: u64, buf: &DmaBuf) -> Error {
        let block = self.grid.block_mask + 1;
        let dma = self.grid.dma_mask + 1;
        Error::new(
            ErrorKind::Misaligned,
            format!(
                "direct I/O needs an offset and a length that are multiples of {block} bytes and memory at \
                 a multiple of {dma}: this is {} bytes at offset {offset}, memory at {}",
                buf.len(),
                buf.iova()
            ),
        )
    }
}

#[cold]
fn read_only_device() -> Error {
    Error::new(ErrorKind::ReadOnly, "the device may only be read")
}

#[cold]
fn past_end(size: u64) -> Error {
    Error::new(
        ErrorKind::NotOverwrite,
        format!(
            "the write goes past the end of the file at byte {size}, and growing a file is not supported yet"
        ),
    )
}
