//! The controller at work: looks at doorbells, fetches commands, has them done, posts completions.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::Rng;

use super::clock::EmuClock;
use super::config::EmuConfig;
use super::fault::{Fault, FaultEvent, FaultTarget, Faults};
use super::features::FeatureValues;
use super::health_state::{Events, Health};
use super::host_range::HostRange;
use super::irq::EmuVectors;
use super::namespace::EmuNamespace;
use super::offer::ControllerOffer;
use super::queue::{Cq, EmuCqEntry, Sq};
use super::registers::EmuRegisters;
use super::shadow_pages::EmuShadows;
use super::stats::EmuStats;
use crate::mem::{DmaSpace, DoorbellArray};
use crate::nvme::spec::{
    ADM_ABORT, CSTS_CFS, Command, SC_CID_CONFLICT, SC_WRITE_FAULT, StatusField,
};
use crate::sys::EventFd;

/// Most commands taken from one queue before the next gets its turn.
const BURST: usize = 32;
/// Most commands held back; what a fault would hold beyond it ends at once.
const MOST_HELD: usize = 1 << 16;
/// A completion that waits to be overtaken waits no longer than this.
const REORDER_LIMIT_NS: u64 = 1_000_000;

/// How a command ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct CommandEnd {
    /// Dword 0 of the completion.
    pub(super) result: u32,
    pub(super) status: StatusField,
}

impl CommandEnd {
    pub(super) const SUCCESS: Self = Self::value(0);

    pub(super) const fn value(result: u32) -> Self {
        Self {
            result,
            status: StatusField::SUCCESS,
        }
    }

    pub(super) const fn failed(status: StatusField) -> Self {
        Self { result: 0, status }
    }
}

impl From<Result<(), StatusField>> for CommandEnd {
    fn from(result: Result<(), StatusField>) -> Self {
        result.map_or_else(Self::failed, |()| Self::SUCCESS)
    }
}

/// A command that a fault keeps from ending.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) sq: u16,
    pub(super) command: Command,
    /// Done already, and only the completion is held back.
    done: Option<CommandEnd>,
    /// Ends when the clock is here,
    at_ns: u64,
    /// or when its completion queue has posted so many.
    at_posts: u64,
}

impl Held {
    /// Only its completion is missing.
    pub(super) fn is_done(&self) -> bool {
        self.done.is_some()
    }
}

/// The state behind the lock.
#[derive(Debug)]
pub(super) struct EmuController {
    pub(super) registers: Arc<EmuRegisters>,
    pub(super) space: Arc<DmaSpace>,
    pub(super) doorbells: Arc<DoorbellArray>,
    pub(super) shadows: Option<EmuShadows>,
    pub(super) clock: Arc<EmuClock>,
    pub(super) vectors: Arc<EmuVectors>,
    pub(super) offer: ControllerOffer,
    pub(super) namespaces: Vec<EmuNamespace>,
    /// By queue id; 0 is the admin queue.
    pub(super) sqs: Vec<Option<Sq>>,
    pub(super) cqs: Vec<Option<Cq>>,
    /// Ids of the submission queues that exist.
    pub(super) active: Vec<u16>,
    turn: usize,
    pub(super) held: Vec<Held>,
    pub(super) faults: Faults,
    pub(super) stats: EmuStats,
    pub(super) features: FeatureValues,
    pub(super) events: Events,
    pub(super) health: Health,
    /// Enabled, and becomes ready when the clock is here.
    pub(super) ready_at: Option<u64>,
    /// Enabled, ready and well: commands are fetched.
    pub(super) running: bool,
    /// Some completion waits for room in its queue.
    pub(super) backlog: bool,
    /// Interrupt vectors to raise when the controller is released.
    pub(super) due: Vec<u16>,
    /// The current completion raises no interrupt.
    mute: bool,
    /// The identify command at work is to deliver garbage.
    pub(super) garbage: bool,
    /// The host memory of the command at work.
    pub(super) segments: Vec<HostRange>,
}

impl EmuController {
    pub(super) fn new(
        config: EmuConfig,
        registers: Arc<EmuRegisters>,
        space: Arc<DmaSpace>,
        doorbells: Arc<DoorbellArray>,
        clock: Arc<EmuClock>,
        vectors: Arc<EmuVectors>,
    ) -> Self {
        let queues = usize::from(config.max_io_queues) + 1;
        let cached = config.cache_model && config.volatile_write_cache;
        let namespace =
            EmuNamespace::new(config.medium, config.lba_bytes, config.read_only, cached);
        Self {
            registers,
            space,
            doorbells,
            shadows: None,
            clock,
            vectors,
            features: FeatureValues::new(config.max_io_queues, config.volatile_write_cache),
            events: Events::default(),
            health: Health::new(config.past),
            offer: ControllerOffer {
                mdts: config.mdts,
                noiob_blocks: config.noiob_blocks,
                volatile_write_cache: config.volatile_write_cache,
                max_io_queues: config.max_io_queues,
                max_queue_entries: config.max_queue_entries,
                stride_shift: config.doorbell_stride_shift,
                ready_delay_ns: config.ready_delay_ns,
                write_zeroes: config.write_zeroes,
                dataset_management: config.dataset_management,
                dataset: config.dataset,
                abort_limit: config.abort_limit,
                sgl: config.sgl,
                shadow_doorbells: config.shadow_doorbells,
                atomic: config.atomic,
                model: config.model,
                serial: config.serial,
                firmware: config.firmware,
            },
            namespaces: vec![namespace],
            sqs: (0..queues).map(|_| None).collect(),
            cqs: (0..queues).map(|_| None).collect(),
            active: Vec::with_capacity(queues),
            turn: 0,
            held: Vec::new(),
            faults: Faults::new(config.faults),
            stats: EmuStats::default(),
            ready_at: None,
            running: false,
            backlog: false,
            due: Vec::new(),
            mute: false,
            garbage: false,
            segments: Vec::new(),
        }
    }

    /// Appends the counters of the interrupts that came due since the last call. The caller raises
    /// them after it has released the controller: together, and when all of their entries are
    /// posted.
    pub(super) fn take_due(&mut self, events: &mut Vec<Arc<EventFd>>) {
        let vectors = &self.vectors;
        events.extend(self.due.drain(..).filter_map(|v| vectors.event(v)));
    }

    /// Does what there is to do, at most about `budget` commands and held-back endings; how many it
    /// was.
    pub(super) fn pass(&mut self, budget: usize) -> usize {
        if let Some(at) = self.ready_at
            && self.clock.now_ns() >= at
        {
            self.become_ready();
        }
        if !self.running {
            return 0;
        }
        if self.backlog {
            self.drain_backlog();
        }
        let mut done = 0;
        if !self.held.is_empty() {
            done += self.end_held(budget);
        }
        for n in 0..self.active.len() {
            if done >= budget || !self.running {
                break;
            }
            // Commands create and delete queues: the list may have changed since the last turn.
            let at = (self.turn + n) % self.active.len().max(1);
            let Some(&sq) = self.active.get(at) else {
                break;
            };
            let served = self.serve(sq, BURST.min(budget - done));
            done += served;
            if done >= budget && served > 0 {
                self.turn = at + 1;
                break;
            }
        }
        done
    }

    /// Serves one submission queue, at most `budget` commands.
    fn serve(&mut self, id: u16, budget: usize) -> usize {
        let Some(tail) = self.tail(id) else {
            self.fail();
            return 0;
        };
        let Some(Some(sq)) = self.sqs.get_mut(usize::from(id)) else {
            return 0;
        };
        let cq_id = sq.cq;
        let seen = sq.observe(tail);
        let idle = sq.is_empty();
        self.note(seen);
        let Some(head) = self.head(cq_id) else {
            self.fail();
            return 0;
        };
        let Some(Some(cq)) = self.cqs.get_mut(usize::from(cq_id)) else {
            return 0;
        };
        let seen = cq.observe(head);
        self.note(seen);
        if idle {
            return 0;
        }
        let mut done = 0;
        while done < budget && self.running {
            let room = matches!(self.cqs.get(usize::from(cq_id)), Some(Some(cq)) if cq.has_room());
            let Some(Some(sq)) = self.sqs.get_mut(usize::from(id)) else {
                break;
            };
            if !room || sq.is_empty() {
                break;
            }
            let Some(command) = sq.fetch() else {
                self.fail();
                break;
            };
            done += 1;
            self.stats.commands += 1;
            if self.faults.idle() {
                self.run(id, command);
            } else {
                self.run_with_faults(id, command);
            }
        }
        done
    }

    /// Does a command and ends it.
    #[inline]
    fn run(&mut self, sq: u16, command: Command) {
        if let Some(done) = self.execute(sq, &command) {
            if !done.status.is_success() {
                self.note_error(sq, &command, done.status);
            }
            self.complete(sq, command.cid.get(), done);
        }
    }

    /// Does a command. `None` when it stays outstanding by its nature.
    #[inline]
    fn execute(&mut self, sq: u16, command: &Command) -> Option<CommandEnd> {
        let outstanding = |held: &Held| held.sq == sq && held.command.cid == command.cid;
        if !self.held.is_empty() && self.held.iter().any(outstanding) {
            return Some(CommandEnd::failed(SC_CID_CONFLICT.do_not_retry()));
        }
        if sq == 0 {
            self.stats.admin_commands += 1;
            self.execute_admin(command)
        } else {
            Some(self.execute_io(command))
        }
    }

    fn run_with_faults(&mut self, sq: u16, command: Command) {
        let target = FaultTarget {
            event: FaultEvent::Command,
            admin: sq == 0,
            opcode: command.opcode,
            lbas: if sq == 0 {
                None
            } else {
                self.lbas_of(&command)
            },
        };
        let Some(fault) = self.faults.pick(&target) else {
            return self.run(sq, command);
        };
        self.count_fault(fault);
        self.run_faulty(sq, command, fault);
    }

    pub(super) fn count_fault(&mut self, fault: Fault) {
        *self.stats.faults.entry(fault.name()).or_default() += 1;
    }

    fn run_faulty(&mut self, sq: u16, command: Command, fault: Fault) {
        let cid = command.cid.get();
        match fault {
            Fault::Status(status) => {
                self.note_error(sq, &command, status);
                self.complete(sq, cid, CommandEnd::failed(status));
            }
            Fault::Lost => self.hold(sq, command, None, u64::MAX, u64::MAX),
            Fault::LostCompletion => {
                let done = self.execute(sq, &command);
                self.hold(sq, command, done, u64::MAX, u64::MAX);
            }
            Fault::Late { delay_ns } => {
                let now = self.faults.rng.random_bool(0.5);
                let done = now.then(|| self.execute(sq, &command)).flatten();
                let at = self.clock.now_ns().saturating_add(delay_ns);
                self.hold(sq, command, done, at, u64::MAX);
            }
            Fault::Reorder { completions } => {
                let done = self.execute(sq, &command);
                let at = self.clock.now_ns().saturating_add(REORDER_LIMIT_NS);
                let posts = self.posts_of(sq).saturating_add(completions.into());
                self.hold(sq, command, done, at, posts);
            }
            Fault::Torn => {
                let status = self.write_torn(&command).err().unwrap_or(SC_WRITE_FAULT);
                self.note_error(sq, &command, status);
                self.complete(sq, cid, CommandEnd::failed(status));
            }
            Fault::GarbageIdentify => {
                self.garbage = true;
                self.run(sq, command);
                self.garbage = false;
            }
            Fault::GarbageEventIndex => {
                if let Some(Some(queue)) = self.sqs.get_mut(usize::from(sq)) {
                    queue.spoilt_event = true;
                }
                self.run(sq, command);
            }
            Fault::LostInterrupt => {
                self.mute = true;
                self.run(sq, command);
                self.mute = false;
            }
            Fault::AbortFails if command.opcode == ADM_ABORT => {
                self.stats.aborts_refused += 1;
                self.complete(sq, cid, CommandEnd::value(1));
            }
            Fault::Fatal => self.fail(),
            Fault::Gone => self.disappear(),
            _ => self.run_and_spoil(sq, command, fault),
        }
    }

    /// Faults of the completion entry itself.
    fn run_and_spoil(&mut self, sq: u16, command: Command, fault: Fault) {
        let Some(done) = self.execute(sq, &command) else {
            return;
        };
        let Some(mut entry) = self.entry(sq, command.cid.get(), done) else {
            return;
        };
        let rng = &mut self.faults.rng;
        match fault {
            Fault::WrongCid => entry.cid ^= rng.random_range(1..=u16::MAX),
            Fault::StaleCid => {
                if let Some(Some(sq)) = self.sqs.get(usize::from(sq)) {
                    entry.cid = sq.last_cid;
                }
            }
            Fault::WrongPhase => entry.wrong_phase = true,
            Fault::GarbageSqHead => entry.sq_head = rng.random(),
            Fault::Duplicate => self.post(entry),
            _ => {}
        }
        self.post(entry);
        if matches!(fault, Fault::WrongCid | Fault::StaleCid | Fault::WrongPhase) {
            self.hold(sq, command, Some(done), u64::MAX, u64::MAX);
        }
    }

    fn posts_of(&self, sq: u16) -> u64 {
        let cq = self.sqs.get(usize::from(sq)).and_then(Option::as_ref);
        cq.and_then(|sq| self.cqs.get(usize::from(sq.cq))?.as_ref())
            .map_or(u64::MAX, |cq| cq.posts)
    }

    fn hold(
        &mut self,
        sq: u16,
        command: Command,
        done: Option<CommandEnd>,
        at_ns: u64,
        at_posts: u64,
    ) {
        if self.held.len() >= MOST_HELD {
            return self.run(sq, command);
        }
        self.held.push(Held {
            sq,
            command,
            done,
            at_ns,
            at_posts,
        });
    }

    /// Ends what was held back and is due.
    fn end_held(&mut self, budget: usize) -> usize {
        let now = self.clock.now_ns();
        let mut ended = 0;
        let mut at = 0;
        while ended < budget && at < self.held.len() && self.running {
            let held = &self.held[at];
            if held.at_ns > now && held.at_posts > self.posts_of(held.sq) {
                at += 1;
                continue;
            }
            let held = self.held.remove(at);
            self.end(held, None);
            ended += 1;
        }
        ended
    }

    /// Ends a held command: with `status` if there is one, otherwise as it is done.
    pub(super) fn end(&mut self, held: Held, status: Option<StatusField>) {
        let cid = held.command.cid.get();
        match (status, held.done) {
            (Some(status), _) => self.complete(held.sq, cid, CommandEnd::failed(status)),
            (None, Some(done)) => self.complete(held.sq, cid, done),
            (None, None) => self.run(held.sq, held.command),
        }
    }

    fn entry(&self, sq: u16, cid: u16, done: CommandEnd) -> Option<EmuCqEntry> {
        let queue = self.sqs.get(usize::from(sq))?.as_ref()?;
        Some(EmuCqEntry {
            result: done.result,
            sq_head: queue.head,
            sq,
            cid,
            status: done.status,
            wrong_phase: false,
        })
    }

    /// Ends a command.
    #[inline]
    pub(super) fn complete(&mut self, sq: u16, cid: u16, done: CommandEnd) {
        // A command that deleted its own queue's peers is of the admin queue, which stays.
        let Some(entry) = self.entry(sq, cid, done) else {
            return;
        };
        self.post(entry);
        if let Some(Some(sq)) = self.sqs.get_mut(usize::from(sq)) {
            sq.last_cid = cid;
        }
    }

    fn post(&mut self, entry: EmuCqEntry) {
        let sq = self.sqs.get(usize::from(entry.sq)).and_then(Option::as_ref);
        let Some(cq) = sq.map(|sq| sq.cq) else {
            return;
        };
        let Some(Some(cq)) = self.cqs.get_mut(usize::from(cq)) else {
            return;
        };
        self.stats.completions += 1;
        let mapped = cq.post(entry);
        self.backlog |= !cq.pending.is_empty();
        if !self.mute
            && let Some(vector) = cq.vector
            && !self.due.contains(&vector)
        {
            self.due.push(vector);
        }
        if !mapped {
            self.fail();
        }
    }

    /// Stops with a fatal status: only a reset helps.
    pub(super) fn fail(&mut self) {
        self.running = false;
        self.ready_at = None;
        self.registers.set_csts(self.registers.csts() | CSTS_CFS);
    }

    /// The device is no more.
    pub(super) fn disappear(&mut self) {
        self.running = false;
        self.ready_at = None;
        self.drop_queues();
        self.registers.gone.store(true, Ordering::Release);
        // Wake the threads that sleep on a vector, so that they see it.
        self.due.clear();
        self.due.extend(0..self.vectors.count());
    }

    /// Forgets all queues and every outstanding command.
    pub(super) fn drop_queues(&mut self) {
        self.sqs.fill_with(|| None);
        self.cqs.fill_with(|| None);
        self.active.clear();
        self.held.clear();
        self.events = Events::default();
        self.backlog = false;
        self.shadows = None;
        for word in self.doorbells.iter() {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Looks up the rings again after the host's mappings changed.
    pub(super) fn remap_queues(&mut self) {
        for sq in self.sqs.iter_mut().flatten() {
            sq.remap(&self.space);
        }
        for cq in self.cqs.iter_mut().flatten() {
            cq.remap(&self.space);
        }
        if let Some(shadows) = &mut self.shadows {
            shadows.remap(&self.space);
        }
    }
}
