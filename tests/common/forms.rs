//! Which on-disk forms a filesystem holds, so that a test can tell that its filler still reaches
//! all of them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use xtent::internals::xfs::dir::DirCursor;
use xtent::internals::xfs::format::dir::LEAF_SPACE_BYTES;
use xtent::internals::xfs::{Fork, Fs, Inode, InodeType, MetaIo};

struct Disk(File);

impl MetaIo for Disk {
    fn read_at(&mut self, addr_bytes: u64, buf: &mut [u8]) -> xtent::Result<()> {
        let read = self.0.read_exact_at(buf, addr_bytes);
        read.map_err(|error| xtent::Error::system("read the disk", error))
    }

    fn capacity_bytes(&self) -> u64 {
        // A block device has no length but its end.
        (&self.0).seek(SeekFrom::End(0)).expect("the end")
    }
}

/// `short`, `block`, `leaf`, `node`; `btree` for a directory whose extents are in a btree;
/// `scattered` for one with a block of several extents; `remote` and `inline` for symbolic links;
/// `file btree`.
pub fn forms(disk: &Path) -> BTreeSet<&'static str> {
    let mut disk = Disk(File::open(disk).expect("the disk"));
    let fs = Fs::open(&mut disk).expect("the filesystem");
    let mut found = BTreeSet::new();
    let mut stack = vec![fs.root()];
    let mut seen = BTreeSet::new();
    while let Some(ino) = stack.pop() {
        if !seen.insert(ino) {
            continue;
        }
        let inode = fs.read_inode(&mut disk, ino).expect("an inode");
        match inode.file_type {
            InodeType::Directory => {
                let entries = DirCursor::new().entries(&fs, &mut disk, &inode);
                stack.extend(entries.map(|entry| entry.expect("an entry").ino));
                directory(&fs, &mut disk, &inode, &mut found);
            }
            InodeType::Symlink => {
                let inline = matches!(inode.data, Fork::Local(_));
                found.insert(if inline { "inline" } else { "remote" });
            }
            _ if matches!(inode.data, Fork::Btree(_)) => drop(found.insert("file btree")),
            _ => {}
        }
    }
    found
}

fn directory(fs: &Fs, disk: &mut Disk, dir: &Inode, found: &mut BTreeSet<&'static str>) {
    if let Fork::Local(_) = dir.data {
        found.insert("short");
        return;
    }
    if let Fork::Btree(_) = dir.data {
        found.insert("btree");
    }
    let geometry = fs.geometry();
    let blocks = u64::from(geometry.dir_block_blocks);
    let extents = fs.extents(disk, dir).expect("extents").as_slice();
    let end = extents.last().expect("a block").end_blocks();
    let leaf = LEAF_SPACE_BYTES / u64::from(geometry.block_bytes);
    found.insert(match end {
        _ if end == blocks => "block",
        _ if end == leaf + blocks => "leaf",
        _ => "node",
    });
    if extents
        .iter()
        .any(|extent| extent.offset_blocks % blocks != 0)
    {
        found.insert("scattered");
    }
}
