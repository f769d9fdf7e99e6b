//! The files of a thread's operations, each registered once: an operation names its file by a
//! number.
//!
//! A clone of a source counts a reference that all threads with that file share; counting it for
//! each operation would move its cache line from processor to processor. So one clone is kept here
//! for all operations on a file, and operations are counted beside it, where only this thread
//! looks. A file stays registered when its last operation has ended, until another one needs its
//! place or the owner goes away.

use super::source::Source;

/// The number of no file.
pub(super) const NO_SOURCE: u32 = u32::MAX;

/// Files that are registered at least before one gives way to another.
const LEAST: usize = 256;
/// Places that are searched for a file.
const WAYS: usize = 8;

/// A hash table of sources: a file is at one of [`WAYS`] places, or at any other where those were
/// all in use. Such a file is found only when it was the last one; otherwise it is registered
/// twice, which does no harm.
#[derive(Debug)]
pub(super) struct Sources<S> {
    places: Box<[SourcePlace<S>]>,
    /// The place that was named last.
    last: u32,
    /// The key registered there.
    last_key: usize,
}

#[derive(Debug)]
struct SourcePlace<S> {
    source: Option<S>,
    /// 0 where there is none.
    key: usize,
    /// Operations that name it.
    users: u32,
}

impl<S: Source> Sources<S> {
    /// For so many operations at once: more places than that, so that one is always free.
    pub(super) fn new(operations: usize) -> Self {
        let count = (2 * operations).max(LEAST).next_power_of_two();
        let place = || SourcePlace {
            source: None,
            key: 0,
            users: 0,
        };
        Self {
            places: (0..count).map(|_| place()).collect(),
            last: 0,
            last_key: 0,
        }
    }

    /// The number of a file, for one operation that is counted from now on.
    #[inline(always)]
    pub(super) fn add_user(&mut self, source: &S) -> u32 {
        if source.key() != self.last_key {
            self.find(source);
        }
        if let Some(place) = self.places.get_mut(self.last as usize) {
            place.users += 1;
        }
        self.last
    }

    /// One operation less. The file stays.
    #[inline(always)]
    pub(super) fn remove_user(&mut self, number: u32) {
        if let Some(place) = self.places.get_mut(number as usize) {
            place.users -= 1;
        }
    }

    /// The file with a number.
    #[inline(always)]
    pub(super) fn get(&self, number: u32) -> Option<&S> {
        self.places.get(number as usize)?.source.as_ref()
    }

    /// Makes a file the last one that was named.
    #[inline(never)]
    fn find(&mut self, source: &S) {
        let key = source.key();
        // Sources are pointers: their low bits say nothing. The constant is that of Fibonacci
        // hashing.
        let hash = (key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let first = usize::try_from(hash).unwrap_or(0) & (self.places.len() - 1);
        if self.places[first].key != key {
            return self.find_elsewhere(source, first);
        }
        (self.last, self.last_key) = (u32::try_from(first).unwrap_or(NO_SOURCE), key);
    }

    /// As [`Sources::find`], for a file that is not at its first place; registers it where it is at
    /// none.
    #[cold]
    fn find_elsewhere(&mut self, source: &S, first: usize) {
        let key = source.key();
        let mask = self.places.len() - 1;
        let ways = (0..WAYS).map(|way| (first + way) & mask);
        let places = &self.places;
        let at = ways
            .clone()
            .find(|&at| places[at].key == key)
            .or_else(|| ways.clone().find(|&at| places[at].key == 0))
            .or_else(|| ways.clone().find(|&at| places[at].users == 0))
            .or_else(|| places.iter().position(|place| place.users == 0));
        let Some(at) = at else {
            // Not met: there are more places than operations.
            (self.last, self.last_key) = (NO_SOURCE, 0);
            return;
        };
        let place = &mut self.places[at];
        if place.key != key {
            place.source = Some(source.clone());
            place.key = key;
        }
        (self.last, self.last_key) = (u32::try_from(at).unwrap_or(NO_SOURCE), key);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::TestLayout;
    use super::*;
    use std::sync::Arc;

    #[derive(Clone)]
    struct Named(Arc<u32>);

    impl Source for Named {
        type Ops<'a> = TestLayout;

        fn ops(&self) -> TestLayout {
            TestLayout::default()
        }

        fn size_bytes(&self) -> u64 {
            0
        }

        fn key(&self) -> usize {
            Arc::as_ptr(&self.0).addr()
        }
    }

    #[test]
    fn operations_on_a_registered_file_count_no_reference() {
        let mut sources = Sources::new(40);
        let files: Vec<Named> = (0..32).map(|n| Named(Arc::new(n))).collect();
        for round in 0..100 {
            for file in &files {
                let number = sources.add_user(file);
                assert!(Arc::ptr_eq(&sources.get(number).unwrap().0, &file.0));
                assert_eq!(Arc::strong_count(&file.0), 2, "round {round}");
                sources.remove_user(number);
            }
        }
        drop(sources);
        assert!(files.iter().all(|file| Arc::strong_count(&file.0) == 1));
    }

    #[test]
    fn a_file_with_operations_keeps_its_place_whatever_comes() {
        let operations = 300;
        let mut sources = Sources::new(operations);
        let mut held = Vec::new();
        for n in 0..20_000_u32 {
            let file = Named(Arc::new(n));
            let number = sources.add_user(&file);
            if n % 50 == 0 && held.len() + 1 < operations {
                held.push((number, n));
            } else {
                sources.remove_user(number);
            }
            // Closed files go for others: no more are kept than there are places.
        }
        for (number, n) in held {
            assert_eq!(*sources.get(number).unwrap().0, n);
            sources.remove_user(number);
        }
        assert!(sources.places.iter().all(|place| place.users == 0));
        assert_eq!(sources.places.len(), 1024);
    }
}
