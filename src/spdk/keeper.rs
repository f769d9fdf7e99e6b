//! A controller's keeper: the thread that polls the admin queue, resets, reconnects, and gives up.
//!
//! A thread of its own, because keep-alive must go on while the program computes, and because SPDK's resets
//! block. It sleeps between polls; queues never wait for it.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use spdk_sys as ffi;

use super::attach::{Attached, attach, detach};
use super::controller::{GONE, Shared, lock, same_namespace};
use super::core::{ABANDONED, Core, OWNED};
use super::env::forget_words;
use crate::block::Status;
use crate::sys::heavy_barrier;

/// Between two looks at the admin queue.
const TICK: Duration = Duration::from_millis(10);
/// Between attempts to bring a controller back, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Between two steps of an attempt.
const STEP: Duration = Duration::from_micros(200);

/// The keeper's thread: until the controller is dropped.
pub(super) fn run(shared: &Shared) {
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
        if rc < 0 || shared.reset_is_wanted() {
            reset(shared);
        }
    }
    let cores = lock(&shared.cores);
    for core in cores.iter() {
        free(core);
    }
    let ctrlr = shared.ctrlr.swap(ptr::null_mut(), Ordering::AcqRel);
    if !ctrlr.is_null() {
        detach(Attached(ctrlr));
    }
}

/// Takes the core's queue pair away. SPDK ends what it has of the core's: to be sent again. The caller has the
/// lock of the cores, and the owner is kept out by the generation.
fn free(core: &Core) {
    let _guard = lock(&core.lock);
    let qpair = core.qpair.replace(ptr::null_mut());
    core.ns.set(ptr::null_mut());
    if !qpair.is_null() {
        // SAFETY: a queue pair of the attached controller, used by nobody else: see above. The callbacks find
        // their commands in the core, which the caller keeps.
        unsafe { ffi::spdk_nvme_ctrlr_free_io_qpair(qpair) };
    }
    core.rewind();
}

/// Forgets the cores whose owners are gone, with what they left.
pub(super) fn forget_dropped(cores: &mut Vec<Arc<Core>>) {
    cores.retain(|core| match core.owner.load(Ordering::Acquire) {
        OWNED => true,
        left => {
            if left == ABANDONED {
                free(core);
            }
            false
        }
    });
}

/// Brings the controller down and up again, as often as it takes, or gives it up.
fn reset(shared: &Shared) {
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
    loop {
        if bring_up(shared, &cores) {
            forget_dropped(&mut cores);
            shared.generation.store((before | 1) + 1, Ordering::Release);
            return;
        }
        if shared.stopping() || start.elapsed() >= shared.options.loss_timeout {
            break;
        }
        shared.sleep(pause, false);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    give_up(shared, &cores);
}

/// Nothing of the device's is left: not a queue pair, and not its access to memory.
fn give_up(shared: &Shared, cores: &[Arc<Core>]) {
    for core in cores {
        free(core);
    }
    let ctrlr = shared.ctrlr.swap(ptr::null_mut(), Ordering::AcqRel);
    if !ctrlr.is_null() {
        // SAFETY: attached; marked as failed so that detaching does not wait for it.
        unsafe { ffi::spdk_nvme_ctrlr_fail(ctrlr) };
        detach(Attached(ctrlr));
    }
    for core in cores {
        let _guard = lock(&core.lock);
        core.end_all(Status::Gone);
    }
    shared.generation.store(GONE, Ordering::Release);
}

/// One attempt: controller, namespace, queue pairs.
fn bring_up(shared: &Shared, cores: &[Arc<Core>]) -> bool {
    forget_words();
    let ctrlr = shared.ctrlr.load(Ordering::Acquire);
    let up = !ctrlr.is_null() && {
        // First the controller: a disabled one has forgotten its queues and touches no memory.
        let down = disconnect(shared, ctrlr);
        for core in cores {
            free(core);
        }
        down && reconnect(shared, ctrlr)
    };
    if !up && !shared.host.id.transport.is_fabrics() && !attach_anew(shared, cores) {
        return false;
    }
    if !up && shared.host.id.transport.is_fabrics() {
        return false;
    }
    let ctrlr = shared.ctrlr.load(Ordering::Acquire);
    if !same_namespace(&shared.info, ctrlr) {
        return false;
    }
    cores
        .iter()
        .filter(|core| core.owner.load(Ordering::Acquire) == OWNED)
        .all(|core| {
            let _guard = lock(&core.lock);
            shared.equip(core).is_ok()
        })
}

/// Disables the controller (PCI), or hangs up (fabrics). False when it does not hear of that.
fn disconnect(shared: &Shared, ctrlr: *mut ffi::spdk_nvme_ctrlr) -> bool {
    // SAFETY: attached; nobody else uses it: the owners are kept out.
    let rc = unsafe { ffi::spdk_nvme_ctrlr_disconnect(ctrlr) };
    if rc != 0 {
        // Busy: SPDK has begun itself, and goes on below.
        return rc == -libc::EBUSY;
    }
    let start = Instant::now();
    loop {
        // SAFETY: as above. It says ENXIO once the admin queue is down.
        let rc = unsafe { ffi::spdk_nvme_ctrlr_process_admin_completions(ctrlr) };
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
fn reconnect(shared: &Shared, ctrlr: *mut ffi::spdk_nvme_ctrlr) -> bool {
    let start = Instant::now();
    let mut failed = false;
    // SAFETY: attached and disconnected. From here to the end of the polling this thread has SPDK's lock of it.
    unsafe { ffi::spdk_nvme_ctrlr_reconnect_async(ctrlr) };
    loop {
        // SAFETY: as above, by the same thread.
        let rc = unsafe { ffi::spdk_nvme_ctrlr_reconnect_poll_async(ctrlr) };
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

/// Gives the controller up and attaches it anew: what is left when a reset does not help, and the only way back
/// to one that another process serves and that was started again.
fn attach_anew(shared: &Shared, cores: &[Arc<Core>]) -> bool {
    for core in cores {
        free(core);
    }
    let ctrlr = shared.ctrlr.swap(ptr::null_mut(), Ordering::AcqRel);
    if !ctrlr.is_null() {
        // SAFETY: attached; marked as failed so that detaching does not wait for it.
        unsafe { ffi::spdk_nvme_ctrlr_fail(ctrlr) };
        detach(Attached(ctrlr));
    }
    match attach(&shared.host, shared.options.connect_timeout) {
        Ok(attached) => {
            shared.ctrlr.store(attached.0, Ordering::Release);
            true
        }
        Err(_) => false,
    }
}
