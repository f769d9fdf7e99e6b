//! An inode: the fuzzer's bytes in the place of the root directory's, number, uuid and checksum
//! made right.
#![no_main]

#[path = "../image.rs"]
mod image;

use image::{IMAGE, Patched, look};
use libfuzzer_sys::fuzz_target;
use xtent::internals::xfs::Fs;
use xtent::internals::xfs::format::{inode, set_checksum};

fuzz_target!(|data: &[u8]| {
    let mut io = Patched::default();
    let fs = Fs::open(&mut io).expect("the image");
    let root = fs.read_root(&mut io).expect("the root directory");
    // Another filesystem value: this one has the right inode in its cache.
    let fs = Fs::open(&mut io).expect("the image");
    let start = usize::try_from(root.addr_bytes).expect("small");
    let len = usize::try_from(fs.geometry().inode_bytes).expect("small");
    let original = &IMAGE[start..start + len];
    let mut raw = data.to_vec();
    raw.resize(len, 0);
    // Magic and version; then number and uuid, which stand at the end of the core.
    raw[..2].copy_from_slice(&original[..2]);
    raw[4] = original[4];
    raw[152..176].copy_from_slice(&original[152..176]);
    set_checksum(&mut raw, inode::CRC_OFFSET);
    let mut io = Patched(vec![(root.addr_bytes, raw)]);
    if let Ok(inode) = fs.read_inode(&mut io, fs.root()) {
        look(&fs, &mut io, &inode);
    }
});
