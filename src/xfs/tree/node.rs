//! The bytes of one node or leaf: how many entries it has, where they lie, insertion and removal.
//!
//! Nothing here trusts the bytes: what does not fit is `None`.

use std::ops::Range;

use super::super::format::btree::{BmdrHeader, BtreeShortHeader};
use super::kinds::{KeyBytes, KeyOrder, TreeShape};

/// Where the entries of a node lie in its bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeLayout {
    shape: &'static TreeShape,
    level_at: usize,
    body_at: usize,
    /// Bytes of a record in a leaf, of the keys of a child in a node.
    item_bytes: usize,
    /// 0 in a leaf.
    pointer_bytes: usize,
    /// Entries that there is room for.
    pub(super) most: usize,
}

/// Entries that were taken out of a node.
#[derive(Debug)]
pub(super) struct NodeEntries {
    items: Vec<u8>,
    pointers: Vec<u8>,
}

impl NodeEntries {
    /// The records, of a leaf.
    pub(super) fn into_items(self) -> Vec<u8> {
        self.items
    }
}

impl NodeLayout {
    /// That of a block of this level.
    pub(super) fn of_block(shape: &'static TreeShape, level: u32, len_bytes: usize) -> Self {
        let level_at = std::mem::offset_of!(BtreeShortHeader, level);
        Self::new(shape, level, level_at, shape.header_bytes, len_bytes)
    }

    /// That of a root in an inode, which is never a leaf.
    pub(super) fn of_root(shape: &'static TreeShape, fork_bytes: usize) -> Self {
        Self::new(shape, 1, 0, size_of::<BmdrHeader>(), fork_bytes)
    }

    fn new(
        shape: &'static TreeShape,
        level: u32,
        level_at: usize,
        body_at: usize,
        len_bytes: usize,
    ) -> Self {
        let (item_bytes, pointer_bytes) = if level == 0 {
            (shape.record_bytes, 0)
        } else {
            (shape.node_key_bytes(), shape.pointer_bytes)
        };
        let each = item_bytes.saturating_add(pointer_bytes);
        let body = len_bytes.saturating_sub(body_at);
        Self {
            shape,
            level_at,
            body_at,
            item_bytes,
            pointer_bytes,
            most: body.checked_div(each).unwrap_or(0),
        }
    }

    /// Entries that every node but the root has at least.
    pub(super) fn least(&self) -> usize {
        self.most / 2
    }

    /// Whether blocks are numbered across the filesystem.
    pub(super) fn is_long(&self) -> bool {
        self.shape.is_long()
    }

    fn is_leaf(&self) -> bool {
        self.pointer_bytes == 0
    }

    fn field(bytes: &[u8], at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
    }

    fn set_field(bytes: &mut [u8], at: usize, value: usize) -> Option<()> {
        let value = u16::try_from(value).ok()?;
        *bytes.get_mut(at..)?.first_chunk_mut()? = value.to_be_bytes();
        Some(())
    }

    pub(super) fn level(&self, bytes: &[u8]) -> u32 {
        Self::field(bytes, self.level_at).map_or(u32::MAX, u32::from)
    }

    pub(super) fn set_level(&self, bytes: &mut [u8], level: u32) -> Option<()> {
        Self::set_field(bytes, self.level_at, usize::try_from(level).ok()?)
    }

    fn count_at(&self) -> usize {
        self.level_at.saturating_add(2)
    }

    /// Whether the entry at an index can have this key: it lies between those beside it, which are
    /// in this node, or, of an only one, are none.
    pub(super) fn fits_at(
        &self,
        bytes: &[u8],
        index: usize,
        key: &KeyOrder,
        is_only: bool,
    ) -> bool {
        let behind = index.saturating_add(1);
        let before = index.checked_sub(1).and_then(|at| self.order(bytes, at));
        let after = (behind < self.count(bytes)).then(|| self.order(bytes, behind));
        before.map_or(is_only && index == 0, |before| before < *key)
            && match after {
                Some(after) => after.is_some_and(|after| after > *key),
                None => is_only,
            }
    }

    /// Entries in it.
    pub(super) fn count(&self, bytes: &[u8]) -> usize {
        Self::field(bytes, self.count_at()).map_or(0, usize::from)
    }

    fn items(&self, range: Range<usize>) -> Range<usize> {
        let at = |index: usize| {
            let into = index.saturating_mul(self.item_bytes);
            self.body_at.saturating_add(into)
        };
        at(range.start)..at(range.end)
    }

    fn pointers(&self, range: Range<usize>) -> Range<usize> {
        let start = self.items(self.most..self.most).start;
        let at = |index: usize| start.saturating_add(index.saturating_mul(self.pointer_bytes));
        at(range.start)..at(range.end)
    }

    /// The record of this index, or the keys of the child.
    pub(super) fn item<'b>(&self, bytes: &'b [u8], index: usize) -> Option<&'b [u8]> {
        bytes.get(self.items(index..index.checked_add(1)?))
    }

    /// The order of an entry.
    pub(super) fn order(&self, bytes: &[u8], index: usize) -> Option<KeyOrder> {
        let item = self.item(bytes, index)?;
        let order = if self.is_leaf() {
            self.shape.record_order
        } else {
            self.shape.key_order
        };
        Some(order(item))
    }

    /// The order of the greatest key of an entry, where extents overlap.
    pub(super) fn high_order(&self, bytes: &[u8], index: usize) -> Option<KeyOrder> {
        let high = self.high(bytes, index)?;
        Some((self.shape.key_order)(high.as_slice()))
    }

    fn high(&self, bytes: &[u8], index: usize) -> Option<KeyBytes> {
        let high = self.shape.high?;
        let item = self.item(bytes, index)?;
        Some(if self.is_leaf() {
            high(item)
        } else {
            let both = item.split_at_checked(self.shape.key_bytes)?;
            KeyBytes::NONE.then(both.1)
        })
    }

    /// The child of this index.
    pub(super) fn pointer(&self, bytes: &[u8], index: usize) -> Option<u64> {
        let raw = bytes.get(self.pointers(index..index.checked_add(1)?))?;
        if let Some(raw) = raw.first_chunk() {
            return Some(u64::from_be_bytes(*raw));
        }
        Some(u32::from_be_bytes(*raw.first_chunk()?).into())
    }

    /// Number of entries that are not greater than a key.
    pub(super) fn upper_bound(&self, bytes: &[u8], key: &KeyOrder) -> usize {
        let (mut low, mut high) = (0, self.count(bytes));
        while low < high {
            let middle = low.midpoint(high);
            if self.order(bytes, middle).is_some_and(|order| order <= *key) {
                low = middle.saturating_add(1);
            } else {
                high = middle;
            }
        }
        low
    }

    /// What the parent says of the node; `None` for one without entries.
    pub(super) fn keys(&self, bytes: &[u8]) -> Option<KeyBytes> {
        let count = self.count(bytes);
        if count == 0 {
            return None;
        }
        let first = self.item(bytes, 0)?;
        let low = if self.is_leaf() {
            (self.shape.low)(first)
        } else {
            KeyBytes::NONE.then(first.get(..self.shape.key_bytes)?)
        };
        if self.shape.high.is_none() {
            return Some(low);
        }
        let greatest = (0..count)
            .filter_map(|index| self.high(bytes, index))
            .max_by_key(|high| (self.shape.key_order)(high.as_slice()))?;
        Some(low.then(greatest.as_slice()))
    }

    /// Replaces a record, or the keys of a child.
    pub(super) fn set_item(&self, bytes: &mut [u8], index: usize, item: &[u8]) -> Option<()> {
        let to = bytes.get_mut(self.items(index..index.checked_add(1)?))?;
        (to.len() == item.len()).then(|| to.copy_from_slice(item))
    }

    /// Inserts one entry; `pointer` is ignored in a leaf.
    pub(super) fn insert(
        &self,
        bytes: &mut [u8],
        index: usize,
        item: &[u8],
        pointer: u64,
    ) -> Option<()> {
        if self.is_leaf() {
            return self.insert_raw(bytes, index, item, &[]);
        }
        let pointer = pointer.to_be_bytes();
        let skipped = pointer.len().checked_sub(self.pointer_bytes)?;
        self.insert_raw(bytes, index, item, pointer.get(skipped..)?)
    }

    /// Inserts entries that were taken out of another node of the level.
    pub(super) fn insert_all(
        &self,
        bytes: &mut [u8],
        index: usize,
        entries: &NodeEntries,
    ) -> Option<()> {
        self.insert_raw(bytes, index, &entries.items, &entries.pointers)
    }

    /// Inserts entries as bytes; there are no pointers in a leaf.
    pub(super) fn insert_raw(
        &self,
        bytes: &mut [u8],
        index: usize,
        items: &[u8],
        pointers: &[u8],
    ) -> Option<()> {
        let count = self.count(bytes);
        let more = items.len().checked_div(self.item_bytes)?;
        let new = count.checked_add(more)?;
        if new > self.most || index > count {
            return None;
        }
        let behind = index.checked_add(more)?;
        let mut place = |from: Range<usize>, to: usize, at: usize, content: &[u8]| {
            // Both lie inside: there is room for `most` entries.
            if bytes.len() < to.checked_add(from.len())? {
                return None;
            }
            bytes.copy_within(from, to);
            let gap = bytes.get_mut(at..at.checked_add(content.len())?)?;
            gap.copy_from_slice(content);
            Some(())
        };
        let start = |range: Range<usize>| range.start;
        place(
            self.items(index..count),
            start(self.items(behind..behind)),
            start(self.items(index..index)),
            items,
        )?;
        if !self.is_leaf() {
            place(
                self.pointers(index..count),
                start(self.pointers(behind..behind)),
                start(self.pointers(index..index)),
                pointers,
            )?;
        }
        Self::set_field(bytes, self.count_at(), new)
    }

    /// Takes entries out.
    pub(super) fn remove(&self, bytes: &mut [u8], range: Range<usize>) -> Option<NodeEntries> {
        let count = self.count(bytes);
        if range.end > count || range.start > range.end || count > self.most {
            return None;
        }
        let mut cut = |gone: Range<usize>, rest: Range<usize>| {
            let taken = bytes.get(gone.clone())?.to_vec();
            bytes.get(rest.clone())?;
            bytes.copy_within(rest, gone.start);
            Some(taken)
        };
        let rest = range.end..count;
        let items = cut(self.items(range.clone()), self.items(rest.clone()))?;
        let pointers = if self.is_leaf() {
            Vec::new()
        } else {
            cut(self.pointers(range.clone()), self.pointers(rest))?
        };
        Self::set_field(bytes, self.count_at(), count.saturating_sub(range.len()))?;
        Some(NodeEntries { items, pointers })
    }

    /// Whether the entries are in order and fit.
    pub(super) fn check(&self, bytes: &[u8]) -> Result<(), &'static str> {
        let count = self.count(bytes);
        if count > self.most {
            return Err("too many records");
        }
        let orders = (0..count).map(|index| self.order(bytes, index));
        if orders.is_sorted_by(|before, after| before < after) {
            Ok(())
        } else {
            Err("keys out of order")
        }
    }
}
