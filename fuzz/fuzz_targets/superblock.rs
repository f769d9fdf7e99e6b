//! The superblock and the log: any first sectors of a device, checksum made right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xtent::Result;
use xtent::internals::xfs::format::{set_checksum, superblock};
use xtent::internals::xfs::{Fs, FsOptions, MetaIo};

/// A device whose content repeats the input, which is not empty, and which claims to be large.
struct Device<'a>(&'a [u8]);

impl MetaIo for Device<'_> {
    fn read_at(&mut self, addr_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let len = self.0.len();
        let (mut at, mut rest) = (usize::try_from(addr_bytes % len as u64).unwrap_or(0), buf);
        while !rest.is_empty() {
            let (piece, after) = rest.split_at_mut(rest.len().min(len - at));
            piece.copy_from_slice(&self.0[at..at + piece.len()]);
            (at, rest) = (0, after);
        }
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        1 << 50
    }
}

fuzz_target!(|data: &[u8]| {
    let mut data = data.to_vec();
    data.resize(data.len().clamp(512, 1 << 16), 0);
    // The sector size says what the checksum covers.
    let sector = usize::from(u16::from_be_bytes([data[102], data[103]]));
    if (512..=data.len()).contains(&sector) {
        set_checksum(&mut data[..sector], superblock::CRC_OFFSET);
    }
    let options = FsOptions {
        norecovery: data[0] & 1 == 0,
        ..FsOptions::default()
    };
    if let Ok(fs) = Fs::open_with(&mut Device(&data), &options) {
        std::hint::black_box(fs.info());
    }
});
