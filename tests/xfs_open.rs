//! Opening a filesystem: unsupported features are rejected with an error that names them, also with
//! a valid checksum.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use common::image::Image;
use common::{has_tool, skipped};
use xtent::ErrorKind;
use xtent::internals::xfs::format::set_checksum;
use xtent::internals::xfs::{Fs, MetaIo};

#[derive(Clone)]
struct Disk {
    bytes: Vec<u8>,
    block_bytes: u32,
}

impl MetaIo for Disk {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        let start = usize::try_from(addr).unwrap();
        buf.copy_from_slice(&self.bytes[start..start + buf.len()]);
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }
}

fn read(image: &Image) -> Disk {
    Disk {
        bytes: std::fs::read(image.path()).unwrap(),
        block_bytes: 512,
    }
}

fn mkfs_is_here() -> bool {
    let here = has_tool("mkfs.xfs");
    if !here {
        skipped("mkfs.xfs is not installed");
    }
    here
}

/// Opens the disk with bytes of its superblock replaced and the checksum made right.
fn open_patched(disk: &Disk, at: usize, bytes: &[u8]) -> Result<Fs, (ErrorKind, String)> {
    let mut disk = disk.clone();
    disk.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    set_checksum(&mut disk.bytes[..512], 224);
    Fs::open(&mut disk).map_err(|error| (error.kind(), error.to_string()))
}

#[test]
fn features_are_refused_by_name() {
    if !mkfs_is_here() {
        return;
    }
    let image = Image::make(64 << 20, 512, &[]);
    let disk = read(&image);
    let incompat = u32::from_be_bytes(disk.bytes[216..220].try_into().unwrap());
    let ro_compat = u32::from_be_bytes(disk.bytes[212..216].try_into().unwrap());
    for (bit, name) in [
        (4, "needsrepair"),
        (8, "metadir"),
        (9, "zoned"),
        (13, "incompat bit 13"),
    ] {
        let word = (incompat | 1 << bit).to_be_bytes();
        let (kind, text) = open_patched(&disk, 216, &word).unwrap_err();
        assert_eq!(kind, ErrorKind::Unsupported, "{text}");
        assert!(text.contains(name), "{text}");
    }
    let (kind, text) = open_patched(&disk, 48, &[0; 8]).unwrap_err();
    assert_eq!(kind, ErrorKind::Unsupported, "{text}");
    assert!(text.contains("external log"), "{text}");
    let (kind, text) = open_patched(&disk, 16, &1_u64.to_be_bytes()).unwrap_err();
    assert_eq!(kind, ErrorKind::Unsupported, "{text}");
    assert!(text.contains("realtime"), "{text}");
    // An unknown read-only compatible feature leaves reading.
    let fs = open_patched(&disk, 212, &(ro_compat | 1 << 20).to_be_bytes()).unwrap();
    let reason = fs.read_only_reason().unwrap();
    assert!(reason.contains("ro_compat bit 20"), "{reason}");
}

#[test]
fn what_does_not_fit_the_device_is_refused() {
    if !mkfs_is_here() {
        return;
    }
    let image = Image::make(64 << 20, 512, &[]);
    let disk = read(&image);
    let mut short = disk.clone();
    short.bytes.truncate(63 << 20);
    let error = Fs::open(&mut short).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("cut off"), "{error}");
    let mut large_blocks = disk.clone();
    large_blocks.block_bytes = 4096;
    let error = Fs::open(&mut large_blocks).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.to_string().contains("sectors of 512 bytes"),
        "{error}"
    );
    let mut flipped = disk;
    flipped.bytes[300] ^= 1;
    let error = Fs::open(&mut flipped).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    let mut empty = Disk {
        bytes: vec![0; 1 << 20],
        block_bytes: 512,
    };
    let error = Fs::open(&mut empty).unwrap_err();
    assert!(error.to_string().contains("no XFS filesystem"), "{error}");
}
