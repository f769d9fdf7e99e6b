//! `volume::aio` over embedded controllers: content, room, dropped futures, and handles that go
//! while operations are in flight.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use common::image::Image;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Builder;
use xtent::ErrorKind;
use xtent::target::{TargetOptions, Wait};
use xtent::volume::aio::{AsyncIo, Operation};
use xtent::volume::{Done, File, MountOptions, OpenOptions, Volume};

const LEN: usize = 1 << 20;
const BLOCK: usize = 4096;

/// A volume in memory with a file of pseudorandom bytes, with room for `depth` operations.
fn opened(wait: Wait, depth: u32) -> Option<(Volume, AsyncIo, File, Vec<u8>)> {
    if !common::has_tool("mkfs.xfs") {
        common::skipped("mkfs.xfs is not installed");
        return None;
    }
    let image = Image::empty(320 << 20, 512);
    let at = |name: &str| image.path().with_file_name(name).display().to_string();
    let bytes = common::random_bytes(1, LEN);
    std::fs::write(at("data"), &bytes).unwrap();
    let tree = format!(
        "/dev/null\n0 0\nd--755 0 0\ndata ---644 0 0 {}\n$\n",
        at("data")
    );
    std::fs::write(at("proto"), tree).unwrap();
    let path = image.path().display().to_string();
    common::run("mkfs.xfs", &["-q", "-f", "-p", &at("proto"), &path]);
    let options = TargetOptions::new().wait(wait).queue_depth(depth);
    let target = format!("ram:320M,load={path}");
    let volume = Volume::open_with(&target, &options, &MountOptions::new()).unwrap();
    let mut io = volume.io().unwrap();
    let options = OpenOptions::new().read(true).write(true);
    let file = options.open(&volume, &mut io, "data").unwrap();
    Some((volume, AsyncIo::new(io).unwrap(), file, bytes))
}

async fn drive(io: AsyncIo) -> io::Result<()> {
    #[allow(
        deprecated,
        reason = "its successor is unsafe: the descriptor must stay open, as that of a handle does"
    )]
    let event = AsyncFd::with_interest(io.clone(), Interest::READABLE)?;
    let readable = || async {
        let ready = tokio::time::timeout(Duration::from_secs(1), event.readable());
        if let Ok(ready) = ready.await {
            ready?.clear_ready();
        }
        Ok(())
    };
    match io.drive(readable).await {
        Err(error) => Err(error),
    }
}

/// Polls once.
async fn once(operation: &mut Operation) -> Option<Done> {
    let mut operation = pin!(operation);
    poll_fn(|context| match operation.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// One task: reads and writes blocks of its own, and drops some of its futures.
async fn load(io: AsyncIo, file: File, first: usize, mut bytes: Vec<u8>, mut rng: StdRng) {
    for _ in 0..50 {
        let block = rng.random_range(0..bytes.len() / BLOCK) * BLOCK;
        let offset = (first + block) as u64;
        let mut buf = io.alloc(BLOCK).unwrap();
        let is_write = rng.random_bool(0.3);
        let mut operation = if is_write {
            rng.fill(&mut buf[..]);
            bytes[block..block + BLOCK].copy_from_slice(&buf);
            io.write_at(&file, buf, offset)
        } else {
            io.read_at(&file, buf, offset)
        };
        // A write that goes on without its future would race with the next one.
        if !is_write && rng.random_bool(0.3) {
            once(&mut operation).await;
            continue;
        }
        let done = match rng.random_bool(0.5) {
            true => once(&mut operation).await,
            false => None,
        };
        let done = match done {
            Some(done) => done,
            None => operation.await,
        };
        assert_eq!(done.result.unwrap(), BLOCK);
        assert!(done.buf[..] == bytes[block..block + BLOCK]);
        if rng.random_bool(0.1) {
            io.sync(&file).await.result.unwrap();
        }
    }
}

#[test]
fn tasks_read_what_they_wrote_and_drop_their_futures() {
    let seed = common::number("XTENT_SEED", 7);
    println!("XTENT_SEED={seed}");
    for (wait, depth) in [(Wait::Poll, 3), (Wait::Interrupt, 3), (Wait::ADAPTIVE, 32)] {
        let Some((_volume, io, file, bytes)) = opened(wait, depth) else {
            return;
        };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let driver = tokio::spawn(drive(io.clone()));
            let tasks: Vec<_> = bytes
                .chunks(LEN / 8)
                .enumerate()
                .map(|(task, own)| {
                    let rng = StdRng::seed_from_u64(seed * 100 + task as u64);
                    let first = task * own.len();
                    tokio::spawn(load(io.clone(), file.clone(), first, own.to_vec(), rng))
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            driver.abort();
        });
    }
}

#[test]
fn errors_come_with_the_buffer() {
    let Some((volume, io, file, _)) = opened(Wait::Poll, 2) else {
        return;
    };
    let mut busy = volume.io().unwrap();
    let buf = busy.alloc(BLOCK).unwrap();
    busy.submit_read(&file, 0, buf, 0).unwrap();
    let error = AsyncIo::new(busy).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let runtime = Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let buf = io.alloc(BLOCK).unwrap();
        let done = io.write_at(&file, buf, 1 << 63).await;
        assert_eq!(done.result.unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(done.buf.len(), BLOCK);
        let done = io.read_at(&file, done.buf, 1).await;
        assert_eq!(done.result.unwrap_err().kind(), ErrorKind::Misaligned);
        assert_eq!(done.buf.len(), BLOCK);
    });
}

/// Counts how often a task was woken.
#[derive(Default)]
struct Woken(AtomicU64);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_future_wakes_its_task_once_and_handles_go_in_any_order() {
    for wait in [Wait::Poll, Wait::Interrupt] {
        let Some((volume, io, file, bytes)) = opened(wait, 2) else {
            return;
        };
        let woken: [Arc<Woken>; 3] = Default::default();
        let wakers = woken.clone().map(Waker::from);
        let read = || Box::pin(io.read_at(&file, io.alloc(BLOCK).unwrap(), 0));
        let mut reads = [read(), read(), read()];
        // The third finds no room.
        for _ in 0..2 {
            for (read, waker) in reads.iter_mut().zip(&wakers) {
                let context = &mut Context::from_waker(waker);
                assert!(read.as_mut().poll(context).is_pending());
            }
        }
        let mut driver = Box::pin(io.drive(|| std::future::ready(Ok::<(), ()>(()))));
        let counts = || {
            woken
                .each_ref()
                .map(|woken| woken.0.load(Ordering::Relaxed))
        };
        while counts() != [1; 3] {
            assert!(counts().iter().all(|&count| count <= 1));
            let context = &mut Context::from_waker(Waker::noop());
            assert!(driver.as_mut().poll(context).is_pending());
        }
        let context = &mut Context::from_waker(Waker::noop());
        let Poll::Ready(done) = reads[0].as_mut().poll(context) else {
            panic!("it woke its task and has not ended");
        };
        assert!(done.result.unwrap() == BLOCK && done.buf[..] == bytes[..BLOCK]);
        // In flight, and its handle, its file and its volume go first.
        assert!(reads[2].as_mut().poll(context).is_pending());
        drop(driver);
        drop((io, file, volume));
        drop(reads);
    }
}
