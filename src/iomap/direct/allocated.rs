//! Writes to blocks that were allocated for them.

use super::super::Ops;
use super::full::InFull;
use super::slot::{DirectStage, OperationKind};
use super::{Direct, DirectRequest, MAX_CHAIN_BYTES, Source, What, issue};
use crate::block::{ChainFlags, One, Op, Queue};
use crate::mem::Segment;
use crate::units::Lba;

impl<S: Source> Direct<S> {
    /// Starts a write to allocated blocks that is one chain to written ones: a usual append.
    /// Otherwise nothing was started, and the request comes back.
    pub(super) fn start_allocated<'a, Q: Queue>(
        &mut self,
        queue: &mut Q,
        request: DirectRequest<'a, S>,
        how: InFull,
    ) -> Result<u16, DirectRequest<'a, S>> {
        let grid = self.grid;
        let (index, offset) = (self.free, request.offset);
        let (What::Write { dsync, .. }, Some(filler_bytes)) = (request.what, how.filler_bytes)
        else {
            return Err(request);
        };
        let len = request.buf.len() as u64;
        let end = offset.checked_add(len);
        let (Some(slot), Some((iova, _)), Some(source), Some(end)) = (
            self.slots.get_mut(usize::from(index)),
            request.buf.place(),
            request.source,
            end,
        ) else {
            return Err(request);
        };
        let misaligned = ((offset | len) & grid.block_mask) | (iova.0 & grid.dma_mask) != 0;
        if misaligned || len.wrapping_sub(1) >= MAX_CHAIN_BYTES || !self.waiting.is_empty() {
            return Err(request);
        }
        let Some(version) = self.sources.begin(source) else {
            return Err(request);
        };
        let addr = S::ops(version).whole(offset, len, issue::ALLOCATED_FLAGS);
        let addr = addr.filter(|addr| addr & grid.block_mask == 0);
        let (Some(addr), Ok(len_bytes)) = (addr, u32::try_from(len)) else {
            self.sources.cancel(self.sources.last());
            return Err(request);
        };
        let one = One {
            op: Op::Write,
            flags: ChainFlags::empty(),
            lba: Lba(addr >> grid.block_shift),
            blocks: len >> grid.block_shift,
            segment: Segment::new(iova, len_bytes),
            token: issue::token(index, 0),
        };
        let lent = request.buf.lend();
        if !queue.try_one(one) {
            self.sources.cancel(self.sources.last());
            return Err(DirectRequest {
                buf: lent.take_back(),
                ..request
            });
        }
        slot.begin(how.kept, offset, request.user_data);
        slot.stage = DirectStage::Submitted;
        slot.kind = OperationKind::Write;
        slot.source = self.sources.last();
        slot.lent = lent;
        slot.is_allocated = true;
        slot.dsync = dsync;
        slot.report = len;
        slot.end = end;
        slot.pos = end;
        slot.data_end = end.saturating_sub(filler_bytes.into()).max(offset);
        slot.in_flight = 1;
        self.leave_free_list(index);
        Ok(index)
    }
}
