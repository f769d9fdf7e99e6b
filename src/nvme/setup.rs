//! Making a queue pair, and taking it down.

use std::sync::Arc;

use super::admin::{Admin, AdminFailure};
use super::bell::Bell;
use super::controller::{Controller, GONE, QueueOptions, same_rings};
use super::info::{ControllerInfo, NamespaceInfo};
use super::pair_state::{POLLS_PER_LOOK, QueuePair};
use super::port::Deadline;
use super::queue::{CompletionRing, SubmissionRing, leak};
use super::sleeper::Sleeper;
use super::slots::{NONE, PairSlot, SlotList, Tracker};
use super::spec::{CQE_BYTES, PAGE_BYTES, SQE_BYTES, cq_doorbell_offset, sq_doorbell_offset};
use super::split::{DWORD_BYTES, SplitLimits, clamp_blocks};
use super::watch::PairWatch;
use crate::block::{DeallocateGrain, Limits, Queue};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Segment, SharedWords};

/// Deeper queues would leave too few bits of the command id for the sequence.
const MAX_DEPTH: usize = 4095;

/// Ids of namespaces in a message.
const IDS_SHOWN: usize = 32;

/// Most segments of a chain.
const MAX_SEGMENTS: usize = 4096;

impl Controller {
    /// A queue pair on a namespace, for one thread.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a namespace that is not there, [`ErrorKind::Unsupported`] for
    /// one that cannot be used, [`ErrorKind::InvalidInput`] for options, [`ErrorKind::OutOfMemory`]
    /// when the controller has no queue left or the heap no memory.
    pub fn queue(self: &Arc<Self>, nsid: u32, options: QueueOptions) -> Result<QueuePair> {
        QueuePair::open(self, nsid, &options)
            .map_err(|error| error.during("open queue").on_device(self.name()))
    }
}

impl QueuePair {
    pub(super) fn open(
        controller: &Arc<Controller>,
        nsid: u32,
        options: &QueueOptions,
    ) -> Result<Self> {
        let info = controller.info();
        let namespace = usable_namespace(&info, nsid)?;
        check_options(options)?;
        let Some(id) = controller.admin().take_id(nsid) else {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "all {} I/O queues of the controller are in use",
                    info.queues
                ),
            ));
        };
        let mut pair = Sleeper::new(controller, options.wait)
            .and_then(|sleeper| Self::build(controller, namespace, options, id, sleeper))
            .inspect_err(|_| controller.admin().give_id(id, nsid))?;
        // From here on dropping the pair gives the id back.
        pair.introduce()?;
        Ok(pair)
    }

    /// Creates the queues on the controller for the first time.
    fn introduce(&mut self) -> Result<()> {
        let controller = Arc::clone(&self.controller);
        let mut admin = controller.admin();
        let generation = controller.generation();
        if generation == GONE {
            return Err(Error::new(ErrorKind::DeviceGone, "the controller is gone"));
        }
        match self.create(&mut admin) {
            Ok(()) => {
                self.generation = generation;
                if self.renew_namespace() {
                    return Ok(());
                }
                Err(Error::new(
                    ErrorKind::Busy,
                    "the namespace changed just now: open it again",
                ))
            }
            Err(failure) => {
                // Anything but a status leaves the controller in doubt (another queue's trouble,
                // perhaps): a reset makes it forget the rings, and may mend it.
                let in_doubt = !matches!(failure, AdminFailure::Status(_));
                if in_doubt && controller.reset(&mut admin).is_ok() && self.rejoin_with(&mut admin)
                {
                    return Ok(());
                }
                Err(failure.into_error("create I/O queue"))
            }
        }
    }

    /// Creates the queues on the controller, with fresh rings. Not while the device uses them.
    pub(super) fn create(&mut self, admin: &mut Admin) -> Result<(), AdminFailure> {
        self.sq.restart(admin.shadows.as_ref());
        self.cq.restart(admin.shadows.as_ref());
        admin.create_pair(
            &self.controller.port,
            &self.controller.counters,
            self.id,
            (self.sq.iova(), self.cq.iova()),
            (self.sq.entries(), self.cq.entries()),
            self.sleeper.as_ref().map(|sleeper| sleeper.vector),
        )
    }

    /// Memory and doorbells; the controller has not heard of the queues yet.
    fn build(
        controller: &Arc<Controller>,
        namespace: &NamespaceInfo,
        options: &QueueOptions,
        id: u16,
        sleeper: Option<Sleeper>,
    ) -> Result<Self> {
        let most = 1usize << controller.info().max_queue_entries.ilog2();
        let entries = (options.depth + 1).next_power_of_two().min(most);
        let depth = options.depth.min(entries - 1);
        let cq_entries = (2 * entries).max(LEAST_COMPLETION_ENTRIES).min(most);
        let ring = u32::try_from(entries).unwrap_or(2);
        let cq_ring = u32::try_from(cq_entries).unwrap_or(2);
        let port = &controller.port;
        let stride = port.cap.doorbell_stride_bytes();
        let sq_bell = Bell::new(&*port.device, sq_doorbell_offset(id, stride))?;
        let cq_bell = Bell::new(&*port.device, cq_doorbell_offset(id, stride))?;
        let heap = &controller.heap;
        let sq = heap.alloc(entries * SQE_BYTES, PAGE_BYTES)?;
        let cq = heap.alloc(cq_entries * CQE_BYTES, PAGE_BYTES)?;
        let lists = heap.alloc(depth * PAGE_BYTES, PAGE_BYTES)?;
        let limits = limits(controller, namespace, options, depth);
        let mut pair = Self {
            sq: SubmissionRing::new(sq, sq_bell, ring),
            cq: CompletionRing::new(cq, cq_bell, cq_ring, u32::try_from(depth).unwrap_or(ring)),
            generation: GONE,
            controller: Arc::clone(controller),
            countdown: POLLS_PER_LOOK,
            free_tracker: 0,
            free_slot: 0,
            cid_mask: u16::try_from(entries - 1).unwrap_or(1),
            sq_id_word: u32::from(id) << 16,
            outstanding: 0,
            waiting: SlotList::EMPTY,
            ended: SlotList::EMPTY,
            trackers: numbered(depth).map(Tracker::free).collect(),
            slots: numbered(depth)
                .map(|(_, next)| PairSlot::free(next))
                .collect(),
            geometry: SplitLimits::new(
                limits.block_bytes.ilog2(),
                controller.info().max_transfer_bytes,
                namespace.optimal_boundary_blocks,
            ),
            dataset: controller.info().dataset,
            sgl: controller.info().sgl && controller.uses_sgl(),
            nsid_word: u64::from(namespace.nsid) << 32,
            limits,
            lists: SharedWords::new(lists),
            segments: vec![Segment::default(); depth * options.max_segments].into_boxed_slice(),
            id,
            watch: PairWatch::new(options, namespace),
            sleeper,
            range: options.range,
            most_plain_blocks: 0,
        };
        pair.set_device_blocks(namespace.blocks);
        Ok(pair)
    }
}

impl QueuePair {
    /// Takes over the length of the namespace.
    pub(super) fn set_device_blocks(&mut self, blocks: u64) {
        let blocks = self.range.blocks_on(blocks);
        self.limits.capacity_blocks = blocks;
        self.most_plain_blocks = clamp_blocks(blocks, self.geometry.max_blocks);
    }
}

/// Completion queues are longer than they need be: so the device seldom has to be told what was
/// taken.
const LEAST_COMPLETION_ENTRIES: usize = 128;

fn usable_namespace(info: &ControllerInfo, nsid: u32) -> Result<&NamespaceInfo> {
    let Some(namespace) = info.namespace(nsid) else {
        let mut ids: Vec<_> = info
            .namespaces
            .iter()
            .take(IDS_SHOWN)
            .map(|namespace| namespace.nsid.to_string())
            .collect();
        if info.namespaces.len() > IDS_SHOWN {
            ids.push("...".to_owned());
        }
        return Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "the controller has no namespace {nsid}; it has {}",
                ids.join(", ")
            ),
        ));
    };
    match &namespace.unusable {
        Some(why) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("namespace {nsid} cannot be used: {why}"),
        )),
        None => Ok(namespace),
    }
}

fn check_options(options: &QueueOptions) -> Result<()> {
    let invalid = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
    if !(1..=MAX_DEPTH).contains(&options.depth) {
        return invalid(format!(
            "the queue depth {} is not between 1 and {MAX_DEPTH}",
            options.depth
        ));
    }
    if !(1..=MAX_SEGMENTS).contains(&options.max_segments) {
        return invalid(format!(
            "the number of segments {} is not between 1 and {MAX_SEGMENTS}",
            options.max_segments
        ));
    }
    if options.timeout.is_zero() {
        return invalid("the deadline of a command is zero".into());
    }
    Ok(())
}

fn limits(
    controller: &Controller,
    namespace: &NamespaceInfo,
    options: &QueueOptions,
    depth: usize,
) -> Limits {
    let info = controller.info();
    Limits {
        block_bytes: namespace.block_bytes,
        capacity_blocks: options.range.blocks_on(namespace.blocks),
        max_segments: options.max_segments,
        dma_align_bytes: DWORD_BYTES,
        max_transfer_bytes: info.max_transfer_bytes,
        volatile_write_cache: info.volatile_write_cache,
        // Every controller has it (NVM 3.2.6); without a volatile cache it changes nothing.
        fua: true,
        write_zeroes: info.write_zeroes,
        deallocate: info.deallocate,
        deallocate_grain: DeallocateGrain {
            blocks: namespace.deallocate_granularity_blocks,
            align_blocks: namespace.deallocate_alignment_blocks,
            first: options.range.first(),
        },
        read_only: options.read_only || namespace.read_only,
        depth,
    }
}

/// `0..count`, each with its successor, the last with [`NONE`].
fn numbered(count: usize) -> impl Iterator<Item = (u16, u16)> {
    let count = u16::try_from(count).unwrap_or(1);
    (0..count).map(move |n| (n, if n + 1 == count { NONE } else { n + 1 }))
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.watch.retries = 0;
        let controller = Arc::clone(&self.controller);
        let device = &*controller.port.device;
        let patience = Deadline::after(device, self.watch.timeout());
        while self.outstanding > 0 && !self.watch.gone && !patience.passed(device) {
            if self.poll(usize::MAX, &mut |_| {}) == 0 {
                self.relax();
            }
        }
        let mut admin = controller.admin();
        // In another generation than the controller's, the device does not know the rings (any
        // more).
        if same_rings(controller.generation(), self.generation) {
            let deleted = admin.delete_pair(&controller.port, &controller.counters, self.id);
            if deleted.is_err() {
                // After a reset the device has certainly let go of the rings. Should that fail too,
                // the controller is gone, which `dma_is_loose` looks at.
                let _ = controller.reset(&mut admin);
            }
        }
        admin.give_id(self.id, self.watch.nsid());
        drop(admin);
        if controller.dma_is_loose() {
            let lost = self.sq.leak() + self.cq.leak() + leak(&mut self.lists);
            controller.counters.leaked_bytes.add(lost as u64);
        }
    }
}
