//! Structures on a disk whose checksums are right, and changes of one of their fields.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use xtent::internals::xfs::Fs;
use xtent::internals::xfs::format::{attr, buffer, checksum_ok, inode};

/// A structure on the disk: where it lies, its length, and where its checksum is.
#[derive(Debug, Clone, Copy)]
pub struct Structure {
    pub addr: u64,
    pub len: usize,
    pub crc: usize,
}

/// All structures with a right checksum outside of the log, by kind; without the superblock.
/// `raw` is the disk.
pub fn structures(raw: &[u8], fs: &Fs) -> BTreeMap<String, Vec<Structure>> {
    let geometry = fs.geometry();
    let log = geometry.block_addr(geometry.log_start);
    let log = log..log + fs.info().log_bytes;
    let mut found: BTreeMap<String, Vec<Structure>> = BTreeMap::new();
    let lengths = [
        geometry.sector_bytes,
        geometry.block_bytes,
        geometry.dir_block_bytes,
    ];
    let inode_bytes = geometry.inode_bytes as usize;
    for (sector, bytes) in raw.chunks(512).enumerate().skip(1) {
        let addr = sector as u64 * 512;
        if log.contains(&addr) || bytes.iter().all(|byte| *byte == 0) {
            continue;
        }
        let rest = &raw[sector * 512..];
        let magic = u32::from_be_bytes(*bytes.first_chunk().unwrap());
        let (name, crc) = match buffer::recognise(bytes) {
            Some(layout) => (format!("{:x?}", &bytes[..4]), layout.crc),
            None if magic == attr::MAGIC_REMOTE => ("remote".to_owned(), attr::REMOTE_CRC_OFFSET),
            None if buffer::holds_inodes(bytes) => {
                let format = bytes[5] | bytes[2] & 0xf0;
                (format!("inode {format:x}"), inode::CRC_OFFSET)
            }
            None => continue,
        };
        let name = match buffer::recognise(bytes) {
            // The links come first.
            Some(layout) if layout.crc == 12 => format!("{:x?}", &bytes[8..10]),
            _ => name,
        };
        let lengths = match name.starts_with("inode") {
            true => [inode_bytes; 3],
            false => lengths.map(|len| len as usize),
        };
        let is_whole = |len: &usize| rest.get(..*len).is_some_and(|raw| checksum_ok(raw, crc));
        if let Some(len) = lengths.into_iter().find(is_whole) {
            let structure = Structure { addr, len, crc };
            found.entry(name).or_default().push(structure);
        }
    }
    found
}

/// Changes a field of a structure: what was changed, in words.
pub fn change(raw: &mut [u8], rng: &mut SmallRng) -> String {
    let bytes = *[1, 2, 4, 4, 8].choose(rng).unwrap();
    let near = *[80, 200, 400, raw.len(), raw.len()].choose(rng).unwrap();
    let at = rng.random_range(0..near.min(raw.len()) / bytes) * bytes;
    // At the end of a block are records, too.
    let at = match rng.random_ratio(1, 8) {
        true => raw.len() - bytes - at % 64 / bytes * bytes,
        false => at,
    };
    let now = raw[at..at + bytes]
        .iter()
        .fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    let bits = 8 * bytes;
    let new = match rng.random_range(0..6) {
        0 => 0,
        1 => now.wrapping_add(1),
        2 => now.wrapping_sub(1),
        3 => u64::MAX,
        4 => rng.random(),
        _ => now ^ 1 << rng.random_range(0..bits),
    };
    raw[at..at + bytes].copy_from_slice(&new.to_be_bytes()[8 - bytes..]);
    format!(
        "{bytes} bytes at {at}: {now:#x} -> {:#x}",
        new & (u64::MAX >> (64 - bits))
    )
}
