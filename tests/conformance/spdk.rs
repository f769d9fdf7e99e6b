//! Disks that SPDK's own target exports, through SPDK's own driver.

use std::sync::Arc;

use xtent::internals::device::Device;
use xtent::internals::mem::{Heap, HeapConfig, HugePages};
use xtent::internals::nvme::{ControllerOptions, QueueOptions};
use xtent::internals::spdk;

use super::common::disk::Disk;
use super::common::nvmf::{self, Nvmf, NvmfHands};
use super::common::{kernel_is_missing, loop_is_missing};
use super::rig::Memory;
use super::stand::{CAPACITY_BYTES, Engine, For, Rig, RigQueue, Stand, Troubles};

struct Spdk {
    block_bytes: u32,
    vfio_user: bool,
}

impl Engine for Spdk {
    fn device(&self) -> Arc<dyn Device> {
        unreachable!("SPDK's driver has devices of its own")
    }

    fn open(&self, options: ControllerOptions) -> (Box<dyn Rig>, Memory) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(CAPACITY_BYTES).unwrap();
        let target = Nvmf::start(nvmf::Disk::File {
            path,
            block_bytes: self.block_bytes,
        });
        let id = match self.vfio_user {
            true => target.vfio_user(),
            false => target.tcp(),
        };
        let options = spdk::SpdkControllerOptions {
            connect_timeout: options
                .admin_timeout
                .max(std::time::Duration::from_secs(30)),
            ..spdk::SpdkControllerOptions::default()
        };
        let controller = spdk::SpdkController::open(&id.parse().unwrap(), None, options).unwrap();
        let config = HeapConfig {
            arena_bytes: 8 << 20,
            huge_pages: HugePages::Never,
            ..HeapConfig::default()
        };
        let heap = Heap::with_source(config, controller.arena_source());
        controller.attach(&heap).unwrap();
        let rig = SpdkRig {
            controller,
            target,
            vfio_user: self.vfio_user,
            _dir: dir,
        };
        (Box::new(rig), Memory::on(heap))
    }

    fn disk(&self, lba_bytes: u32) -> Disk {
        let hands = NvmfHands::new(CAPACITY_BYTES, lba_bytes, self.vfio_user);
        Disk::new(hands, lba_bytes)
    }

    fn block_bytes(&self) -> Option<u32> {
        Some(self.block_bytes)
    }

    fn missing(&self) -> Option<String> {
        kernel_is_missing().or_else(loop_is_missing)
    }
}

struct SpdkRig {
    controller: Arc<spdk::SpdkController>,
    target: Nvmf,
    vfio_user: bool,
    _dir: tempfile::TempDir,
}

impl Rig for SpdkRig {
    fn queue(&self, options: QueueOptions) -> RigQueue {
        let options = spdk::SpdkQueueOptions {
            depth: options.depth,
            max_segments: options.max_segments,
            timeout: options.timeout,
            retries: u32::from(options.retries),
            read_only: options.read_only,
            ..spdk::SpdkQueueOptions::default()
        };
        RigQueue::Spdk(Box::new(self.controller.queue(options).unwrap()))
    }

    fn most_depth(&self) -> usize {
        4095
    }

    fn troubles(&self) -> Troubles {
        let stats = self.controller.stats();
        Troubles {
            timeouts: stats.timeouts,
            resets: stats.resets,
        }
    }

    /// A connection is cut; a device of another process that were cut off would be lost, so that is
    /// reset instead.
    fn cut_off(&self) {
        match self.vfio_user {
            true => self.controller.reset(),
            false => self.target.disconnect_all(),
        }
    }
}

/// `spdk-tcp` or `spdk-vfio-user`.
pub(crate) fn stands(word: &str) -> Vec<Stand> {
    if let Some(why) = nvmf::missing() {
        println!("SKIPPED: {word}: {why}");
        return Vec::new();
    }
    let vfio_user = word == "spdk-vfio-user";
    let kind = match vfio_user {
        true => "spdk, vfio-user",
        false => "spdk, tcp",
    };
    let stand = |block_bytes| {
        let engine = Spdk {
            block_bytes,
            vfio_user,
        };
        Stand::new(format!("{word}:{block_bytes}"), kind, For::Both, engine)
    };
    vec![stand(512), stand(4096)]
}
