//! What iomap needs of any engine: submit a chain of commands, poll for its end.
//!
//! Layer 2. A [`Chain`] is the work of one mapping: a contiguous run of blocks and the memory for
//! it. An engine splits it at whatever its device demands and reports it once, when the last piece
//! has ended, with the first error. A [`Queue`] belongs to one thread; nothing here locks or
//! allocates, and only [`Queue::relax`] may sleep.
#![forbid(unsafe_code)]

mod range;

use std::fmt;

use bitflags::bitflags;

use crate::error::{Error, ErrorKind};
use crate::mem::Segment;
use crate::units::Lba;

pub use range::{BlockRange, DeallocateGrain};

/// What a chain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Blocks into memory.
    Read,
    /// Memory onto blocks.
    Write,
    /// Everything written and completed before becomes durable. No range, no memory.
    Flush,
    /// The range reads as zeroes afterwards. No memory.
    WriteZeroes,
    /// The range's content is no longer needed; it may read as anything. No memory.
    Deallocate,
}

bitflags! {
    /// How a chain is done.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct ChainFlags: u8 {
        /// Durable when it completes (force unit access); for writes and write zeroes.
        const FUA = 1;
    }
}

/// The submitter's name for a chain. The engine returns it unchanged in the completion.
pub type Token = u64;

/// A contiguous run of blocks and the memory for it.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a> {
    /// What to do.
    pub op: Op,
    /// How.
    pub flags: ChainFlags,
    /// First block; ignored for a flush.
    pub lba: Lba,
    /// Number of blocks; 0 for a flush, at least 1 otherwise.
    pub blocks: u64,
    /// The memory, in order, for reads and writes: together exactly `blocks` long, each piece
    /// aligned in address and length to [`Limits::dma_align_bytes`]. The engine copies the list.
    pub segments: &'a [Segment],
    /// Comes back in the [`Completion`].
    pub token: Token,
}

/// A read or write as a chain of one piece of memory. By value, so that a queue that takes it at
/// once need not find it in memory.
#[derive(Debug, Clone, Copy)]
pub struct One {
    /// A read or a write.
    pub op: Op,
    /// How.
    pub flags: ChainFlags,
    /// First block.
    pub lba: Lba,
    /// Number of blocks, at least 1.
    pub blocks: u64,
    /// The memory: exactly `blocks` long.
    pub segment: Segment,
    /// Comes back in the [`Completion`].
    pub token: Token,
}

/// How a chain ended. Small and `Copy`, for the hot path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// All of it was done.
    Success,
    /// The device reported this NVMe status for one of its commands: status code type and status
    /// code (base specification 2.0c, 4.2.3.1).
    Device {
        /// Status code type.
        sct: u8,
        /// Status code.
        sc: u8,
    },
    /// A command did not end in time and was given up: aborted, or ended by a controller reset.
    TimedOut,
    /// The controller was reset under it and its retries are used up.
    Reset,
    /// The device is gone or failed for good.
    Gone,
    /// The device is gone, and it could not be cut off from memory: it may still write to the
    /// chain's buffers at any time. That memory must not be used again.
    Unfenced,
    /// The blocks are not what they were when the queue was opened: formatted anew, taken away, or
    /// replaced by others.
    Changed,
}

impl Status {
    /// Whether all of it was done.
    #[inline]
    pub fn is_success(self) -> bool {
        self == Self::Success
    }

    /// The error for a caller; `None` for success.
    #[cold]
    pub fn error(self) -> Option<Error> {
        let kind = match self {
            Self::Success => return None,
            Self::Device { .. } => ErrorKind::Io,
            Self::TimedOut | Self::Reset => ErrorKind::Timeout,
            Self::Gone | Self::Unfenced | Self::Changed => ErrorKind::DeviceGone,
        };
        let error = Error::new(kind, self.to_string());
        Some(match self {
            Self::Device { sct, sc } => error.with_status(sct, sc),
            _ => error,
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("success"),
            Self::Device { sct, sc } => write!(
                f,
                "the device reported {} (status code type {sct:#x}, status code {sc:#04x})",
                crate::nvme::spec::status_name(*sct, *sc)
            ),
            Self::TimedOut => f.write_str("the device did not answer within the deadline"),
            Self::Reset => f.write_str("the controller was reset and the retries are used up"),
            Self::Gone => f.write_str("the device is gone"),
            Self::Changed => f.write_str(
                "the namespace was formatted anew or taken away while it was in use: open it again",
            ),
            Self::Unfenced => f.write_str(
                "the device is gone, and could not be cut off from memory: the buffer is lost",
            ),
        }
    }
}

/// The end of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The chain's token.
    pub token: Token,
    /// How it ended.
    pub status: Status,
}

/// What an engine and its device can do. Fixed while the queue lives, but for the capacity, the
/// ranges that are deallocated at best, and whether there is a write cache or protection against
/// writes: a device may say that these changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in a block.
    pub block_bytes: u32,
    /// Blocks that the queue may access: the device's, or those of a [`BlockRange`].
    pub capacity_blocks: u64,
    /// Most segments in one chain.
    pub max_segments: usize,
    /// Alignment of memory in bytes, both of addresses and of lengths (lengths are multiples of
    /// blocks in all; this is for the seams between segments).
    pub dma_align_bytes: u32,
    /// Largest single command in bytes, where the device limits it. Larger chains are split.
    pub max_transfer_bytes: Option<u32>,
    /// Completed writes may be lost with power until a flush.
    pub volatile_write_cache: bool,
    /// [`ChainFlags::FUA`] is honoured.
    pub fua: bool,
    /// [`Op::WriteZeroes`] is offered.
    pub write_zeroes: bool,
    /// [`Op::Deallocate`] is offered.
    pub deallocate: bool,
    /// The ranges that [`Op::Deallocate`] serves at best.
    pub deallocate_grain: DeallocateGrain,
    /// Writes are refused by the device or by how it was opened.
    pub read_only: bool,
    /// Chains that can be outstanding at once.
    pub depth: usize,
}

/// Why a chain was not taken. Nothing of it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// No room: poll, then submit again.
    Full,
    /// The chain is wrong: outside the device, misaligned, memory of another length, too many
    /// segments, an operation that is not offered. The text says which.
    Invalid(&'static str),
    /// It would write, and the device or the queue is read-only, perhaps since a moment ago.
    ReadOnly,
    /// The namespace was formatted anew or taken away since the queue was opened.
    Changed,
    /// The device is gone; nothing will ever be taken again.
    Gone,
}

impl Refused {
    /// The error of a request that a filesystem's mapping led to.
    #[cold]
    pub fn of_mapping(self) -> Error {
        match self {
            Self::Full => Error::new(ErrorKind::WouldBlock, "the queue is full"),
            // The range came from the disk's content: it points outside the device or into the
            // middle of a block.
            Self::Invalid(why) => Error::new(
                ErrorKind::Corrupt,
                format!("the mapping makes a command that the device cannot do: {why}"),
            ),
            Self::ReadOnly => Error::new(ErrorKind::ReadOnly, "the device is read-only"),
            Self::Changed => Error::new(ErrorKind::DeviceGone, Status::Changed.to_string()),
            Self::Gone => Error::new(ErrorKind::DeviceGone, "the device is gone"),
        }
    }
}

/// How a thread waits for a queue, in [`Queue::relax`].
///
/// ```
/// use xtent::target::{TargetOptions, Wait};
/// let options = TargetOptions::new().wait(Wait::Adaptive { spins: 1000 });
/// # drop(options);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Wait {
    /// It polls: the shortest latency, for a processor that does nothing else.
    #[default]
    Poll,
    /// It sleeps until the device interrupts: no processor time while it waits, and the latency of
    /// being woken.
    Interrupt,
    /// It polls, and sleeps when that brought nothing for long enough.
    Adaptive {
        /// Calls of [`Queue::relax`] in a row, with nothing found in between, before it sleeps.
        spins: u32,
    },
}

impl Wait {
    /// Adaptive waiting that polls about as long as a fast disk takes for a read: tens of
    /// microseconds.
    pub const ADAPTIVE: Self = Self::Adaptive { spins: 1000 };

    /// Its name, as a target's option has it.
    #[doc(hidden)]
    pub fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Interrupt => "interrupt",
            Self::Adaptive { .. } => "adaptive",
        }
    }
}

/// Takes chains that have ended. A trait beside closures, so that it can ask to be inlined.
pub trait Reaper {
    /// A chain has ended.
    fn reap(&mut self, completion: Completion);
}

/// One thread's way to a device.
pub trait Queue {
    /// What the engine and device can do.
    fn limits(&self) -> &Limits;

    /// Takes a chain, or says why not. Never blocks or allocates; the device may hear of it only at
    /// the next [`Queue::poll`].
    ///
    /// # Errors
    /// [`Refused`]; nothing was started then.
    fn submit(&mut self, chain: &Chain<'_>) -> Result<(), Refused>;

    /// Takes a chain of one piece of memory if nothing is in the way: the hot path of
    /// [`Queue::submit`]. `false` says nothing; nothing was started then, and `submit` is asked.
    #[inline]
    fn try_one(&mut self, one: One) -> bool {
        let chain = Chain {
            op: one.op,
            flags: one.flags,
            lba: one.lba,
            blocks: one.blocks,
            segments: &[one.segment],
            token: one.token,
        };
        self.submit(&chain).is_ok()
    }

    /// Rings the doorbell once for all that was submitted since, then hands each chain that has
    /// ended to `done`, at most `budget` of them, and returns how many. Every chain that was taken
    /// is handed over exactly once. Also looks after deadlines and recovery, now and then.
    fn poll(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize;

    /// As [`Queue::poll`], for a hot path: what `reaper` does is inlined where it asks for that.
    #[inline(always)]
    fn poll_with(&mut self, budget: usize, reaper: &mut impl Reaper) -> usize {
        self.poll(budget, &mut |completion| reaper.reap(completion))
    }

    /// Chains taken and not yet handed over.
    fn outstanding(&self) -> usize;

    /// To be called between polls that found nothing, by a caller that has nothing else to do.
    /// Where the queue waits by interrupts ([`Wait`]) it may sleep here, while chains are
    /// outstanding: until one may have ended, or it is time to look after deadlines.
    fn relax(&mut self);
}
