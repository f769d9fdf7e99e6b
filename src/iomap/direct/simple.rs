//! The usual case: an operation inside one plain mapping is one chain, seen at one look.

use super::super::{IterFlags, Ops};
use super::slot::OperationKind;
use super::{MAX_CHAIN_BYTES, Source, What, issue};
use crate::block::{ChainFlags, Op, Queue};
use crate::units::{Iova, Lba};

/// An operation that one chain does.
pub(super) struct Simple {
    pub(super) kind: OperationKind,
    pub(super) op: Op,
    pub(super) flags: ChainFlags,
    /// A durable write that is sent without FUA.
    pub(super) without_fua: bool,
    pub(super) lba: Lba,
    pub(super) blocks: u64,
    pub(super) len_bytes: u32,
    /// Bytes to report when all goes well.
    pub(super) report: u64,
}

/// What a queue asks of an operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) block_mask: u64,
    pub(super) block_shift: u32,
    pub(super) dma_mask: u64,
}

impl Grid {
    /// The one chain that does all of a request for `len` bytes at `iova`, when one plain mapping
    /// has all of it; `None` leaves it to [`super::Direct::start_in_full`], and with it whatever is
    /// wrong.
    #[inline(always)]
    pub(super) fn simple<S: Source, Q: Queue>(
        self,
        queue: &Q,
        version: &S::Version,
        what: What,
        offset: u64,
        (iova, len): (Iova, usize),
    ) -> Option<Simple> {
        let len = len as u64;
        let size = S::size_bytes(version);
        let (kind, op, iter_flags, dsync, report) = match what {
            What::Read => {
                // Also without a byte before the end of the file.
                let report = len.min(size.checked_sub(offset)?);
                (
                    OperationKind::Read,
                    Op::Read,
                    IterFlags::DIRECT,
                    false,
                    report,
                )
            }
            What::Write {
                dsync,
                through_last_block: false,
            } if len <= size.checked_sub(offset)? => (
                OperationKind::Write,
                Op::Write,
                issue::WRITE_FLAGS,
                dsync,
                len,
            ),
            _ => return None,
        };
        let all = (report + self.block_mask) & !self.block_mask;
        let misaligned = ((offset | len) & self.block_mask) | (iova.0 & self.dma_mask) != 0;
        if misaligned || all.wrapping_sub(1) >= MAX_CHAIN_BYTES {
            return None;
        }
        let addr = S::ops(version).whole(offset, all, iter_flags)?;
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
            blocks: all >> self.block_shift,
            len_bytes: u32::try_from(all).ok()?,
            report,
        })
    }
}
