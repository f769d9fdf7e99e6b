//! The free space btrees: each tree in blocks of its own, valid at first and then modified. An
//! accepted tree is in order, and its counts add up.
#![no_main]

#[path = "../image.rs"]
#[allow(dead_code, reason = "each target uses its own part")]
mod image;
#[path = "../tree.rs"]
#[allow(dead_code, reason = "each target uses its own part")]
mod tree;

use std::ops::ControlFlow;

use image::{IMAGE, Patched};
use libfuzzer_sys::fuzz_target;
use tree::{Bytes, ShortTree, free_blocks, mutate};
use xtent::internals::xfs::Fs;
use xtent::internals::xfs::format::ag;
use xtent::internals::xfs::format::btree::{BNOBT_MAGIC, CNTBT_MAGIC, SHORT_CRC_OFFSET};

/// Most blocks of each tree.
const BLOCKS: u32 = 96;

fuzz_target!(|data: &[u8]| {
    let mut plain = Patched::default();
    let fs = Fs::open(&mut plain).expect("the image");
    let mut bytes = Bytes(data);
    let how = bytes.u8();
    let (leaf, fanout) = (1 + usize::from(how & 7), 2 + usize::from(how >> 3 & 7));
    let base = free_blocks(&fs, 2 * BLOCKS);
    let length = fs.geometry().ag_length(0);
    // Free extents, by what lies between them and how long they are.
    let mut extents = Vec::new();
    let mut at = fs.geometry().first_data_ag_block();
    for _ in 0..bytes.u8() {
        let (gap, blocks) = (bytes.u8(), 1 + u32::from(bytes.u8() & 63));
        at += 1 + u32::from(gap & 15);
        if at + blocks > length {
            break;
        }
        extents.push((at, blocks));
        at += blocks;
    }
    let raw = |&(at, blocks): &(u32, u32)| [at, blocks].map(u32::to_be_bytes).concat();
    let by_block: Vec<_> = extents.iter().map(raw).collect();
    let mut sorted = extents.clone();
    sorted.sort_by_key(|&(at, blocks)| (blocks, at));
    let by_length: Vec<_> = sorted.iter().map(raw).collect();
    let tree = |magic, records| ShortTree {
        magic,
        records,
        record_bytes: 8,
        key_bytes: 8,
    };
    let (mut blocks, height) = tree(BNOBT_MAGIC, &by_block).blocks(&fs, base, leaf, fanout);
    let other = tree(CNTBT_MAGIC, &by_length);
    let (mut others, other_height) = other.blocks(&fs, base + BLOCKS, fanout, leaf.max(2));
    if blocks.len().max(others.len()) > BLOCKS as usize {
        return;
    }
    let count = |blocks: &Vec<_>| u32::try_from(blocks.len()).expect("few");
    let mut agf = IMAGE[512..1024].to_vec();
    let free: u32 = extents.iter().map(|extent| extent.1).sum();
    let longest = extents.iter().map(|extent| extent.1).max().unwrap_or(0);
    for (at, value) in [
        (16, base + count(&blocks) - 1),
        (20, base + BLOCKS + count(&others) - 1),
        (28, height),
        (32, other_height),
        (52, free),
        (56, longest),
    ] {
        agf[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    blocks.append(&mut others);
    blocks.push((512, agf));
    let last = blocks.len() - 1;
    let changed = !bytes.is_empty();
    mutate(&mut bytes, &mut blocks, |index| {
        if index == last {
            ag::AGF_CRC_OFFSET
        } else {
            SHORT_CRC_OFFSET
        }
    });
    let mut io = Patched(blocks);
    // What comes into the free blocks above may be in the log or the headers, and is then refused.
    let allowed = extents.iter().all(|&(at, blocks)| {
        let start = fs.geometry().fs_block(0, at);
        fs.geometry().check_extent(start, blocks.into()).is_ok()
    });
    let sum = fs.free_space(&mut io, 0);
    if !changed && allowed {
        let sum = sum.as_ref().expect("an unchanged tree");
        assert_eq!(sum.extents, extents.len() as u64);
        assert_eq!(sum.blocks, u64::from(free));
    }
    for from in [0, length / 3, length] {
        let mut end = 0;
        let _ = fs.free_by_block(&mut io, 0, from..length, |extent| {
            assert!(extent.ag_block >= end && extent.ag_block + extent.blocks > from);
            end = extent.ag_block + extent.blocks;
            ControlFlow::Continue(())
        });
    }
    for least in [0, 2, 40] {
        let mut before = (least, 0);
        let _ = fs.free_by_length(&mut io, 0, least, |extent| {
            let this = (extent.blocks, extent.ag_block);
            assert!(this >= before);
            before = this;
            ControlFlow::Continue(())
        });
    }
});
