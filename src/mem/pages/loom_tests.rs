//! The protocol of the words under loom: every interleaving, and every order that the memory model
//! allows. A frame's bytes are a cell that notices unordered accesses.

use std::sync::atomic::Ordering::Relaxed;

use loom::sync::Arc;
use loom::sync::atomic::AtomicUsize;
use loom::thread;

use super::{ALL_GRANULES, Blocked, FrameRun, PageTable, Removed, Which};
use crate::mem::{Heap, HeapConfig};

loom::lazy_static! {
    static ref TURNS: AtomicUsize = AtomicUsize::new(0);
}

/// A step of a reader, which changes nothing, or of a concurrent writer: makes loom try them in
/// every order. It does so only where the last thread to touch an atomic changes it, and a writer
/// loads a word before it changes it.
fn turn() {
    TURNS.fetch_add(1, Relaxed);
}

fn table(frames: u32) -> (Arc<PageTable>, FrameRun) {
    let heap = Heap::new(HeapConfig::default());
    let (table, run) = PageTable::new(&heap, frames, 1).unwrap();
    (Arc::new(table), run)
}

fn filled(table: &PageTable, run: &mut FrameRun) {
    assert!(
        !table
            .install(0, run.split_first(1), ALL_GRANULES, 0, false)
            .unwrap()
    );
    write(table, 1);
}

/// A page that is clean.
fn filled_clean(table: &PageTable, run: &mut FrameRun) {
    filled(table, run);
    let page = table.begin_writeback(0).unwrap();
    assert!(table.end_writeback(page, true));
}

fn write(table: &PageTable, value: u8) -> bool {
    let Ok(mut lock) = table.lock(0, 0, 0) else {
        return false;
    };
    lock.write([value; 2]);
    lock.written(ALL_GRANULES, ALL_GRANULES, false);
    true
}

/// As [`write`], beside one who glances.
fn write_in_turns(table: &PageTable, value: u8) {
    let mut lock = table.lock(0, 0, 0).unwrap();
    turn();
    lock.write([value; 2]);
    turn();
    lock.written(ALL_GRANULES, ALL_GRANULES, false);
    turn();
}

fn read(table: &PageTable) -> Option<u8> {
    let pin = table.pin(0, ALL_GRANULES, true).ok()?;
    let bytes = pin.read();
    assert_eq!(bytes[0], bytes[1], "half of a write was seen");
    Some(bytes[0])
}

/// As a hit is read: without holding on to the page.
fn glance(table: &PageTable) -> Option<u8> {
    let place = table.place(0).unwrap();
    let seen = place.peek(0, ALL_GRANULES)?;
    turn();
    let bytes = table.memory.read_racy(seen.word.frame());
    turn();
    place.unchanged(0, seen).then(|| {
        assert_eq!(bytes[0], bytes[1], "half of a write counted");
        bytes[0]
    })
}

/// An unpinned read returns one state of the page, or fails.
#[test]
fn a_glance_and_writers() {
    loom::model(|| {
        let (table, mut run) = table(1);
        filled(&table, &mut run);
        let one = table.clone();
        let writer = thread::spawn(move || {
            write_in_turns(&one, 2);
            write_in_turns(&one, 3);
        });
        let first = glance(&table);
        let second = glance(&table);
        if let (Some(first), Some(second)) = (first, second) {
            assert!(first <= second, "time went backwards");
        }
        writer.join().unwrap();
        assert_eq!(glance(&table), Some(3));
    });
}

/// A frame that left its slot, was written to, and came back to the same slot, is another page.
#[test]
fn a_glance_at_a_frame_that_comes_back() {
    loom::model(|| {
        let (table, mut run) = table(1);
        filled_clean(&table, &mut run);
        let one = table.clone();
        let recycler = thread::spawn(move || {
            let frame = one.take(0, 0).unwrap();
            turn();
            one.memory.write(0, [2; 2]);
            turn();
            assert_eq!(one.install(0, frame, ALL_GRANULES, 0, false), Ok(false));
        });
        if let Some(seen) = glance(&table) {
            assert!(seen == 1 || seen == 2);
        }
        recycler.join().unwrap();
        assert_eq!(glance(&table), Some(2));
    });
}

#[test]
fn readers_and_writers_never_meet() {
    loom::model(|| {
        let (table, mut run) = table(1);
        filled(&table, &mut run);
        let one = table.clone();
        let writer = thread::spawn(move || write(&one, 2));
        let other = table.clone();
        let reader = thread::spawn(move || read(&other));
        let here = read(&table);
        let wrote = writer.join().unwrap();
        for seen in [here, reader.join().unwrap()].into_iter().flatten() {
            assert!(seen == 1 || seen == 2);
        }
        assert_eq!(read(&table), Some(if wrote { 2 } else { 1 }));
        assert_eq!(table.look(0).dirty, ALL_GRANULES);
    });
}

/// A frame that was replaced or removed under a pin comes back once, after the last pin.
#[test]
fn detached_frames_come_back_once() {
    loom::model(|| {
        let (table, mut run) = table(2);
        filled(&table, &mut run);
        let spare = run.split_first(1);
        let first = table.clone();
        let reader = thread::spawn(move || read(&first));
        let second = table.clone();
        let remover = thread::spawn(move || {
            loop {
                match second.remove(0, Which::All) {
                    Removed::Busy => thread::yield_now(),
                    removed => break removed,
                }
            }
        });
        let mut frames = 0;
        match table.pin(0, ALL_GRANULES, false) {
            Ok(pin) => match table.replace(pin, spare, ALL_GRANULES, ALL_GRANULES, 0, false) {
                Ok(_) => {}
                Err(_) => frames += 1,
            },
            Err(blocked) => {
                assert!(matches!(blocked, Blocked::Absent | Blocked::Locked));
                frames += 1;
            }
        }
        reader.join().unwrap();
        match remover.join().unwrap() {
            Removed::Frame(..) => frames += 1,
            Removed::Detached(_) => {}
            other => panic!("{other:?}"),
        }
        while table.orphan().is_some() {
            frames += 1;
        }
        assert_eq!(frames, 2, "every frame is free again, once");
        assert!(!table.look(0).present);
    });
}

/// A page in writeback does not change, and bytes written meanwhile stay dirty.
#[test]
fn writeback_and_a_writer() {
    loom::model(|| {
        let (table, mut run) = table(2);
        filled(&table, &mut run);
        let page = table.begin_writeback(0).unwrap();
        let other = table.clone();
        let spare = run.split_first(1);
        let writer = thread::spawn(move || {
            if write(&other, 2) {
                return Some(spare);
            }
            let Ok(pin) = other.pin(0, ALL_GRANULES, false) else {
                return Some(spare);
            };
            other
                .replace(pin, spare, ALL_GRANULES, ALL_GRANULES, 0, false)
                .err()
        });
        let clean = table.end_writeback(page, true);
        let spare = writer.join().unwrap();
        let look = table.look(0);
        assert!(!look.writeback);
        let left = usize::from(spare.is_some()) + usize::from(table.orphan().is_some());
        assert_eq!(left, 1, "one frame is in the slot, the other is free");
        if look.dirty == 0 {
            assert!(clean);
            assert!(matches!(table.remove(0, Which::Clean), Removed::Frame(..)));
        } else {
            assert!(table.take(0, look.frame).is_none());
        }
    });
}

/// What was read from the device does not take the place of what was written since.
#[test]
fn a_fill_and_a_writer() {
    loom::model(|| {
        let (table, mut run) = table(2);
        let stale = run.split_first(1);
        let fresh = run.split_first(1);
        assert!(table.begin_fill(0, &stale, 0));
        let other = table.clone();
        let writer =
            thread::spawn(move || other.install(0, fresh, ALL_GRANULES, ALL_GRANULES, false));
        let published = table.publish(0, stale, ALL_GRANULES, false);
        let installed = writer.join().unwrap();
        match (published, installed) {
            (Ok(()), Err(_)) => assert_eq!(table.look(0).dirty, 0),
            (Err(_), Ok(true)) => assert_eq!(table.look(0).dirty, ALL_GRANULES),
            other => panic!("{other:?}"),
        }
    });
}

/// Puts one of the page's two bytes into a copy that replaces the page, as a write to a pinned page
/// and a mutable view that finds the page changed do.
fn write_by_copy(table: &PageTable, mut frame: FrameRun, at: usize, value: u8) {
    loop {
        if let Ok(pin) = table.pin_reserved(0, ALL_GRANULES) {
            let mut bytes = pin.read();
            bytes[at] = value;
            table.memory.write(frame.first(), bytes);
            match table.replace(pin, frame, ALL_GRANULES, ALL_GRANULES, 0, false) {
                Ok(_) => return,
                Err(back) => frame = back,
            }
        }
        thread::yield_now();
    }
}

/// A copy that was lent takes the page's place when it comes back; what was written beside it
/// meanwhile is not lost, and meanwhile the page does not go.
#[test]
fn a_lent_copy_and_a_writer() {
    loom::model(|| {
        let (table, mut run) = table(3);
        filled_clean(&table, &mut run);
        let (mine, others) = (run.split_first(1), run.split_first(1));
        let pin = table.pin_reserved(0, ALL_GRANULES).unwrap();
        assert!(table.begin_lending(&pin));
        assert_eq!(table.remove(0, Which::Clean), Removed::Kept);
        let other = table.clone();
        let writer = thread::spawn(move || {
            write_by_copy(&other, others, 1, 2);
            let page = other.begin_writeback(0);
            page.is_some_and(|page| other.end_writeback(page, true))
        });
        let mut bytes = pin.read();
        bytes[0] = 3;
        table.memory.write(mine.first(), bytes);
        if let Err(frame) = table.replace(pin, mine, ALL_GRANULES, ALL_GRANULES, 0, false) {
            write_by_copy(&table, frame, 0, 3);
        }
        while !table.end_lending(0) {
            thread::yield_now();
        }
        writer.join().unwrap();
        let pin = table.pin(0, ALL_GRANULES, false).unwrap();
        assert_eq!(pin.read(), [3, 2]);
        drop(pin);
        let mut frames = 0;
        while table.orphan().is_some() {
            frames += 1;
        }
        assert_eq!(frames, 2);
        assert!(matches!(table.remove(0, Which::All), Removed::Frame(..)));
    });
}
