//! Changes of attributes that the log left open (ATTRI), checked and finished.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::super::attr::{self, AttrKey, SetHow};
use super::super::format::attr::{
    FLAG_INCOMPLETE, FLAG_PARENT, NAME_MAX_BYTES, NAMESPACE, VALUE_MAX_BYTES,
};
use super::super::format::log_items::{self as layout, AttrItem};
use super::super::geometry::{Geometry, Ino};
use super::super::log::PendingIntent;
use super::super::superblock::Features;
use super::super::trans::Trans;
use super::inodes::{bad_inode, core_of, used_inode};
use crate::error::Result;

/// Bytes of the value of a parent pointer: inode number and generation.
const PARENT_BYTES: usize = 12;
/// Regions are padded to multiples of this.
const PAD_BYTES: usize = 4;

/// A name and a value.
type NamedValue<'a> = (&'a [u8], &'a [u8]);

/// Names and values.
type AttrParts<'a> = (Vec<&'a [u8]>, Vec<&'a [u8]>);

/// What an intent asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AttrChange<'a> {
    ino: Ino,
    /// The generation that the inode must have.
    generation: Option<u32>,
    namespace: u8,
    /// Of a parent pointer the value counts, too.
    remove: Option<NamedValue<'a>>,
    set: Option<NamedValue<'a>>,
}

/// The change, checked as by xfs_attri_validate() and xlog_recover_attri_commit_pass2().
pub(super) fn parse<'a>(
    intent: &'a PendingIntent,
    geometry: &Geometry,
    features: &Features,
) -> Result<AttrChange<'a>, &'static str> {
    let item = AttrItem::ref_from_bytes(&intent.bytes).map_err(|_| "of a wrong length")?;
    let filter = u8::try_from(item.attr_filter.get()).map_err(|_| "unknown flags")?;
    let namespace = filter & NAMESPACE;
    if filter & !(NAMESPACE | FLAG_INCOMPLETE) != 0 || namespace.count_ones() > 1 {
        return Err("impossible flags");
    }
    let op = item.op_flags.get();
    let is_parent = matches!(
        op,
        layout::ATTRI_PARENT_SET | layout::ATTRI_PARENT_REMOVE | layout::ATTRI_PARENT_REPLACE
    );
    if is_parent != (namespace == FLAG_PARENT) {
        return Err("an operation of another namespace");
    }
    let has_feature = match is_parent {
        true => features.parent(),
        false => features.log_incompat & layout::LOG_INCOMPAT_ATTRI != 0,
    };
    if !has_feature {
        return Err("the filesystem has not the feature that it needs");
    }
    let ino = Ino(item.ino.get());
    geometry.locate_inode(ino).ok_or("an impossible inode")?;
    let (found_names, found_values) = names_and_values(intent, item, is_parent)?;
    let name = found_names.first().copied().ok_or("no name")?;
    let value = found_values.first().copied().unwrap_or_default();
    let is_possible =
        |value: &&[u8]| parent_of(value).is_some_and(|ino| geometry.locate_inode(ino).is_some());
    if is_parent && !found_values.iter().all(is_possible) {
        return Err("an impossible parent");
    }
    let old = (name, value);
    let new = match op {
        layout::ATTRI_PARENT_REPLACE => (
            found_names.last().copied().unwrap_or_default(),
            found_values.last().copied().unwrap_or_default(),
        ),
        _ => old,
    };
    let removes = op != layout::ATTRI_SET && op != layout::ATTRI_PARENT_SET;
    let sets = op != layout::ATTRI_REMOVE && op != layout::ATTRI_PARENT_REMOVE;
    Ok(AttrChange {
        ino,
        generation: is_parent.then_some(item.generation.get()),
        namespace,
        remove: removes.then_some(old),
        set: sets.then_some(new),
    })
}

/// The directory that a parent pointer names.
fn parent_of(value: &[u8]) -> Option<Ino> {
    value.first_chunk().map(|ino| Ino(u64::from_be_bytes(*ino)))
}

/// The names and values that an intent has in its other regions.
fn names_and_values<'a>(
    intent: &'a PendingIntent,
    item: &AttrItem,
    is_parent: bool,
) -> Result<AttrParts<'a>, &'static str> {
    let op = item.op_flags.get();
    let both = item.name_len.get();
    let (low, high) = (both & 0xffff, both >> 16);
    let bytes = |len: u32| usize::try_from(len).unwrap_or(usize::MAX);
    let value_bytes = bytes(item.value_len.get());
    let (names, values): (&[u32], usize) = match op {
        layout::ATTRI_PARENT_REPLACE => (&[low, high], 2),
        layout::ATTRI_REMOVE => (&[both], 0),
        layout::ATTRI_SET | layout::ATTRI_REPLACE => (&[both], usize::from(value_bytes > 0)),
        layout::ATTRI_PARENT_SET | layout::ATTRI_PARENT_REMOVE => (&[both], 1),
        _ => return Err("an unknown change"),
    };
    let is_wrong = match (is_parent, op) {
        (true, _) => value_bytes != PARENT_BYTES,
        (false, layout::ATTRI_REMOVE) => value_bytes != 0,
        _ => value_bytes > bytes(VALUE_MAX_BYTES),
    };
    if is_wrong {
        return Err("a value of a wrong length");
    }
    let mut parts = intent.parts.iter();
    let mut next = |len: usize| {
        let part = parts.next().ok_or("a region is missing")?;
        match len.checked_next_multiple_of(PAD_BYTES) == Some(part.len()) {
            true => part.get(..len).ok_or("a region is cut off"),
            false => Err("a region of a wrong length"),
        }
    };
    let mut found_names = Vec::with_capacity(2);
    for len in names {
        let name = next(bytes(*len))?;
        if name.is_empty() || name.len() > NAME_MAX_BYTES || name.contains(&0) {
            return Err("an impossible name");
        }
        found_names.push(name);
    }
    let found_values: Vec<&[u8]> = (0..values)
        .map(|_| next(value_bytes))
        .collect::<Result<_, _>>()?;
    match parts.next() {
        None => Ok((found_names, found_values)),
        Some(_) => Err("too many regions"),
    }
}

/// Makes the change, as xfs_attr_recover_work(). A part of it may have been made already: an
/// attribute to be removed may be gone, and entries that are marked as incomplete are of this
/// change.
pub(super) fn finish(t: &mut Trans<'_>, change: &AttrChange<'_>) -> Result<()> {
    let ino = change.ino;
    used_inode(t, ino)?;
    let core = core_of(t, ino)?;
    let is_same = change
        .generation
        .is_none_or(|generation| generation == core.generation.get());
    if core.mode.get() == 0 || !is_same {
        return Err(bad_inode(
            t,
            ino,
            "its attributes change, and it is another one",
        ));
    }
    let key = |(name, value)| AttrKey {
        parent: (change.namespace == FLAG_PARENT).then_some(value),
        with_incomplete: true,
        ..AttrKey::new(change.namespace, name)
    };
    if let Some(old) = change.remove {
        let key = key(old);
        match change.set {
            // Setting it replaces it.
            Some(new) if change.namespace != FLAG_PARENT || new == old => {}
            _ => drop(attr::remove(t, ino, &key)?),
        }
    }
    match change.set {
        Some(new) => attr::set(t, ino, &key(new), new.1, SetHow::Any),
        None => Ok(()),
    }
}
