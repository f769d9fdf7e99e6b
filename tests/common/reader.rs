//! xtent's side: the same tree, read from the image.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use xtent::iomap::{self, FiemapExtent as Extent, Kind, Ops};
use xtent::xfs::dir::{DirCursor, lookup};
use xtent::xfs::{FileOps, FileType, Fs, Ino, Inode, MetaIo, symlink};

use super::oracle::{self, Content, Stat, Tree};
use super::sys::FiemapExtent;

struct ImageFile(File, u64);

impl MetaIo for ImageFile {
    fn read_at(&mut self, addr_bytes: u64, buf: &mut [u8]) -> xtent::Result<()> {
        self.0
            .read_exact_at(buf, addr_bytes)
            .map_err(|error| xtent::Error::system("read the image", error))
    }

    fn capacity_bytes(&self) -> u64 {
        self.1
    }
}

/// Walks the tree of an image.
pub fn xtent_tree(image: &Path) -> Tree {
    let file = File::open(image).unwrap();
    let capacity = file.metadata().unwrap().len();
    let mut io = ImageFile(file, capacity);
    let fs = Fs::open(&mut io).unwrap();
    let mut tree = Tree::new();
    let mut contents: HashMap<u64, Rc<Content>> = HashMap::new();
    let mut stack = vec![(b"/".to_vec(), fs.root())];
    while let Some((path, ino)) = stack.pop() {
        let inode = fs
            .read_inode(&mut io, ino)
            .unwrap_or_else(|e| panic!("{}: {e}", path.escape_ascii()));
        let content = contents
            .entry(ino.0)
            .or_insert_with(|| Rc::new(content(&fs, &mut io, &inode, &path)))
            .clone();
        if let Content::Directory(entries) = &*content {
            for (name, ino, _) in entries {
                stack.push((oracle::join(&path, name), Ino(*ino)));
            }
        }
        tree.insert(path, (stat(&inode), content));
    }
    tree
}

fn stat(inode: &Inode) -> Stat {
    let time = |t: xtent::xfs::format::inode::Timestamp| (t.seconds, t.nanoseconds);
    Stat {
        ino: inode.ino.0,
        mode: inode.mode.into(),
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: libc::makedev(inode.rdev.0, inode.rdev.1),
        size: inode.size,
        blocks_512: inode.blocks_512,
        atime: time(inode.atime),
        mtime: time(inode.mtime),
        ctime: time(inode.ctime),
        btime: time(inode.btime),
    }
}

fn content(fs: &Fs, io: &mut ImageFile, inode: &Inode, path: &[u8]) -> Content {
    let name = path.escape_ascii().to_string();
    match inode.file_type {
        FileType::Directory => {
            let entries: Vec<_> = DirCursor::new()
                .entries(fs, io, inode)
                .map(|entry| {
                    let entry = entry.unwrap_or_else(|e| panic!("{name}: {e}"));
                    let letter = entry.file_type.map_or('?', letter);
                    (entry.name, entry.ino.0, letter)
                })
                .collect();
            for (name, ino, _) in &entries {
                let found = lookup(fs, io, inode, name).unwrap();
                assert_eq!(
                    found.map(|found| found.0.0),
                    Some(*ino),
                    "{}",
                    name.escape_ascii()
                );
            }
            Content::Directory(entries)
        }
        FileType::Symlink => Content::Symlink(symlink::read_link(fs, io, inode).unwrap()),
        FileType::Regular => file_content(fs, io, inode),
        _ => Content::Node,
    }
}

fn letter(t: FileType) -> char {
    match t {
        FileType::Fifo => 'p',
        FileType::CharDevice => 'c',
        FileType::Directory => 'd',
        FileType::BlockDevice => 'b',
        FileType::Regular => '-',
        FileType::Symlink => 'l',
        FileType::Socket => 's',
    }
}

fn file_content(fs: &Fs, io: &mut ImageFile, inode: &Inode) -> Content {
    let map = fs.file_map(io, inode).unwrap();
    fs.learn_sharing(io, &map).unwrap();
    let data = oracle::data_ranges(
        |at| iomap::seek_data(&mut FileOps::new(&map), at, inode.size).unwrap(),
        |at| iomap::seek_hole(&mut FileOps::new(&map), at, inode.size).unwrap(),
    );
    let mut fiemap = Vec::new();
    iomap::fiemap(
        &mut FileOps::new(&map),
        0,
        u64::MAX,
        fs.geometry().block_bytes,
        |e: Extent| {
            fiemap.push(FiemapExtent {
                logical: e.logical_bytes,
                physical: e.physical_bytes,
                length: e.length_bytes,
                flags: e.flags.bits(),
            });
        },
    )
    .unwrap();
    let digest = oracle::digest(inode.size, &data, |offset, buf| {
        let mut done = 0usize;
        while done < buf.len() {
            let pos = offset + done as u64;
            let (m, _) = FileOps::new(&map)
                .begin(pos, (buf.len() - done) as u64, iomap::IterFlags::DIRECT)
                .unwrap();
            let n = ((m.end() - pos) as usize).min(buf.len() - done);
            match m.kind {
                Kind::Mapped => {
                    io.0.read_exact_at(&mut buf[done..done + n], m.addr_at(pos))
                        .unwrap()
                }
                _ => buf[done..done + n].fill(0),
            }
            done += n;
        }
    });
    Content::File {
        digest,
        fiemap,
        data,
    }
}
