//! Controllers that are removed under load: every operation completes or fails, and the process
//! keeps running.
//!
//! `XTENT_UNPLUG`: two controllers as `ADDRESS=ID` that the host's QEMU removes in the orderly way,
//! which notifies the guest. `XTENT_SURPRISE`: two as `ADDRESS=PORT` that are removed by surprise.
//! The second of each has an XFS that holds a file `data` of at least 1 MiB, which is overwritten.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::block::{Op, Queue, Refused, Status};
use xtent::internals::device::vfio::{VfioDevice, VfioOptions};
use xtent::internals::mem::{Heap, HeapConfig};
use xtent::internals::nvme::{QueueOptions, QueuePair};
use xtent::target::TargetOptions;
use xtent::volume::{MountOptions, OpenOptions, Volume};

use super::rig::{alone, ask_host, chain, controller, open, seed, told_pairs};

const THREADS: u64 = 3;
const DEPTH: usize = 16;
const TIMEOUT: Duration = Duration::from_secs(2);

/// Reads and writes on a raw queue until the device is gone. Every operation ends, and no more than
/// once.
fn raw_load(mut pair: QueuePair, heap: &Heap, mut rng: SmallRng, good: &AtomicU64) {
    let memory = heap.alloc(DEPTH * 4096, 4096).unwrap().lend();
    let blocks = 4096 / u64::from(pair.limits().block_bytes);
    let mut flying = [false; DEPTH];
    loop {
        for (at, flying) in flying.iter_mut().enumerate() {
            if *flying {
                continue;
            }
            let segments = [memory.segment(at * 4096..(at + 1) * 4096).unwrap()];
            let op = if rng.random() { Op::Read } else { Op::Write };
            let lba = rng.random_range(0..1024) * blocks;
            match pair.submit(&chain(op, lba, blocks, &segments, at as u64)) {
                Ok(()) => *flying = true,
                Err(Refused::Gone) => {}
                Err(refused) => panic!("{refused:?}"),
            }
        }
        if pair.outstanding() == 0 {
            assert_eq!(flying, [false; DEPTH], "an operation was lost");
            return;
        }
        pair.poll(DEPTH, &mut |completion| {
            let at = usize::try_from(completion.token).unwrap();
            assert!(std::mem::take(&mut flying[at]), "{at} ended twice");
            match completion.status {
                Status::Success => {
                    good.fetch_add(1, Ordering::Relaxed);
                }
                status => assert_eq!(status, Status::Gone),
            }
        });
        pair.relax();
    }
}

/// Reads and overwrites of a file until the device is gone.
fn file_load(volume: &Volume, mut rng: SmallRng, good: &AtomicU64) {
    let mut io = volume.io().unwrap();
    let options = OpenOptions::new().read(true).write(true);
    let file = options.open(volume, &mut io, "/data").unwrap();
    let mut gone = false;
    let mut submitted = 0;
    let mut ended = 0;
    loop {
        while !gone && io.outstanding() < DEPTH {
            let offset = rng.random_range(0..240) * 4096;
            let Ok(buf) = io.alloc(rng.random_range(1..=8) * 4096) else {
                panic!("no memory");
            };
            let taken = if rng.random() {
                io.submit_read(&file, offset, buf, submitted)
            } else {
                io.submit_write(&file, offset, buf, submitted)
            };
            match taken {
                Ok(()) => submitted += 1,
                Err(refused) => {
                    let error = xtent::Error::from(refused);
                    assert_eq!(error.kind(), ErrorKind::DeviceGone, "{error}");
                    gone = true;
                }
            }
        }
        if gone && io.outstanding() == 0 {
            assert_eq!(ended, submitted, "operations were lost");
            return;
        }
        io.poll(DEPTH, |done| {
            ended += 1;
            match done.result {
                Ok(_) => {
                    good.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::DeviceGone, "{error}");
                    gone = true;
                }
            }
        });
        io.relax();
    }
}

/// Loads two controllers, the first by raw queues, the second through a file, and takes them away.
fn under_load(controllers: &[(String, String)], take_away: impl FnOnce() + Send) {
    let seed = seed();
    let rng = |thread: u64| SmallRng::seed_from_u64(seed * 100 + thread);
    let [(raw, _), (files, _)] = controllers else {
        panic!("two controllers are needed");
    };
    let device = open(raw);
    let heap = Heap::new(HeapConfig::default());
    let controller = controller(&device, &heap, TIMEOUT);
    let options = TargetOptions::new().command_timeout(TIMEOUT);
    let volume =
        Volume::open_with(&format!("pci:{files}"), &options, &MountOptions::new()).unwrap();
    let good = [const { AtomicU64::new(0) }; 2];
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (heap, volume, good) = (&heap, &volume, &good);
            let options = QueueOptions {
                depth: DEPTH,
                timeout: TIMEOUT,
                ..QueueOptions::default()
            };
            let pair = controller.queue(1, options).unwrap();
            let rng = [rng(thread), rng(10 + thread)];
            let [a, b] = rng;
            scope.spawn(move || raw_load(pair, heap, a, &good[0]));
            scope.spawn(move || file_load(volume, b, &good[1]));
        }
        while good.iter().any(|good| good.load(Ordering::Relaxed) < 200) {
            std::thread::yield_now();
        }
        take_away();
    });
    assert!(device.is_gone());
    println!("good before: {good:?}");
    drop((controller, device, volume));
    for (address, _) in controllers {
        // The kernel finishes the removal once every process has released the device.
        let dir = format!("/sys/bus/pci/devices/{address}");
        let gone = (0..600).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            !fs::exists(&dir).unwrap()
        });
        assert!(gone, "{address} is still there");
        let error = VfioDevice::open(address, &VfioOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}

#[test]
fn unplugged_in_the_orderly_way() {
    let Some(controllers) = told_pairs("XTENT_UNPLUG") else {
        return;
    };
    let _alone = alone();
    under_load(&controllers, || {
        for (_, id) in &controllers {
            ask_host(&format!(
                "{{\"execute\": \"device_del\", \"arguments\": {{\"id\": \"{id}\"}}}}"
            ));
        }
    });
}

/// Removes the device of a slot by surprise: it disappears at once, and the kernel detects that
/// afterwards. QEMU frees a device whose slot is switched off; with the power on again, the empty
/// slot looks as it does after a surprise.
fn tear_out(port: &str) {
    const PCI_COMMAND: u64 = 0x04;
    const COMMAND_MEMORY: u16 = 1 << 1;
    const PCI_CAPABILITIES: u64 = 0x34;
    const CAPABILITY_PCIE: u8 = 0x10;
    const SLOT_CONTROL: u64 = 0x18;
    /// The kernel is told when a card's presence changes, as with ports that have no button.
    const PRESENCE_CHANGED: u16 = 1 << 3;
    const INTERRUPTS: u16 = 1 << 5;
    /// Power controller off, power indicator off.
    const POWER_OFF: u16 = 1 << 10 | 3 << 8;
    let config = File::options()
        .read(true)
        .write(true)
        .open(format!("/sys/bus/pci/devices/{port}/config"))
        .unwrap();
    let byte = |at: u64| {
        let mut byte = [0];
        config.read_exact_at(&mut byte, at).unwrap();
        byte[0]
    };
    let mut at = u64::from(byte(PCI_CAPABILITIES));
    while byte(at) != CAPABILITY_PCIE {
        at = u64::from(byte(at + 1));
        assert_ne!(at, 0, "{port} is no PCI Express port");
    }
    let word = |at: u64| {
        let mut word = [0; 2];
        config.read_exact_at(&mut word, at).unwrap();
        u16::from_le_bytes(word)
    };
    let write = |at: u64, word: u16| config.write_all_at(&word.to_le_bytes(), at).unwrap();
    // First the registers. QEMU frees a device without regard to a processor that is about to ring
    // one of its doorbells, and crashes; with the registers disabled, and pending accesses
    // complete, it does not.
    let command = word(PCI_COMMAND);
    write(PCI_COMMAND, command & !COMMAND_MEMORY);
    std::thread::sleep(Duration::from_millis(5));
    let at = at + SLOT_CONTROL;
    let control = word(at);
    // Without interrupts first: a kernel that looked between the two would take the slot for
    // switched off.
    for control in [
        (control | POWER_OFF) & !INTERRUPTS,
        control | PRESENCE_CHANGED,
    ] {
        write(at, control);
    }
    write(PCI_COMMAND, command);
}

#[test]
fn torn_out_by_surprise() {
    let Some(controllers) = told_pairs("XTENT_SURPRISE") else {
        return;
    };
    let _alone = alone();
    under_load(&controllers, || {
        for (_, port) in &controllers {
            tear_out(port);
        }
    });
}
