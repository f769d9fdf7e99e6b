//! The usual case: an operation inside one plain mapping is one chain, seen at one look.

use super::super::{IterFlags, Ops};
use super::slot::Kind as SlotKind;
use super::{Direct, MAX_CHAIN_BYTES, Request, Source, What, issue};
use crate::block::{ChainFlags, Op, Queue};
use crate::units::Lba;

/// An operation that one chain does.
pub(super) struct Simple {
    pub(super) kind: SlotKind,
    pub(super) op: Op,
    pub(super) flags: ChainFlags,
    /// A durable write that is sent without FUA.
    pub(super) without_fua: bool,
    pub(super) lba: Lba,
    pub(super) len_bytes: u32,
    /// Bytes to report when all goes well.
    pub(super) report: u64,
}

impl<S: Source> Direct<S> {
    /// The one chain that does all of a request, when one plain mapping has all of it; `None` leaves it to
    /// [`Direct::start_in_full`], and with it whatever is wrong.
    #[inline]
    pub(super) fn simple<Q: Queue>(&self, queue: &Q, request: &Request<S>) -> Option<Simple> {
        let source = request.source.as_ref()?;
        let offset = request.offset;
        let len = request.buf.len() as u64;
        let size = source.size_bytes();
        let (kind, op, iter_flags, dsync, all) = match request.what {
            What::Read => {
                let all = len.min(size.saturating_sub(offset));
                (SlotKind::Read, Op::Read, IterFlags::DIRECT, false, all)
            }
            What::Write {
                dsync,
                through_last_block: false,
            } if offset.checked_add(len)? <= size => {
                (SlotKind::Write, Op::Write, issue::WRITE_FLAGS, dsync, len)
            }
            _ => return None,
        };
        let report = all;
        let all = (all + self.block_mask) & !self.block_mask;
        let misaligned =
            ((offset | len) & self.block_mask) | (request.buf.iova().0 & self.dma_mask) != 0;
        if misaligned || all == 0 || all > MAX_CHAIN_BYTES || !self.waiting.is_empty() {
            return None;
        }
        let addr = source.ops().whole(offset, all, iter_flags)?;
        if addr & self.block_mask != 0 {
            return None;
        }
        let flags = if dsync && issue::wants_fua(queue.limits()) {
            ChainFlags::FUA
        } else {
            ChainFlags::empty()
        };
        Some(Simple {
            kind,
            op,
            flags,
            without_fua: dsync && flags.is_empty(),
            lba: Lba(addr >> self.block_shift),
            len_bytes: u32::try_from(all).ok()?,
            report,
        })
    }
}
