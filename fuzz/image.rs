//! Shared by the targets: a small image with ranges of fuzzer input laid over it, and a walk over
//! one inode.

use std::sync::LazyLock;

use xtent::Result;
use xtent::internals::iomap::{IterFlags, Ops};
use xtent::internals::xfs::dir::{DirCursor, lookup};
use xtent::internals::xfs::{FileOps, Fs, Inode, InodeType, MetaIo, symlink};

/// The image that `fuzz/seed.sh` makes.
pub static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/disk.img");
    std::fs::read(path).expect("run fuzz/seed.sh first: it makes the image and the seeds")
});

/// The image with ranges of bytes replaced.
#[derive(Debug, Default)]
pub struct Patched(pub Vec<(u64, Vec<u8>)>);

impl MetaIo for Patched {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> Result<()> {
        let start = usize::try_from(addr).expect("an address of the image");
        buf.copy_from_slice(&IMAGE[start..start + buf.len()]);
        for (at, patch) in &self.0 {
            let at = usize::try_from(*at).expect("an address of the image");
            let from = at.max(start);
            let to = (at + patch.len()).min(start + buf.len());
            if from < to {
                buf[from - start..to - start].copy_from_slice(&patch[from - at..to - at]);
            }
        }
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        IMAGE.len() as u64
    }
}

/// Looks at all of an inode.
pub fn look(fs: &Fs, io: &mut impl MetaIo, inode: &Inode) {
    match inode.file_type {
        InodeType::Directory => {
            let mut cursor = DirCursor::new();
            let mut names = 0_u32;
            while let Ok(Some(entry)) = cursor.next_entry(fs, io, inode) {
                names += 1;
                assert!(names < 1_000_000, "a directory without end");
                if names % 128 == 1 {
                    let _ = lookup(fs, io, inode, &entry.name);
                }
            }
        }
        InodeType::Symlink => {
            let _ = symlink::read_link(fs, io, inode);
        }
        _ => {
            let Ok(map) = fs.file_map(io, inode) else {
                return;
            };
            let _ = fs.learn_sharing(io, &map);
            let mut ops = FileOps::new(&map);
            for at in [0, 4096, inode.size / 2, inode.size, u64::MAX] {
                for flags in [IterFlags::DIRECT, IterFlags::WRITE, IterFlags::REPORT] {
                    let _ = ops.begin(at, 4096, flags);
                }
            }
        }
    }
}
