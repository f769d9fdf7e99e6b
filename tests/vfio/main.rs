//! The driver on PCI controllers over VFIO: behaviour that differs from the embedded controller's.
//!
//! Runs in the virtual machine (`scripts/vm/test`), whose jobs say by environment variables which
//! controllers a test gets, and their properties; without one, a test is skipped.
//!
//! Here: `XTENT_VFIO` names controllers, with commas between, that vfio-pci has, each with an XFS
//! that holds a file `data` of at least 1 MiB, which is overwritten. With `XTENT_VFIO_UNPLUG` the
//! last test takes the first of them away; `XTENT_VFIO_CYCLES` says how often controllers are
//! opened and closed.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod alternate;
mod dma;
mod errors;
mod rig;
mod sigbus;
mod stall;
mod unplug;
#[path = "../rig/mod.rs"]
mod window;

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rig::{alone, bring_up, controllers, open, read_once};
use xtent::ErrorKind;
use xtent::internals::block::{Op, Queue, Status, Wait};
use xtent::internals::device::Device;
use xtent::internals::device::vfio::{VfioDevice, VfioOptions};
use xtent::internals::mem::{Heap, HeapConfig, Segment};
use xtent::internals::nvme::{Controller, ControllerOptions, QueueOptions};
use xtent::target::TargetOptions;
use xtent::volume::{MountOptions, OpenOptions, Volume};

/// Random direct overwrites and reads of `data`, against a copy in memory.
fn read_and_overwrite(address: &str, seed: u64, operations: usize) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let options = TargetOptions::new().memory_limit_bytes(8 << 20);
    let volume =
        Volume::open_with(&format!("pci:{address}"), &options, &MountOptions::new()).unwrap();
    let mut io = volume.io().unwrap();
    let options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .open(&volume, &mut io, "/data")
        .unwrap();
    const BLOCK: usize = 4096;
    let mut model = io.alloc(1 << 20).unwrap();
    assert_eq!(file.read_dma_at(&mut io, &mut model, 0).unwrap(), 1 << 20);
    for _ in 0..operations {
        let blocks = rng.random_range(1..=32);
        let at = rng.random_range(0..=256 - blocks) * BLOCK;
        let range = at..at + blocks * BLOCK;
        let mut buf = io.alloc(range.len()).unwrap();
        if rng.random() {
            rng.fill(&mut buf[..]);
            model[range].copy_from_slice(&buf);
            assert_eq!(
                file.write_dma_at(&mut io, &mut buf, at as u64).unwrap(),
                blocks * BLOCK
            );
        } else {
            file.read_dma_at(&mut io, &mut buf, at as u64).unwrap();
            assert!(
                buf[..] == model[range],
                "{address} seed {seed}: byte {at} differs"
            );
        }
    }
    file.sync_all(&mut io).unwrap();
}

#[test]
fn files_are_read_and_overwritten_on_all_controllers_at_once() {
    let Some(addresses) = controllers() else {
        return;
    };
    let _alone = alone();
    std::thread::scope(|scope| {
        for (seed, address) in (1..).zip(&addresses) {
            scope.spawn(move || read_and_overwrite(address, seed, 1500));
        }
    });
}

#[test]
fn a_controller_is_opened_once() {
    let Some(addresses) = controllers() else {
        return;
    };
    let _alone = alone();
    let device = open(&addresses[0]);
    let error = VfioDevice::open(&addresses[0], &VfioOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let me = format!("({})", std::process::id());
    assert!(error.to_string().contains(&me), "{error}");
    drop(device);
    drop(open(&addresses[0]));
}

#[test]
fn a_device_that_was_cut_off_comes_up_again() {
    let Some(addresses) = controllers() else {
        return;
    };
    let _alone = alone();
    for address in &addresses {
        let device = open(address);
        let heap = Heap::new(HeapConfig::default());
        for _ in 0..2 {
            let (controller, mut pair) = bring_up(&device, &heap);
            assert_eq!(read_once(&mut pair, &heap), Status::Success);
            device.stop_dma().unwrap();
            assert!(!device.is_gone());
            // The driver below notices, resets it and sends the command again.
            assert_eq!(read_once(&mut pair, &heap), Status::Success);
            assert!(controller.stats().resets > 0);
        }
    }
}

#[test]
fn interrupts_arrive_as_events() {
    let Some(addresses) = controllers() else {
        return;
    };
    let _alone = alone();
    let device = open(&addresses[0]);
    assert!(device.interrupt_vectors() > 1);
    // The admin queue's; the driver polls, and the controller raises it all the same.
    let event = device.interrupt(0).unwrap();
    let last = device.interrupt_vectors() - 1;
    let quiet = device.interrupt(last).unwrap();
    assert!(!event.take());
    let heap = Heap::new(HeapConfig::default());
    let (_controller, _pair) = bring_up(&device, &heap);
    let hang_limit = Duration::from_secs(20);
    assert!(event.wait(Some(hang_limit)).unwrap());
    assert!(!quiet.take());
    assert!(Arc::ptr_eq(&event, &device.interrupt(0).unwrap()));
    let error = device.interrupt(device.interrupt_vectors()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn sleepers_are_woken_by_the_device() {
    let Some(addresses) = controllers() else {
        return;
    };
    let _alone = alone();
    const READS: u32 = 200;
    for address in &addresses {
        let device = open(address);
        let heap = Heap::new(HeapConfig::default());
        for wait in [Wait::Interrupt, Wait::ADAPTIVE] {
            let options = ControllerOptions {
                admin_timeout: Duration::from_secs(2),
                ..ControllerOptions::default()
            };
            let shared: Arc<dyn Device> = Arc::<VfioDevice>::clone(&device);
            let controller = Controller::open(shared, &heap, options).unwrap();
            let options = QueueOptions {
                timeout: Duration::from_secs(2),
                wait,
                ..QueueOptions::default()
            };
            let mut pair = controller.queue(1, options).unwrap();
            for round in 0..2 {
                for _ in 0..READS {
                    assert_eq!(read_once(&mut pair, &heap), Status::Success);
                }
                // One that arrives just as a sleep has lasted long enough counts as lost, too: a
                // few, where all is slow.
                let stats = controller.stats();
                let lost = stats.lost_interrupts;
                assert!(lost < u64::from(READS) / 4, "{wait:?} {round}: {stats:?}");
                if round == 0 {
                    // What cuts the device off does not cost its interrupts.
                    device.stop_dma().unwrap();
                }
            }
        }
    }
    for wait in ["interrupt", "adaptive"] {
        read_and_overwrite(&format!("{},wait={wait}", addresses[0]), 3, 200);
    }
}

/// QEMU's controller offers both, and others are to be driven too: what they do not offer is passed
/// over.
#[test]
fn shadow_doorbells_and_scattered_memory() {
    let Some(addresses) = controllers() else {
        return;
    };
    let _alone = alone();
    const BYTES: usize = 64 << 10;
    for address in &addresses {
        let device = open(address);
        let memory = window::Memory::new();
        let (lent, parts) = (memory.lend(BYTES), memory.lend(4 * BYTES));
        let whole = [lent.segment(0..BYTES).unwrap()];
        // Blocks of 4 KiB and nearly so, with seams that are no pages' and no blocks'.
        let mut rng = SmallRng::seed_from_u64(9);
        let (mut at, mut left, mut shreds) = (4, BYTES, Vec::new());
        while left > 0 {
            let take = left.min(4 * rng.random_range(900..1100));
            shreds.push(parts.segment(at..at + take).unwrap());
            (at, left) = (at + take + 4 * rng.random_range(1..1000), left - take);
        }
        for shadow_doorbells in [false, true] {
            let options = ControllerOptions {
                shadow_doorbells,
                ..ControllerOptions::default()
            };
            let shared: Arc<dyn Device> = Arc::<VfioDevice>::clone(&device);
            let controller = Controller::open(shared, &memory.heap, options).unwrap();
            let info = controller.info();
            eprintln!("{address}: {:?}, {:?}", info.shadow_doorbells, info.sgl);
            if info.model.starts_with("QEMU") {
                assert_eq!((info.shadow_doorbells, info.sgl), (shadow_doorbells, true));
            }
            let options = QueueOptions {
                depth: 16,
                max_segments: 64,
                ..QueueOptions::default()
            };
            let mut pair = controller.queue(1, options).unwrap();
            let blocks = BYTES as u64 / u64::from(pair.limits().block_bytes);
            let mut run = |op, segments: &[Segment]| {
                pair.submit(&window::chain(op, 0, blocks, segments, 1))
                    .unwrap();
                assert_eq!(window::drain(&mut pair)[&1], Status::Success);
            };
            run(Op::Read, &whole);
            let want = memory.bytes(&whole);
            if info.sgl {
                // The same bytes again: the filesystem stays what it is.
                memory.fill(&shreds, &vec![0xee; BYTES]);
                run(Op::Read, &shreds);
                assert!(memory.bytes(&shreds) == want, "{address}");
                run(Op::Write, &shreds);
                memory.fill(&whole, &vec![0xee; BYTES]);
                run(Op::Read, &whole);
                assert!(memory.bytes(&whole) == want, "{address}");
            }
            // Through the rings' ends several times, with a queue that sleeps in between and one
            // that does not.
            for round in 0..300u64 {
                for token in 0..=round % 16 {
                    let block = pair.limits().block_bytes as usize;
                    let one = [lent.segment(0..block).unwrap()];
                    pair.submit(&window::chain(Op::Read, 0, 1, &one, token))
                        .unwrap();
                }
                assert!(window::drain(&mut pair).values().all(|s| s.is_success()));
            }
            assert_eq!(
                controller.stats(),
                xtent::internals::nvme::ControllerStats::default()
            );
        }
    }
}

/// What this process and the host have in use, by name.
fn in_use() -> BTreeMap<&'static str, u64> {
    // The kernel counts by processor, and adds up every second, or when it is told to.
    let _ = fs::write("/proc/sys/vm/stat_refresh", "1");
    let count = |path: &str| fs::read_dir(path).unwrap().count() as u64;
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let of = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    BTreeMap::from([
        ("descriptors", count("/proc/self/fd")),
        ("threads", count("/proc/self/task")),
        (
            "vfio mappings",
            maps.lines().filter(|line| line.contains("vfio")).count() as u64,
        ),
        (
            "stand-ins of BARs",
            maps.lines()
                .filter(|line| line.contains("absent-bar"))
                .count() as u64,
        ),
        ("hugepages free", of("/proc/meminfo", "HugePages_Free:")),
        ("pinned KiB", of("/proc/self/status", "VmPin:")),
        // Of the whole host: the pages that IOMMU mappings hold.
        ("pages pinned", {
            let count = |name| of("/proc/vmstat", name);
            count("nr_foll_pin_acquired") - count("nr_foll_pin_released")
        }),
        ("locked KiB", of("/proc/self/status", "VmLck:")),
    ])
}

#[test]
fn opening_and_closing_leaves_nothing_behind() {
    let Some(addresses) = controllers() else {
        return;
    };
    let _alone = alone();
    // The first one makes what the process keeps: the handler's file.
    read_and_overwrite(&addresses[0], 1, 1);
    let before = in_use();
    // Each has two function resets of 100 ms, which the kernel waits for.
    let cycles = std::env::var("XTENT_VFIO_CYCLES").map_or(100, |text| text.parse().unwrap());
    for seed in 0..cycles {
        read_and_overwrite(&addresses[seed % addresses.len()], seed as u64, 2);
    }
    assert_eq!(in_use(), before);
}

/// Run alone, and last: it takes the first controller away.
#[test]
fn z_an_unplugged_controller_ends_all_operations_and_is_let_go() {
    let Some(addresses) = controllers() else {
        return;
    };
    let _alone = alone();
    if std::env::var_os("XTENT_VFIO_UNPLUG").is_none() {
        eprintln!("SKIPPED: XTENT_VFIO_UNPLUG is not set");
        return;
    }
    let dir = format!("/sys/bus/pci/devices/{}", addresses[0]);
    let device = open(&addresses[0]);
    let heap = Heap::new(HeapConfig::default());
    let (controller, mut pair) = bring_up(&device, &heap);
    let started = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| {
            while !started.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            // Returns when the device is removed: every process has released it.
            fs::write(format!("{dir}/remove"), "1")
        });
        let mut good = 0;
        let last = loop {
            match read_once(&mut pair, &heap) {
                Status::Success => good += 1,
                status => break status,
            }
            started.store(good > 10, Ordering::Release);
        };
        assert_eq!(last, Status::Gone, "after {good} reads");
        removal.join().unwrap().unwrap();
    });
    assert!(device.is_gone());
    assert!(!fs::exists(&dir).unwrap());
    assert_eq!(device.read32(0x1c), u32::MAX);
    assert_eq!(
        device.interrupt(0).unwrap_err().kind(),
        ErrorKind::DeviceGone
    );
    drop((pair, controller, device));
    let error = VfioDevice::open(&addresses[0], &VfioOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
