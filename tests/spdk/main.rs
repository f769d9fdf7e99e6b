//! SPDK as an engine, against SPDK's own target: blocks, errors, discovery, lost connections,
//! restarts.
//!
//! Needs an installed SPDK and root; says `SKIPPED` otherwise. Without the feature `spdk` there is
//! nothing here. `XTENT_SEED` changes random choices, `XTENT_RUNS` the number of interruptions.
#![cfg(feature = "spdk")]
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod blocks;
#[path = "../common/mod.rs"]
mod common;
mod interruptions;
mod names;
#[path = "../rig/mod.rs"]
mod rig;
mod volumes;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::nvmf::{self, Nvmf};
use rig::Memory;
use xtent::internals::mem::{Heap, HeapConfig, HugePages};
use xtent::internals::spdk::{SpdkController, SpdkControllerOptions};

/// A target polls a processor of its own: one at a time.
pub(crate) fn alone() -> Option<MutexGuard<'static, ()>> {
    static ONE: Mutex<()> = Mutex::new(());
    match nvmf::missing() {
        Some(reason) => {
            common::skipped(&reason);
            None
        }
        None => Some(ONE.lock().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// The controller with this transport id, and memory that it reaches.
pub(crate) fn open(id: &str, options: SpdkControllerOptions) -> (Arc<SpdkController>, Memory) {
    let controller = SpdkController::open(&id.parse().unwrap(), None, options).unwrap();
    let config = HeapConfig {
        arena_bytes: 8 << 20,
        huge_pages: HugePages::Never,
        ..HeapConfig::default()
    };
    let heap = Heap::with_source(config, controller.arena_source());
    controller.attach(&heap).unwrap();
    (controller, Memory::on(heap))
}

/// A target with a disk in memory.
pub(crate) fn memory_target(block_bytes: u32) -> Nvmf {
    Nvmf::start(nvmf::Disk::Memory {
        mib: 64,
        block_bytes,
    })
}
