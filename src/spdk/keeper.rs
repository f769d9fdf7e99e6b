//! A controller's keeper: the thread that polls the admin queue, resets, reconnects, and gives up.
//!
//! A thread of its own, because keep-alive must go on while the program computes, and because
//! SPDK's resets block. It sleeps between polls; queues never wait for it.

use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use spdk_sys as ffi;

use super::attach::{Attached, attach, detach, peer_of};
use super::core::Core;
use super::describe::same_namespace;
use super::env::{attaching, forget_words, has_complained};
use super::shared::{GONE, SpdkShared, lock};
use super::transport::Transport;
use crate::sys::{SocketPeer, heavy_barrier};

/// Between two looks at the admin queue.
const TICK: Duration = Duration::from_millis(10);
/// Between attempts to bring a controller back, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Between two steps of an attempt.
const STEP: Duration = Duration::from_micros(200);

/// How long a server may take to answer what it was asked before.
const LEFT_OVER: Duration = Duration::from_millis(20);
/// How long a process that hung up may take to end.
const LAST_BREATH: Duration = Duration::from_secs(2);

/// The keeper's thread: until the controller is dropped.
pub(super) fn run(shared: &Arc<SpdkShared>) {
    while !shared.stopping() {
        shared.sleep(TICK, true);
        if shared.stopping() {
            break;
        }
        if shared.generation.load(Ordering::Acquire) == GONE {
            shared.sleep(Duration::from_secs(3600), false);
            continue;
        }
        forget_words();
        let ctrlr = shared.ctrlr.load(Ordering::Acquire);
        // SAFETY: attached until this thread detaches it.
        let rc = unsafe { ffi::spdk_nvme_ctrlr_process_admin_completions(ctrlr) };
        if rc < 0 || shared.reset_is_wanted() || peer_has_ended(shared) {
            reset(shared);
        }
    }
    let cores = lock(&shared.cores);
    for core in cores.iter() {
        free(core);
    }
    let ctrlr = shared.ctrlr.swap(ptr::null_mut(), Ordering::AcqRel);
    if !ctrlr.is_null() {
        lock(&shared.peer).take();
        detach(Attached(ctrlr));
    }
}

/// Takes the core's queue pair away. SPDK ends what it has of the core's: to be sent again. The
/// caller has the lock of the cores, and the owner is kept out by the generation. False when SPDK
/// did not end all of it.
fn free(core: &Arc<Core>) -> bool {
    // First what may take a while: the owner waits for the core's lock.
    let _one_at_a_time = attaching();
    let _guard = lock(&core.lock);
    // SAFETY: see above.
    let ended = unsafe { release(core) };
    core.rewind();
    ended
}

/// Gives the core's queue pair back. False when SPDK did not end all commands of it.
///
/// # Safety
/// No other code uses the core or its queue pair, which is one of an attached controller; and the
/// caller is the thread that is [`attaching`].
pub(super) unsafe fn release(core: &Arc<Core>) -> bool {
    let qpair = core.qpair.replace(ptr::null_mut());
    core.ns.set(ptr::null_mut());
    if !qpair.is_null() {
        // SAFETY: by the caller. The callbacks find their commands in the core, which the caller
        // has.
        unsafe { ffi::spdk_nvme_ctrlr_free_io_qpair(qpair) };
    }
    let ended = core.in_flight.get() == 0;
    if !ended {
        // SPDK may still come back to what it has.
        std::mem::forget(Arc::clone(core));
    }
    ended
}

/// Forgets the cores whose owners are gone, with what they left.
pub(super) fn forget_dropped(cores: &mut Vec<Arc<Core>>) {
    cores.retain(|core| {
        let owned = core.owned.load(Ordering::Acquire);
        if !owned {
            free(core);
        }
        owned
    });
}

fn peer_has_ended(shared: &SpdkShared) -> bool {
    let peer = lock(&shared.peer);
    peer.as_ref().is_some_and(SocketPeer::has_ended)
}

/// What came of an attempt to bring a controller back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Up,
    Down,
    /// It came up, and grants no queues or shows another namespace: so it may go on for ever when
    /// it is only reset, as SPDK's own target does after a reset that its disk was too slow for.
    Useless,
    /// It may still write to memory that it was lent.
    Unfenced,
}

/// Brings the controller down and up again, as often as it takes, or gives it up.
fn reset(shared: &Arc<SpdkShared>) {
    let mut cores = lock(&shared.cores);
    let before = shared.generation.load(Ordering::Acquire);
    shared.generation.store(before | 1, Ordering::Relaxed);
    heavy_barrier();
    for core in cores.iter() {
        core.gate.wait_outside();
    }
    shared.resets.fetch_add(1, Ordering::Relaxed);
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut anew = false;
    loop {
        match bring_up(shared, &cores, anew) {
            Attempt::Up => {
                forget_dropped(&mut cores);
                shared.generation.store((before | 1) + 1, Ordering::Release);
                return;
            }
            Attempt::Unfenced => {
                keep(shared, &cores);
                break;
            }
            Attempt::Down => anew = false,
            Attempt::Useless => anew = !shared.host.id.transport.is_fabrics(),
        }
        if shared.stopping() || start.elapsed() >= shared.options.loss_timeout {
            give_up(shared, &cores);
            break;
        }
        shared.sleep(pause, false);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    for core in cores.iter() {
        let _guard = lock(&core.lock);
        core.end_all();
    }
    shared.generation.store(GONE, Ordering::Release);
}

/// Nothing of the device's is left: not a queue pair, and not its access to memory.
fn give_up(shared: &SpdkShared, cores: &[Arc<Core>]) {
    for core in cores {
        free(core);
    }
    detach_failed(shared);
}

fn detach_failed(shared: &SpdkShared) {
    lock(&shared.peer).take();
    let ctrlr = shared.ctrlr.swap(ptr::null_mut(), Ordering::AcqRel);
    if !ctrlr.is_null() {
        // SAFETY: attached; marked as failed so that detaching does not wait for it.
        unsafe { ffi::spdk_nvme_ctrlr_fail(ctrlr) };
        detach(Attached(ctrlr));
    }
}

/// The device could not be cut off from memory. What SPDK has of it, rings and lists, is memory
/// that the device may touch as well: so it is neither freed nor used, to the end of the process.
fn keep(shared: &Arc<SpdkShared>, cores: &[Arc<Core>]) {
    shared.kept.store(true, Ordering::Release);
    std::mem::forget(Arc::clone(shared));
    if let Some(peer) = &*lock(&shared.peer) {
        // A server that still lives may want to know.
        peer.hang_up();
    }
    shared.ctrlr.store(ptr::null_mut(), Ordering::Release);
    for core in cores {
        let _guard = lock(&core.lock);
        core.qpair.set(ptr::null_mut());
        std::mem::forget(Arc::clone(core));
    }
}

/// One attempt: controller, namespace, queue pairs. `anew`: not by a reset.
fn bring_up(shared: &SpdkShared, cores: &[Arc<Core>], anew: bool) -> Attempt {
    forget_words();
    let ctrlr = shared.ctrlr.load(Ordering::Acquire);
    let mut up = false;
    if !ctrlr.is_null() {
        // First the controller: SPDK's report that a command has ended when its queue pair is freed
        // holds only if the device no longer has the command. An unread answer in the socket is one
        // that came too late.
        let stale = lock(&shared.peer)
            .as_ref()
            .is_some_and(SocketPeer::has_unread);
        let down = disconnect(shared, ctrlr);
        let in_flight = |core: &Arc<Core>| {
            let _guard = lock(&core.lock);
            core.in_flight.get() > 0
        };
        if cores.iter().any(in_flight) && !is_fenced(shared, ctrlr, stale) {
            return Attempt::Unfenced;
        }
        if cores.iter().filter(|core| !free(core)).count() > 0 {
            return Attempt::Unfenced;
        }
        up = down && !anew && reconnect(shared, ctrlr);
    }
    if !up && (shared.host.id.transport.is_fabrics() || !attach_anew(shared)) {
        return Attempt::Down;
    }
    let ctrlr = shared.ctrlr.load(Ordering::Acquire);
    if !same_namespace(&shared.info, ctrlr) {
        return Attempt::Useless;
    }
    let equipped = cores
        .iter()
        .filter(|core| core.owned.load(Ordering::Acquire))
        .all(|core| shared.equip(core).is_ok());
    match equipped {
        true => Attempt::Up,
        false => Attempt::Useless,
    }
}

/// Whether the controller that was disconnected does not reach this process's memory any more.
/// `stale`: what it says on its socket is not to be trusted.
fn is_fenced(shared: &SpdkShared, ctrlr: *mut ffi::spdk_nvme_ctrlr, stale: bool) -> bool {
    let disabled = || {
        let _one_at_a_time = attaching();
        // SAFETY: attached; no other code uses it: the owners are outside their gates.
        unsafe { ffi::xtent_spdk_is_disabled(ctrlr) }
    };
    let id = &shared.host.id;
    match id.transport {
        // By TCP it is SPDK that moves the bytes, and by RDMA the queue pair of this host; both end
        // with the connection, which this host closes.
        Transport::Tcp | Transport::Rdma => true,
        Transport::Pcie => {
            disabled() || !Path::new(&format!("/sys/bus/pci/devices/{}", id.address)).exists()
        }
        Transport::VfioUser => {
            let peer = lock(&shared.peer);
            let Some(peer) = &*peer else {
                return disabled();
            };
            // Once an answer was missed, which SPDK says, each may be that to another question:
            // then one is left over.
            if !stale && !has_complained() && disabled() && !has_complained() {
                thread::sleep(LEFT_OVER);
                if !peer.has_unread() {
                    return true;
                }
            }
            // Killed, it hangs up before it has ended.
            let start = Instant::now();
            while !peer.has_ended() && start.elapsed() < LAST_BREATH {
                thread::sleep(STEP);
            }
            peer.has_ended()
        }
    }
}

/// Disables the controller (PCI), or hangs up (fabrics). False when it does not hear of that.
fn disconnect(shared: &SpdkShared, ctrlr: *mut ffi::spdk_nvme_ctrlr) -> bool {
    let one_at_a_time = attaching();
    // SAFETY: attached; no other code uses it: the owners are outside their gates.
    let rc = unsafe { ffi::spdk_nvme_ctrlr_disconnect(ctrlr) };
    drop(one_at_a_time);
    if rc != 0 {
        // Busy: SPDK has begun by itself, and continues below.
        return rc == -libc::EBUSY;
    }
    let start = Instant::now();
    loop {
        let one_at_a_time = attaching();
        // SAFETY: as above. It says ENXIO once the admin queue is down.
        let rc = unsafe { ffi::spdk_nvme_ctrlr_process_admin_completions(ctrlr) };
        drop(one_at_a_time);
        if rc < 0 {
            return rc == -libc::ENXIO;
        }
        if start.elapsed() > shared.options.connect_timeout || shared.stopping() {
            return false;
        }
        thread::sleep(STEP);
    }
}

/// Enables or connects the controller that was disconnected.
fn reconnect(shared: &SpdkShared, ctrlr: *mut ffi::spdk_nvme_ctrlr) -> bool {
    let start = Instant::now();
    let mut failed = false;
    // SAFETY: attached and disconnected. From here to the end of the polling this thread has SPDK's
    // lock of it.
    unsafe { ffi::spdk_nvme_ctrlr_reconnect_async(ctrlr) };
    loop {
        let one_at_a_time = attaching();
        // SAFETY: as above, by the same thread.
        let rc = unsafe { ffi::spdk_nvme_ctrlr_reconnect_poll_async(ctrlr) };
        drop(one_at_a_time);
        if rc != -libc::EAGAIN {
            return rc == 0;
        }
        let late = start.elapsed() > shared.options.connect_timeout || shared.stopping();
        if late && !failed {
            // SAFETY: as above. The next poll then ends, and gives SPDK's lock back.
            unsafe { ffi::spdk_nvme_ctrlr_fail(ctrlr) };
            failed = true;
        }
        thread::sleep(STEP);
    }
}

/// Detaches the controller and attaches it anew: the last resort when a reset does not help, and
/// the only way to reach one whose serving process was restarted. The cores have no queue pairs.
fn attach_anew(shared: &SpdkShared) -> bool {
    detach_failed(shared);
    match attach(&shared.host, shared.options.connect_timeout) {
        Ok(attached) => {
            *lock(&shared.peer) = peer_of(&shared.host.id);
            shared.ctrlr.store(attached.0, Ordering::Release);
            true
        }
        Err(_) => false,
    }
}
