//! The index under loom, over the real words of its pages: how leaves come, go and change hands,
//! and how dirty ones are listed.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::time::Duration;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize};
use loom::thread;

use super::alarm::Alarm;
use super::index::{Index, LEAF_PAGES, Lists};
use super::waiters::Waiters;
use crate::mem::pages::{ALL_GRANULES, FrameRun, PageTable, Pin, Removed, Which};
use crate::mem::{Heap, HeapConfig};

/// The parts of a cache that these models need.
struct Rig {
    table: PageTable,
    index: Index,
    in_writeback: AtomicUsize,
    /// Counts, in no order, the steps of readers and of threads that remove a page. loom explores
    /// another order of two threads only where the last one to touch an atomic changes it, so it
    /// would explore few orders of a reader, which changes nothing, against a thread that loads a
    /// word before changing it.
    turns: AtomicUsize,
}

impl Rig {
    fn turn(&self) {
        self.turns.fetch_add(1, Relaxed);
    }
}

/// A file in it.
#[derive(Clone)]
struct TestFile {
    rig: Arc<Rig>,
    id: u32,
    lists: std::sync::Arc<Lists>,
}

fn rig(leaves: u32, frames: u32) -> (Arc<Rig>, FrameRun) {
    let heap = Heap::new(HeapConfig::default());
    let (table, run) = PageTable::new(&heap, frames, leaves * LEAF_PAGES).unwrap();
    let rig = Rig {
        index: Index::new(table.groups()),
        table,
        in_writeback: AtomicUsize::new(0),
        turns: AtomicUsize::new(0),
    };
    (Arc::new(rig), run)
}

fn test_file(rig: &Arc<Rig>) -> TestFile {
    let (id, lists) = rig.index.add_file();
    TestFile {
        rig: rig.clone(),
        id,
        lists,
    }
}

impl TestFile {
    fn reserve(&self, no: u64) -> Option<u32> {
        self.rig.index.reserve(self.id, &self.lists, no)
    }

    /// Puts a page into a leaf, which it reserves. The frame's bytes are `value`. As
    /// `FileCache::write_absent` does, or a read where it is clean.
    fn put(&self, no: u64, slot: u32, mut run: FrameRun, value: u8, dirty: u8) -> u32 {
        let Rig { table, index, .. } = &*self.rig;
        let leaf = self.reserve(no).unwrap();
        self.rig.turn();
        let held = index.hold(self.id, no);
        let frame = run.split_first(1);
        table.write_frame(&frame, value);
        let at = leaf * LEAF_PAGES + slot;
        let installed = table.install(at, frame, ALL_GRANULES, dirty, false);
        assert_eq!(installed, Ok(false));
        self.rig.turn();
        if dirty != 0 {
            index.list_dirty(leaf, &self.lists, no);
        }
        index.release(held.unwrap());
        leaf
    }

    /// As `FileInner::remove`, and eviction.
    fn remove(&self, leaf: u32, slot: u32) -> Option<FrameRun> {
        let Rig { table, index, .. } = &*self.rig;
        let frame = loop {
            match table.remove(leaf * LEAF_PAGES + slot, Which::All) {
                Removed::Busy => thread::yield_now(),
                Removed::Frame(frame, _) => break Some(frame),
                Removed::Detached(_) => break None,
                other => panic!("{other:?}"),
            }
        };
        self.rig.turn();
        index.release(leaf);
        self.rig.turn();
        frame
    }

    /// As `FileInner::read_page`: without holding on to the page.
    fn glance(&self, no: u64, slot: u32) -> Option<u8> {
        let Rig { table, index, .. } = &*self.rig;
        let leaf = index.find(self.id, no)?;
        let turn = || self.rig.turn();
        turn();
        table.glance(leaf, slot, turn, |tag| tag.is(self.id, no))
    }

    /// As `FileInner::pin`.
    fn pin(&self, no: u64, slot: u32) -> Option<Pin<'_>> {
        let Rig { table, index, .. } = &*self.rig;
        let leaf = index.find(self.id, no)?;
        self.rig.turn();
        let pin = table
            .pin(leaf * LEAF_PAGES + slot, ALL_GRANULES, false)
            .ok()?;
        self.rig.turn();
        if !index.is(leaf, self.id, no) {
            return None;
        }
        self.rig.turn();
        pin.is_in_place().then_some(pin)
    }

    /// As `FileInner::overwrite`; false when it is not there, or held by others.
    fn overwrite(&self, no: u64, slot: u32) -> bool {
        let Rig { table, index, .. } = &*self.rig;
        let Some(leaf) = index.find(self.id, no) else {
            return false;
        };
        let Ok(mut lock) = table.lock(leaf * LEAF_PAGES + slot, ALL_GRANULES, 0) else {
            return false;
        };
        if !index.is(leaf, self.id, no) {
            return false;
        }
        if lock.marks().1 == 0 {
            index.list_dirty(leaf, &self.lists, no);
        }
        lock.written(ALL_GRANULES, ALL_GRANULES, false);
        true
    }

    /// As `FileCache::take_dirty` and `FileCache::written`, of the one leaf that there is: writes
    /// dirty pages back.
    fn write_back(&self, well: bool) {
        let Rig {
            table,
            index,
            in_writeback,
            ..
        } = &*self.rig;
        let found = self.lists.dirty().iter().next().copied();
        let Some(no) = found else { return };
        let Some(leaf) = index.hold(self.id, no) else {
            index.unlist_gone(self.id, &self.lists, no);
            return;
        };
        let slots = || [0, 1].map(|slot| leaf * LEAF_PAGES + slot);
        let mut taken = Vec::new();
        for at in slots() {
            loop {
                let look = table.look(at);
                if look.locked {
                    thread::yield_now();
                    continue;
                }
                if look.dirty == 0 || look.writeback {
                    break;
                }
                in_writeback.fetch_add(1, AcqRel);
                if let Some(page) = table.begin_writeback(at) {
                    taken.push(page);
                    break;
                }
                in_writeback.fetch_sub(1, AcqRel);
                thread::yield_now();
            }
        }
        let has_dirty = || {
            slots().into_iter().any(|at| {
                let look = table.look(at);
                look.locked || look.dirty != 0
            })
        };
        index.unlist_clean(leaf, &self.lists, no, has_dirty);
        index.release(leaf);
        for page in taken {
            if !table.end_writeback(page, well) {
                let leaf = index.hold(self.id, no).unwrap();
                index.list_dirty(leaf, &self.lists, no);
                index.release(leaf);
            }
            in_writeback.fetch_sub(1, AcqRel);
        }
    }

    /// As `FileCache::may_be_dirty`.
    fn may_be_dirty(&self) -> bool {
        let dirty = self.lists.dirty();
        !dirty.is_empty() || self.rig.in_writeback.load(Acquire) != 0
    }

    fn is_dirty(&self, slot: u32) -> bool {
        self.rig.table.look(slot).dirty != 0
    }
}

/// A leaf is made once, by either of two threads, and is freed with its last reservation.
#[test]
fn two_who_make_the_same_leaf() {
    loom::model(|| {
        let (rig, _run) = rig(2, 1);
        let file = test_file(&rig);
        let other = file.clone();
        let leaf = thread::spawn(move || other.reserve(5).unwrap());
        let mine = file.reserve(5).unwrap();
        assert_eq!(rig.index.find(file.id, 5), Some(mine));
        let leaf = leaf.join().unwrap();
        assert_eq!(leaf, mine);
        assert_eq!(rig.index.len(), 1);
        rig.index.release(leaf);
        assert_eq!(rig.index.find(file.id, 5), Some(mine));
        rig.index.release(mine);
        assert_eq!(rig.index.len(), 0);
    });
}

/// While one lets go of a leaf, others take hold of it, or find it gone and make it anew.
#[test]
fn a_leaf_that_goes_while_it_is_wanted() {
    loom::model(|| {
        let (rig, _run) = rig(2, 1);
        let file = test_file(&rig);
        let first = file.reserve(5).unwrap();
        let one = file.clone();
        let leaver = thread::spawn(move || one.rig.index.release(first));
        let two = file.clone();
        let maker = thread::spawn(move || {
            let leaf = two.reserve(5).unwrap();
            assert_eq!(two.rig.index.key(leaf), (two.id, 5));
            assert_eq!(two.rig.index.find(two.id, 5), Some(leaf));
            two.rig.index.release(leaf);
        });
        if let Some(leaf) = rig.index.hold(file.id, 5) {
            assert_eq!(rig.index.key(leaf), (file.id, 5));
            rig.index.release(leaf);
        }
        leaver.join().unwrap();
        maker.join().unwrap();
        // Each leaf is free, once.
        assert_eq!((rig.index.len(), rig.index.find(file.id, 5)), (0, None));
        assert!(file.lists.leaves().is_empty());
        let (a, b) = (file.reserve(1).unwrap(), file.reserve(3).unwrap());
        assert!(a != b && file.reserve(7).is_none());
    });
}

/// Two leaves in one bucket, of which one goes: the other one is still found.
#[test]
fn a_chain_that_loses_a_link() {
    loom::model(|| {
        let (rig, _run) = rig(2, 1);
        let file = test_file(&rig);
        // Of two buckets, both the one of even numbers.
        let gone = file.reserve(0).unwrap();
        let stays = file.reserve(2).unwrap();
        let one = file.clone();
        let leaver = thread::spawn(move || one.rig.index.release(gone));
        let two = file.clone();
        let other = thread::spawn(move || two.reserve(0).map(|leaf| two.rig.index.release(leaf)));
        assert_eq!(rig.index.hold(file.id, 2), Some(stays));
        leaver.join().unwrap();
        other.join().unwrap();
        assert_eq!(rig.index.find(file.id, 2), Some(stays));
        assert_eq!(rig.index.len(), 1);
    });
}

/// A file's page is removed and its leaf, the only one, is reused by another file: no reader sees
/// the wrong file's page.
fn changing_hands(read: fn(&TestFile) -> Option<u8>, back: bool) {
    loom::model(move || {
        let (rig, mut run) = rig(1, 2);
        let (mine, other) = (test_file(&rig), test_file(&rig));
        let leaf = mine.put(5, 0, run.split_first(1), 1, 0);
        let one = mine.clone();
        let recycler = thread::spawn(move || {
            drop(one.remove(leaf, 0));
            let leaf = other.put(5, 0, run, 2, 0);
            if back {
                drop(other.remove(leaf, 0));
                assert_eq!(one.reserve(5), Some(leaf));
            }
        });
        if let Some(value) = read(&mine) {
            assert_eq!(value, 1, "another file's bytes");
        }
        recycler.join().unwrap();
        assert_eq!(read(&mine), None);
    });
}

#[test]
fn a_glance_while_the_leaf_changes_hands() {
    changing_hands(|file| file.glance(5, 0), false);
}

#[test]
fn a_glance_while_the_leaf_goes_and_comes_back() {
    changing_hands(|file| file.glance(5, 0), true);
}

#[test]
fn a_pin_while_the_leaf_changes_hands() {
    changing_hands(|file| file.pin(5, 0).map(|pin| pin.value()), false);
}

#[test]
fn a_pin_while_the_leaf_goes_and_comes_back() {
    changing_hands(|file| file.pin(5, 0).map(|pin| pin.value()), true);
}

/// An overwrite while the leaf changes hands is of the right file's page, or of none.
#[test]
fn an_overwrite_while_the_leaf_changes_hands() {
    loom::model(|| {
        let (rig, mut run) = rig(1, 2);
        let (mine, other) = (test_file(&rig), test_file(&rig));
        let leaf = mine.put(5, 0, run.split_first(1), 1, 0);
        let one = mine.clone();
        let two = other.clone();
        let recycler = thread::spawn(move || {
            drop(one.remove(leaf, 0));
            two.put(5, 0, run, 2, 0);
        });
        mine.overwrite(5, 0);
        recycler.join().unwrap();
        assert!(!other.is_dirty(0) && !other.may_be_dirty());
    });
}

/// Two write to pages of a leaf and write back, and each finds what it wrote, or the other one has
/// it.
#[test]
fn writers_of_a_leaf_who_write_back() {
    loom::model(|| {
        let (rig, mut run) = rig(1, 2);
        let file = test_file(&rig);
        file.put(5, 0, run.split_first(1), 1, 0);
        file.put(5, 1, run, 1, 0);
        let other = file.clone();
        let writer = thread::spawn(move || {
            assert!(other.overwrite(5, 1));
            other.write_back(true);
            assert!(!other.is_dirty(1), "it was not found");
        });
        assert!(file.overwrite(5, 0));
        file.write_back(true);
        assert!(!file.is_dirty(0), "it was not found");
        writer.join().unwrap();
        file.write_back(true);
        assert!(!file.may_be_dirty());
    });
}

/// What could not be written back counts as dirty at every moment.
#[test]
fn dirty_pages_are_never_out_of_sight() {
    loom::model(|| {
        let (rig, run) = rig(1, 1);
        let file = test_file(&rig);
        file.put(5, 0, run, 1, ALL_GRANULES);
        let other = file.clone();
        let flusher = thread::spawn(move || {
            other.write_back(false);
            other.write_back(false);
        });
        assert!(file.may_be_dirty());
        assert!(file.may_be_dirty());
        flusher.join().unwrap();
        assert!(file.may_be_dirty());
    });
}

/// A leaf with dirty pages is dropped and made anew with others while another thread looks for the
/// first.
#[test]
fn a_listed_leaf_that_is_dropped_and_comes_back() {
    loom::model(|| {
        let (rig, mut run) = rig(1, 2);
        let file = test_file(&rig);
        let leaf = file.put(5, 0, run.split_first(1), 1, ALL_GRANULES);
        let other = file.clone();
        let flusher = thread::spawn(move || other.write_back(true));
        drop(file.remove(leaf, 0));
        file.put(5, 0, run, 2, ALL_GRANULES);
        file.write_back(true);
        assert!(!file.is_dirty(0), "it was not found");
        flusher.join().unwrap();
    });
}

/// Who sleeps until something is dirty is woken when something is.
#[test]
fn nobody_sleeps_over_the_first_dirty_page() {
    loom::model(|| {
        let alarm = Arc::new(Alarm::default());
        let dirty = Arc::new(AtomicIsize::new(0));
        let rung = Arc::new(AtomicBool::new(false));
        let bell = rung.clone();
        assert!(alarm.set(Box::new(move || bell.store(true, SeqCst))));
        let (loud, count) = (alarm.clone(), dirty.clone());
        let writer = thread::spawn(move || {
            if count.fetch_add(1, Relaxed) == 0 {
                loud.first_dirty();
            }
        });
        let sleeps = alarm.arm(&dirty);
        writer.join().unwrap();
        assert!(!sleeps || rung.load(SeqCst), "it sleeps for ever");
    });
}

/// The last page to end writeback wakes the waiting thread. No wait ends by its time limit here: a
/// missed wakeup would be a deadlock.
#[test]
fn nobody_sleeps_over_the_end_of_writing_back() {
    loom::model(|| {
        let waiters = Arc::new(Waiters::default());
        let in_writeback = Arc::new(AtomicUsize::new(2));
        let threads = [(); 2].map(|()| {
            let (waiters, in_writeback) = (waiters.clone(), in_writeback.clone());
            thread::spawn(move || {
                in_writeback.fetch_sub(1, AcqRel);
                waiters.wake();
            })
        });
        let over = || in_writeback.load(Acquire) == 0;
        assert!(waiters.wait(Duration::from_secs(100_000), over));
        assert_eq!(waiters.count(), 0);
        for thread in threads {
            thread.join().unwrap();
        }
    });
}
