//! xtent's side: the same tree, read through a volume, every path resolved from the root by name.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::rc::Rc;

use xtent::target::TargetOptions;
use xtent::volume::{Io, Metadata, MountOptions, Timestamp, Volume};

use super::oracle::{self, Content, Stat, Tree};
use super::sys::FiemapExtent;

/// Walks the tree of a target.
pub fn xtent_tree(target: &str) -> Tree {
    let options = TargetOptions::new().read_only(true);
    let volume = Volume::open_with(target, &options, &MountOptions::new()).expect("the volume");
    let mut io = volume.io().expect("a queue");
    let mut tree = Tree::new();
    let mut contents: HashMap<u64, Rc<Content>> = HashMap::new();
    let mut stack = vec![b"/".to_vec()];
    while let Some(path) = stack.pop() {
        let metadata = volume
            .symlink_metadata(&mut io, OsStr::from_bytes(&path))
            .expect("metadata");
        let content = contents
            .entry(metadata.ino)
            .or_insert_with(|| Rc::new(content(&volume, &mut io, &path, &metadata)))
            .clone();
        if let Content::Directory(entries) = &*content {
            stack.extend(entries.iter().map(|(name, _, _)| oracle::join(&path, name)));
            no_name_but_those(&volume, &mut io, &path);
        }
        tree.insert(path, (stat(&metadata), content));
    }
    tree
}

/// Names that no directory has are not found, whichever way their hashes lead.
fn no_name_but_those(volume: &Volume, io: &mut Io, dir: &[u8]) {
    for name in [
        b"entry-".as_slice(),
        b"PPPPPPPPPPPPQ",
        b"\x01\x01",
        &[0x7f; 255],
        &[0xff; 5],
    ] {
        let path = oracle::join(dir, name);
        let error = volume
            .symlink_metadata(io, OsStr::from_bytes(&path))
            .expect_err("no such name");
        assert_eq!(error.kind(), xtent::ErrorKind::NotFound, "{error}");
    }
}

fn stat(metadata: &Metadata) -> Stat {
    let time = |time: Timestamp| (time.seconds, time.nanoseconds);
    Stat {
        ino: metadata.ino,
        mode: metadata.mode,
        nlink: metadata.nlink,
        uid: metadata.uid,
        gid: metadata.gid,
        rdev: metadata.rdev,
        size: metadata.len_bytes,
        blocks_512: metadata.blocks_512,
        atime: time(metadata.atime),
        mtime: time(metadata.mtime),
        ctime: time(metadata.ctime),
        btime: time(metadata.btime),
    }
}

fn content(volume: &Volume, io: &mut Io, path: &[u8], metadata: &Metadata) -> Content {
    if metadata.is_dir() {
        let mut dir = volume
            .read_dir(io, OsStr::from_bytes(path))
            .expect("a directory");
        let entries = dir.entries(io).map(|entry| {
            let entry = entry.expect("a directory entry");
            let letter = entry.file_type().map_or('?', |kind| kind.letter());
            (entry.file_name().as_bytes().to_vec(), entry.ino(), letter)
        });
        Content::Directory(entries.collect())
    } else if metadata.is_symlink() {
        {
            let target = volume
                .read_link(io, OsStr::from_bytes(path))
                .expect("a link");
            Content::Symlink(target.into_os_string().into_vec())
        }
    } else if metadata.is_file() {
        file_content(volume, io, path)
    } else {
        Content::Node
    }
}

fn file_content(volume: &Volume, io: &mut Io, path: &[u8]) -> Content {
    let file = volume
        .open_file(io, OsStr::from_bytes(path))
        .expect("a file");
    let mut data = Vec::new();
    let mut at = 0;
    while let Some(start) = file.seek_data(io, at).expect("SEEK_DATA") {
        let end = file
            .seek_hole(io, start)
            .expect("SEEK_HOLE")
            .expect("a hole");
        assert!(
            start >= at && end > start,
            "hole {end} behind data {start} from {at}"
        );
        data.push((start, end));
        at = end;
    }
    let fiemap = file.fiemap(io, 0, u64::MAX).expect("FIEMAP");
    let fiemap = fiemap.iter().map(|extent| FiemapExtent {
        logical: extent.logical_bytes,
        physical: extent.physical_bytes,
        length: extent.length_bytes,
        flags: extent.flags.bits(),
    });
    let fiemap = fiemap.collect();
    let size = file.len();
    let mut buf = io.alloc(oracle::CHUNK_BYTES as usize).expect("memory");
    let digest = oracle::digest(size, &data, |offset, chunk| {
        // Directly into memory for DMA, or through the bounce buffer: in turn.
        let read = if (offset / oracle::CHUNK_BYTES).is_multiple_of(2) {
            let read = file.read_dma_at(io, &mut buf, offset);
            chunk.copy_from_slice(&buf[..chunk.len()]);
            read
        } else {
            file.read_at(io, chunk, offset)
        };
        let name = path.escape_ascii();
        let read = read.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read, chunk.len(), "{name} at byte {offset} of {size}");
    });
    Content::File {
        digest,
        fiemap,
        data,
    }
}
