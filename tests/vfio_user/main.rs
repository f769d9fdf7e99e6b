//! Controllers behind sockets: both sides of vfio-user, among friends and among enemies.
//!
//! What a driver and files need of one is in the conformance list (`tests/conformance`, stand
//! `vfio-user`).
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]
#![allow(
    clippy::host_endian_bytes,
    reason = "the protocol is in the host's byte order"
)]

mod client;
mod command;
#[path = "../common/mod.rs"]
mod common;
mod fuse;
mod lent;
mod proxy;
mod raw;
#[path = "../rig/mod.rs"]
mod rig;
mod seeded;
mod server;

use std::path::Path;
use std::time::Duration;

use xtent::internals::block::{Op, Queue, Status};
use xtent::internals::device::emu::{EmuConfig, Medium};
use xtent::internals::device::vfio_user::{ServerOptions, VfioUserDevice, VfioUserOptions};
use xtent::internals::nvme::{Controller, ControllerOptions, QueueOptions};

use common::served::Serving;
use rig::{Memory, chain, drain};

/// A small controller on a socket.
fn serving() -> Serving {
    serving_with(&ServerOptions::default())
}

fn serving_with(options: &ServerOptions) -> Serving {
    let config = EmuConfig {
        medium: Medium::memory(8 << 20),
        max_io_queues: 8,
        interrupt_vectors: 9,
        ..EmuConfig::default()
    };
    Serving::start(config, options)
}

/// A driver's whole life: up, some blocks written and read back, down. The first thing that went
/// wrong.
fn drive(socket: &Path, timeout: Duration, seed: u8) -> Result<(), String> {
    let options = VfioUserOptions {
        timeout,
        ..VfioUserOptions::default()
    };
    let words = |e: xtent::Error| e.to_string();
    let device = VfioUserDevice::open(socket, &options).map_err(words)?;
    let memory = Memory::new();
    let options = ControllerOptions {
        admin_timeout: timeout,
        shutdown_timeout: timeout,
        ..ControllerOptions::default()
    };
    let controller = Controller::open(device, &memory.heap, options).map_err(words)?;
    let options = QueueOptions {
        depth: 16,
        timeout,
        retries: 1,
        ..QueueOptions::default()
    };
    let mut pair = controller.queue(1, options).map_err(words)?;
    let lent = memory.lend(64 << 10);
    let segments = [lent.segment(0..64 << 10).ok_or("a segment")?];
    let wrote: Vec<u8> = (0..64 << 10_u32).map(|n| (n % 251) as u8 ^ seed).collect();
    memory.fill(&segments, &wrote);
    for op in [Op::Write, Op::Read] {
        for token in 0..4 {
            let chain = chain(op, 0, 128, &segments, token);
            pair.submit(&chain).map_err(|e| format!("refused: {e:?}"))?;
        }
        for (token, status) in drain(&mut pair) {
            if !status.is_success() {
                return Err(format!("{op:?} {token}: {status:?}"));
            }
        }
        if op == Op::Write {
            memory.fill(&segments, &vec![0; wrote.len()]);
        }
    }
    if memory.bytes(&segments) == wrote {
        Ok(())
    } else {
        Err("the data differ".to_owned())
    }
}

/// Writes a block at each multiple of `step_bytes`, as a driver does, until one fails: its status.
fn fill(socket: &Path, len_bytes: u64, step_bytes: u64) -> Result<Option<Status>, String> {
    let words = |e: xtent::Error| e.to_string();
    let device = VfioUserDevice::open(socket, &VfioUserOptions::default()).map_err(words)?;
    let memory = Memory::new();
    let controller =
        Controller::open(device, &memory.heap, ControllerOptions::default()).map_err(words)?;
    let options = QueueOptions {
        depth: 16,
        timeout: PLENTY,
        ..QueueOptions::default()
    };
    let mut pair = controller.queue(1, options).map_err(words)?;
    let lent = memory.lend(512);
    let segments = [lent.segment(0..512).ok_or("a segment")?];
    memory.fill(&segments, &[7; 512]);
    for at in (0..len_bytes).step_by(usize::try_from(step_bytes).unwrap()) {
        let chain = chain(Op::Write, at / 512, 1, &segments, at);
        pair.submit(&chain).map_err(|e| format!("refused: {e:?}"))?;
        for (_, status) in drain(&mut pair) {
            if !status.is_success() {
                return Ok(Some(status));
            }
        }
    }
    Ok(None)
}

/// As long as a client without an enemy in between may take for anything.
const PLENTY: Duration = Duration::from_secs(60);
