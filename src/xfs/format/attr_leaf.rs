//! Leaves of attributes, changed: entries are added and removed, the free ranges counted.
//!
//! Layer 0. The entries, sorted by hash, grow from the header; names and values lie in a heap at
//! the end of the block. Everything here takes bytes as hostile input.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

use zerocopy::{FromBytes, IntoBytes};

use super::attr::{
    AttrLeafEntry, AttrLeafHeader, FLAG_LOCAL, FreeRange, LocalName, RemoteName, Value,
    leaf_entries, leaf_entry,
};

const HEADER_BYTES: usize = size_of::<AttrLeafHeader>();
const ENTRY_BYTES: usize = size_of::<AttrLeafEntry>();
/// Places in the heap are multiples of this.
const HEAP_ALIGN: usize = 4;
/// What the kernel adds to the structure of a remote name: it counts the padding.
const REMOTE_PADDING: usize = 2;

/// An entry of a leaf with what it has in the heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafItem<'a> {
    /// Hash of the name.
    pub hash: u32,
    /// `FLAG_*`.
    pub flags: u8,
    /// Lengths, name and value, or name and place of the value, padded.
    pub body: &'a [u8],
}

impl LeafItem<'_> {
    /// Bytes that it takes of a leaf.
    pub fn bytes(&self) -> usize {
        self.body.len().saturating_add(ENTRY_BYTES)
    }
}

/// Bytes of a leaf without its header.
pub fn room_bytes(block_bytes: usize) -> usize {
    block_bytes.saturating_sub(HEADER_BYTES)
}

/// Whether a value of this length stays in the leaf, as xfs_attr_leaf_newentsize() decides.
pub fn is_local(block_bytes: usize, name_bytes: usize, value_bytes: usize) -> bool {
    let half = block_bytes / 2;
    local_bytes(name_bytes, value_bytes) < half.saturating_add(half / 2)
}

fn local_bytes(name_bytes: usize, value_bytes: usize) -> usize {
    size_of::<LocalName>()
        .saturating_add(name_bytes)
        .saturating_add(value_bytes)
        .next_multiple_of(HEAP_ALIGN)
}

fn remote_bytes(name_bytes: usize) -> usize {
    size_of::<RemoteName>()
        .saturating_add(REMOTE_PADDING)
        .saturating_add(name_bytes)
        .next_multiple_of(HEAP_ALIGN)
}

/// The body of an entry whose value is in the leaf. `None` for a name or value that is too long.
pub fn local_body(name: &[u8], value: &[u8]) -> Option<Vec<u8>> {
    let head = LocalName {
        value_bytes: u16::try_from(value.len()).ok()?.into(),
        name_bytes: u8::try_from(name.len()).ok()?,
    };
    let mut body = [head.as_bytes(), name, value].concat();
    body.resize(local_bytes(name.len(), value.len()), 0);
    Some(body)
}

/// The body of an entry whose value is in blocks of its own. `None` for a name that is too long.
pub fn remote_body(name: &[u8], value_block: u32, value_bytes: u32) -> Option<Vec<u8>> {
    let head = RemoteName {
        value_block: value_block.into(),
        value_bytes: value_bytes.into(),
        name_bytes: u8::try_from(name.len()).ok()?,
    };
    let mut body = [head.as_bytes(), name].concat();
    body.resize(remote_bytes(name.len()), 0);
    Some(body)
}

/// The entries of a leaf. Their bodies are inside of the heap and share no bytes.
///
/// # Errors
/// A description of the fault.
pub fn leaf_items(block: &[u8]) -> Result<Vec<LeafItem<'_>>, &'static str> {
    let entries = leaf_entries(block)?;
    let table_end = HEADER_BYTES.saturating_add(size_of_val(entries));
    let mut items = Vec::with_capacity(entries.len());
    let mut used = Vec::with_capacity(entries.len());
    for entry in entries {
        let range = body_range(block, entry)?;
        if range.start < table_end || !range.start.is_multiple_of(HEAP_ALIGN) {
            return Err("a name at an impossible place");
        }
        items.push(LeafItem {
            hash: entry.hash.get(),
            flags: entry.flags,
            body: block.get(range.clone()).ok_or("a name outside the block")?,
        });
        used.push(range);
    }
    used.sort_unstable_by_key(|range| range.start);
    let overlap = used
        .iter()
        .zip(used.iter().skip(1))
        .any(|(left, right)| left.end > right.start);
    match overlap {
        true => Err("names and values that overlap"),
        false => Ok(items),
    }
}

fn body_range(block: &[u8], entry: &AttrLeafEntry) -> Result<Range<usize>, &'static str> {
    let attribute = leaf_entry(block, entry)?;
    let bytes = match attribute.value {
        Value::Here(value) => local_bytes(attribute.name.len(), value.len()),
        Value::Remote { .. } => remote_bytes(attribute.name.len()),
    };
    let start = usize::from(entry.name_offset.get());
    let end = start.saturating_add(bytes);
    match end <= block.len() {
        true => Ok(start..end),
        false => Err("a name outside the block"),
    }
}

/// Fills a leaf with these entries, which are in the order of their hashes; its identity and its
/// siblings stay. `false`, and nothing is changed, when they do not fit.
pub fn fill_leaf(block: &mut [u8], items: &[LeafItem<'_>]) -> bool {
    let bytes = items
        .iter()
        .fold(HEADER_BYTES, |sum, item| sum.saturating_add(item.bytes()));
    let Some(rest) = block.get_mut(size_of::<super::dir::DaHeader>()..) else {
        return false;
    };
    if bytes > rest.len().saturating_add(size_of::<super::dir::DaHeader>()) {
        return false;
    }
    rest.fill(0);
    let mut end = block.len();
    let mut used = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let start = end.saturating_sub(item.body.len());
        put(block, index, item, start);
        used.push(start..end);
        end = start;
    }
    used.reverse();
    put_header(block, &used);
    true
}

/// Writes an entry of the table and its body.
fn put(block: &mut [u8], index: usize, item: &LeafItem<'_>, start: usize) {
    let entry = AttrLeafEntry {
        hash: item.hash.into(),
        name_offset: u16::try_from(start).unwrap_or(0).into(),
        flags: item.flags,
        pad: 0,
    };
    let at = HEADER_BYTES.saturating_add(index.saturating_mul(ENTRY_BYTES));
    for (at, bytes) in [(at, entry.as_bytes()), (start, item.body)] {
        let room = block.get_mut(at..at.saturating_add(bytes.len()));
        if let Some(room) = room {
            room.copy_from_slice(bytes);
        }
    }
}

/// Sets all that the header says of the entries, whose bodies lie in these ranges of the heap, in
/// ascending order.
fn put_header(block: &mut [u8], used: &[Range<usize>]) {
    let len = block.len();
    let table_end = HEADER_BYTES.saturating_add(used.len().saturating_mul(ENTRY_BYTES));
    let first = used.first().map_or(len, |range| range.start);
    let used_bytes = used
        .iter()
        .fold(0_usize, |sum, range| sum.saturating_add(range.len()));
    let ends = used.iter().map(|range| range.end);
    let starts = used.iter().skip(1).map(|range| range.start);
    let mut gaps: Vec<Range<usize>> = ends
        .zip(starts.chain([len]))
        .map(|(end, start)| end..start)
        .filter(|gap| !gap.is_empty())
        .collect();
    gaps.sort_by_key(|gap| std::cmp::Reverse(gap.len()));
    let listed = std::iter::once(table_end..first).chain(gaps).take(3);
    let mut free = [FreeRange {
        base: 0.into(),
        bytes: 0.into(),
    }; 3];
    let mut listed_bytes = 0_usize;
    let short = |value: usize| u16::try_from(value).unwrap_or(0).into();
    for (slot, range) in free
        .iter_mut()
        .zip(listed.filter(|range| !range.is_empty()))
    {
        *slot = FreeRange {
            base: short(range.start),
            bytes: short(range.len()),
        };
        listed_bytes = listed_bytes.saturating_add(range.len());
    }
    let all_free = len.saturating_sub(table_end).saturating_sub(used_bytes);
    if let Ok((header, _)) = AttrLeafHeader::mut_from_prefix(block) {
        header.count = short(used.len());
        header.used_bytes = short(used_bytes);
        // The end of a block of 64 KiB is 0.
        header.first_used = short(first);
        header.holes = u8::from(listed_bytes < all_free);
        header.pad1 = 0;
        header.free = free;
        header.pad2 = 0.into();
    }
}

/// The ranges of the bodies of a leaf in ascending order, checked.
fn used_ranges(block: &[u8]) -> Result<Vec<Range<usize>>, &'static str> {
    leaf_items(block)?;
    let ranges = leaf_entries(block)?
        .iter()
        .map(|entry| body_range(block, entry));
    let mut used = ranges.collect::<Result<Vec<_>, _>>()?;
    used.sort_unstable_by_key(|range| range.start);
    Ok(used)
}

/// Adds an entry at this index. `false`, and nothing is changed, when it does not fit. Where only
/// compaction makes room, the leaf is compacted, as by xfs_attr3_leaf_compact().
///
/// # Errors
/// A description of the fault of the leaf.
pub fn insert_item(
    block: &mut [u8],
    index: usize,
    item: &LeafItem<'_>,
) -> Result<bool, &'static str> {
    let mut used = used_ranges(block)?;
    let table_end = HEADER_BYTES.saturating_add(used.len().saturating_mul(ENTRY_BYTES));
    let first = used.first().map_or(block.len(), |range| range.start);
    if item.bytes() <= first.saturating_sub(table_end) {
        let at = HEADER_BYTES.saturating_add(index.saturating_mul(ENTRY_BYTES));
        if at > table_end {
            return Err("an entry behind the last one");
        }
        block.copy_within(at..table_end, at.saturating_add(ENTRY_BYTES));
        let start = first.saturating_sub(item.body.len());
        put(block, index, item, start);
        used.insert(0, start..first);
        put_header(block, &used);
        return Ok(true);
    }
    let old = block.to_vec();
    let mut items = leaf_items(&old)?;
    items.insert(index.min(items.len()), *item);
    Ok(fill_leaf(block, &items))
}

/// Removes the entry at an index, as xfs_attr3_leaf_remove().
///
/// # Errors
/// A description of the fault of the leaf.
pub fn remove_item(block: &mut [u8], index: usize) -> Result<(), &'static str> {
    let mut used = used_ranges(block)?;
    let table_end = HEADER_BYTES.saturating_add(used.len().saturating_mul(ENTRY_BYTES));
    let entry = leaf_entries(block)?.get(index).ok_or("no such entry")?;
    let body = body_range(block, entry)?;
    let at = HEADER_BYTES.saturating_add(index.saturating_mul(ENTRY_BYTES));
    block.copy_within(at.saturating_add(ENTRY_BYTES)..table_end, at);
    let last = table_end.saturating_sub(ENTRY_BYTES)..table_end;
    for gone in [last, body.clone()] {
        if let Some(gone) = block.get_mut(gone) {
            gone.fill(0);
        }
    }
    used.retain(|range| *range != body);
    put_header(block, &used);
    Ok(())
}

/// The name and the value of an item, as an attribute.
///
/// # Errors
/// A description of the fault.
pub fn item_attribute<'a>(item: &LeafItem<'a>) -> Result<super::attr::Attribute<'a>, &'static str> {
    let entry = AttrLeafEntry {
        hash: item.hash.into(),
        name_offset: 0.into(),
        flags: item.flags,
        pad: 0,
    };
    leaf_entry(item.body, &entry)
}

/// Whether the value of an item is in the leaf.
pub fn item_is_local(item: &LeafItem<'_>) -> bool {
    item.flags & FLAG_LOCAL != 0
}
