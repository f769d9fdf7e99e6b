//! Commands of the NVM command set (NVM, section 3.2).

use std::ops::Range;

use rand::Rng;
use zerocopy::IntoBytes;

use super::config::DatasetOffer;
use super::controller::{CommandEnd, EmuController};
use super::host_range::HostRange;
use super::medium::Transfer;
use super::{prp, sgl};
use crate::nvme::spec::{
    CDW12_DEAC, CDW12_FUA, Command, DSM_DEALLOCATE, DatasetRange, FLAGS_SGL,
    OPC_DATASET_MANAGEMENT, OPC_FLUSH, OPC_READ, OPC_WRITE, OPC_WRITE_ZEROES, PAGE_BYTES,
    SC_COMMAND_SIZE_LIMIT, SC_DATA_TRANSFER, SC_INVALID_FIELD, SC_INVALID_OPCODE,
    SC_LBA_OUT_OF_RANGE, SC_NAMESPACE_WRITE_PROTECTED, StatusField,
};

/// All namespaces, for a flush.
const NSID_ALL: u32 = u32::MAX;

impl EmuController {
    #[inline]
    pub(super) fn execute_io(&mut self, command: &Command) -> CommandEnd {
        let done = self.try_io(command);
        self.stats.dma_faults += u64::from(done == Err(SC_DATA_TRANSFER));
        done.into()
    }

    fn try_io(&mut self, command: &Command) -> Result<(), StatusField> {
        if !self.knows_flags(command) {
            return Err(SC_INVALID_FIELD.do_not_retry());
        }
        match command.opcode {
            OPC_READ => self.read(command),
            OPC_WRITE => {
                let (at, range) = self.writable(command)?;
                self.host_memory(command, at, &range)?;
                self.write(command, at, range)
            }
            OPC_FLUSH => self.flush(command),
            OPC_WRITE_ZEROES if self.offer.write_zeroes => self.write_zeroes(command),
            OPC_DATASET_MANAGEMENT if self.offer.dataset_management => self.dataset(command),
            _ => Err(SC_INVALID_OPCODE.do_not_retry()),
        }
    }

    /// No fused operations, and no metadata that an SGL would name.
    #[inline]
    fn knows_flags(&self, command: &Command) -> bool {
        command.flags == 0 || command.flags == FLAGS_SGL && self.offer.sgl
    }

    /// The blocks that a command names, whether they exist or not.
    pub(super) fn lbas_of(&self, command: &Command) -> Option<Range<u64>> {
        match command.opcode {
            OPC_READ | OPC_WRITE | OPC_WRITE_ZEROES => {
                let [low, high, dw12, ..] = command.cdw10_15;
                let lba = u64::from(low.get()) | u64::from(high.get()) << 32;
                let blocks = u64::from(dw12.get() & 0xffff) + 1;
                Some(lba..lba.checked_add(blocks)?)
            }
            _ => None,
        }
    }

    /// The command's namespace, by index, and its blocks, checked.
    #[inline]
    fn place(&self, command: &Command) -> Result<(usize, Range<u64>), StatusField> {
        let at = self.namespace(command.nsid.get())?;
        let out_of_range = SC_LBA_OUT_OF_RANGE.do_not_retry();
        let range = self.lbas_of(command).ok_or(out_of_range)?;
        if range.end > self.namespaces[at].blocks {
            return Err(out_of_range);
        }
        Ok((at, range))
    }

    #[inline]
    fn writable(&self, command: &Command) -> Result<(usize, Range<u64>), StatusField> {
        let (at, range) = self.place(command)?;
        if self.namespaces[at].read_only {
            return Err(SC_NAMESPACE_WRITE_PROTECTED.do_not_retry());
        }
        Ok((at, range))
    }

    /// Walks the command's PRPs or SGL into `self.segments`.
    #[inline]
    fn host_memory(
        &mut self,
        command: &Command,
        namespace: usize,
        range: &Range<u64>,
    ) -> Result<(), StatusField> {
        let len = (range.end - range.start) * u64::from(self.namespaces[namespace].lba_bytes);
        if self.offer.mdts > 0 && len > (PAGE_BYTES as u64) << self.offer.mdts {
            return Err(SC_INVALID_FIELD.do_not_retry());
        }
        self.memory_of(command, len)
    }

    #[inline]
    fn memory_of(&mut self, command: &Command, len_bytes: u64) -> Result<(), StatusField> {
        let (first, second) = (command.prp1.get(), command.prp2.get());
        if command.flags != FLAGS_SGL {
            return prp::walk(&self.space, first, second, len_bytes, &mut self.segments);
        }
        self.stats.sgl_commands += 1;
        sgl::walk(&self.space, first, second, len_bytes, &mut self.segments)
    }

    /// The command's data is to be on the medium when it completes.
    #[inline]
    fn durable(&self, command: &Command) -> bool {
        command.cdw10_15[2].get() & CDW12_FUA != 0 || !self.features.write_cache()
    }

    fn read(&mut self, command: &Command) -> Result<(), StatusField> {
        let (at, range) = self.place(command)?;
        self.host_memory(command, at, &range)?;
        let namespace = &mut self.namespaces[at];
        let blocks = range.end - range.start;
        self.stats.reads += 1;
        self.stats.read_bytes += blocks * u64::from(namespace.lba_bytes);
        if command.cdw10_15[2].get() & CDW12_FUA != 0 {
            // A read with FUA makes what it reads durable first.
            namespace.flush()?;
        }
        let transfer = Transfer {
            space: &self.space,
            segments: &self.segments,
        };
        namespace.read(range.start, blocks, transfer)
    }

    /// Writes from `self.segments`.
    fn write(
        &mut self,
        command: &Command,
        at: usize,
        range: Range<u64>,
    ) -> Result<(), StatusField> {
        let durable = self.durable(command);
        let namespace = &mut self.namespaces[at];
        let blocks = range.end - range.start;
        self.stats.writes += 1;
        self.stats.written_bytes += blocks * u64::from(namespace.lba_bytes);
        let transfer = Transfer {
            space: &self.space,
            segments: &self.segments,
        };
        let rng = &mut self.faults.rng;
        namespace.write(range.start, blocks, transfer, durable, rng)
    }

    /// Writes any of a write's blocks and not the others. Other commands: nothing.
    pub(super) fn write_torn(&mut self, command: &Command) -> Result<(), StatusField> {
        if command.opcode != OPC_WRITE || !self.knows_flags(command) {
            return Ok(());
        }
        let (at, range) = self.writable(command)?;
        self.host_memory(command, at, &range)?;
        let whole = std::mem::take(&mut self.segments);
        let block_bytes = u64::from(self.namespaces[at].lba_bytes);
        for (n, lba) in range.enumerate() {
            if self.faults.rng.random_bool(0.5) {
                cut(
                    &whole,
                    n as u64 * block_bytes,
                    block_bytes,
                    &mut self.segments,
                );
                self.write(command, at, lba..lba + 1)?;
            }
        }
        Ok(())
    }

    fn flush(&mut self, command: &Command) -> Result<(), StatusField> {
        self.stats.flushes += 1;
        if command.nsid.get() == NSID_ALL {
            return self.namespaces.iter_mut().try_for_each(|n| n.flush());
        }
        let at = self.namespace(command.nsid.get())?;
        self.namespaces[at].flush()
    }

    fn write_zeroes(&mut self, command: &Command) -> Result<(), StatusField> {
        let (at, range) = self.writable(command)?;
        let free = command.cdw10_15[2].get() & CDW12_DEAC != 0;
        let durable = self.durable(command);
        let blocks = range.end - range.start;
        let rng = &mut self.faults.rng;
        self.namespaces[at].zero(range.start, blocks, free, durable, rng)
    }

    fn dataset(&mut self, command: &Command) -> Result<(), StatusField> {
        let at = self.namespace(command.nsid.get())?;
        if self.namespaces[at].read_only {
            return Err(SC_NAMESPACE_WRITE_PROTECTED.do_not_retry());
        }
        let count = (command.cdw10_15[0].get() & 0xff) as usize + 1;
        let mut ranges = [DatasetRange::default(); 256];
        let ranges = &mut ranges[..count];
        let bytes = ranges.as_mut_bytes();
        self.memory_of(command, bytes.len() as u64)?;
        Transfer {
            space: &self.space,
            segments: &self.segments,
        }
        .gather(bytes)?;
        if exceeds(&self.offer.dataset, ranges) {
            return Err(SC_COMMAND_SIZE_LIMIT.do_not_retry());
        }
        let namespace = &mut self.namespaces[at];
        let inside = |range: &DatasetRange| {
            let end = range.lba.get().checked_add(range.blocks.get().into());
            end.is_some_and(|end| end <= namespace.blocks)
        };
        if !ranges.iter().all(inside) {
            return Err(SC_LBA_OUT_OF_RANGE.do_not_retry());
        }
        if command.cdw10_15[1].get() & DSM_DEALLOCATE == 0 {
            // The other attributes are hints.
            return Ok(());
        }
        let durable = !self.features.write_cache();
        for range in ranges.iter().filter(|range| range.blocks.get() > 0) {
            let rng = &mut self.faults.rng;
            namespace.zero(
                range.lba.get(),
                range.blocks.get().into(),
                true,
                durable,
                rng,
            )?;
        }
        Ok(())
    }
}

/// Whether a command has more ranges or blocks than it may.
fn exceeds(limits: &DatasetOffer, ranges: &[DatasetRange]) -> bool {
    let blocks = |range: &DatasetRange| u64::from(range.blocks.get());
    let beyond = |blocks: u64, limit: u64| limit != 0 && blocks > limit;
    beyond(ranges.len() as u64, limits.ranges.into())
        || beyond(ranges.iter().map(blocks).sum(), limits.blocks)
        || ranges
            .iter()
            .any(|range| beyond(blocks(range), limits.range_blocks.into()))
}

/// The part of `whole` from `skip` bytes on, `len` bytes long.
fn cut(whole: &[HostRange], skip: u64, len: u64, out: &mut Vec<HostRange>) {
    out.clear();
    let (mut skip, mut rest) = (skip, len);
    for segment in whole {
        let bytes = u64::from(segment.len_bytes);
        if skip >= bytes {
            skip -= bytes;
            continue;
        }
        let take = (bytes - skip).min(rest);
        if take == 0 {
            break;
        }
        out.push(HostRange {
            iova: segment.iova.offset(skip),
            len_bytes: u32::try_from(take).unwrap_or(u32::MAX),
        });
        rest -= take;
        skip = 0;
    }
}
