//! The files of a thread's operations, each registered once: an operation names its file by a
//! number.
//!
//! A clone of a source counts a reference that all threads with that file share; counting it for
//! each operation would move its cache line from processor to processor. So one clone is kept here
//! for all operations on a file, and operations are counted beside it, where only this thread
//! writes. A file stays registered when its last operation has ended, until another one needs its
//! place or the owner goes away.
//!
//! With the file one version of its mappings is registered. When the file has a newer one, the next
//! operation registers that: in the same place, or, while operations that began before are in
//! flight, in another one.

use std::sync::Arc;

use super::super::VersionUser;
use super::source::Source;
use crate::sys::{is_fenced_by_kernel, kernel_light_barrier, light_barrier};

/// The number of no file.
pub(super) const NO_SOURCE: u32 = u32::MAX;

/// Files that are registered at least before one gives way to another.
const LEAST: usize = 256;
/// Places that are searched for a file.
const WAYS: u32 = 8;
/// The key of a place without a file.
const NO_KEY: u64 = 0;
/// The key of a place that has an old version of a file, for operations that began with it.
const OLD: u64 = u64::MAX;

/// A hash table of sources: a file is at one of [`WAYS`] places, or at any other where those were
/// all in use. Such a file is found only when it was the last one; otherwise it is registered
/// twice, which does no harm.
#[derive(Debug)]
pub(super) struct Sources<S: Source> {
    places: Box<[SourcePlace<S>]>,
    /// The key that is registered at the last place, if its user is taken out.
    last_key: u64,
    /// Taken out of the last place, once that was named twice in a row.
    last_user: Option<Arc<VersionUser<S::Version>>>,
    /// The place that was named last.
    last: u32,
    /// Of place numbers.
    mask: u32,
    /// What leaves a place number of 32 bits.
    shift: u32,
    /// No user is taken out, and the kernel does the fencing.
    are_by_turns: bool,
    /// Whether the kernel does the fencing. Otherwise no user is taken out.
    fenced_by_kernel: bool,
}

#[derive(Debug)]
struct SourcePlace<S: Source> {
    user: Option<Arc<VersionUser<S::Version>>>,
    source: Option<S>,
    /// [`NO_KEY`] where there is none.
    key: u64,
    /// Operations that have ended, and name it until they are handed over.
    ended: u32,
    /// Operations that have ended for their owner, but count as in flight forever: the device may
    /// still be at them.
    stuck: u32,
}

impl<S: Source> SourcePlace<S> {
    /// Whether no operation names it. Not for the last place while its user is taken out.
    fn is_free(&self) -> bool {
        let operations = self.user.as_ref().map_or(0, |user| user.operations());
        self.ended == 0 && operations == self.stuck
    }

    fn register(&mut self, source: &S) {
        self.user = Some(source.versions().register());
        self.source = Some(source.clone());
        self.key = source.key();
        self.stuck = 0;
    }
}

impl<S: Source> Sources<S> {
    /// For so many operations at once: more places than that, so that one is always free.
    pub(super) fn new(operations: usize) -> Self {
        // At most 2^17 places: an operation's number has 16 bits.
        let count = (2 * operations).clamp(LEAST, 1 << 17).next_power_of_two();
        let fenced_by_kernel = is_fenced_by_kernel();
        let place = || SourcePlace {
            user: None,
            source: None,
            key: NO_KEY,
            ended: 0,
            stuck: 0,
        };
        Self {
            places: (0..count).map(|_| place()).collect(),
            last_key: NO_KEY,
            last_user: None,
            last: NO_SOURCE,
            mask: u32::try_from(count - 1).unwrap_or(0),
            shift: 32 - count.trailing_zeros(),
            are_by_turns: fenced_by_kernel,
            fenced_by_kernel,
        }
    }

    /// Counts one operation on a file, whose number is [`Sources::last`] then. Returns the version
    /// of the file's mappings that the operation uses. `None` where that is not the current one:
    /// [`Sources::begin_in_full`].
    #[inline(always)]
    pub(super) fn begin(&mut self, source: &S) -> Option<&S::Version> {
        if source.key() != self.last_key {
            return self.begin_other(source);
        }
        // It is there only where the kernel does the fencing.
        let user = self.last_user.as_deref()?;
        user.begin(source.versions(), kernel_light_barrier)
            .then(|| user.version())
    }

    /// As [`Sources::begin`], of a file that was not named twice just before: by turns with others.
    #[inline(never)]
    fn begin_other(&mut self, source: &S) -> Option<&S::Version> {
        let key = source.key();
        let first = self.first_place(key);
        let place = self.places.get(first as usize);
        let is_there = place.is_some_and(|place| place.key == key);
        if !is_there || !self.are_by_turns || first == self.last {
            return self.begin_elsewhere(source);
        }
        self.last = first;
        let user = self.places.get(first as usize)?.user.as_deref()?;
        user.begin(source.versions(), kernel_light_barrier)
            .then(|| user.version())
    }

    /// As [`Sources::begin_other`], where the last file was another one for more than one
    /// operation, or is the same one, or the file is not at its first place, or the kernel does not
    /// do the fencing.
    #[inline(never)]
    fn begin_elsewhere(&mut self, source: &S) -> Option<&S::Version> {
        let at = self.place_of(source);
        let is_again = at == self.last;
        self.last = at;
        let place = self.places.get_mut(at as usize)?;
        if is_again && self.fenced_by_kernel {
            // More of them are to be expected: they will find its user without a search.
            self.last_user = place.user.take();
            self.last_key = place.key;
            self.are_by_turns = false;
        }
        let user = self.user(at)?;
        user.begin(source.versions(), light_barrier)
            .then(|| user.version())
    }

    /// The number of the file that was named last.
    #[inline(always)]
    pub(super) fn last(&self) -> u32 {
        self.last
    }

    /// As [`Sources::begin`], with the current version in any case; returns the file's number.
    /// [`NO_SOURCE`] where every place is in use, which is not met: there are more places than
    /// operations.
    #[inline(never)]
    pub(super) fn begin_in_full(&mut self, source: &S) -> u32 {
        loop {
            self.last = self.place_of(source);
            let Some(place) = self.places.get_mut(self.last as usize) else {
                return NO_SOURCE;
            };
            if let Some(user) = &place.user
                && user.begin(source.versions(), light_barrier)
            {
                return self.last;
            }
            // It has an old version of the file.
            if place.is_free() {
                place.register(source);
            } else {
                // For the operations that began with it.
                place.key = OLD;
            }
        }
    }

    /// A started operation has ended and is handed over. The file stays.
    #[inline(always)]
    pub(super) fn end(&mut self, number: u32) {
        if let Some(user) = self.user(number) {
            user.end();
        }
    }

    /// As [`Sources::end`], for an operation that was not started after all.
    #[cold]
    #[inline(never)]
    pub(super) fn cancel(&mut self, number: u32) {
        self.end(number);
    }

    /// An operation has ended, and is to be handed over: [`Sources::handed_over`]. It counts as in
    /// flight forever where the device may still be at it.
    pub(super) fn ended(&mut self, number: u32, is_stuck: bool) {
        if !is_stuck {
            self.end(number);
        }
        if let Some(place) = self.places.get_mut(number as usize) {
            place.ended += 1;
            place.stuck += u32::from(is_stuck);
        }
    }

    /// After [`Sources::ended`].
    pub(super) fn handed_over(&mut self, number: u32) {
        if let Some(place) = self.places.get_mut(number as usize) {
            place.ended -= 1;
        }
    }

    /// The file with a number.
    #[inline(always)]
    pub(super) fn get(&self, number: u32) -> Option<&S> {
        self.places.get(number as usize)?.source.as_ref()
    }

    /// The version that operations with a number use.
    #[inline]
    pub(super) fn version(&self, number: u32) -> Option<&S::Version> {
        Some(self.user(number)?.version())
    }

    #[inline(always)]
    fn user(&self, number: u32) -> Option<&VersionUser<S::Version>> {
        if number == self.last
            && let Some(user) = self.last_user.as_deref()
        {
            return Some(user);
        }
        self.places.get(number as usize)?.user.as_deref()
    }

    /// The first place to look for a file.
    #[inline(always)]
    fn first_place(&self, key: u64) -> u32 {
        // Fibonacci hashing: keys in succession are spread evenly over all places.
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        u32::try_from(hash >> 32).unwrap_or(0) >> self.shift
    }

    /// The place of a file, which is registered there. [`NO_SOURCE`] where it cannot be. All users
    /// are in their places then.
    fn place_of(&mut self, source: &S) -> u32 {
        self.give_back();
        let key = source.key();
        let first = self.first_place(key);
        let mask = self.mask;
        let ways = (0..WAYS).map(|way| (first + way) & mask);
        for at in ways {
            if self.places[at as usize].key == key {
                return at;
            }
        }
        self.register(source, first)
    }

    /// Puts the user of the last place there.
    fn give_back(&mut self) {
        if let Some(user) = self.last_user.take()
            && let Some(place) = self.places.get_mut(self.last as usize)
        {
            place.user = Some(user);
        }
        self.last_key = NO_KEY;
        self.are_by_turns = self.fenced_by_kernel;
    }

    /// Registers a file at one of its places, or at any that is free.
    #[cold]
    fn register(&mut self, source: &S, first: u32) -> u32 {
        let mask = self.mask;
        let ways = (0..WAYS).map(|way| (first + way) & mask);
        let place = |at: u32| &self.places[at as usize];
        let at = ways
            .clone()
            .find(|&at| place(at).key == NO_KEY)
            .or_else(|| ways.clone().find(|&at| place(at).is_free()))
            .or_else(|| (0..=mask).find(|&at| place(at).is_free()));
        let Some(at) = at else {
            // Not met: there are more places than operations.
            return NO_SOURCE;
        };
        self.places[at as usize].register(source);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Versions;
    use super::super::super::testing::TestLayout;
    use super::*;

    #[derive(Clone)]
    struct Named(Arc<Versions<u32>>);

    impl Source for Named {
        type Version = u32;
        type Ops<'a> = TestLayout;

        fn versions(&self) -> &Versions<u32> {
            &self.0
        }

        fn ops(_: &u32) -> TestLayout {
            TestLayout::default()
        }

        fn size_bytes(_: &u32) -> u64 {
            0
        }

        fn key(&self) -> u64 {
            Arc::as_ptr(&self.0).addr() as u64
        }
    }

    fn named(name: u32) -> Named {
        Named(Arc::new(Versions::new(name)))
    }

    #[test]
    fn operations_on_a_registered_file_count_no_reference() {
        let mut sources = Sources::new(40);
        let files: Vec<Named> = (0..32).map(named).collect();
        for round in 0..100 {
            for file in &files {
                let number = sources.begin_in_full(file);
                assert!(Arc::ptr_eq(&sources.get(number).unwrap().0, &file.0));
                assert_eq!(Arc::strong_count(&file.0), 2, "round {round}");
                sources.end(number);
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
            let number = sources.begin_in_full(&named(n));
            if n % 50 == 0 && held.len() + 1 < operations {
                held.push((number, n));
            } else {
                sources.end(number);
            }
            // Closed files go for others: no more are kept than there are places.
        }
        for (number, n) in held {
            assert_eq!(sources.version(number), Some(&n));
            sources.end(number);
        }
        sources.give_back();
        assert!(sources.places.iter().all(SourcePlace::is_free));
        assert_eq!(sources.places.len(), 1024);
    }

    #[test]
    fn each_operation_keeps_the_version_that_it_began_with() {
        let mut sources = Sources::new(8);
        let file = named(0);
        let begun: Vec<u32> = (1..=8)
            .map(|next| {
                let number = sources.begin_in_full(&file);
                for _ in 0..next % 4 {
                    assert!(sources.begin(&file).is_some(), "the current one");
                    assert_eq!(sources.last(), number);
                    sources.end(number);
                }
                file.0.replace(next);
                assert!(sources.begin(&file).is_none(), "it is not current any more");
                number
            })
            .collect();
        let last = file.0.number();
        for (&number, version) in begun.iter().zip(0..) {
            assert_eq!(sources.version(number), Some(&version));
            assert!(Arc::ptr_eq(&sources.get(number).unwrap().0, &file.0));
            assert!(!file.0.is_quiet(last));
            sources.end(number);
        }
        assert!(file.0.is_quiet(last));
        // Places are used again.
        for next in 9..2000 {
            let number = sources.begin_in_full(&file);
            assert_eq!(sources.version(number), Some(&(next - 1)));
            sources.end(number);
            file.0.replace(next);
        }
        let used = sources.places.iter().filter(|place| place.source.is_some());
        assert!(used.count() <= 9);
        drop(sources);
        assert_eq!(Arc::strong_count(&file.0), 1);
    }

    #[test]
    fn an_operation_that_the_device_may_still_be_at_counts_forever_and_leaves_its_place() {
        let mut sources = Sources::new(8);
        let file = named(0);
        for _ in 0..2 {
            let number = sources.begin_in_full(&file);
            sources.ended(number, true);
            assert!(sources.get(number).is_some());
            sources.handed_over(number);
        }
        let next = file.0.replace(1);
        assert!(!file.0.is_quiet(next));
        let number = sources.begin_in_full(&file);
        assert_eq!(sources.version(number), Some(&1));
        sources.end(number);
        sources.give_back();
        assert!(sources.places.iter().all(SourcePlace::is_free));
        let second = file.0.replace(2);
        drop(sources);
        assert!(!file.0.is_quiet(second));
    }
}
