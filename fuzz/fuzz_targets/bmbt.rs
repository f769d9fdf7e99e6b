//! The extent btree of a fork: a tree in free blocks, in the place of the root directory's data
//! fork, right at first and then changed in places. Whole and by single lookups the same extents
//! must be found.
#![no_main]

#[path = "../image.rs"]
mod image;
#[path = "../tree.rs"]
#[allow(dead_code, reason = "each target uses its own part")]
mod tree;

use image::{IMAGE, Patched, look};
use libfuzzer_sys::fuzz_target;
use tree::{BLOCK, Bytes, free_blocks, levels, mutate};
use xtent::internals::xfs::format::btree::{BmbtRecord, LONG_CRC_OFFSET};
use xtent::internals::xfs::format::inode;
use xtent::internals::xfs::{FoundExtent, Fs, Inode};
use zerocopy::IntoBytes;

/// Most blocks of the tree.
const BLOCKS: u32 = 96;
/// Children that fit behind the core of an inode of 512 bytes.
const ROOTS: usize = (512 - inode::CORE_BYTES - 4) / 16;

fuzz_target!(|data: &[u8]| {
    let mut plain = Patched::default();
    let fs = Fs::open(&mut plain).expect("the image");
    let root = fs.read_root(&mut plain).expect("the root directory");
    let fs = Fs::open(&mut plain).expect("the image");
    let mut bytes = Bytes(data);
    let how = bytes.u8();
    let directory = how & 1 == 1;
    let (leaf, fanout) = (1 + usize::from(how >> 1 & 7), 2 + usize::from(how >> 4 & 7));
    let base = free_blocks(&fs, BLOCKS);
    let geometry = fs.geometry();
    // Extents, by what lies between them and how long they are.
    let mut records = Vec::new();
    let mut at = 0;
    for _ in 0..bytes.u8() {
        let (gap, start, rest) = (bytes.u8(), bytes.u16(), bytes.u8());
        // Now and then as far as the hash index of a directory, or the end of all files.
        at += match gap {
            254 => 1 << 23,
            255 => 1 << 51,
            gap => u64::from(gap & 7),
        };
        let start = u64::from(geometry.first_data_ag_block() + u32::from(start) % 4096);
        let blocks = 1 + u64::from(rest & 15);
        records.push(BmbtRecord::new(at, start, blocks, rest & 0x80 != 0));
        at += blocks;
    }
    let levels = levels(records.len(), leaf, fanout, ROOTS);
    let total: usize = levels.iter().map(Vec::len).sum();
    if records.is_empty() || total > BLOCKS as usize {
        return;
    }
    let mut blocks = Vec::new();
    let (mut below_base, mut here) = (0, u64::from(base));
    let node = |header: usize, body: &mut [u8], nodes: &[tree::Node], base: u64| {
        let most = (body.len() - header) / 16;
        for (slot, below) in nodes.iter().enumerate() {
            let offset = records[below.first].offset_blocks();
            body[header + slot * 8..][..8].copy_from_slice(&offset.to_be_bytes());
            body[header + most * 8 + slot * 8..][..8]
                .copy_from_slice(&(base + slot as u64).to_be_bytes());
        }
    };
    for (level, nodes) in levels.iter().enumerate() {
        for (index, of) in nodes.iter().enumerate() {
            let number = here + index as u64;
            let addr = number * BLOCK as u64;
            let mut block = vec![0; BLOCK];
            block[..4].copy_from_slice(b"BMA3");
            block[4..6].copy_from_slice(&u16::try_from(level).expect("few").to_be_bytes());
            let count = u16::try_from(of.below.len()).expect("few");
            block[6..8].copy_from_slice(&count.to_be_bytes());
            block[8..24].fill(0xff);
            block[24..32].copy_from_slice(&(addr / 512).to_be_bytes());
            block[40..56].copy_from_slice(fs.meta_uuid());
            block[56..64].copy_from_slice(&root.ino.0.to_be_bytes());
            if level == 0 {
                let raw = records[of.below.clone()].as_bytes();
                block[72..72 + raw.len()].copy_from_slice(raw);
            } else {
                let below = &levels[level - 1][of.below.clone()];
                node(72, &mut block, below, below_base + of.below.start as u64);
            }
            blocks.push((addr, block));
        }
        below_base = here;
        here += nodes.len() as u64;
    }
    // The inode: the root directory's, with another type, size and fork.
    let start = usize::try_from(root.addr_bytes).expect("small");
    let mut raw = IMAGE[start..start + 512].to_vec();
    let mode: u16 = if directory { 0o040_755 } else { 0o100_644 };
    raw[2..4].copy_from_slice(&mode.to_be_bytes());
    raw[5] = inode::FORMAT_BTREE;
    let size = if directory {
        at.min(1 << 23) * BLOCK as u64
    } else {
        at.min(1 << 51) * 4096
    };
    raw[56..64].copy_from_slice(&size.min(i64::MAX as u64).to_be_bytes());
    raw[64..72].copy_from_slice(&(1_u64 << 20).to_be_bytes());
    raw[76..80].copy_from_slice(&u32::try_from(records.len()).expect("few").to_be_bytes());
    raw[82] = 0;
    raw[127] |= 1 << 1;
    raw[inode::CORE_BYTES..].fill(0);
    let top = levels.last().expect("leaves");
    let level = u16::try_from(levels.len()).expect("few");
    raw[176..178].copy_from_slice(&level.to_be_bytes());
    raw[178..180].copy_from_slice(&u16::try_from(top.len()).expect("few").to_be_bytes());
    node(180, &mut raw, top, below_base);
    blocks.push((root.addr_bytes, raw));
    let last = blocks.len() - 1;
    mutate(&mut bytes, &mut blocks, |index| {
        if index == last {
            inode::CRC_OFFSET
        } else {
            LONG_CRC_OFFSET
        }
    });
    let mut io = Patched(blocks);
    if let Ok(inode) = fs.read_inode(&mut io, fs.root()) {
        look(&fs, &mut io, &inode);
        compare(&fs, &mut io, &inode);
    }
});

/// What single lookups find is what the whole tree says.
fn compare(fs: &Fs, io: &mut Patched, inode: &Inode) {
    let mut at = 0;
    let mut steps = 0;
    let whole = fs.extents(io, inode).ok();
    while let Ok(found) = fs.find_extent(io, inode, at) {
        steps += 1;
        assert!(steps < 100_000, "an endless fork");
        let (start, end) = match found {
            FoundExtent::Extent(extent) => (extent.offset_blocks, extent.end_blocks()),
            FoundExtent::Hole {
                start_blocks,
                end_blocks,
            } => (start_blocks, end_blocks),
        };
        assert!(start <= at && at < end, "{found:?} at {at}");
        if let Some(map) = whole {
            match (found, map.lookup(at)) {
                (FoundExtent::Extent(one), FoundExtent::Extent(other)) => assert_eq!(one, other),
                (FoundExtent::Hole { .. }, FoundExtent::Hole { .. }) => {}
                other => panic!("{other:?} at {at}"),
            }
        }
        if end == u64::MAX {
            break;
        }
        at = end;
    }
    for before in [0, 1, 1 << 23, u64::MAX] {
        let last = fs.last_extent(io, inode, before);
        if let (Some(map), Ok(last)) = (whole, last) {
            assert_eq!(last, map.last_before(before));
        }
    }
}
