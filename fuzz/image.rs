//! What the targets share: a small image, with pages of fuzzer input laid over it, checksums made right, and
//! a walk over one inode.

use std::sync::LazyLock;

use xtent::Result;
use xtent::internals::iomap::{IterFlags, Ops};
use xtent::internals::xfs::dir::{DirCursor, lookup};
use xtent::internals::xfs::{FileOps, FileType, Fs, Inode, MetaIo, symlink};

/// The image that `fuzz/seed.sh` makes.
pub static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/disk.img");
    std::fs::read(path).expect("run fuzz/seed.sh first: it makes the image and the seeds")
});

/// The image with one range of bytes replaced.
#[derive(Debug)]
pub struct Device {
    pub at: u64,
    pub patch: Vec<u8>,
}

impl MetaIo for Device {
    fn read_at(&mut self, addr_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let start = usize::try_from(addr_bytes).expect("an address of the image");
        buf.copy_from_slice(&IMAGE[start..start + buf.len()]);
        let (patch_at, end) = (self.at, self.at + self.patch.len() as u64);
        let from = patch_at.max(addr_bytes);
        let to = end.min(addr_bytes + buf.len() as u64);
        if from < to {
            let into = usize::try_from(from - addr_bytes).expect("inside");
            let of = usize::try_from(from - patch_at).expect("inside");
            let len = usize::try_from(to - from).expect("inside");
            buf[into..into + len].copy_from_slice(&self.patch[of..of + len]);
        }
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        IMAGE.len() as u64
    }
}

/// Looks at all of an inode.
pub fn look(fs: &Fs, io: &mut Device, inode: &Inode) {
    match inode.file_type {
        FileType::Directory => {
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
        FileType::Symlink => {
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
