//! Memory that SPDK reaches: our arenas, registered with it, or arenas out of its own memory.
//!
//! SPDK names memory by host addresses, chains by device addresses: [`Windows`] leads from one to
//! the other.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spdk_sys as ffi;

use super::env::{SpdkEnvironment, attaching};
use super::transport::Transport;
use crate::error::{Error, ErrorKind, Result};
use crate::mem::{Arena, ArenaSource, Mapper, Segment};
use crate::sys::{HUGE_PAGE_BYTES, PageKind, Pages};

/// How often each arena was registered with SPDK, by its address: SPDK takes each once in a
/// process.
static REGISTERED: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The arenas that a controller may use.
pub(super) struct SpdkArenas {
    /// SPDK itself must know them: for transports that reach memory without the processor.
    register: bool,
    mapped: Mutex<Vec<Arc<Arena>>>,
    /// Changes with every change of `mapped`.
    version: AtomicU64,
}

impl SpdkArenas {
    pub(super) fn new(transport: Transport) -> Self {
        Self {
            // TCP copies out of any memory; vfio-user gets arenas of SPDK's own.
            register: matches!(transport, Transport::Pcie | Transport::Rdma),
            mapped: Mutex::default(),
            version: AtomicU64::new(1),
        }
    }
}

impl Mapper for SpdkArenas {
    fn map(&self, arena: &Arc<Arena>) -> Result<()> {
        if self.register {
            register(arena)?;
        }
        lock(&self.mapped).push(Arc::clone(arena));
        self.version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn unmap(&self, arena: &Arc<Arena>) -> Result<()> {
        let mut mapped = lock(&self.mapped);
        let Some(at) = mapped.iter().position(|known| Arc::ptr_eq(known, arena)) else {
            return Ok(());
        };
        mapped.swap_remove(at);
        self.version.fetch_add(1, Ordering::Release);
        drop(mapped);
        match self.register {
            true => unregister(arena),
            false => Ok(()),
        }
    }
}

fn refused(what: &str, rc: i32) -> Error {
    let source = std::io::Error::from_raw_os_error(-rc);
    Error::system(format!("SPDK does not {what} DMA memory"), source)
}

fn register(arena: &Arena) -> Result<()> {
    let mut registered = lock(&REGISTERED);
    let uses = registered.entry(arena.base().as_ptr().addr()).or_insert(0);
    if *uses == 0 {
        let base = arena.base().as_ptr().cast::<c_void>();
        // SAFETY: an arena is one mapping, in whole hugepages by address and length, and stays
        // mapped until `unregister`: the caller keeps it.
        let rc = unsafe { ffi::spdk_mem_register(base, arena.len_bytes()) };
        if rc != 0 {
            return Err(refused("register", rc));
        }
    }
    *uses += 1;
    Ok(())
}

fn unregister(arena: &Arena) -> Result<()> {
    let mut registered = lock(&REGISTERED);
    let address = arena.base().as_ptr().addr();
    match registered.get_mut(&address) {
        None | Some(0) => {}
        Some(uses @ 2..) => *uses -= 1,
        Some(_) => {
            registered.remove(&address);
            let base = arena.base().as_ptr().cast::<c_void>();
            // SAFETY: the very range that was registered.
            let rc = unsafe { ffi::spdk_mem_unregister(base, arena.len_bytes()) };
            if rc != 0 {
                return Err(refused("release", rc));
            }
        }
    }
    Ok(())
}

/// One arena: device addresses, and where they are in this process.
#[derive(Debug, Clone, Copy)]
struct ArenaWindow {
    iova: u64,
    len_bytes: u64,
    base: NonNull<u8>,
}

/// A queue's copy of the arenas, so that it looks addresses up without a lock.
pub(super) struct Windows {
    arenas: Arc<SpdkArenas>,
    version: u64,
    windows: Vec<ArenaWindow>,
    /// Where the last address was found.
    last: usize,
}

// SAFETY: the addresses are only returned, as numbers; their users prove that the memory is lent.
unsafe impl Send for Windows {}

impl Windows {
    pub(super) fn new(arenas: &Arc<SpdkArenas>) -> Self {
        Self {
            arenas: Arc::clone(arenas),
            version: 0,
            windows: Vec::with_capacity(16),
            last: 0,
        }
    }

    /// The host address of a segment, if all of it is in one arena of the controller.
    #[inline]
    pub(super) fn find(&mut self, segment: &Segment) -> Option<NonNull<u8>> {
        if self.arenas.version.load(Ordering::Acquire) != self.version {
            self.reload();
        }
        let window = self.windows.get(self.last)?;
        match within(window, segment) {
            Some(found) => Some(found),
            None => self.search(segment),
        }
    }

    #[cold]
    fn search(&mut self, segment: &Segment) -> Option<NonNull<u8>> {
        let mut windows = self.windows.iter().enumerate();
        let (at, found) =
            windows.find_map(|(at, window)| within(window, segment).map(|found| (at, found)))?;
        self.last = at;
        Some(found)
    }

    /// An arena was added or removed, which is rare: this locks, and may allocate.
    #[cold]
    fn reload(&mut self) {
        let mapped = lock(&self.arenas.mapped);
        self.version = self.arenas.version.load(Ordering::Acquire);
        self.last = 0;
        self.windows.clear();
        self.windows.extend(mapped.iter().map(|arena| ArenaWindow {
            iova: arena.iova().0,
            len_bytes: arena.len_bytes() as u64,
            base: arena.base(),
        }));
    }
}

#[inline]
fn within(window: &ArenaWindow, segment: &Segment) -> Option<NonNull<u8>> {
    let offset = segment.iova().0.checked_sub(window.iova)?;
    let end = offset.checked_add(u64::from(segment.len_bytes()))?;
    if end > window.len_bytes {
        return None;
    }
    // SAFETY: offset lies within the arena's one mapping, just checked (it fits usize: so does the
    // arena).
    Some(unsafe { window.base.add(usize::try_from(offset).ok()?) })
}

/// Arenas out of SPDK's memory, which it can hand to another process.
pub(super) struct SpdkMemory(pub(super) &'static SpdkEnvironment);

/// A piece of SPDK's memory.
struct SpdkAllocation(NonNull<u8>);

// SAFETY: it only owns the memory; SPDK's allocator may be called from any thread.
unsafe impl Send for SpdkAllocation {}
// SAFETY: as above; there is nothing to do with a shared one.
unsafe impl Sync for SpdkAllocation {}

impl Drop for SpdkAllocation {
    fn drop(&mut self) {
        // It may be taken out of reach of a controller on a socket.
        let _one_at_a_time = attaching();
        // SAFETY: allocated by spdk_zmalloc, and given back once.
        unsafe { ffi::spdk_free(self.0.as_ptr().cast()) };
    }
}

impl ArenaSource for SpdkMemory {
    fn arena(&self, len_bytes: usize) -> Result<Arena> {
        const ANY_NODE: i32 = -1;
        const DMA: u32 = 1;
        let len_bytes = len_bytes.max(1).next_multiple_of(HUGE_PAGE_BYTES);
        // It may be brought into reach of a controller on a socket.
        let one_at_a_time = attaching();
        // SAFETY: the environment is started (there is a reference to it); the third argument must
        // be null.
        let base = unsafe {
            ffi::spdk_zmalloc(
                len_bytes,
                HUGE_PAGE_BYTES,
                std::ptr::null_mut(),
                ANY_NODE,
                DMA,
            )
        };
        drop(one_at_a_time);
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| {
            Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "SPDK has no {len_bytes} bytes left: give it more with XTENT_SPDK=mem=MIB, or reserve hugepages"
                ),
            )
        })?;
        let kind = match self.0.huge() {
            true => PageKind::Huge,
            false => PageKind::Pageable,
        };
        // SAFETY: zeroed memory of that length and alignment, ours alone until the piece gives it
        // back.
        let pages = unsafe { Pages::lent(base, len_bytes, kind, Box::new(SpdkAllocation(base))) };
        Arena::of(pages)
    }
}
