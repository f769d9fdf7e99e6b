//! The log: records, holes and broken blocks anywhere in the image's log, checksums of records made
//! right.
#![no_main]

#[path = "../image.rs"]
mod image;

use std::collections::BTreeMap;

use image::IMAGE;
use libfuzzer_sys::fuzz_target;
use xtent::Result;
use xtent::internals::xfs::format::log as layout;
use xtent::internals::xfs::{Fs, FsOptions, MetaIo, Recovery};

const BB: usize = 512;

/// The image with another log.
struct Device {
    /// Byte address and basic blocks of the log.
    at: u64,
    blocks: u64,
    /// What the log holds besides: blocks below `split` have this cycle, those behind the one
    /// before; `None` is the image's own.
    base: Option<(u32, u64)>,
    laid: BTreeMap<u64, [u8; BB]>,
}

impl Device {
    fn block(&self, number: u64) -> Option<[u8; BB]> {
        if let Some(block) = self.laid.get(&number) {
            return Some(*block);
        }
        let (cycle, split) = self.base?;
        let mut block = [0; BB];
        let cycle = if number < split {
            cycle
        } else {
            cycle.wrapping_sub(1)
        };
        block[..4].copy_from_slice(&cycle.to_be_bytes());
        Some(block)
    }
}

impl MetaIo for Device {
    fn read_at(&mut self, addr_bytes: u64, buf: &mut [u8]) -> Result<()> {
        for (index, piece) in buf.chunks_mut(BB).enumerate() {
            let addr = addr_bytes + (index * BB) as u64;
            let block = addr.checked_sub(self.at).map(|into| into / BB as u64);
            let laid = block.filter(|block| *block < self.blocks);
            match laid.and_then(|block| self.block(block)) {
                Some(block) => piece.copy_from_slice(&block[..piece.len()]),
                None => {
                    let start = usize::try_from(addr).expect("an address of the image");
                    piece.copy_from_slice(&IMAGE[start..start + piece.len()]);
                }
            }
        }
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        IMAGE.len() as u64
    }
}

/// The fuzzer's bytes, taken from the front; zeroes when there are no more.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u64 {
        u64::from(self.byte()) << 16 | u64::from(self.byte()) << 8 | u64::from(self.byte())
    }
}

/// Lays a record at `start`; where it ends.
fn lay_record(device: &mut Device, input: &mut Input<'_>, start: u64, cycle: u32) -> u64 {
    let kind = input.byte();
    let size = 1_u32 << (15 + (kind & 3));
    let headers = usize::try_from(size >> 15).expect("small");
    let payload = match kind & 4 {
        0 => usize::from(input.byte() & 3),
        _ => usize::from(input.byte()) * 2,
    };
    let (operations, flags, tail) = (input.byte(), input.byte(), input.byte());
    let blocks = device.blocks;
    let cycle_at = |into: usize| {
        let wrapped = start + into as u64 >= blocks;
        cycle.wrapping_add(u32::from(wrapped)).to_be_bytes()
    };
    let mut raw = vec![[0; BB]; headers + payload];
    for (into, block) in raw.iter_mut().enumerate() {
        block[..4].copy_from_slice(&cycle_at(into));
    }
    if let Some(block) = raw.get_mut(headers) {
        block[9] = flags;
    }
    let lsn = u64::from(cycle) << 32 | start;
    let len = u32::try_from(payload * BB).expect("small");
    let head = &mut raw[0];
    head[..4].copy_from_slice(&layout::RECORD_MAGIC.to_be_bytes());
    head[4..8].copy_from_slice(&cycle.to_be_bytes());
    head[8..12].copy_from_slice(&layout::RECORD_VERSION_2.to_be_bytes());
    head[12..16].copy_from_slice(&len.to_be_bytes());
    head[16..24].copy_from_slice(&lsn.to_be_bytes());
    head[24..32].copy_from_slice(&lsn.wrapping_sub(tail.into()).to_be_bytes());
    head[40..44].copy_from_slice(&u32::from(operations).to_be_bytes());
    head[300..304].copy_from_slice(&1_u32.to_be_bytes());
    head[304..320].copy_from_slice(&IMAGE[32..48]);
    head[320..324].copy_from_slice(&size.to_be_bytes());
    // Any byte of the header may be another one, before the checksum or after it.
    let (broken, value) = (usize::from(input.byte()) * 2, input.byte());
    if kind & 8 != 0 {
        head[broken] ^= value;
    }
    if kind & 16 != 0 {
        head[32..36].fill(0);
        let mut crc = crc32c(!0, &raw[0][..layout::RECORD_CRC_BYTES]);
        let used = len.div_ceil(layout::HEADER_COVERS_BYTES) as usize;
        for block in raw[..headers].iter().take(used).skip(1) {
            crc = crc32c(crc, &block[..layout::EXTENDED_CRC_BYTES]);
        }
        for block in &raw[headers..] {
            crc = crc32c(crc, block);
        }
        raw[0][32..36].copy_from_slice(&(!crc).to_le_bytes());
    }
    if kind & 32 != 0 {
        raw[0][broken] ^= value;
    }
    for (into, block) in raw.iter().enumerate() {
        device.laid.insert((start + into as u64) % blocks, *block);
    }
    start + raw.len() as u64
}

fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))
        })
    })
}

/// Lays what the input says over the log.
fn lay(device: &mut Device, input: &mut Input<'_>) {
    let mut at = input.number() % device.blocks;
    let mut cycle = u32::from(input.byte());
    device.base = match input.byte() {
        0..64 => None,
        64..128 => Some((cycle, device.blocks)),
        128..192 => Some((cycle, at)),
        _ => Some((cycle, 0)),
    };
    for _ in 0..64 {
        if input.0.is_empty() {
            break;
        }
        match input.byte() {
            0..128 => at = lay_record(device, input, at, cycle),
            128..160 => {
                // A hole of another cycle.
                let blocks = input.byte();
                let word = cycle
                    .wrapping_add(u32::from(input.byte() & 3))
                    .wrapping_sub(2);
                for into in 0..u64::from(blocks) {
                    let block = (at + into) % device.blocks;
                    let mut raw = [0; BB];
                    raw[..4].copy_from_slice(&word.to_be_bytes());
                    device.laid.insert(block, raw);
                }
                at += u64::from(blocks);
            }
            160..192 => at += device.blocks - u64::from(input.byte()),
            192..224 => cycle = u32::from(input.byte()),
            _ => {
                // A byte of any block nearby.
                let block = (at + device.blocks - u64::from(input.byte())) % device.blocks;
                let (byte, value) = (usize::from(input.byte()), input.byte());
                let mut raw = device.block(block).unwrap_or([0; BB]);
                raw[byte] = value;
                device.laid.insert(block, raw);
            }
        }
        if at >= device.blocks {
            at %= device.blocks;
            cycle = cycle.wrapping_add(1);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut device = Device {
        at: 0,
        blocks: 0,
        base: None,
        laid: BTreeMap::new(),
    };
    let fs = Fs::open(&mut device).expect("the image");
    let geometry = fs.geometry();
    device.at = geometry.block_addr(geometry.log_start);
    device.blocks = geometry.bytes(geometry.log_blocks.into()) / BB as u64;
    lay(&mut device, &mut Input(data));
    if let Ok(fs) = Fs::open(&mut device) {
        std::hint::black_box(fs.info());
    }
    let options = FsOptions {
        recovery: Recovery::InMemory,
        replay_bytes: 64 << 20,
        ..FsOptions::default()
    };
    if let Ok(fs) = Fs::open_with(&mut device, &options) {
        let _ = std::hint::black_box(fs.read_root(&mut device));
    }
    let options = FsOptions {
        norecovery: true,
        ..FsOptions::default()
    };
    let fs = Fs::open_with(&mut device, &options).expect("whatever the log holds");
    std::hint::black_box(fs.info());
});
