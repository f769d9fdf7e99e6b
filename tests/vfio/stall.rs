//! A controller that stops answering: the host throttles its disk to a standstill.
//!
//! `XTENT_STALL`: `ADDRESS=DRIVE` of a controller with an XFS that holds a file `data`, and the
//! name that the host's QEMU has for its drive.

use std::time::Duration;

use xtent::ErrorKind;
use xtent::internals::block::{Op, Queue, Status};
use xtent::internals::device::Device;
use xtent::internals::mem::{Heap, HeapConfig};
use xtent::internals::nvme::{QueueOptions, QueuePair};
use xtent::target::TargetOptions;
use xtent::volume::{MountOptions, Volume};

use super::rig::{alone, ask_host, chain, controller, open, read_once, told_pairs};

const TIMEOUT: Duration = Duration::from_millis(500);
const RETRIES: u8 = 1;
const DEPTH: usize = 8;

/// The most time that an operation may take, in deadlines: each time it is sent it waits one, then
/// for the abort and the reset, of its own or of the other queue; the rest is for a slow host.
const MOST_DEADLINES: u64 = 10 * (RETRIES as u64 + 1);

/// Lets the drive do `bytes_per_second`; 0 is all it can.
fn throttle(drive: &str, bytes_per_second: u64) {
    ask_host(&format!(
        "{{\"execute\": \"block_set_io_throttle\", \"arguments\": {{\"device\": \"{drive}\", \
         \"bps\": {bytes_per_second}, \"bps_rd\": 0, \"bps_wr\": 0, \"iops\": 0, \"iops_rd\": 0, \"iops_wr\": 0}}}}"
    ));
}

/// Keeps reads in flight until some have failed; how they ended, and the longest any took.
fn load_until_it_stalls(pair: &mut QueuePair, heap: &Heap, device: &dyn Device) -> (u64, u64, u64) {
    let memory = heap.alloc(DEPTH * 4096, 4096).unwrap().lend();
    let blocks = 4096 / u64::from(pair.limits().block_bytes);
    let mut since = [None; DEPTH];
    let (mut good, mut failed, mut longest) = (0, 0, 0);
    loop {
        for (at, since) in since.iter_mut().enumerate() {
            if failed == 0 && since.is_none() {
                let segments = [memory.segment(at * 4096..(at + 1) * 4096).unwrap()];
                let chain = chain(Op::Read, at as u64 * blocks, blocks, &segments, at as u64);
                pair.submit(&chain).unwrap();
                *since = Some(device.now_ns());
            }
        }
        pair.poll(DEPTH, &mut |completion| {
            let at = usize::try_from(completion.token).unwrap();
            let start = since[at].take().expect("an operation ends once");
            longest = longest.max(device.now_ns() - start);
            match completion.status {
                Status::Success => good += 1,
                Status::TimedOut | Status::Reset => failed += 1,
                status => panic!("{status:?}"),
            }
        });
        if failed > 0 && pair.outstanding() == 0 {
            assert_eq!(since, [None; DEPTH], "an operation was lost");
            return (good, failed, longest);
        }
        pair.relax();
    }
}

#[test]
fn operations_of_a_controller_that_stops_answering_end_and_it_is_reset() {
    let Some(pairs) = told_pairs("XTENT_STALL") else {
        return;
    };
    let _alone = alone();
    let (address, drive) = &pairs[0];
    let device = open(address);
    let heap = Heap::new(HeapConfig::default());
    let controller = controller(&device, &heap, Duration::from_secs(20));
    let options = QueueOptions {
        timeout: TIMEOUT,
        retries: RETRIES,
        depth: DEPTH,
        ..QueueOptions::default()
    };
    let mut queues = [(); 2].map(|()| controller.queue(1, options.clone()).unwrap());
    for pair in &mut queues {
        assert_eq!(read_once(pair, &heap), Status::Success);
    }
    std::thread::scope(|scope| {
        for pair in &mut queues {
            let (heap, device) = (&heap, &*device);
            scope.spawn(move || {
                let (good, failed, longest) = load_until_it_stalls(pair, heap, device);
                println!("{good} reads succeeded, {failed} failed; the longest took {longest} ns");
                let most = u64::try_from(TIMEOUT.as_nanos()).unwrap() * MOST_DEADLINES;
                assert!(longest < most, "an operation took {longest} ns");
            });
        }
        throttle(drive, 1);
    });
    let stats = controller.stats();
    println!("{stats:?}");
    assert!(stats.timeouts > 0 && stats.aborts > 0 && stats.resets > 0);
    assert_eq!((stats.stale_completions, stats.leaked_bytes), (0, 0));
    assert!(!device.is_gone());

    throttle(drive, 0);
    // The host does it asynchronously: a command that is sent before may still be lost.
    for pair in &mut queues {
        let status = (0..10)
            .map(|_| read_once(pair, &heap))
            .find(|status| status.is_success());
        assert_eq!(status, Some(Status::Success));
    }
}

#[test]
fn a_file_operation_ends_with_an_error_that_says_so() {
    let Some(pairs) = told_pairs("XTENT_STALL") else {
        return;
    };
    let _alone = alone();
    let (address, drive) = &pairs[0];
    let options = TargetOptions::new().command_timeout(TIMEOUT);
    let volume =
        Volume::open_with(&format!("pci:{address}"), &options, &MountOptions::new()).unwrap();
    let mut io = volume.io().unwrap();
    let file = volume.open_file(&mut io, "/data").unwrap();
    let mut buf = io.alloc(65_536).unwrap();
    assert_eq!(file.read_dma_at(&mut io, &mut buf, 0).unwrap(), 65_536);
    let before = buf.to_vec();
    throttle(drive, 1);
    let error = loop {
        if let Err(error) = file.read_dma_at(&mut io, &mut buf, 65_536) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    for word in ["read", "/data", "65536", &format!("pci:{address}")] {
        assert!(error.to_string().contains(word), "{error}");
    }
    throttle(drive, 0);
    let read = (0..10).find_map(|_| file.read_dma_at(&mut io, &mut buf, 0).ok());
    assert_eq!(read, Some(65_536));
    assert!(buf[..] == before);
}
