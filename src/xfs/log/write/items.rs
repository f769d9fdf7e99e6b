//! Items of a checkpoint: what replay puts onto the disk.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::super::super::format::BASIC_BLOCK_BYTES;
use super::super::super::format::inode::InodeCore;
use super::super::super::format::log::OpHeader;
use super::super::super::format::log_items::{
    ATTRI, AttrItem, BUF, BUF_CANCEL, BUF_INODES, BUF_TYPE_SHIFT, BufItem, CHUNK_BYTES, DoneItem,
    EFD, EFI, ExchangeItem, FreeItem, ICREATE, IcreateItem, LoggedExtent, LoggedMapping,
    TYPE_INODES,
};
use super::operations::{ALIGN_BYTES, OP_BYTES};

/// Words of the dirty map of the largest buffer, of 64 KiB.
const MAP_WORDS: usize = 16;
/// Chunks that a word of the dirty map stands for.
const WORD_CHUNKS: usize = u32::BITS as usize;

/// One change, in the form that it has in the log.
///
/// A checkpoint must hold each buffer and each inode once, as it is at the end.
#[derive(Debug, Clone, Default)]
pub struct LogItem {
    /// Operations without the number of a transaction: a header each, and a region.
    operations: Vec<u8>,
    count: u32,
}

/// A new chunk of inodes, or a part of one.
#[derive(Debug, Clone, Copy)]
pub struct NewInodes {
    /// Allocation group.
    pub ag: u32,
    /// First block in the group.
    pub ag_block: u32,
    /// Inodes.
    pub count: u32,
    /// Bytes of an inode.
    pub inode_bytes: u32,
    /// Blocks.
    pub length_blocks: u32,
    /// The generation of all of them.
    pub generation: u32,
}

impl LogItem {
    /// An item without regions, with room for so many bytes of `regions` regions.
    pub(super) fn with_room(regions: usize, bytes: usize) -> Self {
        let each = OP_BYTES.saturating_add(ALIGN_BYTES);
        let capacity = regions.saturating_mul(each).saturating_add(bytes);
        Self {
            operations: Vec::with_capacity(capacity),
            count: 0,
        }
    }

    /// Adds a region that consists of two parts, padded as every region is.
    pub(super) fn push(&mut self, first: &[u8], second: &[u8]) {
        let bytes = first.len().saturating_add(second.len());
        let padded = bytes.checked_next_multiple_of(ALIGN_BYTES).unwrap_or(bytes);
        let header = OpHeader::new(0, 0, padded);
        let operations = &mut self.operations;
        operations.extend_from_slice(header.as_bytes());
        let end = operations.len().saturating_add(padded);
        operations.extend_from_slice(first);
        operations.extend_from_slice(second);
        operations.resize(end, 0);
        self.count = self.count.saturating_add(1);
    }

    /// Bytes that the item takes in a checkpoint, if none of its regions is cut.
    pub fn log_bytes(&self) -> u64 {
        self.operations.len() as u64
    }

    pub(super) fn region_count(&self) -> u32 {
        self.count
    }

    pub(super) fn regions(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.operations.as_slice();
        std::iter::from_fn(move || {
            let (header, after) = OpHeader::ref_from_prefix(rest).ok()?;
            let len = usize::try_from(header.len.get()).ok()?;
            let (region, after) = after.split_at_checked(len)?;
            rest = after;
            Some(region)
        })
    }

    /// The changed chunks of a buffer of whole basic blocks, at most 64 KiB. The words of `dirty`
    /// have a bit for each chunk of 128 bytes, the lowest bit of the first one for the first chunk;
    /// `kind` is one of the numbers `TYPE_...`.
    ///
    /// The checksum and the log sequence number in the content do not matter: replay sets them.
    /// The type decides where they are.
    pub fn buffer(
        addr_bytes: u64,
        kind: u16,
        content: &[u8],
        dirty: impl IntoIterator<Item = u32>,
    ) -> Self {
        let mut map = [0; MAP_WORDS];
        for (to, word) in map.iter_mut().zip(dirty) {
            *to = word;
        }
        let flags = kind.wrapping_shl(BUF_TYPE_SHIFT);
        Self::chunks(addr_bytes, flags, content, &map)
    }

    /// The links to the next inode of an unlinked list, of the inodes that begin at these bytes of
    /// a buffer of inodes. Replay takes nothing else from it.
    pub fn unlinked_links(
        addr_bytes: u64,
        content: &[u8],
        inodes: impl IntoIterator<Item = usize>,
    ) -> Self {
        const LINK: usize = std::mem::offset_of!(InodeCore, next_unlinked);
        let mut dirty = [0; MAP_WORDS];
        for start in inodes {
            let chunk = start.saturating_add(LINK) / CHUNK_BYTES;
            if let Some(word) = dirty.get_mut(chunk / WORD_CHUNKS) {
                *word |= bit(chunk);
            }
        }
        let flags = BUF_INODES | TYPE_INODES.wrapping_shl(BUF_TYPE_SHIFT);
        Self::chunks(addr_bytes, flags, content, &dirty)
    }

    fn chunks(addr_bytes: u64, flags: u16, content: &[u8], dirty: &[u32; MAP_WORDS]) -> Self {
        let chunks = content.len().div_ceil(CHUNK_BYTES);
        let words = map_words(content.len());
        let (mut count, mut bytes) = (0_u16, 0_usize);
        let mut map = [0_u8; MAP_WORDS * 4];
        for run in runs(dirty, chunks) {
            count = count.saturating_add(1);
            bytes = bytes.saturating_add(run.len().saturating_mul(CHUNK_BYTES));
        }
        for (index, (to, word)) in map.chunks_exact_mut(4).take(words).zip(dirty).enumerate() {
            // No chunk behind the end.
            let left = chunks.saturating_sub(index.saturating_mul(WORD_CHUNKS));
            let mask = match left < WORD_CHUNKS {
                true => bit(left).wrapping_sub(1),
                false => u32::MAX,
            };
            to.copy_from_slice(&(word & mask).to_le_bytes());
        }
        debug_assert!(count > 0, "a buffer without changes");
        let regions = count.saturating_add(1);
        let header = buf_item(addr_bytes, content.len(), flags, regions);
        let map = map.get(..words.saturating_mul(4)).unwrap_or_default();
        let head = size_of::<BufItem>().saturating_add(map.len());
        let mut item = Self::with_room(regions.into(), bytes.saturating_add(head));
        item.push(header.as_bytes(), map);
        for run in runs(dirty, chunks) {
            let start = run.start.saturating_mul(CHUNK_BYTES);
            let end = run.end.saturating_mul(CHUNK_BYTES).min(content.len());
            item.push(content.get(start..end).unwrap_or_default(), &[]);
        }
        item
    }

    /// A buffer was freed: of what was logged of it up to here, nothing is replayed. It must have
    /// the address and the length that its other items have.
    pub fn cancel(addr_bytes: u64, len_bytes: usize) -> Self {
        let header = buf_item(addr_bytes, len_bytes, BUF_CANCEL, 1);
        let map = [0_u8; MAP_WORDS * 4];
        let map = map.get(..map_words(len_bytes).saturating_mul(4));
        let map = map.unwrap_or_default();
        let mut item = Self::with_room(1, size_of::<BufItem>().saturating_add(map.len()));
        item.push(header.as_bytes(), map);
        item
    }

    /// New inodes, all free. Replay makes them without a look at the disk: everything that changes
    /// them later must stay in the log until it is in place.
    pub fn new_inodes(new: &NewInodes) -> Self {
        let header = IcreateItem {
            item_type: ICREATE.into(),
            regions: 1.into(),
            ag: new.ag.into(),
            ag_block: new.ag_block.into(),
            count: new.count.into(),
            inode_bytes: new.inode_bytes.into(),
            length: new.length_blocks.into(),
            generation: new.generation.into(),
        };
        let mut item = Self::with_room(1, size_of::<IcreateItem>());
        item.push(header.as_bytes(), &[]);
        item
    }

    /// These extents (first block, blocks) are to be freed: when the log ends without
    /// [`LogItem::freed`] of this number, recovery frees them.
    pub fn to_free(id: u64, extents: &[(u64, u32)]) -> Self {
        Self::free(EFI, id, extents)
    }

    /// The extents of the intent of this number were freed.
    pub fn freed(id: u64, extents: &[(u64, u32)]) -> Self {
        Self::free(EFD, id, extents)
    }

    /// An intent of this type (`CUI`) and number: changes of reference counts of extents.
    pub fn extent_intent(kind: u16, id: u64, extents: &[LoggedExtent]) -> Self {
        Self::intent(kind, id, extents.len(), extents.as_bytes())
    }

    /// An intent of this type (`RUI`, `BUI`) and number: changes of mappings.
    pub fn mapping_intent(kind: u16, id: u64, mappings: &[LoggedMapping]) -> Self {
        Self::intent(kind, id, mappings.len(), mappings.as_bytes())
    }

    /// Mappings of two files are to be exchanged, as `exchange` says.
    pub fn exchange_intent(exchange: &ExchangeItem) -> Self {
        let mut item = Self::with_room(1, size_of::<ExchangeItem>());
        item.push(exchange.as_bytes(), &[]);
        item
    }

    /// An attribute is to be changed: its names and values follow, each a region.
    pub fn attribute_intent(header: &AttrItem, parts: &[&[u8]]) -> Self {
        let regions = parts.len().saturating_add(1);
        let header = AttrItem {
            item_type: ATTRI.into(),
            regions: u16::try_from(regions).unwrap_or(u16::MAX).into(),
            ..*header
        };
        let bytes = parts.iter().map(|part| part.len());
        let bytes = bytes.fold(size_of::<AttrItem>(), usize::saturating_add);
        let mut item = Self::with_room(regions, bytes);
        item.push(header.as_bytes(), &[]);
        for part in parts {
            item.push(part, &[]);
        }
        item
    }

    /// The intent of this type and number was finished. Those of `EFI` end with
    /// [`LogItem::freed`].
    pub fn intent_done(kind: u16, id: u64) -> Self {
        let header = DoneItem {
            item_type: kind.wrapping_add(1).into(),
            regions: 1.into(),
            pad: 0.into(),
            id: id.into(),
        };
        let mut item = Self::with_room(1, size_of::<DoneItem>());
        item.push(header.as_bytes(), &[]);
        item
    }

    fn free(kind: u16, id: u64, extents: &[(u64, u32)]) -> Self {
        let list: Vec<_> = extents
            .iter()
            .map(|(start, len)| LoggedExtent {
                start: (*start).into(),
                len: (*len).into(),
                pad: 0.into(),
            })
            .collect();
        Self::intent(kind, id, list.len(), list.as_bytes())
    }

    fn intent(kind: u16, id: u64, count: usize, list: &[u8]) -> Self {
        let header = FreeItem {
            item_type: kind.into(),
            regions: 1.into(),
            nextents: u32::try_from(count).unwrap_or(u32::MAX).into(),
            id: id.into(),
        };
        let bytes = size_of::<FreeItem>().saturating_add(list.len());
        let mut item = Self::with_room(1, bytes);
        item.push(header.as_bytes(), list);
        item
    }
}

fn buf_item(addr_bytes: u64, len_bytes: usize, flags: u16, regions: u16) -> BufItem {
    let mut header = BufItem::new_zeroed();
    let blocks = |bytes: u64| bytes / BASIC_BLOCK_BYTES;
    header.item_type = BUF.into();
    header.regions = regions.into();
    header.flags = flags.into();
    let len = u16::try_from(blocks(len_bytes as u64));
    header.len = len.unwrap_or(u16::MAX).into();
    header.blkno = blocks(addr_bytes).cast_signed().into();
    let words = u32::try_from(map_words(len_bytes));
    header.map_words = words.unwrap_or(u32::MAX).into();
    header
}

/// Words of the dirty map of a buffer.
fn map_words(len_bytes: usize) -> usize {
    let words = len_bytes.div_ceil(CHUNK_BYTES * WORD_CHUNKS);
    debug_assert!(words <= MAP_WORDS, "a buffer of more than 64 KiB");
    words.min(MAP_WORDS)
}

/// The bit of a chunk in its word.
fn bit(chunk: usize) -> u32 {
    1_u32.rotate_left(u32::try_from(chunk % WORD_CHUNKS).unwrap_or(0))
}

/// The runs of set bits below `chunks`.
fn runs(dirty: &[u32], chunks: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let is_set = |chunk: usize| {
        let word = dirty.get(chunk / WORD_CHUNKS).copied().unwrap_or(0);
        word & bit(chunk) != 0
    };
    let mut at = 0_usize;
    std::iter::from_fn(move || {
        let start = (at..chunks).find(|chunk| is_set(*chunk))?;
        at = (start..chunks)
            .find(|chunk| !is_set(*chunk))
            .unwrap_or(chunks);
        Some(start..at)
    })
}
