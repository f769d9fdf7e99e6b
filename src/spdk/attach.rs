//! Attaching a controller, with a deadline.

use std::ffi::{CString, c_char};
use std::ptr;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use spdk_sys as ffi;

use super::env::{attaching, forget_words, words};
use super::transport::{DISCOVERY_NQN, Transport, TransportId};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::{SocketPeer, spawn_thread};

/// How a controller is attached.
#[derive(Debug, Clone)]
pub(super) struct AttachHost {
    pub(super) id: TransportId,
    pub(super) hostnqn: String,
    pub(super) keep_alive: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) admin_timeout: Duration,
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::new(ErrorKind::InvalidInput, "a name holds a NUL"))
}

/// A name for this host that no other has.
pub(super) fn new_hostnqn() -> Result<String> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map_err(|e| Error::system("cannot make a name for this host", e))?;
    Ok(format!("nqn.2014-08.org.nvmexpress:uuid:{}", uuid.trim()))
}

fn trid(id: &TransportId) -> Result<ffi::spdk_nvme_transport_id> {
    let mut trid = ffi::spdk_nvme_transport_id::default();
    let mut text = id.to_string();
    if id.transport == Transport::VfioUser && id.subnqn.is_none() {
        // SPDK takes a controller without a name for something else and shows no namespaces of it;
        // no controller checks it on this transport.
        text.push_str(" subnqn=nqn.2019-07.io.spdk:vfio-user");
    }
    let text = c_string(&text)?;
    // SAFETY: both live through the call; the text is only read.
    let rc = unsafe { ffi::spdk_nvme_transport_id_parse(&raw mut trid, text.as_ptr()) };
    match rc {
        0 => Ok(trid),
        _ => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("SPDK does not understand `{id}`{}", words()),
        )),
    }
}

/// A controller that SPDK has attached, named by its address.
#[derive(Debug)]
pub(super) struct Attached(pub(super) *mut ffi::spdk_nvme_ctrlr);

// SAFETY: SPDK's controllers may be used from any thread.
unsafe impl Send for Attached {}

/// An attach that has begun.
struct Pending(*mut ffi::xtent_spdk_attach);

// SAFETY: only its address moves, to the one thread that continues to poll it.
unsafe impl Send for Pending {}

impl Pending {
    /// `None` while attaching is in progress; it must not be polled again after any other result.
    fn poll(&self) -> Option<Result<Attached, i32>> {
        let mut ctrlr = ptr::null_mut();
        let _one_at_a_time = attaching();
        // SAFETY: made by attach_start, and not yet ended.
        match unsafe { ffi::xtent_spdk_attach_poll(self.0, &raw mut ctrlr) } {
            rc if rc == -libc::EAGAIN => None,
            0 => Some(Ok(Attached(ctrlr))),
            rc => Some(Err(rc)),
        }
    }
}

/// Attaches the controller, or says why not; not much later than the deadline.
pub(super) fn attach(host: &AttachHost, patience: Duration) -> Result<Attached> {
    let id = &host.id;
    check_reach(id)?;
    forget_words();
    let trid = trid(id)?;
    let hostnqn = c_string(&host.hostnqn)?;
    let hostaddr = id.hostaddr.as_deref().map(c_string).transpose()?;
    let text = |text: &Option<CString>| text.as_ref().map_or(ptr::null::<c_char>(), |t| t.as_ptr());
    let options = ffi::xtent_spdk_host {
        hostnqn: hostnqn.as_ptr(),
        hostaddr: text(&hostaddr),
        keep_alive_ms: millis(host.keep_alive),
        admin_timeout_ms: millis(host.admin_timeout),
        connect_timeout_ms: millis(host.connect_timeout),
        queue_entries: 1024,
        io_queues: 256,
    };
    let start = Instant::now();
    let _patience = AttachTimeout::new(id, patience);
    let pending = {
        let _one_at_a_time = attaching();
        // SAFETY: both structures and their strings live through the call, which copies them.
        Pending(unsafe { ffi::xtent_spdk_attach_start(&raw const trid, &raw const options) })
    };
    if pending.0.is_null() {
        return Err(failed(id, "SPDK cannot reach the controller"));
    }
    loop {
        match pending.poll() {
            Some(Ok(attached)) => return Ok(attached),
            Some(Err(_)) => return Err(failed(id, "the controller does not come up")),
            None if start.elapsed() > patience => break,
            None => thread::sleep(Duration::from_micros(100)),
        }
    }
    abandon(pending);
    let error = failed(id, "the controller did not answer in time");
    Err(error)
}

/// Polls an attach to its end, and gives up what comes of it: SPDK cannot be told to stop.
fn abandon(pending: Pending) {
    // Without a thread it stays as it is, which costs its memory.
    let _ = spawn_thread("spdk-abandoned", move || {
        let pending = pending;
        loop {
            match pending.poll() {
                None => thread::sleep(Duration::from_millis(10)),
                Some(Ok(attached)) => return detach(attached),
                Some(Err(_)) => return,
            }
        }
    });
}

/// Detaches a controller. It and its queue pairs must not be used afterwards.
pub(super) fn detach(attached: Attached) {
    let _one_at_a_time = attaching();
    // SAFETY: attached, and given up once: the value is consumed.
    unsafe { ffi::spdk_nvme_detach(attached.0) };
}

#[cold]
fn failed(id: &TransportId, what: &str) -> Error {
    let hint = match id.transport {
        Transport::Tcp | Transport::Rdma if id.subnqn.as_deref() != Some(DISCOVERY_NQN) => {
            format!(
                "; `xtent list 'spdk:{}'` shows what a target that is there offers",
                short(id)
            )
        }
        Transport::Pcie => "; the device must belong to vfio-pci (vfio-setup.sh status)".to_owned(),
        Transport::Tcp | Transport::Rdma | Transport::VfioUser => String::new(),
    };
    Error::new(ErrorKind::DeviceGone, format!("{what}{}{hint}", words()))
}

/// How long SPDK waits for an answer on a controller's socket.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The process that serves a controller on a socket, and SPDK's connection to it, which from now on
/// waits for [`ANSWER_LIMIT`] at most. `None` for other controllers, or when it is not found.
pub(super) fn peer_of(id: &TransportId) -> Option<SocketPeer> {
    let peer = SocketPeer::find(&id.transport.socket(&id.address)?)?;
    peer.set_timeout(ANSWER_LIMIT).ok()?;
    Some(peer)
}

/// Closes the connection if it is not dropped in time: SPDK itself waits forever for a socket's
/// server.
struct AttachTimeout {
    _dropped: Option<mpsc::Sender<()>>,
}

impl AttachTimeout {
    fn new(id: &TransportId, patience: Duration) -> Self {
        let Some(path) = id.transport.socket(&id.address) else {
            return Self { _dropped: None };
        };
        let (sender, ended) = mpsc::channel();
        // Without a thread no attach is cut short.
        let _ = spawn_thread("spdk-patience", move || {
            if ended.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout)
                && let Some(peer) = SocketPeer::find(&path)
            {
                peer.hang_up();
            }
        });
        Self {
            _dropped: Some(sender),
        }
    }
}

fn short(id: &TransportId) -> String {
    format!(
        "trtype={} traddr={} trsvcid={}",
        id.transport.name(),
        id.address,
        id.service
    )
}

/// Checks for failures that SPDK reports only after a long wait or in an unclear message.
fn check_reach(id: &TransportId) -> Result<()> {
    if let Some(socket) = id.transport.socket(&id.address)
        && !socket.exists()
    {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("there is no socket {}", socket.display()),
        ));
    }
    let name = c_string(&id.transport.name().to_ascii_uppercase())?;
    // SAFETY: a string that lives through the call, which only reads it.
    if !unsafe { ffi::spdk_nvme_transport_available_by_name(name.as_ptr()) } {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the SPDK that xtent was built with has no {} (its ./configure has --with-rdma and \
                 --with-vfio-user)",
                id.transport.name()
            ),
        ));
    }
    Ok(())
}
