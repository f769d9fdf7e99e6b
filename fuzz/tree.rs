//! Btrees built from fuzzer input: valid at first, then modified, with the checksums recomputed.

use std::ops::Range;

use xtent::internals::xfs::Fs;
use xtent::internals::xfs::format::set_checksum;

/// Bytes of the image's blocks.
pub const BLOCK: usize = 4096;

/// The fuzzer's bytes, one after the other; zeroes behind their end.
#[derive(Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    pub fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) << 16 | u32::from(self.u16())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The first of `count` blocks that are anywhere but in group headers and the log.
pub fn free_blocks(fs: &Fs, count: u32) -> u32 {
    let geometry = fs.geometry();
    (1..geometry.ag_length(0))
        .rev()
        .find(|&block| {
            let start = geometry.fs_block(0, block);
            geometry.check_extent(start, count.into()).is_ok()
        })
        .expect("room for blocks")
}

/// A node: which records or nodes of the level below it has, and its first record.
#[derive(Debug, Clone)]
pub struct Node {
    pub first: usize,
    pub below: Range<usize>,
}

/// The levels of a tree over so many records, leaves first, up to one of at most `top` nodes.
pub fn levels(records: usize, leaf: usize, fanout: usize, top: usize) -> Vec<Vec<Node>> {
    let split = |count: usize, each: usize| {
        let starts = (0..count).step_by(each.max(1));
        starts.map(move |start| start..(start + each.max(1)).min(count))
    };
    let leaves = split(records, leaf).map(|below| Node {
        first: below.start,
        below,
    });
    let mut levels = vec![leaves.collect::<Vec<_>>()];
    if levels[0].is_empty() {
        levels[0].push(Node {
            first: 0,
            below: 0..0,
        });
    }
    while let Some(last) = levels.last()
        && last.len() > top
    {
        let above = split(last.len(), fanout.max(2)).map(|below| Node {
            first: last[below.start].first,
            below,
        });
        let above = above.collect();
        levels.push(above);
    }
    levels
}

/// Changes blocks in places, as the rest of the bytes say, and makes their checksums right.
pub fn mutate(
    bytes: &mut Bytes<'_>,
    blocks: &mut [(u64, Vec<u8>)],
    crc_offset: impl Fn(usize) -> usize,
) {
    while !bytes.is_empty() {
        let which = usize::from(bytes.u8()) % blocks.len().max(1);
        let (at, how) = (usize::from(bytes.u16()), bytes.u8());
        let Some((_, block)) = blocks.get_mut(which) else {
            return;
        };
        // Half of the changes are where most fields are.
        let within = if how & 1 == 0 {
            256.min(block.len())
        } else {
            block.len()
        };
        let at = at % within;
        let width = [1, 2, 4, 8][usize::from(how >> 1 & 3)].min(block.len() - at);
        let value = match how >> 3 & 3 {
            0 => u64::from(bytes.u8()),
            1 => u64::MAX - u64::from(bytes.u8()),
            2 => u64::from(bytes.u32()),
            _ => 1 << (bytes.u8() % 64),
        };
        let field = &mut block[at..at + width];
        let raw = value.to_be_bytes();
        for (byte, new) in field.iter_mut().zip(&raw[8 - width..]) {
            *byte = if how & 0x80 == 0 { *new } else { *byte ^ new };
        }
    }
    for (index, (_, block)) in blocks.iter_mut().enumerate() {
        set_checksum(block, crc_offset(index));
    }
}

/// A tree inside an allocation group, of records and keys of these bytes.
#[derive(Debug)]
pub struct ShortTree<'a> {
    pub magic: u32,
    pub records: &'a [Vec<u8>],
    pub record_bytes: usize,
    pub key_bytes: usize,
}

impl ShortTree<'_> {
    /// Its blocks, the root last, from the block `base` on; and the number of levels.
    pub fn blocks(
        &self,
        fs: &Fs,
        base: u32,
        leaf: usize,
        fanout: usize,
    ) -> (Vec<(u64, Vec<u8>)>, u32) {
        let levels = levels(self.records.len(), leaf, fanout, 1);
        let mut blocks = Vec::new();
        let mut below_base = 0;
        let mut here = base;
        for (level, nodes) in levels.iter().enumerate() {
            for (index, node) in nodes.iter().enumerate() {
                let number = here + u32::try_from(index).expect("few");
                let addr = fs.geometry().ag_block_addr(0, number);
                let sibling = |there: bool, number: u32| if there { number } else { u32::MAX };
                let mut block = vec![0; BLOCK];
                block[..4].copy_from_slice(&self.magic.to_be_bytes());
                block[4..6].copy_from_slice(&u16::try_from(level).expect("few").to_be_bytes());
                let count = u16::try_from(node.below.len()).expect("few");
                block[6..8].copy_from_slice(&count.to_be_bytes());
                let left = sibling(index > 0, number.wrapping_sub(1));
                let right = sibling(index + 1 < nodes.len(), number + 1);
                block[8..12].copy_from_slice(&left.to_be_bytes());
                block[12..16].copy_from_slice(&right.to_be_bytes());
                block[16..24].copy_from_slice(&(addr / 512).to_be_bytes());
                block[32..48].copy_from_slice(fs.meta_uuid());
                let body = &mut block[56..];
                let most = body.len() / (self.key_bytes + 4);
                for (slot, item) in node.below.clone().enumerate() {
                    if level == 0 {
                        body[slot * self.record_bytes..][..self.record_bytes]
                            .copy_from_slice(&self.records[item]);
                    } else {
                        let first = levels[level - 1][item].first;
                        body[slot * self.key_bytes..][..self.key_bytes]
                            .copy_from_slice(&self.records[first][..self.key_bytes]);
                        let pointer = below_base + u32::try_from(item).expect("few");
                        body[most * self.key_bytes + slot * 4..][..4]
                            .copy_from_slice(&pointer.to_be_bytes());
                    }
                }
                blocks.push((addr, block));
            }
            below_base = here;
            here += u32::try_from(nodes.len()).expect("few");
        }
        (blocks, u32::try_from(levels.len()).expect("few"))
    }
}
