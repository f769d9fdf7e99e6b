//! A scripted device for the driver's own tests: small, obedient, and as hostile as a test's script
//! makes it. It works in `relax`, on a clock of its own. The embedded controller is the real thing;
//! this one says what no real thing would.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::spec::{self, Command, IdentifyController, IdentifyNamespace, SmartLog, StatusField};
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Arena, DmaSpace, Doorbell, Mapper};
use crate::units::Iova;

pub(super) const BLOCK: usize = 512;
pub(super) const BLOCKS: u64 = 8192;
pub(super) const STEP_NS: u64 = 10_000;

/// A completion before it is posted, for a script to spoil.
#[derive(Debug, Clone, Copy)]
pub(super) struct FakeCompletion {
    pub(super) dw0: u32,
    pub(super) sq_head: u16,
    pub(super) sq_id: u16,
    pub(super) cid: u16,
    pub(super) status: StatusField,
    pub(super) wrong_phase: bool,
}

/// Called with every command (queue id, entry, the correct answer). Returns the completions to
/// post: none, the answer, or any number of others.
pub(super) type Script =
    Box<dyn FnMut(u16, &Command, FakeCompletion) -> Vec<FakeCompletion> + Send>;

#[derive(Default)]
struct FakeRing {
    base: Iova,
    entries: u32,
    at: u32,
    phase: bool,
}

pub(super) struct FakeState {
    registers: BTreeMap<u32, u64>,
    csts: u32,
    rings: BTreeMap<u16, (FakeRing, FakeRing)>,
    pub(super) disk: Vec<u8>,
    pub(super) controller: IdentifyController,
    pub(super) namespace: IdentifyNamespace,
    /// Ids of the active namespaces, all alike.
    pub(super) namespaces: Vec<u32>,
    pub(super) smart: SmartLog,
    /// What every log page but SMART holds.
    pub(super) log: Vec<u8>,
    /// Log pages read.
    pub(super) log_reads: Vec<u8>,
    /// Command ids of the event requests outstanding.
    pub(super) requests: Vec<u16>,
    /// Ends event requests at once, with this.
    pub(super) eager_event: Option<u32>,
    /// Event requests seen.
    pub(super) requests_seen: u64,
    pub(super) script: Script,
    pub(super) never_ready: bool,
    /// Something else disables it while it is being enabled next.
    pub(super) disabled_meanwhile: bool,
    /// Neither disabling nor a reset stops it, and its memory cannot be unmapped.
    pub(super) unstoppable: bool,
    pub(super) fatal: bool,
    pub(super) enables: u32,
    pub(super) commands: u64,
    shutdowns: u32,
}

pub(super) struct Fake {
    space: Arc<DmaSpace>,
    mapper: Arc<FakeMapper>,
    bells: Arc<[AtomicU32]>,
    state: Mutex<FakeState>,
    clock: AtomicU64,
    pub(super) gone: AtomicBool,
}

/// Maps and unmaps, unless it is stuck.
struct FakeMapper {
    space: Arc<DmaSpace>,
    stuck: AtomicBool,
}

impl Mapper for FakeMapper {
    fn map(&self, arena: &Arc<Arena>) -> Result<()> {
        self.space.map(arena)
    }

    fn unmap(&self, arena: &Arc<Arena>) -> Result<()> {
        if self.stuck.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Io, "it does not unmap"));
        }
        self.space.unmap(arena)
    }
}

pub(super) fn honest() -> Script {
    Box::new(|_, _, answer| vec![answer])
}

impl Fake {
    pub(super) fn new() -> Arc<Self> {
        let mut controller = IdentifyController::new_zeroed();
        controller.sqes = 0x66;
        controller.cqes = 0x44;
        controller.nn.set(1);
        controller.vwc = 1;
        controller.oncs.set(0xc);
        let mut namespace = IdentifyNamespace::new_zeroed();
        namespace.nsze.set(BLOCKS);
        namespace.lbaf[0].data_shift = 9;
        let space: Arc<DmaSpace> = Arc::default();
        Arc::new(Self {
            mapper: Arc::new(FakeMapper {
                space: Arc::clone(&space),
                stuck: AtomicBool::new(false),
            }),
            space,
            bells: (0..64).map(|_| AtomicU32::new(0)).collect(),
            state: Mutex::new(FakeState {
                registers: BTreeMap::new(),
                csts: 0,
                rings: BTreeMap::new(),
                disk: vec![0; BLOCK * 8192],
                controller,
                namespace,
                namespaces: vec![1],
                smart: SmartLog::new_zeroed(),
                log: vec![0; 4096],
                log_reads: Vec::new(),
                requests: Vec::new(),
                eager_event: None,
                requests_seen: 0,
                script: honest(),
                never_ready: false,
                disabled_meanwhile: false,
                unstoppable: false,
                fatal: false,
                enables: 0,
                commands: 0,
                shutdowns: 0,
            }),
            clock: AtomicU64::new(1),
            gone: AtomicBool::new(false),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap()
    }

    /// Nothing keeps it from memory any more.
    pub(super) fn break_loose(&self) {
        self.state().unstoppable = true;
        self.mapper.stuck.store(true, Ordering::Relaxed);
    }

    /// Posts an answer that a script has held back.
    pub(super) fn answer(&self, id: u16, answer: FakeCompletion) {
        self.state().post(&self.space, id, answer);
    }

    pub(super) fn advance(&self, ns: u64) {
        self.clock.fetch_add(ns, Ordering::Relaxed);
    }

    /// Host memory as the device reaches it, for scripts that write there.
    pub(super) fn space(&self) -> Arc<DmaSpace> {
        Arc::clone(&self.space)
    }

    /// Ends an event request, if one is outstanding.
    pub(super) fn raise(&self, word: u32) -> bool {
        let mut state = self.state();
        let Some(cid) = state.requests.pop() else {
            return false;
        };
        let answer = FakeCompletion {
            dw0: word,
            sq_head: 0,
            sq_id: 0,
            cid,
            status: StatusField::SUCCESS,
            wrong_phase: false,
        };
        state.post(&self.space, 0, answer);
        true
    }

    /// Whether a shutdown was asked for, by the times that it was.
    pub(super) fn shutdowns(&self) -> u32 {
        self.state().shutdowns
    }

    fn work(&self) {
        let mut state = self.state();
        if state.csts & spec::CSTS_RDY == 0 || self.gone.load(Ordering::Relaxed) {
            return;
        }
        let ids: Vec<u16> = state.rings.keys().copied().collect();
        for id in ids {
            let tail = self.bells[usize::from(id) * 2].load(Ordering::Acquire);
            while let Some((sq, _)) = state.rings.get_mut(&id)
                && sq.at != tail % sq.entries
            {
                let from = sq.base.offset(u64::from(sq.at) * 64);
                sq.at = (sq.at + 1) % sq.entries;
                let head = sq.at;
                let mut bytes = [0; 64];
                self.space.translate(from, 64).unwrap().copy_to(&mut bytes);
                let command = Command::read_from_bytes(&bytes).unwrap();
                state.commands += 1;
                if id == 0 && command.opcode == spec::ADM_ASYNC_EVENT {
                    state.requests_seen += 1;
                    if state.eager_event.is_none() {
                        state.requests.push(command.cid.get());
                        continue;
                    }
                }
                let (status, dw0) = state.execute(&self.space, id, &command);
                let answer = FakeCompletion {
                    dw0,
                    sq_head: u16::try_from(head).unwrap(),
                    sq_id: id,
                    cid: command.cid.get(),
                    status,
                    wrong_phase: false,
                };
                for answer in (state.script)(id, &command, answer) {
                    state.post(&self.space, id, answer);
                }
            }
        }
    }
}

impl FakeState {
    fn execute(&mut self, space: &DmaSpace, id: u16, command: &Command) -> (StatusField, u32) {
        let dw = |n: usize| command.cdw10_15[n].get();
        if id != 0 {
            return (self.transfer(space, command), 0);
        }
        let queue = (dw(0) & 0xffff) as u16;
        let ring = || FakeRing {
            base: Iova(command.prp1.get()),
            entries: (dw(0) >> 16) + 1,
            at: 0,
            phase: true,
        };
        match command.opcode {
            spec::ADM_IDENTIFY => {
                let after = command.nsid.get();
                let ids = self.namespaces.iter().filter(|&&id| id > after);
                let mut list: Vec<u8> = ids.take(1024).flat_map(|id| id.to_le_bytes()).collect();
                list.resize(4096, 0);
                let none = vec![0; 4096];
                let data = match dw(0) {
                    spec::CNS_CONTROLLER => self.controller.as_bytes(),
                    spec::CNS_NAMESPACE => self.namespace.as_bytes(),
                    spec::CNS_ACTIVE_NAMESPACES => &list,
                    _ => &none,
                };
                let to = Iova(command.prp1.get());
                space.translate(to, 4096).unwrap().copy_from(data);
            }
            spec::ADM_GET_LOG_PAGE => {
                let page = dw(0).to_le_bytes()[0];
                self.log_reads.push(page);
                let len = ((dw(0) >> 16) as usize + 1) * 4;
                let data = match page {
                    spec::LOG_SMART => self.smart.as_bytes(),
                    _ => &self.log,
                };
                let to = Iova(command.prp1.get());
                let len = len.min(data.len());
                space.translate(to, len).unwrap().copy_from(&data[..len]);
            }
            spec::ADM_ASYNC_EVENT => {
                return (StatusField::SUCCESS, self.eager_event.unwrap_or(0));
            }
            spec::ADM_SET_FEATURES => return (StatusField::SUCCESS, 7 << 16 | 7),
            spec::ADM_GET_FEATURES | spec::ADM_ABORT => return (StatusField::SUCCESS, 1),
            spec::ADM_CREATE_CQ => {
                self.rings.insert(queue, (FakeRing::default(), ring()));
                self.rings.get_mut(&queue).unwrap().0.entries = 1;
            }
            spec::ADM_CREATE_SQ => self.rings.get_mut(&queue).unwrap().0 = ring(),
            _ => {
                self.rings.remove(&queue);
            }
        }
        (StatusField::SUCCESS, 0)
    }

    /// Contiguous memory only: the tests use it so, and PRP lists are tested elsewhere.
    fn transfer(&mut self, space: &DmaSpace, command: &Command) -> StatusField {
        let lba = u64::from(command.cdw10_15[1].get()) << 32 | u64::from(command.cdw10_15[0].get());
        let at = usize::try_from(lba).unwrap() * BLOCK;
        let len = ((command.cdw10_15[2].get() & 0xffff) as usize + 1) * BLOCK;
        let memory = |len| space.translate(Iova(command.prp1.get()), len).unwrap();
        match command.opcode {
            spec::OPC_READ => memory(len).copy_from(&self.disk[at..at + len]),
            spec::OPC_WRITE => memory(len).copy_to(&mut self.disk[at..at + len]),
            _ => {}
        }
        StatusField::SUCCESS
    }

    fn post(&mut self, space: &DmaSpace, id: u16, answer: FakeCompletion) {
        let Some((_, cq)) = self.rings.get_mut(&id) else {
            return;
        };
        let to = space
            .translate(cq.base.offset(u64::from(cq.at) * 16), 16)
            .unwrap();
        let phase = cq.phase ^ answer.wrong_phase;
        to.store_u32(0, answer.dw0, Ordering::Relaxed);
        let dw2 = u32::from(answer.sq_id) << 16 | u32::from(answer.sq_head);
        to.store_u32(8, dw2, Ordering::Relaxed);
        let dw3 = u32::from(answer.cid) | u32::from(phase) << 16 | answer.status.to_dw3();
        to.store_u32(12, dw3, Ordering::Release);
        cq.at = (cq.at + 1) % cq.entries;
        cq.phase ^= cq.at == 0;
    }
}

impl Device for Fake {
    fn name(&self) -> &str {
        "fake"
    }

    fn read32(&self, offset: u32) -> u32 {
        u32::try_from(self.read64(offset) & u64::from(u32::MAX)).unwrap()
    }

    fn read64(&self, offset: u32) -> u64 {
        if self.gone.load(Ordering::Relaxed) {
            return u64::MAX;
        }
        let state = self.state();
        match offset {
            // 1024 entries, 500 ms, the NVM command set.
            spec::REG_CAP => 1 << 37 | 1 << 24 | 1023,
            spec::REG_VS => 0x0001_0400,
            spec::REG_CSTS if state.fatal => u64::from(state.csts | spec::CSTS_CFS),
            spec::REG_CSTS => u64::from(state.csts),
            _ => state.registers.get(&offset).copied().unwrap_or(0),
        }
    }

    fn write32(&self, offset: u32, value: u32) {
        self.write64(offset, u64::from(value));
    }

    fn write64(&self, offset: u32, value: u64) {
        let mut state = self.state();
        state.registers.insert(offset, value);
        if offset != spec::REG_CC {
            return;
        }
        let enable = value & u64::from(spec::CC_EN) != 0;
        if !enable && state.unstoppable {
            return;
        }
        if !enable {
            state.csts = 0;
            state.fatal = false;
            state.rings.clear();
            state.requests.clear();
            for bell in self.bells.iter() {
                bell.store(0, Ordering::Relaxed);
            }
        } else if value >> spec::CC_SHN_SHIFT & 3 == 1 {
            state.csts |= spec::CSTS_SHST_COMPLETE;
            state.shutdowns += 1;
        } else if std::mem::take(&mut state.disabled_meanwhile) {
            state.registers.insert(offset, 0);
        } else if !state.never_ready && state.csts & spec::CSTS_RDY == 0 {
            state.csts = spec::CSTS_RDY;
            state.enables += 1;
            let ring = |base: u64| FakeRing {
                base: Iova(base),
                entries: 32,
                at: 0,
                phase: true,
            };
            let admin = (
                ring(state.registers[&spec::REG_ASQ]),
                ring(state.registers[&spec::REG_ACQ]),
            );
            state.rings.insert(0, admin);
        }
    }

    fn doorbell(&self, offset: u32) -> Result<Doorbell> {
        let index = (offset - spec::REG_DOORBELLS) / 4;
        Doorbell::in_memory(&self.bells, index as usize)
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "no such doorbell"))
    }

    fn mapper(&self) -> Arc<dyn Mapper> {
        self.mapper.clone()
    }

    fn stop_dma(&self) -> Result<()> {
        let mut state = self.state();
        if state.unstoppable {
            return Err(Error::new(ErrorKind::Io, "it does not stop"));
        }
        state.rings.clear();
        Ok(())
    }

    fn now_ns(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    fn relax(&self, _silent: u32, _outstanding: u32) {
        self.clock.fetch_add(STEP_NS, Ordering::Relaxed);
        self.work();
    }
}
