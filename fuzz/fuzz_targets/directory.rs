//! Directory blocks: the first byte chooses a block of the image's directories, the rest is laid
//! over it, checksum made right; or the fuzzer's bytes become a short directory.
#![no_main]

#[path = "../image.rs"]
mod image;

use std::sync::LazyLock;

use image::{IMAGE, Patched, look};
use libfuzzer_sys::fuzz_target;
use xtent::internals::xfs::dir::lookup;
use xtent::internals::xfs::format::set_checksum;
use xtent::internals::xfs::{Fs, Ino};

/// The directories of the image, and the addresses of their blocks.
static BLOCKS: LazyLock<Vec<(Ino, u64)>> = LazyLock::new(|| {
    let mut io = Patched::default();
    let fs = Fs::open(&mut io).expect("the image");
    let root = fs.read_root(&mut io).expect("the root directory");
    let mut blocks = Vec::new();
    for name in ["block", "leaf", "node"] {
        let found = lookup(&fs, &mut io, &root, name.as_bytes()).expect("the image");
        let dir = fs
            .read_inode(&mut io, found.expect("run fuzz/seed.sh").0)
            .expect("a directory");
        for extent in fs.extents(&mut io, &dir).expect("extents").as_slice() {
            let addr = fs.geometry().block_addr(extent.start_block);
            let step = u64::from(fs.geometry().dir_block_bytes);
            let bytes = fs.geometry().bytes(extent.blocks);
            blocks.extend((0..bytes / step).map(|index| (dir.ino, addr + index * step)));
        }
    }
    blocks
});

fuzz_target!(|data: &[u8]| {
    let [choice, data @ ..] = data else { return };
    let (dir, addr) = BLOCKS[usize::from(*choice) % BLOCKS.len()];
    let mut io = Patched::default();
    let fs = Fs::open(&mut io).expect("the image");
    let start = usize::try_from(addr).expect("small");
    let len = usize::try_from(fs.geometry().dir_block_bytes).expect("small");
    let mut block = IMAGE[start..start + len].to_vec();
    // Data blocks begin with 48 header bytes that are not mutated, tree blocks with 56.
    let (keep, crc) = if block.starts_with(b"XD") {
        (48, 4)
    } else {
        (56, 12)
    };
    let most = data.len().min(len - keep);
    block[keep..keep + most].copy_from_slice(&data[..most]);
    set_checksum(&mut block, crc);
    let mut io = Patched(vec![(addr, block)]);
    if let Ok(inode) = fs.read_inode(&mut io, dir) {
        look(&fs, &mut io, &inode);
        for name in ["a-name-of-some-length-00007", "", "no such name"] {
            let _ = lookup(&fs, &mut io, &inode, name.as_bytes());
        }
    }
});
