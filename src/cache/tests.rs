//! The cache without I/O: pages come by `write_new` and `begin_fill`.

use std::sync::atomic::AtomicBool;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::mem::pages::Which;
use crate::mem::{Heap, HeapConfig, HugePages};

fn cache(pages: usize) -> Cache {
    let heap = Heap::new(HeapConfig {
        huge_pages: HugePages::Never,
        ..Default::default()
    });
    let config = CacheConfig {
        limit_bytes: pages * (PAGE_BYTES + OVERHEAD_BYTES),
        ..CacheConfig::default()
    };
    Cache::new(&heap, config).unwrap()
}

/// Writes everything that is dirty back, to nowhere.
fn clean(file: &FileCache) -> Vec<u64> {
    let mut taken = Vec::new();
    file.take_dirty(0..u64::MAX, usize::MAX, true, &mut taken);
    let pages = taken.iter().map(DirtyPage::page).collect();
    taken.into_iter().for_each(|page| file.written(page, true));
    pages
}

fn filled(file: &FileCache, page: u64, wanted: u32, value: u8) -> usize {
    let mut fill = file.begin_fill(page, wanted).unwrap().unwrap();
    let len = fill.len();
    for n in 0..len {
        fill.put(n * PAGE_BYTES, PAGE_BYTES, &[value; PAGE_BYTES]);
    }
    fill.finish(false, 0, &mut []);
    len
}

const ASKED: Writing = Writing::Asked {
    grow: false,
    backed: true,
};

/// As `filled`, and then known to be backed, and clean.
fn owned(file: &FileCache, page: u64, wanted: u32, value: u8) -> usize {
    let len = filled(file, page, wanted, value);
    for page in page..page + len as u64 {
        assert_eq!(file.write_cached(page * 4096, &[value], ASKED), Wrote::Yes);
    }
    clean(file);
    len
}

#[test]
fn hits_read_and_write_across_pages() {
    let cache = cache(128);
    let file = FileCache::new(&cache, 100_000, 4096).unwrap();
    let mut tally = Tally::default();
    assert_eq!(file.read_hit(&mut tally, 0, &mut [0; 10]), 0);
    assert_eq!(owned(&file, 0, 16, 7), 16);
    let mut buf = vec![0; 20_000];
    assert_eq!(file.read_hit(&mut tally, 100, &mut buf), 20_000);
    assert!(buf.iter().all(|b| *b == 7));
    assert_eq!(file.write_hit(&mut tally, 4000, &[9; 200]), 200);
    file.read_hit(&mut tally, 3990, &mut buf[..300]);
    assert_eq!(buf[..10], [7; 10]);
    assert_eq!(buf[10..210], [9; 200]);
    assert_eq!(buf[210..300], [7; 90]);
    assert_eq!(cache.stats().dirty_pages, 2);
    assert_eq!(
        file.read_hit(&mut tally, 60_000, &mut buf),
        5536,
        "the rest is not cached"
    );
    file.set_size(62_000);
    assert_eq!(file.read_hit(&mut tally, 60_000, &mut buf), 2000);
    assert_eq!(file.write_hit(&mut tally, 61_999, &[1; 2]), 1);
    assert_eq!(clean(&file), [0, 1, 15]);
    assert_eq!(cache.stats().dirty_pages, 0);
}

#[test]
fn small_blocks_are_up_to_date_one_by_one() {
    let cache = cache(128);
    let file = FileCache::new(&cache, 1 << 20, 1024).unwrap();
    let mut tally = Tally::default();
    assert_eq!(
        file.write_new(1024, &[1; 100]),
        Some(false),
        "a part of a block"
    );
    assert_eq!(file.write_new(1024, &[1; 2048]), Some(true));
    let mut buf = [0; 4096];
    assert_eq!(file.read_hit(&mut tally, 1024, &mut buf), 0);
    assert_eq!(file.read_hit(&mut tally, 1024, &mut buf[..2048]), 2048);
    assert_eq!(
        file.write_hit(&mut tally, 100, &[2; 100]),
        0,
        "its block is missing"
    );
    assert_eq!(file.write_hit(&mut tally, 1500, &[2; 100]), 100);
    let mut merge = file.begin_merge(0).unwrap().unwrap();
    assert_eq!(merge.missing(), 0b1100_0011);
    merge.put(0, 1024, &[3; 1024]);
    merge.put(3072, 1024, &[]);
    merge.finish();
    assert_eq!(file.read_hit(&mut tally, 0, &mut buf), 4096);
    assert_eq!(
        (buf[0], buf[1024], buf[1500], buf[1600], buf[4000]),
        (3, 1, 2, 1, 0)
    );
    let mut taken = Vec::new();
    file.take_dirty(0..1, 8, true, &mut taken);
    assert_eq!(
        taken[0].granules(),
        0b0011_1100,
        "the blocks that were read are clean"
    );
    file.written(taken.remove(0), true);
}

#[test]
fn memory_is_recycled_and_never_more_than_the_limit() {
    let cache = cache(256);
    let file = FileCache::new(&cache, u64::MAX / 2, 4096).unwrap();
    let mut tally = Tally::default();
    let mut rng = SmallRng::seed_from_u64(1);
    for _ in 0..20_000 {
        // Sparse: nearly every page has a leaf of its own.
        let page: u64 = rng.random_range(0..1 << 40);
        let value = page.to_le_bytes()[0];
        filled(&file, page, rng.random_range(1..4), value);
        let mut byte = [0];
        assert_eq!(file.read_hit(&mut tally, page * 4096 + 5, &mut byte), 1);
        assert_eq!(byte[0], value);
        assert!(cache.stats().used_pages <= 256);
        assert!(cache.stats().leaves <= 256);
    }
    drop(file);
    assert_eq!((cache.stats().used_pages, cache.stats().leaves), (0, 0));
}

#[test]
fn dirty_pages_are_not_evicted_and_run_out() {
    let cache = cache(64);
    let file = FileCache::new(&cache, u64::MAX / 2, 4096).unwrap();
    for page in 0..64 {
        assert_eq!(file.write_new(page * 4096, &[1; 4096]), Some(true));
    }
    assert_eq!(cache.pressure(), Pressure::Hard);
    assert_eq!(file.write_new(64 * 4096, &[1; 4096]), None);
    assert!(matches!(file.begin_fill(64, 1), Some(None)));
    assert_eq!(clean(&file).len(), 64);
    assert_eq!(cache.pressure(), Pressure::None);
    assert_eq!(file.write_new(64 * 4096, &[1; 4096]), Some(true));
}

#[test]
fn views_keep_what_they_saw() {
    let cache = cache(64);
    let file = FileCache::new(&cache, 10_000, 4096).unwrap();
    let mut tally = Tally::default();
    filled(&file, 0, 3, 5);
    assert_eq!(
        file.write_hit(&mut tally, 0, &[6]),
        0,
        "the filesystem was not asked"
    );
    assert!(file.view_mut(0, 1).is_none());
    let _ = file.invalidate(0..u64::MAX, Which::Clean, true);
    owned(&file, 0, 3, 5);
    let view = file.view(&mut Tally::default(), 4000, 1000).unwrap();
    assert_eq!(view.len(), 96, "to the end of the page");
    let first = file.view(&mut Tally::default(), 0, 1000).unwrap();
    assert_eq!(file.write_hit(&mut tally, 0, &[6; 4096]), 4096);
    assert!(first.iter().all(|b| *b == 5));
    assert!(
        file.view(&mut Tally::default(), 0, 10)
            .unwrap()
            .iter()
            .all(|b| *b == 6)
    );
    assert!(file.view_mut(0, 10).is_some(), "the copy is not pinned");
    drop((view, first));
    file.view_mut(100, 10).unwrap()[0] = 8;
    assert_eq!(
        file.view(&mut Tally::default(), 99, 3).unwrap()[..],
        [6, 8, 6]
    );
    assert!(file.view(&mut Tally::default(), 10_000, 1).is_none());
    assert_eq!(file.view(&mut Tally::default(), 9_999, 5).unwrap().len(), 1);
    assert_eq!(cache.stats().copied_on_write, 1);
    let _ = file.invalidate(0..u64::MAX, Which::All, true);
    assert_eq!(cache.stats().dirty_pages, 0);
}

/// A copy that is lent to be written to takes the page's place, whatever became of the page
/// meanwhile.
#[test]
fn mutable_views_are_put_over_what_is_there_when_they_end() {
    let cache = cache(64);
    let file = FileCache::new(&cache, 40_000, 1024).unwrap();
    let mut tally = Tally::default();
    let mut buf = [0; 4096];
    owned(&file, 0, 3, 1);
    // The page is written to, in place and, beside a view, in a copy; and it does not go.
    let mut lent = file.view_mut(100, 100).unwrap();
    let mut second = file.view_mut(150, 4000).unwrap();
    lent.fill(2);
    assert_eq!(file.write_hit(&mut tally, 1000, &[3; 100]), 100);
    let view = file.view(&mut tally, 0, 4096).unwrap();
    assert_eq!(file.write_hit(&mut tally, 2000, &[4; 100]), 100);
    clean(&file);
    assert_eq!(file.invalidate(0..4096, Which::Clean, true).removed, 0);
    cache.inner().make_room(64);
    assert!(file.is_cached(0, 0, 4096));
    drop((lent, view));
    second[50..100].fill(5);
    drop(second);
    assert_eq!(file.read_hit(&mut tally, 0, &mut buf), 4096);
    assert!(buf[..100] == [1; 100] && buf[100..150] == [2; 50]);
    assert!(buf[150..200] == [1; 50] && buf[200..250] == [5; 50] && buf[250..] == [1; 3846]);
    clean(&file);
    assert_eq!(file.invalidate(0..4096, Which::Clean, true).removed, 1);
    // It is gone, as after a direct write: the blocks that the view touches come back.
    owned(&file, 1, 2, 1);
    let mut lent = file.view_mut(4096 + 1100, 10).unwrap();
    lent.fill(6);
    assert_eq!(file.invalidate(4096..8192, Which::Stale, true).removed, 1);
    drop(lent);
    assert!(file.is_cached(1, 1024, 2048) && !file.is_cached(1, 0, 1));
    assert_eq!(
        file.read_hit(&mut tally, 4096 + 1024, &mut buf[..1024]),
        1024
    );
    assert!(buf[..76] == [1; 76] && buf[76..86] == [6; 10] && buf[86..1024] == [1; 938]);
    // The file was cut: nothing comes behind its end.
    let mut lent = file.view_mut(2 * 4096, 100).unwrap();
    lent.fill(7);
    file.set_size(2 * 4096);
    let _ = file.invalidate(2 * 4096..u64::MAX, Which::All, true);
    drop(lent);
    assert!(!file.is_cached(2, 0, 1));
    assert_eq!(clean(&file), [1]);
    let _ = file.invalidate(0..u64::MAX, Which::All, true);
    cache.inner().make_room(1);
    assert_eq!(
        (cache.stats().used_pages, cache.stats().dirty_pages),
        (0, 0)
    );
}

#[test]
fn invalidation_leaves_what_it_should() {
    let cache = cache(64);
    let file = FileCache::new(&cache, 1 << 20, 4096).unwrap();
    let mut tally = Tally::default();
    owned(&file, 0, 16, 1);
    file.write_hit(&mut tally, 5 * 4096, &[2]);
    let done = file.invalidate(4097..8 * 4096, Which::Clean, false);
    assert_eq!((done.removed, done.kept), (5, 1));
    assert!(file.is_cached(1, 0, 4096) && !file.is_cached(2, 0, 1));
    let done = file.invalidate(4097..8 * 4096, Which::All, true);
    assert_eq!((done.removed, done.kept), (2, 0));
}

#[test]
fn a_fill_that_was_overtaken_is_dropped() {
    let cache = cache(64);
    let file = FileCache::new(&cache, 1 << 20, 4096).unwrap();
    let mut tally = Tally::default();
    let fill = file.begin_fill(0, 4).unwrap().unwrap();
    assert!(file.begin_fill(3, 1).is_none());
    assert_eq!(file.write_new(4096, &[3; 4096]), Some(true));
    fill.finish(true, 0, &mut []);
    let mut buf = [0; 4096];
    assert_eq!(file.read_hit(&mut tally, 4096, &mut buf), 4096);
    assert_eq!(buf[0], 3);
    assert_eq!(
        file.read_hit(&mut tally, 0, &mut buf),
        4096,
        "used after being read ahead"
    );
    let fill = file.begin_fill(8, 1).unwrap().unwrap();
    file.supersede(8);
    filled(&file, 8, 1, 4);
    fill.abandon(false);
    file.read_hit(&mut tally, 8 * 4096, &mut buf);
    assert_eq!(buf[0], 4);
    drop(file);
    assert_eq!(cache.stats().used_pages, 0);
    assert_eq!(cache.stats().leaves, 0);
}

/// Threads read, write, evict, write back and invalidate the same pages; a page holds the same byte
/// everywhere.
#[test]
fn threads_never_see_half_of_anything() {
    let cache = cache(96);
    let file = FileCache::new(&cache, 256 * 4096, 4096).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (file, stop) = (&file, &stop);
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(thread);
                let mut tally = Tally::default();
                let mut buf = vec![0; 4096];
                for round in 0..30_000 {
                    if stop.load(Relaxed) {
                        break;
                    }
                    let page = rng.random_range(0..256_u64);
                    let value: u8 = rng.random();
                    match rng.random_range(0..100) {
                        0..40 => {
                            if file.read_hit(&mut tally, page * 4096, &mut buf) == 4096 {
                                let same = buf.iter().all(|b| *b == buf[0]);
                                if !same {
                                    stop.store(true, Relaxed);
                                }
                                assert!(same, "thread {thread}, round {round}, page {page}");
                            }
                        }
                        40..60 => {
                            file.write_cached(page * 4096, &[value; 4096], ASKED);
                        }
                        60..70 => {
                            let _ = file.write_new(page * 4096, &[value; 4096]);
                        }
                        70..85 => {
                            if let Some(Some(mut fill)) = file.begin_fill(page, 4) {
                                let len = fill.len() * 4096;
                                fill.put(0, len, &vec![value; len]);
                                fill.finish(true, 0, &mut []);
                            }
                        }
                        85..90 => {
                            if let Some(view) = file.view(&mut Tally::default(), page * 4096, 4096)
                            {
                                assert!(view.iter().all(|b| *b == view[0]));
                                file.write_cached(page * 4096, &[value; 4096], ASKED);
                                assert!(view.iter().all(|b| *b == view[0]));
                            }
                        }
                        90..98 => {
                            clean(file);
                        }
                        _ => {
                            let _ =
                                file.invalidate(page * 4096..(page + 8) * 4096, Which::All, true);
                        }
                    }
                }
            });
        }
    });
    clean(&file);
    assert_eq!(cache.stats().dirty_pages, 0);
    let _ = file.invalidate(0..u64::MAX, Which::All, true);
    cache.inner().make_room(1);
    assert_eq!((cache.stats().used_pages, cache.stats().leaves), (0, 0));
}
