//! A BAR that is switched off under its users: the kernel takes the mapping away, and accesses
//! fault.
#![expect(unsafe_code, reason = "borrows a descriptor that the device has")]

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use xtent::internals::block::{Op, Queue, Status};
use xtent::internals::device::Device;
use xtent::internals::mem::{Heap, HeapConfig};
use xtent::internals::nvme::QueueOptions;

use super::rig::{alone, bring_up, chain, controller, controllers, open, read_once};

/// Where vfio-pci keeps the configuration space in a device's descriptor: region 7, 1 TiB each.
const CONFIG_OFFSET: u64 = 7 << 40;
const PCI_COMMAND: u64 = 4;

/// Switches off that the device answers at its BARs, behind the driver's back.
fn switch_memory_off() {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let device = fds
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            // Of a group, or of its own.
            std::fs::read_link(path).is_ok_and(|to| {
                to.to_str() == Some("anon_inode:[vfio-device]")
                    || to.starts_with("/dev/vfio/devices")
            })
        })
        .expect("a device's descriptor");
    let fd = device.file_name().unwrap().to_str().unwrap();
    // SAFETY: the descriptor is the device's, which the caller keeps open; it is not closed here.
    let device = ManuallyDrop::new(unsafe { File::from_raw_fd(fd.parse().unwrap()) });
    device
        .write_all_at(&0_u16.to_le_bytes(), CONFIG_OFFSET + PCI_COMMAND)
        .unwrap();
}

#[test]
fn a_bar_that_is_switched_off_ends_all_operations() {
    let Some(addresses) = controllers() else {
        return;
    };
    let _alone = alone();
    let address = &addresses[0];
    let device = open(address);
    let heap = Heap::new(HeapConfig::default());
    let controller = controller(&device, &heap, Duration::from_secs(2));
    let good = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let options = QueueOptions {
                timeout: Duration::from_secs(2),
                ..QueueOptions::default()
            };
            let mut pair = controller.queue(1, options).unwrap();
            let (heap, good) = (&heap, &good);
            scope.spawn(move || {
                let memory = heap.alloc(8 * 4096, 4096).unwrap().lend();
                let blocks = 4096 / u64::from(pair.limits().block_bytes);
                let mut flying = [false; 8];
                let mut gone = false;
                while !gone {
                    for (at, flying) in flying.iter_mut().enumerate() {
                        if *flying {
                            continue;
                        }
                        let segments = [memory.segment(at * 4096..(at + 1) * 4096).unwrap()];
                        let chain = chain(Op::Read, 0, blocks, &segments, at as u64);
                        *flying = pair.submit(&chain).is_ok();
                    }
                    pair.poll(8, &mut |completion| {
                        let at = usize::try_from(completion.token).unwrap();
                        assert!(std::mem::take(&mut flying[at]), "{at} ended twice");
                        match completion.status {
                            Status::Success => {
                                good.fetch_add(1, Ordering::Relaxed);
                            }
                            status => {
                                assert_eq!(status, Status::Gone);
                                gone = true;
                            }
                        }
                    });
                    pair.relax();
                }
                while pair.outstanding() > 0 {
                    pair.poll(8, &mut |completion| {
                        assert_eq!(completion.status, Status::Gone)
                    });
                    pair.relax();
                }
            });
        }
        while good.load(Ordering::Relaxed) < 100 {
            std::thread::yield_now();
        }
        switch_memory_off();
    });
    assert!(device.is_gone());
    assert_eq!(device.read32(0x1c), u32::MAX);
    drop((controller, device));
    // The process keeps running, and the device can be opened again.
    let device = open(address);
    let (_controller, mut pair) = bring_up(&device, &heap);
    assert_eq!(read_once(&mut pair, &heap), Status::Success);
}
