//! The admin queue: one command at a time, each with a deadline (section 5).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use zerocopy::IntoBytes;

use super::bell::{Bell, ShadowDoorbells};
use super::counters::ControllerCounters;
use super::events::{MOST_REQUESTS, REQUEST_CID, Requests};
use super::port::{ALL_ONES, Deadline, Port, gone};
use super::queue::{CompletionRing, SubmissionRing, leak};
use super::spec::{
    ADM_ABORT, ADM_ASYNC_EVENT, ADM_CREATE_CQ, ADM_CREATE_SQ, ADM_DELETE_CQ, ADM_DELETE_SQ,
    ADM_DOORBELL_BUFFER_CONFIG, ADM_GET_FEATURES, ADM_GET_LOG_PAGE, ADM_IDENTIFY, ADM_SET_FEATURES,
    CQE_BYTES, CSTS_CFS, CSTS_RDY, Command, FEAT_ASYNC_EVENTS, FEAT_NUMBER_OF_QUEUES,
    IDENTIFY_BYTES, QUEUE_CONTIGUOUS, QUEUE_INTERRUPTS, QUEUE_VECTOR_SHIFT, REG_CSTS, SQE_BYTES,
    StatusField, cq_doorbell_offset, sq_doorbell_offset, status_name,
};
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Heap, SharedWords};
use crate::units::Iova;

const ENTRIES: u32 = 32;

/// Looks at the queue between two reads of CSTS: a register read crosses the bus.
const LOOKS_PER_STATUS: u32 = 256;

/// Why an admin command did not succeed. Anything but a status leaves the queue in doubt: the
/// controller must be reset before the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AdminFailure {
    Status(StatusField),
    Timeout(Duration),
    Fatal,
    Disabled,
    Confused,
    Gone,
}

impl AdminFailure {
    pub(super) fn into_error(self, what: &str) -> Error {
        let (kind, why) = match self {
            Self::Status(status) => (
                ErrorKind::Io,
                format!(
                    "the controller reported {} (status code type {:#x}, status code {:#04x})",
                    status_name(status.sct(), status.sc()),
                    status.sct(),
                    status.sc()
                ),
            ),
            Self::Timeout(after) => (
                ErrorKind::Timeout,
                format!(
                    "the controller did not answer within {} ms",
                    after.as_millis()
                ),
            ),
            Self::Fatal => (
                ErrorKind::DeviceGone,
                "the controller reported a fatal error (CSTS.CFS)".into(),
            ),
            Self::Disabled => (
                ErrorKind::Io,
                "something else disabled or reset the controller (CSTS.RDY is 0)".into(),
            ),
            Self::Confused => (
                ErrorKind::Io,
                "the controller answered on the admin queue for another queue".into(),
            ),
            Self::Gone => return gone(),
        };
        Error::new(kind, format!("{what}: {why}"))
    }
}

/// The admin queue's memory and the ids of I/O queues that are free.
pub(super) struct Admin {
    sq: SubmissionRing,
    cq: CompletionRing,
    /// What identify writes to.
    data: SharedWords,
    /// The shadows of all doorbells, when the controller has them.
    pub(super) shadows: Option<Arc<ShadowDoorbells>>,
    next_cid: u16,
    /// Requests for asynchronous events.
    pub(super) requests: Requests,
    /// Free I/O queue ids, the next one last.
    pub(super) free_ids: Vec<u16>,
    /// Interrupt vectors that no queue has, the next one last.
    pub(super) free_vectors: Vec<u16>,
    /// Queues open on each namespace.
    users: BTreeMap<u32, usize>,
    pub(super) timeout: Duration,
}

impl Admin {
    pub(super) fn new(port: &Port, heap: &Heap, timeout: Duration) -> Result<Self> {
        let entries = ENTRIES.min(1 << port.cap.max_queue_entries().ilog2());
        let stride = port.cap.doorbell_stride_bytes();
        let sq_bell = Bell::new(&*port.device, sq_doorbell_offset(0, stride))?;
        let cq_bell = Bell::new(&*port.device, cq_doorbell_offset(0, stride))?;
        let sq = heap.alloc(entries as usize * SQE_BYTES, 4096)?;
        let cq = heap.alloc(entries as usize * CQE_BYTES, 4096)?;
        Ok(Self {
            sq: SubmissionRing::new(sq, sq_bell, entries),
            cq: CompletionRing::new(cq, cq_bell, entries, entries - 1),
            data: SharedWords::new(heap.alloc(IDENTIFY_BYTES, 4096)?),
            shadows: None,
            next_cid: 0,
            requests: Requests::default(),
            free_ids: Vec::new(),
            free_vectors: Vec::new(),
            users: BTreeMap::new(),
            timeout,
        })
    }

    /// Enables the (disabled) controller with fresh admin rings.
    pub(super) fn enable(&mut self, port: &Port) -> Result<()> {
        self.sq.restart(None);
        self.cq.restart(None);
        self.requests.restart();
        port.enable(self.sq.iova(), self.cq.iova(), self.sq.entries())
    }

    /// Sends a command and waits for its end; dword 0 of the completion is the result.
    pub(super) fn run(
        &mut self,
        port: &Port,
        counters: &ControllerCounters,
        mut command: Command,
    ) -> Result<u32, AdminFailure> {
        self.next_cid = (self.next_cid + 1) & (REQUEST_CID - 1);
        let cid = self.next_cid;
        command.cid.set(cid);
        self.push(&command);
        let deadline = Deadline::after(&*port.device, self.timeout);
        let mut looks = 0u32;
        loop {
            let late = deadline.passed(&*port.device);
            if let Some(result) = self.take_answer(Some(cid), counters) {
                return result;
            }
            if looks.is_multiple_of(LOOKS_PER_STATUS) || late {
                match port.device.read32(REG_CSTS) {
                    ALL_ONES => return Err(AdminFailure::Gone),
                    csts if csts & CSTS_CFS != 0 => return Err(AdminFailure::Fatal),
                    csts if csts & CSTS_RDY == 0 => return Err(AdminFailure::Disabled),
                    _ => {}
                }
            }
            if late {
                counters.timeouts.add(1);
                return Err(AdminFailure::Timeout(self.timeout));
            }
            port.device.relax(looks, 0);
            looks = looks.wrapping_add(1);
        }
    }

    /// Puts a command into the ring and tells the device. There is room: one command at a time, and
    /// as many event requests as leave a place.
    fn push(&mut self, command: &Command) {
        let mut words = [0u64; 8];
        for (word, bytes) in words.iter_mut().zip(command.as_bytes().chunks_exact(8)) {
            let mut eight = [0; 8];
            eight.copy_from_slice(bytes);
            *word = u64::from_le_bytes(eight);
        }
        self.sq.push(&words);
        self.sq.ring();
    }

    pub(super) fn send_event_request(&mut self, cid: u16) {
        let mut request = command(ADM_ASYNC_EVENT, [0, 0]);
        request.cid.set(cid);
        self.push(&request);
    }

    /// Reaps at most one ring's worth; the answer to the command `cid` if it was among that. Ends
    /// of event requests are kept.
    fn take_answer(
        &mut self,
        cid: Option<u16>,
        counters: &ControllerCounters,
    ) -> Option<Result<u32, AdminFailure>> {
        let mut answer = None;
        for _ in 0..self.cq.entries() {
            let Some(entry) = self.cq.peek() else { break };
            let dw0 = self.cq.dw0();
            self.cq.pop();
            if entry.sq_id() != 0 {
                counters.stale.add(1);
                answer = Some(Err(AdminFailure::Confused));
            } else if entry.cid() & REQUEST_CID != 0 {
                if !self.requests.take(entry, dw0) {
                    counters.stale.add(1);
                }
            } else if Some(entry.cid()) != cid || answer.is_some() {
                counters.stale.add(1);
            } else if entry.status().is_success() {
                answer = Some(Ok(dw0));
            } else {
                answer = Some(Err(AdminFailure::Status(entry.status())));
            }
        }
        self.cq.ring();
        answer
    }

    /// Something was posted while no command was outstanding.
    pub(super) fn has_completions(&self) -> bool {
        self.cq.peek().is_some()
    }

    /// Takes what was posted while no command was outstanding.
    pub(super) fn reap_events(
        &mut self,
        counters: &ControllerCounters,
    ) -> Result<(), AdminFailure> {
        match self.take_answer(None, counters) {
            Some(Err(failure)) => Err(failure),
            _ => Ok(()),
        }
    }

    /// Asks for events (5.27.1.8), for all of the first set or, when that is refused, of the
    /// second, and sends the requests for them: `most` at once.
    pub(super) fn start_events(
        &mut self,
        port: &Port,
        counters: &ControllerCounters,
        wanted: [u32; 2],
        most: u16,
    ) -> Result<(), AdminFailure> {
        for events in wanted {
            let set = command(ADM_SET_FEATURES, [FEAT_ASYNC_EVENTS, events]);
            match self.run(port, counters, set) {
                Ok(_) => break,
                // It reports what it likes, then: errors at least.
                Err(AdminFailure::Status(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        // One place is for commands, and one entry of a ring is never used.
        let room = self.sq.entries().saturating_sub(2) as usize;
        self.requests
            .want(room.min(usize::from(most)).min(MOST_REQUESTS));
        self.request_events(port.device.now_ns());
        Ok(())
    }

    /// Get log page (5.16), a part of it of at most a page of memory. Ends the masking of its
    /// events.
    pub(super) fn log_page(
        &mut self,
        port: &Port,
        counters: &ControllerCounters,
        page: u8,
        len_bytes: usize,
        at_bytes: usize,
    ) -> Result<Vec<u8>, AdminFailure> {
        let len_bytes = len_bytes.min(IDENTIFY_BYTES);
        let dwords = u32::try_from(len_bytes / 4).unwrap_or(1).max(1) - 1;
        self.data.clear();
        let mut command = command(ADM_GET_LOG_PAGE, [u32::from(page) | dwords << 16, 0]);
        command.cdw10_15[2].set(u32::try_from(at_bytes).unwrap_or(u32::MAX));
        // Of the controller, not of a namespace.
        command.nsid.set(u32::MAX);
        command.prp1.set(self.data.iova().0);
        self.run(port, counters, command)?;
        Ok(self.copy_of_data()[..len_bytes].to_vec())
    }

    /// What the device delivered, in a copy that it cannot change any more.
    fn copy_of_data(&self) -> Box<[u8; IDENTIFY_BYTES]> {
        let mut bytes = Box::new([0; IDENTIFY_BYTES]);
        for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
            four.copy_from_slice(&self.data.load_u32(at * 4).to_le_bytes());
        }
        bytes
    }

    /// An id for an I/O queue on a namespace; `None` when all are in use.
    pub(super) fn take_id(&mut self, nsid: u32) -> Option<u16> {
        let id = self.free_ids.pop()?;
        *self.users.entry(nsid).or_default() += 1;
        Some(id)
    }

    /// Takes an id back.
    pub(super) fn give_id(&mut self, id: u16, nsid: u32) {
        self.free_ids.push(id);
        if let Some(count) = self.users.get_mut(&nsid) {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&nsid);
            }
        }
    }

    /// Whether there is a queue on a namespace.
    pub(super) fn is_used(&self, nsid: u32) -> bool {
        self.users.contains_key(&nsid)
    }

    /// Identify (5.17) into a copy that the device cannot change any more.
    pub(super) fn identify(
        &mut self,
        port: &Port,
        counters: &ControllerCounters,
        cns: u32,
        nsid: u32,
    ) -> Result<Box<[u8; IDENTIFY_BYTES]>, AdminFailure> {
        self.data.clear();
        let mut command = command(ADM_IDENTIFY, [cns, 0]);
        command.nsid.set(nsid);
        command.prp1.set(self.data.iova().0);
        self.run(port, counters, command)?;
        Ok(self.copy_of_data())
    }

    /// Gives the controller the shadows of its doorbells (5.8), if it is to have them: after every
    /// enabling, before I/O queues are created. A controller that refuses has none from then on.
    pub(super) fn give_shadows(
        &mut self,
        port: &Port,
        counters: &ControllerCounters,
    ) -> Result<(), AdminFailure> {
        let Some(shadows) = self.shadows.clone() else {
            return Ok(());
        };
        // Should the controller go by the shadow of this queue too, it finds this command there and
        // no more.
        self.sq.shadow_admin(&shadows, 1);
        self.cq.shadow_admin(&shadows);
        let (values, events) = shadows.iovas();
        let mut give = command(ADM_DOORBELL_BUFFER_CONFIG, [0, 0]);
        give.prp1.set(values.0);
        give.prp2.set(events.0);
        match self.run(port, counters, give) {
            Ok(_) => Ok(()),
            Err(AdminFailure::Status(_)) => {
                self.shadows = None;
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Asks for `wanted` queue pairs (5.27.1.5); returns how many there are.
    pub(super) fn negotiate_queues(
        &mut self,
        port: &Port,
        counters: &ControllerCounters,
        wanted: u16,
    ) -> Result<u16, AdminFailure> {
        let ask = u32::from(wanted.max(1) - 1);
        let set = command(ADM_SET_FEATURES, [FEAT_NUMBER_OF_QUEUES, ask << 16 | ask]);
        let granted = self.run(port, counters, set)?;
        let fewest = (granted & 0xffff).min(granted >> 16).min(ask);
        Ok(u16::try_from(fewest + 1).unwrap_or(wanted))
    }

    /// Get features: the current value.
    pub(super) fn feature(
        &mut self,
        port: &Port,
        counters: &ControllerCounters,
        feature: u32,
    ) -> Result<u32, AdminFailure> {
        self.run(port, counters, command(ADM_GET_FEATURES, [feature, 0]))
    }

    /// Creates a completion and a submission queue of the same id (5.3, 5.4); completions interrupt
    /// by `vector`.
    pub(super) fn create_pair(
        &mut self,
        port: &Port,
        counters: &ControllerCounters,
        id: u16,
        rings: (Iova, Iova),
        entries: (u32, u32),
        vector: Option<u16>,
    ) -> Result<(), AdminFailure> {
        let (sq, cq) = rings;
        let size_and_id = |entries: u32| (entries - 1) << 16 | u32::from(id);
        let interrupt = vector.map_or(0, |vector| {
            QUEUE_INTERRUPTS | u32::from(vector) << QUEUE_VECTOR_SHIFT
        });
        let mut create = command(
            ADM_CREATE_CQ,
            [size_and_id(entries.1), QUEUE_CONTIGUOUS | interrupt],
        );
        create.prp1.set(cq.0);
        self.run(port, counters, create)?;
        let with_cq = u32::from(id) << 16 | QUEUE_CONTIGUOUS;
        let mut create = command(ADM_CREATE_SQ, [size_and_id(entries.0), with_cq]);
        create.prp1.set(sq.0);
        if let Err(failure) = self.run(port, counters, create) {
            if let AdminFailure::Status(_) = failure {
                self.run(port, counters, command(ADM_DELETE_CQ, [u32::from(id), 0]))?;
            }
            return Err(failure);
        }
        Ok(())
    }

    /// Deletes a submission queue and then its completion queue (5.5, 5.6).
    pub(super) fn delete_pair(
        &mut self,
        port: &Port,
        counters: &ControllerCounters,
        id: u16,
    ) -> Result<(), AdminFailure> {
        self.run(port, counters, command(ADM_DELETE_SQ, [u32::from(id), 0]))?;
        self.run(port, counters, command(ADM_DELETE_CQ, [u32::from(id), 0]))?;
        Ok(())
    }

    /// Abort (5.1); true when the controller says that it aborted the command.
    pub(super) fn abort(
        &mut self,
        port: &Port,
        counters: &ControllerCounters,
        queue: u16,
        cid: u16,
    ) -> Result<bool, AdminFailure> {
        let which = u32::from(cid) << 16 | u32::from(queue);
        let result = self.run(port, counters, command(ADM_ABORT, [which, 0]))?;
        Ok(result & 1 == 0)
    }

    /// Never gives the memory back: the device may still use it. Returns its length in bytes.
    pub(super) fn leak(&mut self) -> usize {
        let shadows = self.shadows.take().map_or(0, |shadows| {
            std::mem::forget(shadows);
            ShadowDoorbells::BYTES
        });
        self.sq.leak() + self.cq.leak() + leak(&mut self.data) + shadows
    }
}

/// The vectors for I/O queues, the next one last. Vector 0 is the admin queue's: it comes when all
/// others are in use, and its queue is woken by admin commands for nothing.
pub(super) fn free_vectors(device: &dyn Device) -> Vec<u16> {
    let all = device.interrupt_vectors();
    let mut free: Vec<_> = (1..all).rev().collect();
    if all > 0 {
        free.insert(0, 0);
    }
    free
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("next_cid", &self.next_cid)
            .field("free_ids", &self.free_ids.len())
            .finish_non_exhaustive()
    }
}

fn command(opcode: u8, cdw10_11: [u32; 2]) -> Command {
    let mut command = Command {
        opcode,
        ..Default::default()
    };
    for (dword, value) in command.cdw10_15.iter_mut().zip(cdw10_11) {
        dword.set(value);
    }
    command
}
