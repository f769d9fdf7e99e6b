//! The engines a target can have behind it, told apart at compile time: an enum, matched where it
//! is used.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use super::TargetInfo;
use crate::block::{
    BlockRange, Chain, ChainFlags, Completion, Limits, One, Op, Queue, Reaper, Refused, Token, Wait,
};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::Segment;
use crate::nvme::{
    Controller, NamespaceInfo, OwnOrShared, PairShare, QueueOptions, QueuePair, SharedQueue,
};
use crate::units::Lba;
use crate::uring::{RingOptions, RingQueue, UringDisk};

/// What a target is driven by.
#[derive(Debug)]
pub(crate) enum TargetEngine {
    /// The crate's own driver on one namespace.
    Nvme {
        controller: Arc<Controller>,
        nsid: u32,
        share: Arc<PairShare>,
    },
    /// The kernel's block layer.
    Uring(UringDisk),
    /// SPDK's driver.
    #[cfg(feature = "spdk")]
    Spdk(Arc<crate::spdk::SpdkController>),
}

/// How a queue is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EngineOptions {
    pub(crate) depth: usize,
    /// Pieces of memory that a chain may have, where the engine leaves that to us.
    pub(crate) max_segments: usize,
    pub(crate) timeout: Duration,
    pub(crate) read_only: bool,
    pub(crate) wait: Wait,
    pub(crate) range: BlockRange,
}

impl From<EngineOptions> for QueueOptions {
    fn from(options: EngineOptions) -> Self {
        Self {
            depth: options.depth,
            max_segments: options.max_segments,
            timeout: options.timeout,
            read_only: options.read_only,
            wait: options.wait,
            range: options.range,
            ..Self::default()
        }
    }
}

/// The options of a queue that is shared are those of its first handle, but for this.
const SHARED_SEGMENTS: usize = 128;

impl TargetEngine {
    /// A queue for one thread, or, where the controller has no more of them, a handle of the one
    /// that such threads share.
    pub(crate) fn queue_or_share(&self, options: EngineOptions) -> Result<EngineQueue> {
        let Self::Nvme {
            controller,
            nsid,
            share,
        } = self
        else {
            return self.queue(options);
        };
        match share.queue(controller, *nsid, options.into(), SHARED_SEGMENTS)? {
            OwnOrShared::Own(queue) => Ok(EngineQueue::Nvme(*queue)),
            OwnOrShared::Shared(queue) => Ok(EngineQueue::Other(OtherQueue::Shared(*queue).into())),
        }
    }

    /// A queue for one thread.
    pub(crate) fn queue(&self, options: EngineOptions) -> Result<EngineQueue> {
        match self {
            Self::Nvme {
                controller, nsid, ..
            } => controller
                .queue(*nsid, options.into())
                .map(EngineQueue::Nvme),
            Self::Uring(disk) => disk
                .queue(RingOptions {
                    depth: options.depth,
                    read_only: options.read_only,
                    wait: options.wait,
                    range: options.range,
                })
                .map(|queue| EngineQueue::Other(OtherQueue::Uring(queue).into())),
            #[cfg(feature = "spdk")]
            Self::Spdk(controller) => controller
                .queue(crate::spdk::SpdkQueueOptions {
                    depth: options.depth,
                    max_segments: options.max_segments,
                    timeout: options.timeout,
                    read_only: options.read_only,
                    range: options.range,
                    ..crate::spdk::SpdkQueueOptions::default()
                })
                .map(|queue| EngineQueue::Other(OtherQueue::Spdk(queue).into())),
        }
    }

    /// What stands behind it. The caller fills in what it knows better: names, how it was opened,
    /// memory.
    pub(crate) fn info(&self) -> Result<TargetInfo> {
        match self {
            Self::Uring(disk) => Ok(super::uring::info(disk.info())),
            #[cfg(feature = "spdk")]
            Self::Spdk(controller) => Ok(super::spdk_info::info(controller.info())),
            Self::Nvme {
                controller, nsid, ..
            } => {
                let info = controller.info();
                let namespace = usable_namespace(&info.namespaces, *nsid)?;
                Ok(TargetInfo {
                    target: String::new(),
                    engine: String::new(),
                    model: info.model.clone(),
                    serial: info.serial.clone(),
                    firmware: info.firmware.clone(),
                    nvme_version: info.version.to_string(),
                    nsid: *nsid,
                    lba_bytes: namespace.block_bytes,
                    capacity_bytes: namespace.len_bytes(),
                    start_bytes: 0,
                    partition: None,
                    max_transfer_bytes: info.max_transfer_bytes,
                    boundary_blocks: namespace.optimal_boundary_blocks.into(),
                    volatile_write_cache: info.volatile_write_cache,
                    read_only: namespace.read_only,
                    max_queue_pairs: info.queues.into(),
                    queue_depth: 0,
                    wait: String::new(),
                    controller: String::new(),
                    memory: String::new(),
                })
            }
        }
    }
}

fn usable_namespace(namespaces: &[NamespaceInfo], nsid: u32) -> Result<&NamespaceInfo> {
    let found = namespaces.iter().find(|namespace| namespace.nsid == nsid);
    let namespace = found.ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("the controller has no namespace {nsid}"),
        )
    })?;
    match &namespace.unusable {
        Some(why) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("namespace {nsid} cannot be used: {why}"),
        )),
        None => Ok(namespace),
    }
}

/// One thread's queue on an engine. Of two kinds, so that one comparison tells them apart.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the hot path follows no pointer to its queue"
)]
pub(crate) enum EngineQueue {
    /// A queue pair of the crate's own driver.
    Nvme(QueuePair),
    /// Anything else.
    Other(Box<OtherQueue>),
}

/// A queue whose system calls, library calls or lock outweigh a pointer.
#[derive(Debug)]
#[cfg_attr(
    not(feature = "spdk"),
    expect(
        clippy::large_enum_variant,
        reason = "there are few of them, each in a box"
    )
)]
pub(crate) enum OtherQueue {
    /// A queue pair that other threads use, too.
    Shared(SharedQueue),
    /// A ring of the kernel's.
    Uring(RingQueue),
    /// A queue pair of SPDK's.
    #[cfg(feature = "spdk")]
    Spdk(crate::spdk::SpdkQueue),
}

impl Queue for EngineQueue {
    #[inline]
    fn limits(&self) -> &Limits {
        match self {
            Self::Nvme(queue) => queue.limits(),
            Self::Other(queue) => queue.limits(),
        }
    }

    // As `QueuePair::submit`.
    #[inline(always)]
    fn submit(&mut self, chain: &Chain<'_>) -> Result<(), Refused> {
        match self {
            Self::Nvme(queue) => queue.submit(chain),
            Self::Other(queue) => queue.submit(chain),
        }
    }

    #[inline(always)]
    fn try_one(&mut self, one: One) -> bool {
        match self {
            Self::Nvme(queue) => queue.try_one(one),
            // Piece by piece, for registers: a structure would be in memory for the other engine as
            // well.
            Self::Other(queue) => queue.try_pieces(
                one.op,
                one.flags,
                one.lba,
                one.blocks,
                one.segment,
                one.token,
            ),
        }
    }

    #[inline]
    fn poll(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize {
        match self {
            Self::Nvme(queue) => queue.poll(budget, done),
            Self::Other(queue) => queue.poll(budget, done),
        }
    }

    #[inline(always)]
    fn poll_with(&mut self, budget: usize, reaper: &mut impl Reaper) -> usize {
        match self {
            Self::Nvme(queue) => queue.poll_with(budget, reaper),
            Self::Other(queue) => queue.poll_with(budget, reaper),
        }
    }

    #[inline]
    fn outstanding(&self) -> usize {
        match self {
            Self::Nvme(queue) => queue.outstanding(),
            Self::Other(queue) => queue.outstanding(),
        }
    }

    #[inline]
    fn relax(&mut self) {
        match self {
            Self::Nvme(queue) => queue.relax(),
            Self::Other(queue) => queue.relax(),
        }
    }
}

impl EngineQueue {
    /// What polls readable when something has ended; `None` for a queue that only polls.
    pub(crate) fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Nvme(queue) => queue.event_fd(),
            Self::Other(queue) => queue.event_fd(),
        }
    }

    /// Prepares for a wait for [`EngineQueue::event_fd`]; false when there is no use in waiting.
    pub(crate) fn arm(&mut self) -> bool {
        match self {
            Self::Nvme(queue) => queue.arm(),
            Self::Other(queue) => queue.arm(),
        }
    }
}

impl Queue for OtherQueue {
    fn limits(&self) -> &Limits {
        match self {
            Self::Shared(queue) => queue.limits(),
            Self::Uring(queue) => queue.limits(),
            #[cfg(feature = "spdk")]
            Self::Spdk(queue) => queue.limits(),
        }
    }

    fn submit(&mut self, chain: &Chain<'_>) -> Result<(), Refused> {
        match self {
            Self::Shared(queue) => queue.submit(chain),
            Self::Uring(queue) => queue.submit(chain),
            #[cfg(feature = "spdk")]
            Self::Spdk(queue) => queue.submit(chain),
        }
    }

    fn try_one(&mut self, one: One) -> bool {
        match self {
            Self::Shared(queue) => queue.try_one(one),
            Self::Uring(queue) => queue.try_one(one),
            #[cfg(feature = "spdk")]
            Self::Spdk(queue) => queue.try_one(one),
        }
    }

    fn poll(&mut self, budget: usize, done: &mut impl FnMut(Completion)) -> usize {
        match self {
            Self::Shared(queue) => queue.poll(budget, done),
            Self::Uring(queue) => queue.poll(budget, done),
            #[cfg(feature = "spdk")]
            Self::Spdk(queue) => queue.poll(budget, done),
        }
    }

    fn outstanding(&self) -> usize {
        match self {
            Self::Shared(queue) => queue.outstanding(),
            Self::Uring(queue) => queue.outstanding(),
            #[cfg(feature = "spdk")]
            Self::Spdk(queue) => queue.outstanding(),
        }
    }

    fn relax(&mut self) {
        match self {
            Self::Shared(queue) => queue.relax(),
            Self::Uring(queue) => queue.relax(),
            #[cfg(feature = "spdk")]
            Self::Spdk(queue) => queue.relax(),
        }
    }
}

impl OtherQueue {
    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Shared(queue) => queue.event_fd(),
            Self::Uring(queue) => queue.event_fd(),
            #[cfg(feature = "spdk")]
            Self::Spdk(_) => None,
        }
    }

    fn arm(&mut self) -> bool {
        match self {
            Self::Shared(queue) => queue.arm(),
            Self::Uring(queue) => queue.arm(),
            #[cfg(feature = "spdk")]
            Self::Spdk(_) => false,
        }
    }

    /// [`Queue::try_one`] of a structure in pieces.
    #[inline(never)]
    fn try_pieces(
        &mut self,
        op: Op,
        flags: ChainFlags,
        lba: Lba,
        blocks: u64,
        segment: Segment,
        token: Token,
    ) -> bool {
        self.try_one(One {
            op,
            flags,
            lba,
            blocks,
            segment,
            token,
        })
    }
}
