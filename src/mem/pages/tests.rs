//! The table with real memory: what each right allows and leaves behind.

use super::*;
use crate::mem::{Heap, HeapConfig, HugePages};

fn table(frames: u32) -> (PageTable, FrameRun) {
    let heap = Heap::new(HeapConfig {
        huge_pages: HugePages::Never,
        ..Default::default()
    });
    PageTable::new(&heap, frames, 16).unwrap()
}

#[test]
fn a_page_is_read_written_and_taken() {
    let (table, mut run) = table(4);
    let mut frame = run.split_first(1);
    table.bytes_mut(&mut frame).fill(7);
    assert_eq!(table.install(3, frame, ALL_GRANULES, 0, false), Ok(false));
    let pin = table.pin(3, ALL_GRANULES, true).unwrap();
    assert_eq!((pin.bytes()[4095], table.look(3).uses), (7, 1));
    assert_eq!(table.lock(3, 0, 0).unwrap_err(), Blocked::Shared);
    assert!(table.take(3, pin.frame()).is_none());
    drop(pin);
    let mut lock = table.lock(3, 0, 0).unwrap();
    assert_eq!(table.pin(3, 0, false).unwrap_err(), Blocked::Locked);
    lock.bytes()[0] = 8;
    assert!(lock.written(0, 1, false));
    drop(lock);
    assert!(table.take(3, table.look(3).frame).is_none(), "it is dirty");
    let page = table.begin_writeback(3).unwrap();
    assert_eq!(page.granules(), 1);
    assert_eq!(table.lock(3, 0, 0).unwrap_err(), Blocked::Shared);
    assert_eq!(table.remove(3, Which::All), Removed::Busy);
    assert_eq!(table.pin(3, 1, false).unwrap().bytes()[0], 8);
    assert!(table.end_writeback(page, true));
    let frame = table.take(3, table.look(3).frame).unwrap();
    assert_eq!(table.bytes(&frame)[0], 8);
    assert_eq!(table.remove(3, Which::All), Removed::Nothing);
}

#[test]
fn a_view_keeps_what_it_saw_when_the_page_is_replaced() {
    let (table, mut run) = table(2);
    let mut old = run.split_first(1);
    table.bytes_mut(&mut old).fill(1);
    table.install(0, old, ALL_GRANULES, 0, false).unwrap();
    let view = table.pin(0, ALL_GRANULES, false).unwrap();
    let pin = table.pin(0, ALL_GRANULES, false).unwrap();
    let mut new = run.split_first(1);
    table.bytes_mut(&mut new).fill(2);
    assert_eq!(table.replace(pin, new, ALL_GRANULES, 1, 0, false), Ok(true));
    assert_eq!(view.bytes()[0], 1);
    assert_eq!(table.pin(0, 1, false).unwrap().bytes()[0], 2);
    assert!(table.orphan().is_none());
    drop(view);
    let back = table.orphan().unwrap();
    assert_eq!(table.bytes(&back)[0], 1);
    assert!(table.orphan().is_none());
}

#[test]
fn a_replaced_page_stays_in_writeback_and_a_failed_one_is_dirty_again() {
    let (table, mut run) = table(3);
    table
        .install(0, run.split_first(1), ALL_GRANULES, 0x0f, false)
        .unwrap();
    let page = table.begin_writeback(0).unwrap();
    let pin = table.pin(0, 1, false).unwrap();
    assert_eq!(
        table.replace(pin, run.split_first(1), ALL_GRANULES, 0x80, 0, false),
        Ok(false),
        "it counted as dirty already"
    );
    assert!(table.look(0).writeback && table.begin_writeback(0).is_none());
    assert!(!table.end_writeback(page, false));
    let look = table.look(0);
    assert_eq!((look.dirty, look.writeback), (0x8f, false));
    assert!(table.orphan().is_some());
}

#[test]
fn fills_are_published_unless_something_came_between() {
    let (table, mut run) = table(4);
    assert!(table.begin_fill(1, &run, 1));
    assert!(!table.begin_fill(1, &run, 2));
    assert_eq!(table.pin(1, 0, false).unwrap_err(), Blocked::Filling);
    let first = run.split_first(1);
    let second = run.split_first(1);
    let wrong = table.publish(1, first, ALL_GRANULES, true).unwrap_err();
    assert_eq!(wrong.first(), 0);
    table.publish(1, second, ALL_GRANULES, true).unwrap();
    assert_eq!(table.pin(1, 1, true).unwrap_err(), Blocked::Ahead);
    assert!(table.arrive(1) && !table.arrive(1));
    assert!(table.pin(1, 1, true).is_ok());
    assert!(table.begin_fill(2, &run, 0));
    assert_eq!(table.remove(2, Which::Clean), Removed::Filling);
    assert!(!table.abandon(2, run.first()));
}

#[test]
fn frames_of_another_table_are_refused() {
    let (table, _run) = table(1);
    let (_, mut other) = self::table(1);
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = table.install(0, other.split_first(1), 0, 0, false);
    }));
    assert!(refused.is_err());
}
