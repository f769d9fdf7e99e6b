//! Btrees that transactions change: free space, inodes, owners and reference counts of blocks in a
//! group, and the extents of a fork. One engine for all of them.
//!
//! A call looks for its place from the root; nothing is kept between calls. Blocks are changed in
//! memory inside a [`Trans`], so that a call that fails half-way (no space, corrupt metadata) is
//! undone with the transaction. After each change every node but the root is at least half full,
//! and the keys of a node are exactly those of its children, as xfs_repair wants them.
//!
//! A block is checked when it is read (magic number, checksum, uuid, address, order of keys) and
//! when it is used (owner, level, first key). A walk on any disk ends, because each step goes down
//! one level and no child has the key of another.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::marker::PhantomData;
use std::ops::{ControlFlow, Range};

use zerocopy::{FromBytes, IntoBytes};

use super::geometry::Ino;
use super::trans::Trans;
use crate::error::Result;

mod blocks;
mod edit;
mod kinds;
mod node;
mod path;
mod reshape;
mod root;
#[cfg(test)]
pub(super) mod tests;

pub(super) use blocks::BlockSource;
pub(super) use kinds::{Bmbt, Bnobt, Cntbt, Finobt, Inobt, KeyOrder, Refcountbt, Rmapbt, TreeKind};
pub(super) use root::{ForkKind, RootPlace, fork_range};

use path::TreePath;

/// A tree: its kind, and where its root is.
pub(super) trait TreeHandle {
    /// What its records are.
    type Kind: TreeKind;

    /// Where its root is.
    fn root(&self) -> RootPlace;
}

type RecordOf<T> = <<T as TreeHandle>::Kind as TreeKind>::Record;
type KeyOf<T> = <<T as TreeHandle>::Kind as TreeKind>::Key;

/// A tree of an allocation group. The header of the group has its root, which must exist.
#[derive(Debug)]
pub(super) struct AgTree<K> {
    ag: u32,
    kind: PhantomData<K>,
}

impl<K> Clone for AgTree<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for AgTree<K> {}

impl<K: TreeKind> AgTree<K> {
    /// The tree of this group.
    pub(super) fn new(ag: u32) -> Self {
        Self {
            ag,
            kind: PhantomData,
        }
    }
}

impl<K: TreeKind> TreeHandle for AgTree<K> {
    type Kind = K;

    fn root(&self) -> RootPlace {
        RootPlace::Group(self.ag)
    }
}

/// The extents of a fork in btree form.
#[derive(Debug, Clone, Copy)]
pub(super) struct ForkTree {
    pub(super) ino: Ino,
    pub(super) fork: ForkKind,
}

impl TreeHandle for ForkTree {
    type Kind = Bmbt;

    fn root(&self) -> RootPlace {
        RootPlace::Fork(self.ino, self.fork)
    }
}

fn path<'t, 'a, T: TreeHandle>(t: &'t mut Trans<'a>, tree: &T) -> TreePath<'t, 'a> {
    TreePath::new(t, T::Kind::SHAPE, tree.root())
}

fn order<T: TreeHandle>(key: KeyOf<T>) -> KeyOrder {
    T::Kind::order(key)
}

fn record<T: TreeHandle>(raw: Option<&[u8]>) -> Option<RecordOf<T>> {
    raw.and_then(|raw| FromBytes::read_from_bytes(raw).ok())
}

/// The record with a key.
///
/// # Errors
/// [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) when the tree is broken; the device's.
pub(super) fn find<T: TreeHandle>(
    t: &mut Trans<'_>,
    tree: &T,
    key: KeyOf<T>,
) -> Result<Option<RecordOf<T>>> {
    let mut path = path(t, tree);
    if path.descend(&order::<T>(key))? {
        Ok(record::<T>(path.record_before()?))
    } else {
        Ok(None)
    }
}

/// The last record with a key or a lower one.
///
/// # Errors
/// As [`find`].
pub(super) fn find_le<T: TreeHandle>(
    t: &mut Trans<'_>,
    tree: &T,
    key: KeyOf<T>,
) -> Result<Option<RecordOf<T>>> {
    let mut path = path(t, tree);
    path.descend(&order::<T>(key))?;
    Ok(record::<T>(path.record_before()?))
}

/// The last record with a lower key.
///
/// # Errors
/// As [`find`].
pub(super) fn find_lt<T: TreeHandle>(
    t: &mut Trans<'_>,
    tree: &T,
    key: KeyOf<T>,
) -> Result<Option<RecordOf<T>>> {
    let mut path = path(t, tree);
    path.descend_below(&order::<T>(key))?;
    Ok(record::<T>(path.record_before()?))
}

/// The first record with a key or a higher one.
///
/// # Errors
/// As [`find`].
pub(super) fn find_ge<T: TreeHandle>(
    t: &mut Trans<'_>,
    tree: &T,
    key: KeyOf<T>,
) -> Result<Option<RecordOf<T>>> {
    let mut path = path(t, tree);
    path.descend_below(&order::<T>(key))?;
    Ok(record::<T>(path.record_here()?))
}

/// The first record with a higher key.
///
/// # Errors
/// As [`find`].
pub(super) fn find_gt<T: TreeHandle>(
    t: &mut Trans<'_>,
    tree: &T,
    key: KeyOf<T>,
) -> Result<Option<RecordOf<T>>> {
    let mut path = path(t, tree);
    path.descend(&order::<T>(key))?;
    Ok(record::<T>(path.record_here()?))
}

/// Calls `visit` with the records from a key on, in order, until it breaks. What it breaks with.
///
/// # Errors
/// As [`find`].
pub(super) fn walk<T: TreeHandle, B>(
    t: &mut Trans<'_>,
    tree: &T,
    from: KeyOf<T>,
    mut visit: impl FnMut(&RecordOf<T>) -> ControlFlow<B>,
) -> Result<Option<B>> {
    let mut path = path(t, tree);
    path.descend_below(&order::<T>(from))?;
    path.walk(|raw| visit_raw::<T, B>(raw, &mut visit))
}

/// Calls `visit` with the owners of a range of blocks of a group, in order, until it breaks. What
/// it breaks with.
///
/// # Errors
/// As [`find`].
pub(super) fn walk_overlapping<B>(
    t: &mut Trans<'_>,
    tree: &AgTree<Rmapbt>,
    blocks: &Range<u32>,
    mut visit: impl FnMut(&RecordOf<AgTree<Rmapbt>>) -> ControlFlow<B>,
) -> Result<Option<B>> {
    let blocks = blocks.start.into()..blocks.end.into();
    path(t, tree).walk_overlapping(&blocks, &mut |raw| {
        visit_raw::<AgTree<Rmapbt>, B>(raw, &mut visit)
    })
}

fn visit_raw<T: TreeHandle, B>(
    raw: &[u8],
    visit: &mut impl FnMut(&RecordOf<T>) -> ControlFlow<B>,
) -> ControlFlow<B> {
    match FromBytes::ref_from_bytes(raw) {
        Ok(record) => visit(record),
        Err(_) => ControlFlow::Continue(()),
    }
}

/// Inserts a record. No other may have its key.
///
/// # Errors
/// As [`find`]; what `source` says when it has no block.
pub(super) fn insert<T: TreeHandle>(
    t: &mut Trans<'_>,
    tree: &T,
    record: &RecordOf<T>,
    source: &mut dyn BlockSource,
) -> Result<()> {
    path(t, tree).insert(record.as_bytes(), source)
}

/// Removes the record with a key, which must be there.
///
/// # Errors
/// As [`insert`].
pub(super) fn remove<T: TreeHandle>(
    t: &mut Trans<'_>,
    tree: &T,
    key: KeyOf<T>,
    source: &mut dyn BlockSource,
) -> Result<()> {
    path(t, tree).remove(&order::<T>(key), source)
}

/// Replaces the record with a key, which must be there, by one with the same key or another one
/// between those of its neighbours.
///
/// # Errors
/// As [`find`].
pub(super) fn update<T: TreeHandle>(
    t: &mut Trans<'_>,
    tree: &T,
    key: KeyOf<T>,
    record: &RecordOf<T>,
) -> Result<()> {
    path(t, tree).update(&order::<T>(key), record.as_bytes())
}

/// Replaces a record, which must be there exactly so, by one with any key that no other has.
///
/// # Errors
/// As [`insert`].
pub(super) fn replace<T: TreeHandle>(
    t: &mut Trans<'_>,
    tree: &T,
    old: &RecordOf<T>,
    new: &RecordOf<T>,
    source: &mut dyn BlockSource,
) -> Result<()> {
    path(t, tree).replace(old.as_bytes(), new.as_bytes(), source)
}

/// Makes a fork the root of a btree whose only leaf has these records, at least one. The form of
/// the fork says so already, and its bytes are zero.
///
/// # Errors
/// As [`insert`].
pub(super) fn plant(
    t: &mut Trans<'_>,
    tree: &ForkTree,
    records: &[RecordOf<ForkTree>],
    source: &mut dyn BlockSource,
) -> Result<()> {
    path(t, tree).plant(records.as_bytes(), source)
}

/// Frees the only leaf of a fork's btree and returns its records. The fork is for the caller to be
/// written. `None`, and nothing is changed, when there are more leaves.
///
/// # Errors
/// As [`remove`].
pub(super) fn uproot(
    t: &mut Trans<'_>,
    tree: &ForkTree,
    source: &mut dyn BlockSource,
) -> Result<Option<Vec<RecordOf<ForkTree>>>> {
    let raw = path(t, tree).uproot(source)?;
    Ok(raw.map(|raw| {
        let records = raw.chunks_exact(size_of::<RecordOf<ForkTree>>());
        records
            .filter_map(|raw| FromBytes::read_from_bytes(raw).ok())
            .collect()
    }))
}
