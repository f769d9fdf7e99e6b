//! NVMe controllers in another process, over vfio-user: a driver's side ([`VfioUserDevice`]) and a
//! controller's ([`Server`]).
//!
//! Layer 1. Follows the vfio-user specification 0.9 as libvfio-user has it: a Unix socket for
//! everything slow, shared memory for the rest. The client hands its arenas over as sealed files,
//! so the server can write what it was lent and cannot take memory away; the server's doorbells are
//! a page of its memory, mapped here. The socket's other end is hostile: every message has its
//! bounds, every request its time-out, and a connection that is cut, or breaks the protocol, is a
//! device that is gone.
#![forbid(unsafe_code)]

mod bells;
mod client;
mod region;
mod server;
mod stream;
mod wire;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

pub use self::server::{Server, ServerEvent, ServerOptions};

use self::bells::Bells;
use self::client::{Connection, VfioUserRequest};
use self::region::VfioUserRegisters;
use super::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Arena, Doorbell, Mapper};
use crate::nvme::spec::{CC_EN, CSTS_RDY, Capabilities, REG_CAP, REG_CC, REG_CSTS, REG_DOORBELLS};
use crate::sys::{EventFd, connect_unix};

/// Rounds without an answer before a thread that waits offers its processor to the server: far more
/// than a server with a processor of its own needs for an answer.
const RELAX_SPINS: u32 = 4096;

/// From then on, rounds between two such offers.
const RELAX_YIELD_EVERY: u32 = 256;
/// From so many in-flight requests on, a queue is polled less often: each poll takes away the cache
/// line that the server writes its next completions to, which costs the server more than an earlier
/// poll gains.
const SPARSE: u32 = 16;
/// The spins between two such polls, for each request in flight.
const SPARSE_SPINS: u32 = 3;
/// Requests in flight beyond these do not make it wait longer.
const SPARSE_MOST: u32 = 128;
/// After so many polls without a completion the server is faulty or has no CPU: poll at the normal
/// rate.
const SPARSE_POLLS: u32 = 64;

/// How a server is talked to.
#[derive(Debug, Clone)]
pub struct VfioUserOptions {
    /// The longest wait for a reply; a server that takes longer is given up.
    pub timeout: Duration,
    /// The most interrupt vectors to use, should any be asked for.
    pub interrupt_vectors: u16,
}

impl Default for VfioUserOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            interrupt_vectors: 129,
        }
    }
}

/// An NVMe controller that another process serves, driven by this one.
///
/// Memory for it must be shareable ([`crate::mem::HeapConfig::shareable`]). Dropping it closes the
/// connection, and a server that keeps to the protocol lets go of all memory.
///
/// The server is trusted with the memory that is mapped for it: it has the arenas' files, and
/// nothing takes them back, not even the end of the connection. It can change at any time what a
/// program reads from a buffer of such an arena, also while the program holds a `&[u8]` to it.
/// Registers, doorbells, messages, descriptors and interrupts are checked: a server that breaks the
/// rules there can fail operations, and nothing else.
pub struct VfioUserDevice {
    name: String,
    connection: Arc<Connection>,
    registers: Arc<VfioUserRegisters>,
    mapper: Arc<ArenaMaps>,
    /// Only where doorbells cannot be mapped.
    bells: OnceLock<Bells>,
    vectors: VfioUserVectors,
    can_reset: bool,
    /// Held while the controller is enabled, disabled or stopped: no thread enables it while
    /// another one waits until it has stopped.
    control: Mutex<()>,
    epoch: Instant,
}

impl VfioUserDevice {
    /// Connects to the server at a socket, or at the socket `cntrl` of a directory (as SPDK names
    /// them).
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without such a socket or server, [`ErrorKind::Busy`] while it serves
    /// another client, [`ErrorKind::Unsupported`] for another protocol or a device that is not an
    /// NVMe controller, [`ErrorKind::Timeout`] and [`ErrorKind::DeviceGone`] for a server that does
    /// not answer or breaks off.
    pub fn open(socket: impl AsRef<Path>, options: &VfioUserOptions) -> Result<Arc<Self>> {
        let socket = socket.as_ref();
        let name = format!("vfio-user:{}", socket.display());
        Self::open_named(&name, socket, options).map_err(|e| e.during("open").on_device(name))
    }

    fn open_named(name: &str, socket: &Path, options: &VfioUserOptions) -> Result<Arc<Self>> {
        let path: PathBuf = if socket.is_dir() {
            socket.join("cntrl")
        } else {
            socket.to_owned()
        };
        let socket = connect_unix(&path, options.timeout).map_err(|e| cannot_connect(&path, e))?;
        let (connection, server) =
            Connection::open(socket, options.timeout).map_err(|e| busy_or(e, &path))?;
        let connection = Arc::new(connection);
        let info = device_info(&connection)?;
        if info.flags.get() & wire::DEVICE_PCI == 0 || info.regions.get() <= wire::REGION_CONFIG {
            let detail = "the server does not call this a PCI device";
            return Err(Error::new(ErrorKind::Unsupported, detail));
        }
        let registers = Arc::new(VfioUserRegisters::open(&connection)?);
        let vectors = VfioUserVectors::ask(&connection, &info, options.interrupt_vectors)?;
        connection.established(name);
        Ok(Arc::new(Self {
            name: name.to_owned(),
            mapper: Arc::new(ArenaMaps {
                connection: Arc::clone(&connection),
                most: usize::try_from(server.max_dma_maps).unwrap_or(usize::MAX),
                mapped: Mutex::default(),
            }),
            registers,
            bells: OnceLock::new(),
            vectors,
            can_reset: info.flags.get() & wire::DEVICE_RESET != 0,
            control: Mutex::default(),
            connection,
            epoch: Instant::now(),
        }))
    }

    /// Whether the device is gone, for good.
    pub fn is_gone(&self) -> bool {
        if self.registers.vanished() {
            self.connection
                .cut("the server took its doorbells' memory away");
        }
        self.connection.is_gone()
    }

    fn bells(&self) -> Result<&Bells> {
        if self.bells.get().is_none() {
            let bells = Bells::new(&self.registers)?;
            // The other thread's value serves as well.
            let _ = self.bells.set(bells);
        }
        self.bells
            .get()
            .ok_or_else(|| Error::new(ErrorKind::System, "the doorbells are not there"))
    }

    fn control(&self) -> MutexGuard<'_, ()> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Not every server's reset stops the controller (SPDK's does not), so it is also disabled, and
    /// CSTS.RDY checked.
    fn stop(&self) -> Result<()> {
        if self.is_gone() {
            return Err(cut_off());
        }
        let _control = self.control();
        self.registers.set_master(false)?;
        if self.can_reset {
            self.connection.request(&VfioUserRequest {
                command: wire::RESET,
                ..VfioUserRequest::default()
            })?;
        }
        self.disable()?;
        if let Some(bells) = self.bells.get() {
            bells.reset();
        }
        // After the reset the command register may be anything.
        self.registers.set_master(false)
    }

    /// CC.EN to 0, until CSTS.RDY follows.
    fn disable(&self) -> Result<()> {
        let read = |offset| self.registers.read32(offset).ok_or_else(cut_off);
        let cc = read(REG_CC)?;
        if cc & CC_EN != 0 {
            self.registers.write32(REG_CC, cc & !CC_EN);
        }
        let limit = Capabilities(u64::from(read(REG_CAP)?)).timeout_ms();
        let deadline = Instant::now() + Duration::from_millis(limit.clamp(500, 127_500));
        loop {
            match read(REG_CSTS)? {
                u32::MAX => return Err(cut_off()),
                csts if csts & CSTS_RDY == 0 => return Ok(()),
                _ if Instant::now() > deadline => {
                    return Err(Error::new(
                        ErrorKind::Timeout,
                        "the controller was disabled, but CSTS.RDY did not become 0",
                    ));
                }
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// Memory that the server has mapped cannot be taken from it, only from its device by the server
/// itself.
fn cut_off() -> Error {
    Error::new(
        ErrorKind::DeviceGone,
        "the connection is cut; the server may still write to shared memory",
    )
}

#[cold]
fn cannot_connect(path: &Path, error: io::Error) -> Error {
    let path_text = path.display();
    let wrapped = match error.kind() {
        io::ErrorKind::NotFound => Error::new(
            ErrorKind::NotFound,
            format!("there is no socket {path_text}: is the server running?"),
        ),
        io::ErrorKind::ConnectionRefused => Error::new(
            ErrorKind::NotFound,
            format!("no server listens at {path_text}: is the server running?"),
        ),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::new(
            ErrorKind::Busy,
            format!("the server at {path_text} takes no connection: it may serve another client"),
        ),
        _ => return Error::system(format!("cannot connect to {path_text}"), error),
    };
    wrapped.because(error)
}

/// A server with one client lets the next one connect, and does not answer it.
fn busy_or(error: Error, path: &Path) -> Error {
    match error.kind() {
        ErrorKind::Timeout => Error::new(
            ErrorKind::Busy,
            format!(
                "the server at {} does not answer: it may serve another client",
                path.display()
            ),
        )
        .because(error),
        _ => error,
    }
}

fn device_info(connection: &Connection) -> Result<wire::DeviceInfo> {
    const BYTES: usize = size_of::<wire::DeviceInfo>();
    let request = wire::DeviceInfo {
        argsz: 16.into(),
        ..wire::DeviceInfo::default()
    };
    let reply = connection.request(&VfioUserRequest {
        command: wire::GET_INFO,
        payload: &[request.as_bytes()],
        reply_bytes: BYTES..=BYTES,
        ..VfioUserRequest::default()
    })?;
    let info = wire::split::<wire::DeviceInfo>(&reply.payload).map(|(info, _)| *info);
    info.ok_or_else(|| Error::new(ErrorKind::Unsupported, "the device's description is short"))
}

impl Device for VfioUserDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn read32(&self, offset: u32) -> u32 {
        if self.is_gone() {
            return u32::MAX;
        }
        self.registers.read32(offset).unwrap_or(u32::MAX)
    }

    fn read64(&self, offset: u32) -> u64 {
        if self.is_gone() {
            return u64::MAX;
        }
        self.registers.read64(offset).unwrap_or(u64::MAX)
    }

    fn write32(&self, offset: u32, value: u32) {
        if self.is_gone() {
            return;
        }
        if offset == REG_CC {
            let _control = self.control();
            let enable = value & CC_EN != 0;
            if enable {
                // Should this fail, the controller does not come up, which the driver sees.
                let _ = self.registers.set_master(true);
            } else if let Some(bells) = self.bells.get() {
                bells.look();
            }
            self.registers.write32(offset, value);
            if let (false, Some(bells)) = (enable, self.bells.get()) {
                bells.reset();
            }
            return;
        }
        self.registers.write32(offset, value);
    }

    fn write64(&self, offset: u32, value: u64) {
        if !self.is_gone() {
            self.registers.write64(offset, value);
        }
    }

    fn doorbell(&self, offset: u32) -> Result<Doorbell> {
        let beyond = u64::from(offset) + 4 > self.registers.bar0_bytes();
        if offset < REG_DOORBELLS || beyond {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("there is no doorbell at register offset {offset:#x}"),
            )
            .on_device(self.name.as_str()));
        }
        match self.registers.doorbell(offset) {
            Some(doorbell) => Ok(doorbell),
            None => self
                .bells()
                .and_then(|bells| bells.doorbell(offset))
                .map_err(|e| e.on_device(self.name.as_str())),
        }
    }

    fn mapper(&self) -> Arc<dyn Mapper> {
        Arc::<ArenaMaps>::clone(&self.mapper)
    }

    fn stop_dma(&self) -> Result<()> {
        self.stop()
            .map_err(|e| e.during("reset").on_device(self.name.as_str()))
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    #[inline]
    fn relax(&self, silent: u32, outstanding: u32) {
        if let Some(bells) = self.bells.get()
            && bells.look()
        {
            return;
        }
        if outstanding >= SPARSE && silent < SPARSE_POLLS {
            for _ in 0..SPARSE_SPINS * outstanding.min(SPARSE_MOST) {
                std::hint::spin_loop();
            }
            return;
        }
        // On a machine with fewer processors than pollers the server must get one. But a server
        // with its own answers within microseconds, and neither a system call nor a pause is to
        // stand between.
        if silent >= RELAX_SPINS && silent.is_multiple_of(RELAX_YIELD_EVERY) {
            std::thread::yield_now();
        }
    }

    fn is_another_processor(&self) -> bool {
        true
    }

    fn is_gone(&self) -> bool {
        // The one that the type itself has.
        Self::is_gone(self)
    }

    fn interrupt_vectors(&self) -> u16 {
        self.vectors.count
    }

    fn interrupt(&self, vector: u16) -> Result<Arc<EventFd>> {
        self.vectors
            .get(&self.connection, vector)
            .map_err(|e| e.on_device(self.name.as_str()))
    }
}

impl fmt::Debug for VfioUserDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioUserDevice")
            .field("name", &self.name)
            .field("gone", &self.connection.is_gone())
            .finish_non_exhaustive()
    }
}

/// Maps arenas in the server's device: their files are handed over.
#[derive(Debug)]
struct ArenaMaps {
    connection: Arc<Connection>,
    most: usize,
    mapped: Mutex<BTreeSet<u64>>,
}

impl Mapper for ArenaMaps {
    fn map(&self, arena: &Arc<Arena>) -> Result<()> {
        let Some(file) = arena.file() else {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "this memory cannot be shared with another process: make the heap with \
                 `HeapConfig::shareable`",
            ));
        };
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        if mapped.len() >= self.most {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!("the server keeps no more than {} mappings", self.most),
            ));
        }
        let request = wire::DmaMap {
            argsz: 32.into(),
            flags: wire::DMA_READ_WRITE.into(),
            offset_bytes: 0.into(),
            address: arena.iova().0.into(),
            len_bytes: (arena.len_bytes() as u64).into(),
        };
        self.connection.request(&VfioUserRequest {
            command: wire::DMA_MAP,
            payload: &[request.as_bytes()],
            fds: &[file.as_fd()],
            // Some servers answer with the request.
            reply_bytes: 0..=request.as_bytes().len(),
            ..VfioUserRequest::default()
        })?;
        mapped.insert(arena.iova().0);
        Ok(())
    }

    fn unmap(&self, arena: &Arc<Arena>) -> Result<()> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        if !mapped.contains(&arena.iova().0) {
            return Ok(());
        }
        if self.connection.is_gone() {
            return Err(cut_off());
        }
        let request = wire::DmaUnmap {
            argsz: 24.into(),
            flags: 0.into(),
            address: arena.iova().0.into(),
            len_bytes: (arena.len_bytes() as u64).into(),
        };
        self.connection.request(&VfioUserRequest {
            command: wire::DMA_UNMAP,
            payload: &[request.as_bytes()],
            reply_bytes: 0..=request.as_bytes().len(),
            ..VfioUserRequest::default()
        })?;
        mapped.remove(&arena.iova().0);
        Ok(())
    }
}

/// The MSI-X vectors: connected one by one, as they are asked for.
#[derive(Debug)]
struct VfioUserVectors {
    count: u16,
    events: Mutex<Vec<Option<Arc<EventFd>>>>,
}

impl VfioUserVectors {
    fn ask(connection: &Connection, info: &wire::DeviceInfo, most: u16) -> Result<Self> {
        let mut count = 0;
        if info.irqs.get() > wire::IRQ_MSIX {
            const BYTES: usize = size_of::<wire::IrqInfo>();
            let request = wire::IrqInfo {
                argsz: 16.into(),
                index: wire::IRQ_MSIX.into(),
                ..wire::IrqInfo::default()
            };
            let reply = connection.request(&VfioUserRequest {
                command: wire::GET_IRQ_INFO,
                payload: &[request.as_bytes()],
                reply_bytes: BYTES..=BYTES,
                ..VfioUserRequest::default()
            })?;
            let said = wire::split::<wire::IrqInfo>(&reply.payload);
            if let Some((said, _)) = said
                && said.flags.get() & wire::IRQ_EVENTFD != 0
            {
                count = u16::try_from(said.count.get())
                    .unwrap_or(u16::MAX)
                    .min(most);
            }
        }
        Ok(Self {
            count,
            events: Mutex::new(vec![None; usize::from(count)]),
        })
    }

    fn get(&self, connection: &Connection, vector: u16) -> Result<Arc<EventFd>> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = events.get_mut(usize::from(vector)) else {
            let count = self.count;
            return Err(if count == 0 {
                Error::new(
                    ErrorKind::Unsupported,
                    "this device has no interrupts; it can only be polled",
                )
            } else {
                let detail = format!("there is no interrupt vector {vector}: there are {count}");
                Error::new(ErrorKind::InvalidInput, detail)
            });
        };
        if let Some(event) = slot {
            return Ok(Arc::clone(event));
        }
        // The server holds it, too, and may do to it what it likes.
        let event = EventFd::shared().map_err(|e| Error::system("cannot make an eventfd", e))?;
        let request = wire::IrqSet {
            argsz: 20.into(),
            flags: (wire::IRQ_DATA_EVENTFD | wire::IRQ_ACTION_TRIGGER).into(),
            index: wire::IRQ_MSIX.into(),
            start: u32::from(vector).into(),
            count: 1.into(),
        };
        connection.request(&VfioUserRequest {
            command: wire::SET_IRQS,
            payload: &[request.as_bytes()],
            fds: &[event.as_fd()],
            reply_bytes: 0..=request.as_bytes().len(),
            ..VfioUserRequest::default()
        })?;
        Ok(Arc::clone(slot.insert(Arc::new(event))))
    }
}
