//! A target's blocks under load, without a filesystem.

use xtent::internals::block;
use xtent::internals::target::RawIo;
use xtent::internals::units::Lba;
use xtent::target::Target;
use xtent::{Error, ErrorKind, Result};

use super::{Engine, LoadOp, SyncKind};

/// This thread's queue on a target.
#[derive(Debug)]
pub(crate) struct RawEngine {
    raw: RawIo,
    target: Target,
    block_shift: u32,
    block_bytes: usize,
}

impl RawEngine {
    pub(crate) fn new(target: &Target, depth: usize, block_bytes: usize) -> Result<Self> {
        let raw = target.raw(depth, block_bytes)?;
        Ok(Self {
            block_shift: raw.limits().block_bytes.trailing_zeros(),
            raw,
            target: target.clone(),
            block_bytes,
        })
    }
}

impl Engine for RawEngine {
    fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        self.raw.slot_mut(slot).unwrap_or(&mut [])
    }

    #[inline]
    fn submit(&mut self, slot: usize, op: LoadOp, offset_bytes: u64) -> Result<()> {
        let op = match op {
            LoadOp::Read => block::Op::Read,
            LoadOp::Write => block::Op::Write,
        };
        self.raw
            .submit(slot, op, Lba(offset_bytes >> self.block_shift))
    }

    #[inline]
    fn poll(&mut self, done: &mut impl FnMut(usize, Result<usize>)) -> Result<()> {
        let block_bytes = self.block_bytes;
        let target = &self.target;
        let ended = self.raw.poll(|slot, status| {
            done(
                slot,
                match status {
                    block::Status::Success => Ok(block_bytes),
                    other => Err(failed(target, other)),
                },
            );
        });
        if ended == 0 {
            self.raw.relax();
        }
        Ok(())
    }

    fn sync(&mut self, _: SyncKind) -> Result<()> {
        self.raw.flush()
    }

    fn touch(&mut self) -> Result<()> {
        Err(Error::new(
            ErrorKind::InvalidInput,
            "blocks without a filesystem have no times",
        ))
    }
}

#[cold]
fn failed(target: &Target, status: block::Status) -> Error {
    let lost = || Error::new(ErrorKind::Io, "the engine lost an operation");
    target.raw_error(status).unwrap_or_else(lost)
}
