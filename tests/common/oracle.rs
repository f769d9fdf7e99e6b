//! What both sides say of a tree, in one shape, and the kernel's side of it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirEntryExt, FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::rc::Rc;
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use super::sys::{self, FiemapExtent};

/// Seconds since 1970 and nanoseconds.
pub type Time = (i64, u32);

/// All that `statx` tells, but the device and the block size that it advises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub ino: u64,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    pub blocks_512: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub btime: Time,
}

/// One name in a directory: name, inode number, the letter of its type.
pub type Entry = (Vec<u8>, u64, char);

/// What lies behind an inode. Shared by the names of a file with hard links.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// A regular file.
    File {
        digest: [u8; 32],
        fiemap: Vec<FiemapExtent>,
        /// From `SEEK_DATA`, `SEEK_HOLE`, in turn from byte 0: where data begins and ends.
        data: Vec<(u64, u64)>,
    },
    /// The names in the order of getdents, without `.` and `..`.
    Directory(Vec<Entry>),
    /// The target.
    Symlink(Vec<u8>),
    /// Fifo, socket, device.
    Node,
}

/// Paths from the root (which is `/`) with what stands there.
pub type Tree = BTreeMap<Vec<u8>, (Stat, Rc<Content>)>;

/// Files up to this size are read from end to end; of longer ones only what `SEEK_DATA` calls data,
/// and the edges of their holes.
const READ_WHOLE_BYTES: u64 = 24 << 20;
/// Files are read in pieces of this size.
pub const CHUNK_BYTES: u64 = 256 << 10;

/// SHA-256 over a file: its size and its chunks that are not all zero, with their positions. So the
/// digest does not depend on how the file was read.
pub fn digest(size: u64, data: &[(u64, u64)], mut read: impl FnMut(u64, &mut [u8])) -> [u8; 32] {
    let mut sha = Sha256::new();
    sha.update(size.to_le_bytes());
    let mut buf = vec![0u8; CHUNK_BYTES as usize];
    let mut next_chunk = 0;
    let mut feed = |chunk: u64| {
        let offset = chunk * CHUNK_BYTES;
        let length = CHUNK_BYTES.min(size - offset) as usize;
        buf.fill(0xee);
        read(offset, &mut buf[..length]);
        if buf[..length].iter().any(|&byte| byte != 0) {
            sha.update(chunk.to_le_bytes());
            sha.update(&buf[..length]);
        }
    };
    let whole = [(0, size)];
    let ranges = if size <= READ_WHOLE_BYTES {
        &whole[..]
    } else {
        data
    };
    for &(start, end) in ranges {
        let first = (start / CHUNK_BYTES).max(next_chunk);
        // One chunk more: the beginning of the hole behind the data.
        let last = (end / CHUNK_BYTES + 1).min(size.div_ceil(CHUNK_BYTES));
        (first..last).for_each(&mut feed);
        next_chunk = last.max(next_chunk);
    }
    sha.finalize().into()
}

/// Where data begins and ends, by a `SEEK_DATA` and a `SEEK_HOLE` in turn.
pub fn data_ranges(
    mut seek_data: impl FnMut(u64) -> Option<u64>,
    mut seek_hole: impl FnMut(u64) -> Option<u64>,
) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(data) = seek_data(at) {
        let hole = seek_hole(data).expect("a hole behind the data, at the latest at the end");
        assert!(
            data >= at && hole > data,
            "SEEK_HOLE {hole} after SEEK_DATA {data} from {at}"
        );
        ranges.push((data, hole));
        at = hole;
    }
    ranges
}

/// Walks a mounted tree. Mount it read-only and anew before: a page cache with unwritten data
/// changes what `SEEK_DATA` says, and reading changes access times.
pub fn kernel_tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut contents = HashMap::new();
    let mut stack = vec![b"/".to_vec()];
    while let Some(path) = stack.pop() {
        let host = host_path(root, &path);
        let metadata = fs::symlink_metadata(&host).expect("metadata");
        let stat = kernel_stat(&metadata);
        let content = contents
            .entry(stat.ino)
            .or_insert_with(|| Rc::new(kernel_content(&host, &metadata)))
            .clone();
        if let Content::Directory(entries) = &*content {
            stack.extend(entries.iter().map(|(name, _, _)| join(&path, name)));
        }
        tree.insert(path, (stat, content));
    }
    tree
}

/// `dir`/`name`.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = dir.to_vec();
    if path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

fn host_path(root: &Path, path: &[u8]) -> std::path::PathBuf {
    root.join(std::ffi::OsStr::from_bytes(&path[1..]))
}

fn kernel_stat(metadata: &fs::Metadata) -> Stat {
    let nanoseconds = |ns: i64| u32::try_from(ns).expect("nanoseconds");
    // The birth time comes as a distance from 1970, either way.
    let btime = match metadata
        .created()
        .expect("a birth time")
        .duration_since(UNIX_EPOCH)
    {
        Ok(after) => (after.as_secs() as i64, after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let whole = -(before.as_secs() as i64);
            match before.subsec_nanos() {
                0 => (whole, 0),
                ns => (whole - 1, 1_000_000_000 - ns),
            }
        }
    };
    Stat {
        ino: metadata.ino(),
        mode: metadata.mode(),
        nlink: u32::try_from(metadata.nlink()).expect("links"),
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: metadata.rdev(),
        size: metadata.size(),
        blocks_512: metadata.blocks(),
        atime: (metadata.atime(), nanoseconds(metadata.atime_nsec())),
        mtime: (metadata.mtime(), nanoseconds(metadata.mtime_nsec())),
        ctime: (metadata.ctime(), nanoseconds(metadata.ctime_nsec())),
        btime,
    }
}

fn kernel_content(host: &Path, metadata: &fs::Metadata) -> Content {
    let file_type = metadata.file_type();
    if file_type.is_dir() {
        let entries = fs::read_dir(host).expect("a directory");
        let entries = entries.map(|entry| {
            let entry = entry.expect("a directory entry");
            let letter = letter(&entry.file_type().expect("a type"));
            (entry.file_name().into_vec(), entry.ino(), letter)
        });
        Content::Directory(entries.collect())
    } else if file_type.is_symlink() {
        let target = fs::read_link(host).expect("a link");
        Content::Symlink(target.into_os_string().into_vec())
    } else if file_type.is_file() {
        let file = File::open(host).expect("a file");
        let data = data_ranges(
            |at| sys::seek(&file, at, libc::SEEK_DATA).expect("SEEK_DATA"),
            |at| sys::seek(&file, at, libc::SEEK_HOLE).expect("SEEK_HOLE"),
        );
        let fiemap = sys::fiemap(&file).expect("FIEMAP");
        let digest = digest(metadata.size(), &data, |offset, buf| {
            file.read_exact_at(buf, offset).expect("a read");
        });
        Content::File {
            digest,
            fiemap,
            data,
        }
    } else {
        Content::Node
    }
}

fn letter(file_type: &fs::FileType) -> char {
    [
        (file_type.is_file(), '-'),
        (file_type.is_dir(), 'd'),
        (file_type.is_symlink(), 'l'),
        (file_type.is_block_device(), 'b'),
        (file_type.is_char_device(), 'c'),
        (file_type.is_fifo(), 'p'),
        (file_type.is_socket(), 's'),
    ]
    .into_iter()
    .find_map(|(is, letter)| is.then_some(letter))
    .unwrap_or('?')
}

/// Every difference in a sentence: the path, the kernel's value, xtent's value.
pub fn differences(kernel: &Tree, ours: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, (stat, content)) in kernel {
        let name = path.escape_ascii();
        let Some((our_stat, our_content)) = ours.get(path) else {
            found.push(format!("{name}: the kernel has it, xtent has not"));
            continue;
        };
        if stat != our_stat {
            found.push(format!("{name}: kernel {stat:?}\n    xtent  {our_stat:?}"));
        }
        if content != our_content {
            found.push(format!(
                "{name}: {}",
                content_difference(content, our_content)
            ));
        }
    }
    for path in ours.keys().filter(|path| !kernel.contains_key(*path)) {
        let name = path.escape_ascii();
        found.push(format!("{name}: xtent has it, the kernel has not"));
    }
    found
}

fn content_difference(kernel: &Content, ours: &Content) -> String {
    match (kernel, ours) {
        (Content::Directory(kernel), Content::Directory(ours)) => {
            first_difference("entry", kernel, ours)
        }
        (
            Content::File {
                digest,
                fiemap,
                data,
            },
            Content::File {
                digest: our_digest,
                fiemap: our_fiemap,
                data: our_data,
            },
        ) => {
            let mut parts = Vec::new();
            if digest != our_digest {
                parts.push(format!(
                    "SHA-256: kernel {digest:02x?}, xtent {our_digest:02x?}"
                ));
            }
            if fiemap != our_fiemap {
                parts.push(first_difference("FIEMAP extent", fiemap, our_fiemap));
            }
            if data != our_data {
                parts.push(first_difference("data range", data, our_data));
            }
            parts.join("; ")
        }
        (kernel, ours) => format!("kernel {kernel:?}, xtent {ours:?}"),
    }
}

fn first_difference<T: PartialEq + std::fmt::Debug>(
    what: &str,
    kernel: &[T],
    ours: &[T],
) -> String {
    let at = kernel.iter().zip(ours).take_while(|(a, b)| a == b).count();
    format!(
        "{what} {at} of {}: kernel {:?}, xtent (of {}) {:?}",
        kernel.len(),
        kernel.get(at),
        ours.len(),
        ours.get(at)
    )
}
