//! The refcount btree: a tree in free blocks, right at first and then changed in places, and a file
//! of which the fuzzer says the extents. The map of a file stays within twice its extents and the
//! tree's records.
#![no_main]

#[path = "../image.rs"]
mod image;
#[path = "../tree.rs"]
#[allow(dead_code, reason = "each target uses its own part")]
mod tree;

use image::{IMAGE, Patched, look};
use libfuzzer_sys::fuzz_target;
use tree::{Bytes, ShortTree, free_blocks, mutate};
use xtent::internals::iomap::{IterFlags, MappingKind, Ops};
use xtent::internals::xfs::format::btree::{BmbtRecord, REFCOUNT_MAGIC, SHORT_CRC_OFFSET};
use xtent::internals::xfs::format::{ag, inode};
use xtent::internals::xfs::{FileOps, Fs, Inode};
use zerocopy::IntoBytes;

/// Most blocks of the tree.
const BLOCKS: u32 = 96;

fuzz_target!(|data: &[u8]| {
    let mut plain = Patched::default();
    let fs = Fs::open(&mut plain).expect("the image");
    let root = fs.read_root(&mut plain).expect("the root directory");
    let fs = Fs::open(&mut plain).expect("the image");
    let mut bytes = Bytes(data);
    let how = bytes.u8();
    let (leaf, fanout) = (1 + usize::from(how & 7), 2 + usize::from(how >> 3 & 7));
    let base = free_blocks(&fs, BLOCKS);
    let length = fs.geometry().ag_length(0);
    // Shared runs, by what lies between them and how long they are.
    let mut records = Vec::new();
    let mut at = fs.geometry().first_data_ag_block();
    for _ in 0..bytes.u8() {
        let (gap, blocks) = (bytes.u8(), 1 + u32::from(bytes.u8() & 15));
        at += u32::from(gap & 15);
        if at + blocks > length {
            break;
        }
        // Some are copied on write only.
        let cow = if gap & 0x80 == 0 { 0 } else { 1 << 31 };
        let count = if cow == 0 { 2 + u32::from(gap >> 5) } else { 1 };
        records.push([at | cow, blocks, count].map(u32::to_be_bytes).concat());
        at += blocks;
    }
    records.sort();
    let tree = ShortTree {
        magic: REFCOUNT_MAGIC,
        records: &records,
        record_bytes: 12,
        key_bytes: 4,
    };
    // The file's extents, which may overlap.
    let mut extents = Vec::new();
    let mut offset = 0;
    for _ in 0..bytes.u8() % 22 {
        let (gap, start, blocks) = (bytes.u8(), bytes.u16(), 1 + u64::from(bytes.u16() & 2047));
        offset += u64::from(gap & 3);
        let start = 1 + u64::from(start) % u64::from(length - 1);
        let blocks = blocks.min(u64::from(length) - start).max(1);
        extents.push(BmbtRecord::new(offset, start, blocks, gap & 0xc0 == 0xc0));
        offset += blocks;
    }
    let (mut blocks, count) = tree.blocks(&fs, base, leaf, fanout);
    if blocks.len() > BLOCKS as usize {
        return;
    }
    extents.truncate((512 - inode::CORE_BYTES) / 16);
    let top = u32::try_from(blocks.len()).expect("few") - 1 + base;
    let mut agf = IMAGE[512..1024].to_vec();
    agf[88..92].copy_from_slice(&top.to_be_bytes());
    agf[92..96].copy_from_slice(&count.to_be_bytes());
    let agf_at = blocks.len();
    blocks.push((512, agf));
    blocks.push((root.addr_bytes, file(&root, &extents, offset)));
    mutate(&mut bytes, &mut blocks, |index| match index {
        index if index < agf_at => SHORT_CRC_OFFSET,
        index if index == agf_at => ag::AGF_CRC_OFFSET,
        _ => inode::CRC_OFFSET,
    });
    let mut io = Patched(blocks);
    if let Ok(inode) = fs.read_inode(&mut io, fs.root()) {
        look(&fs, &mut io, &inode);
        bounded(&fs, &mut io, &inode);
    }
    for start in [1, 100, length / 2] {
        let _ = fs.shared_in(
            &mut io,
            fs.geometry().fs_block(0, start),
            (length - start).into(),
        );
    }
});

/// A regular file with these extents, in the place of the root directory.
fn file(root: &Inode, extents: &[BmbtRecord], end: u64) -> Vec<u8> {
    let start = usize::try_from(root.addr_bytes).expect("small");
    let mut raw = IMAGE[start..start + 512].to_vec();
    raw[2..4].copy_from_slice(&0o100_644_u16.to_be_bytes());
    raw[5] = inode::FORMAT_EXTENTS;
    raw[56..64].copy_from_slice(&(end * 4096).to_be_bytes());
    raw[64..72].copy_from_slice(&(1_u64 << 20).to_be_bytes());
    raw[76..80].copy_from_slice(&u32::try_from(extents.len()).expect("few").to_be_bytes());
    raw[82] = 0;
    raw[127] |= 1 << 1;
    raw[inode::CORE_BYTES..].fill(0);
    raw[176..176 + extents.as_bytes().len()].copy_from_slice(extents.as_bytes());
    raw
}

/// The pieces that are shown cover the file's extents, one after the other, and are few.
fn bounded(fs: &Fs, io: &mut Patched, inode: &Inode) {
    let Ok(map) = fs.file_map(io, inode) else {
        return;
    };
    if fs.learn_sharing(io, &map).is_err() {
        return;
    }
    let mut ops = FileOps::new(&map);
    let (mut pos, mut pieces, mut mapped) = (0, 0, 0);
    while let Ok((mapping, _)) = ops.begin(pos, 1 << 62, IterFlags::REPORT) {
        if mapping.length == 0 {
            break;
        }
        assert_eq!(mapping.offset, pos);
        pieces += 1;
        if mapping.kind != MappingKind::Hole {
            mapped += mapping.length;
        }
        pos = mapping.end();
    }
    // Extents and holes between them, and each border of one of 255 shared runs in one extent.
    assert!(pieces <= 2 * map.len() + 1 + 2 * 4096, "{pieces} pieces");
    let whole: u64 = fs
        .extents(io, inode)
        .expect("read before")
        .as_slice()
        .iter()
        .map(|extent| extent.blocks * 4096)
        .sum();
    assert_eq!(mapped, whole);
}
