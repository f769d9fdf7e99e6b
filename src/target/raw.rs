//! A target without a filesystem: blocks, by number, through a queue of the calling thread's own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::claims::{Claim, Use};
use super::engine::{EngineOptions, EngineQueue};
use super::shared::TargetShared;
use super::{BUFFER_ALIGN_BYTES, Target};
use crate::block::{BlockRange, Chain, ChainFlags, Limits, Op, Queue, Refused, Status, Token};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{DmaBuf, Lent, Segment};
use crate::units::Lba;

/// The token of a blocking operation, which is not a slot's.
const BLOCKING: Token = Token::MAX;

/// One thread's way to the blocks of a target: a queue and slots, each with a buffer of its own.
///
/// While the process has a filesystem on the device open (`Volume::on`), a new handle may only
/// read; and while a handle that may write is there, no filesystem is opened.
///
/// ```
/// use xtent::internals::block::Op;
/// use xtent::internals::units::Lba;
/// use xtent::target::{Target, TargetOptions};
/// # fn main() -> xtent::Result<()> {
/// let target = Target::open("ram:64M,inline", &TargetOptions::default())?;
/// let mut raw = target.raw(2, 4096)?;
/// raw.slot_mut(0).unwrap().fill(7);
/// raw.submit(0, Op::Write, Lba(8))?;
/// while raw.outstanding() > 0 {
///     if raw.poll(|slot, status| assert!(slot == 0 && status.is_success())) == 0 {
///         raw.relax();
///     }
/// }
/// raw.flush()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RawIo {
    queue: EngineQueue,
    slots: Box<[RawSlot]>,
    /// Blocks of a slot's buffer.
    blocks: u64,
    target: Arc<TargetShared>,
    /// It may write.
    claim: Option<Claim>,
}

#[derive(Debug)]
struct RawSlot {
    segment: Segment,
    /// Whose the buffer is.
    buf: SlotBuf,
}

#[derive(Debug)]
enum SlotBuf {
    Ours(DmaBuf),
    Devices(Lent),
}

impl Target {
    /// A handle for the calling thread: a queue, and `slots` buffers of `slot_bytes` (whole
    /// blocks).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for sizes that cannot be; when the controller has no queue left,
    /// or memory is short.
    #[doc(hidden)]
    pub fn raw(&self, slots: usize, slot_bytes: usize) -> Result<RawIo> {
        RawIo::new(&self.shared, slots, slot_bytes)
            .map_err(|error| error.during("open a queue").on_device(&*self.shared.name))
    }
}

impl RawIo {
    fn new(target: &Arc<TargetShared>, slots: usize, slot_bytes: usize) -> Result<Self> {
        let claim = match target.info.read_only {
            true => None,
            // Beside a filesystem it may read.
            false => Claim::new(&target.identity, Use::RawWrite).ok(),
        };
        let queue = Self::queue(target, slots, target.range, claim.is_none())?;
        Self::on_queue(target, (slots, slot_bytes), queue, claim)
    }

    /// A handle that only reads, of the whole device, also where the target is a part of it. With
    /// fewer slots where a queue takes no more.
    pub(super) fn read_only(
        target: &Arc<TargetShared>,
        most_slots: usize,
        slot_bytes: usize,
    ) -> Result<Self> {
        let queue = Self::queue(target, most_slots, BlockRange::WHOLE, true)?;
        let slots = most_slots.min(queue.limits().depth);
        Self::on_queue(target, (slots, slot_bytes), queue, None)
    }

    fn queue(
        target: &Arc<TargetShared>,
        depth: usize,
        range: BlockRange,
        read_only: bool,
    ) -> Result<EngineQueue> {
        target.engine.queue(EngineOptions {
            depth,
            max_segments: 1,
            wait: target.wait,
            range,
            timeout: target.command_timeout,
            read_only,
        })
    }

    fn on_queue(
        target: &Arc<TargetShared>,
        (slots, slot_bytes): (usize, usize),
        queue: EngineQueue,
        claim: Option<Claim>,
    ) -> Result<Self> {
        let limits = *queue.limits();
        let block_bytes = limits.block_bytes as usize;
        if slot_bytes == 0 || !slot_bytes.is_multiple_of(block_bytes) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{slot_bytes} bytes are not whole blocks of {block_bytes}"),
            ));
        }
        if limits.depth < slots {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{slots} operations in flight are more than a queue of this target takes ({})",
                    limits.depth
                ),
            ));
        }
        let slots = (0..slots)
            .map(|_| RawSlot::new(target.heap.alloc(slot_bytes, BUFFER_ALIGN_BYTES)?))
            .collect::<Result<_>>()?;
        Ok(Self {
            queue,
            slots,
            blocks: (slot_bytes / block_bytes) as u64,
            target: Arc::clone(target),
            claim,
        })
    }

    /// What engine and device can do, as the device says by now.
    pub fn limits(&self) -> &Limits {
        self.queue.limits()
    }

    /// The number of slots.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// A slot's buffer; `None` while the device has it, or when there is no such slot.
    pub fn slot_mut(&mut self, slot: usize) -> Option<&mut [u8]> {
        match self.slots.get_mut(slot).map(|slot| &mut slot.buf) {
            Some(SlotBuf::Ours(buf)) => Some(buf),
            _ => None,
        }
    }

    /// Starts an operation on as many blocks as a slot's buffer has, from `lba` on. It ends at a
    /// later [`RawIo::poll`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a slot in flight or a range that is not on the device,
    /// [`ErrorKind::DeviceGone`], [`ErrorKind::Busy`] for a write while a filesystem on the device
    /// is open; nothing was started then.
    #[inline]
    pub fn submit(&mut self, slot: usize, op: Op, lba: Lba) -> Result<()> {
        let token = slot as Token;
        let Some(slot) = self.slots.get_mut(slot) else {
            return Err(wrong("there is no such slot"));
        };
        if !matches!(slot.buf, SlotBuf::Ours(_)) {
            return Err(wrong("the slot is in flight"));
        }
        let segments = match op {
            Op::Read | Op::Write => std::slice::from_ref(&slot.segment),
            _ => &[],
        };
        let chain = Chain {
            op,
            flags: ChainFlags::empty(),
            lba,
            blocks: if op == Op::Flush { 0 } else { self.blocks },
            segments,
            token,
        };
        match self.queue.submit(&chain) {
            Ok(()) => {
                slot.lend();
                Ok(())
            }
            Err(refused) => Err(self.refusal(refused, op)),
        }
    }

    #[cold]
    fn refusal(&self, refused: Refused, op: Op) -> Error {
        let writes = !matches!(op, Op::Read | Op::Flush);
        if writes && self.claim.is_none() && !self.target.info.read_only {
            return Error::new(
                ErrorKind::Busy,
                "a filesystem on the device was open in this process when this handle was made, so it may \
                 only read",
            );
        }
        self.target.why(refusal(refused))
    }

    /// Tells the device of what was submitted, and hands slots whose operations have ended to
    /// `done`, at most half of them: while the caller fills those anew, the device has the others.
    /// Returns how many. Never waits.
    #[inline]
    pub fn poll(&mut self, mut done: impl FnMut(usize, Status)) -> usize {
        let slots = &mut self.slots;
        self.queue.poll(slots.len().div_ceil(2), &mut |end| {
            let index = usize::try_from(end.token).unwrap_or(usize::MAX);
            if let Some(slot) = slots.get_mut(index) {
                // Otherwise it stays lent, and is never used again.
                if end.status != Status::Unfenced {
                    slot.take_back();
                }
                done(index, end.status);
            }
        })
    }

    /// As [`Target::raw_error`].
    pub fn error(&self, status: Status) -> Option<Error> {
        status.error().map(|error| self.target.why(error))
    }

    /// To be called between polls that found nothing, by a caller with nothing else to do.
    #[inline]
    pub fn relax(&mut self) {
        self.queue.relax();
    }

    /// Operations submitted and not yet handed over.
    #[inline]
    pub fn outstanding(&self) -> usize {
        self.queue.outstanding()
    }

    /// Makes all that was written and has ended durable. Waits.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] while something is in flight; what the device reports.
    pub fn flush(&mut self) -> Result<()> {
        if self.outstanding() > 0 {
            return Err(wrong("a flush needs all requests completed: poll first"));
        }
        let chain = Chain {
            op: Op::Flush,
            flags: ChainFlags::empty(),
            lba: Lba(0),
            blocks: 0,
            segments: &[],
            token: BLOCKING,
        };
        self.queue.submit(&chain).map_err(refusal)?;
        let mut end = None;
        while self.queue.outstanding() > 0 {
            let ended = self.queue.poll(1, &mut |done| end = Some(done.status));
            if ended == 0 {
                self.queue.relax();
            }
        }
        match end.and_then(Status::error) {
            Some(error) => Err(self.target.why(error)),
            None => self.target.look_again(),
        }
        .map_err(|error| error.during("flush").on_device(&*self.target.name))
    }
}

impl RawSlot {
    fn new(buf: DmaBuf) -> Result<Self> {
        let len_bytes = u32::try_from(buf.len())
            .map_err(|_| wrong("a buffer of a slot is less than 4 GiB long"))?;
        Ok(Self {
            segment: Segment::new(buf.iova(), len_bytes),
            buf: SlotBuf::Ours(buf),
        })
    }

    #[inline]
    fn lend(&mut self) {
        if let SlotBuf::Ours(buf) = &mut self.buf {
            self.buf = SlotBuf::Devices(std::mem::take(buf).lend());
        }
    }

    /// The engine says that the command has ended: the device does not touch the buffer any more.
    #[inline]
    fn take_back(&mut self) {
        let nothing = SlotBuf::Ours(DmaBuf::default());
        self.buf = match std::mem::replace(&mut self.buf, nothing) {
            SlotBuf::Devices(lent) => SlotBuf::Ours(lent.take_back()),
            ours @ SlotBuf::Ours(_) => ours,
        };
    }
}

#[cold]
fn wrong(why: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, why)
}

#[cold]
fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::Full => Error::new(
            ErrorKind::WouldBlock,
            "the queue is full: poll, then try again",
        ),
        Refused::Invalid(why) => wrong(why),
        refused => refused.of_mapping(),
    }
}

impl Drop for RawIo {
    /// Waits, up to a limit, for requests in flight. The memory of those not complete by then is
    /// leaked.
    fn drop(&mut self) {
        let patience = self
            .target
            .command_timeout
            .saturating_add(Duration::from_secs(10));
        let start = Instant::now();
        while self.outstanding() > 0 && start.elapsed() < patience {
            if self.poll(|_, _| {}) == 0 {
                self.relax();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::TargetOptions;
    use super::*;
    use crate::mem::HugePages;

    fn target() -> Target {
        let options = TargetOptions {
            huge_pages: HugePages::Never,
            ..TargetOptions::default()
        };
        Target::open("ram:1M,inline,lba=4096", &options).unwrap()
    }

    fn wait(raw: &mut RawIo) -> Vec<(usize, Status)> {
        let mut ended = Vec::new();
        while raw.outstanding() > 0 {
            if raw.poll(|slot, status| ended.push((slot, status))) == 0 {
                raw.relax();
            }
        }
        ended
    }

    /// A controller without a thread of its own works for a caller that only polls, too.
    #[test]
    fn operations_end_without_a_call_of_relax() {
        let mut raw = target().raw(2, 4096).unwrap();
        raw.submit(0, Op::Read, Lba(0)).unwrap();
        raw.submit(1, Op::Read, Lba(1)).unwrap();
        let mut polls = 0;
        while raw.outstanding() > 0 {
            raw.poll(|_, status| assert!(status.is_success()));
            polls += 1;
            assert!(polls < 10_000_000, "nothing ends");
        }
    }

    #[test]
    fn slots_are_written_and_read_and_hidden_in_between() {
        let target = target();
        let mut raw = target.raw(2, 8192).unwrap();
        raw.slot_mut(0).unwrap().fill(3);
        raw.submit(0, Op::Write, Lba(4)).unwrap();
        assert!(raw.slot_mut(0).is_none(), "with the device");
        let again = raw.submit(0, Op::Write, Lba(4)).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::InvalidInput);
        assert!(raw.flush().is_err(), "in flight");
        assert_eq!(wait(&mut raw), [(0, Status::Success)]);
        raw.flush().unwrap();
        raw.submit(1, Op::Read, Lba(5)).unwrap();
        wait(&mut raw);
        let read = raw.slot_mut(1).unwrap();
        assert!(read[..4096].iter().all(|&b| b == 3) && read[4096..].iter().all(|&b| b == 0));
    }

    #[test]
    fn beside_a_filesystem_a_handle_only_reads() {
        let target = target();
        let writer = target.raw(1, 4096).unwrap();
        let mount = || Claim::new(&target.shared.identity, Use::Mount);
        assert_eq!(mount().unwrap_err().kind(), ErrorKind::Busy);
        drop(writer);
        let mounted = mount().unwrap();
        let mut raw = target.raw(1, 4096).unwrap();
        raw.submit(0, Op::Read, Lba(0)).unwrap();
        assert_eq!(wait(&mut raw), [(0, Status::Success)]);
        let error = raw.submit(0, Op::Write, Lba(0)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        drop((raw, mounted));
        let mut raw = target.raw(1, 4096).unwrap();
        raw.submit(0, Op::Write, Lba(0)).unwrap();
        assert_eq!(wait(&mut raw), [(0, Status::Success)]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let target = target();
        assert!(target.raw(1, 512).is_err(), "half a block");
        let mut raw = target.raw(1, 4096).unwrap();
        for (slot, lba) in [(0, 256), (1, 0), (0, u64::MAX)] {
            let error = raw.submit(slot, Op::Read, Lba(lba)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(raw.outstanding(), 0);
        assert!(raw.slot_mut(0).is_some() && raw.slot_mut(1).is_none());
    }

    /// What a target with an offset reaches of a file, by either engine: its own blocks and no
    /// others.
    #[test]
    fn no_block_outside_of_a_part_is_reached() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        file.as_file().set_len(1 << 20).unwrap();
        file.as_file().write_all_at(&[1; 512 << 10], 0).unwrap();
        let kept = file.into_temp_path();
        for scheme in ["image", "uring"] {
            let text = format!("{scheme}:{path},offset=512K,lba=4096");
            let target = match Target::open(&text, &TargetOptions::new()) {
                Ok(target) => target,
                Err(error) if scheme == "uring" => {
                    println!("SKIPPED: {error}");
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            assert_eq!(target.info().capacity_bytes, 512 << 10);
            let mut raw = match target.raw(2, 8192) {
                Ok(raw) => raw,
                Err(error) if scheme == "uring" => {
                    println!("SKIPPED: {error}");
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            assert_eq!(raw.limits().capacity_blocks, 128);
            for op in [Op::Read, Op::Write] {
                for lba in [127, 128, 1 << 52, u64::MAX - 128, u64::MAX - 1, u64::MAX] {
                    let error = raw.submit(0, op, Lba(lba)).unwrap_err();
                    assert_eq!(
                        error.kind(),
                        ErrorKind::InvalidInput,
                        "{scheme} {op:?} {lba}"
                    );
                }
            }
            for (slot, lba) in [(0, 0), (1, 126)] {
                raw.slot_mut(slot).unwrap().fill(2);
                raw.submit(slot, Op::Write, Lba(lba)).unwrap();
            }
            assert!(wait(&mut raw).iter().all(|(_, status)| status.is_success()));
            drop((raw, target));
            let bytes = std::fs::read(&kept).unwrap();
            assert!(bytes[..512 << 10].iter().all(|&byte| byte == 1), "{scheme}");
            let part = &bytes[512 << 10..];
            let ends = [&part[..8192], &part[part.len() - 8192..]];
            assert!(
                ends.iter().all(|end| end.iter().all(|&byte| byte == 2)),
                "{scheme}"
            );
            assert!(part[8192..part.len() - 8192].iter().all(|&byte| byte == 0));
            let file = std::fs::File::options().write(true).open(&kept).unwrap();
            file.write_all_at(&[0; 512 << 10], 512 << 10).unwrap();
        }
    }
}
