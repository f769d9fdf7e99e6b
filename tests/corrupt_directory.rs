//! Directories that contradict themselves, each with right checksums: an error that names the
//! block, never a loop, a panic or a wrong answer.

mod common;

use std::fs::File;

use common::image::Image;
use xtent::internals::xfs::dir::{DirCursor, lookup};
use xtent::internals::xfs::format::dir as layout;
use xtent::internals::xfs::format::set_checksum;
use xtent::internals::xfs::{Fs, Inode, MetaIo};
use xtent::{Error, ErrorKind};

const BLOCK: usize = 4096;
const NAMES: usize = 6000;

/// An image in memory: small enough, and cheap to break.
#[derive(Clone)]
struct Disk(Vec<u8>);

impl MetaIo for Disk {
    fn read_at(&mut self, addr_bytes: u64, buf: &mut [u8]) -> xtent::Result<()> {
        let start = usize::try_from(addr_bytes).expect("an address of this image");
        buf.copy_from_slice(&self.0[start..start + buf.len()]);
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.0.len() as u64
    }
}

fn name(i: usize) -> Vec<u8> {
    format!("a-name-of-some-length-{i:06}").into_bytes()
}

/// A filesystem with one directory of a hash tree of two levels, `/node`, one of a leaf, `/leaf`,
/// and one of a block, `/block`.
fn disk() -> Disk {
    let image = Image::make(24 << 20, 512, &["-dagcount=1"]);
    let mount = image.mount("");
    for (dir, count) in [("node", NAMES), ("leaf", 300), ("block", 30)] {
        let dir = mount.path().join(dir);
        std::fs::create_dir(&dir).expect("a directory");
        let first = dir.join("first");
        File::create(&first).expect("a file");
        for i in 0..count {
            let name = String::from_utf8(name(i)).expect("ASCII");
            std::fs::hard_link(&first, dir.join(name)).expect("a link");
        }
    }
    mount.unmount();
    Disk(std::fs::read(image.path()).expect("the image"))
}

/// The blocks of a directory with this magic number, by address.
fn blocks_of(disk: &Disk, owner: u64, magic: u32) -> Vec<usize> {
    let be64 = |at: usize| u64::from_be_bytes(disk.0[at..at + 8].try_into().expect("8 bytes"));
    let data = magic > 0xffff;
    let blocks = (0..disk.0.len()).step_by(BLOCK).filter(|&at| {
        let found = if data {
            u32::from_be_bytes(disk.0[at..at + 4].try_into().expect("4 bytes"))
        } else {
            u32::from(u16::from_be_bytes([disk.0[at + 8], disk.0[at + 9]]))
        };
        let (owner_at, daddr_at) = if data { (40, 8) } else { (48, 16) };
        found == magic && be64(at + owner_at) == owner && be64(at + daddr_at) == at as u64 / 512
    });
    blocks.collect()
}

/// Breaks bytes of a block and makes its checksum right again.
fn patch(disk: &Disk, block: usize, at: usize, bytes: &[u8]) -> Disk {
    let mut broken = disk.clone();
    broken.0[block + at..block + at + bytes.len()].copy_from_slice(bytes);
    let is_data = broken.0[block..block + 3] == *b"XDD" || broken.0[block..block + 3] == *b"XDB";
    let crc = if is_data {
        layout::BLOCK_CRC_OFFSET
    } else {
        layout::DA_CRC_OFFSET
    };
    assert!(set_checksum(&mut broken.0[block..block + BLOCK], crc));
    broken
}

struct Tree {
    fs: Fs,
    dir: Inode,
}

fn open(disk: &mut Disk, path: &[u8]) -> Tree {
    let fs = Fs::open(disk).expect("the filesystem");
    let root = fs.read_root(disk).expect("the root");
    let (ino, _) = lookup(&fs, disk, &root, path)
        .expect("a lookup")
        .expect("the name");
    let dir = fs.read_inode(disk, ino).expect("the directory");
    Tree { fs, dir }
}

/// Looks every name up; the first error.
fn look_up_all(disk: &mut Disk, path: &[u8], count: usize) -> Result<(), Error> {
    let Tree { fs, dir } = open(disk, path);
    for i in 0..count {
        let found = lookup(&fs, disk, &dir, &name(i))?;
        assert!(
            found.is_some(),
            "name {i} is not found, and the corruption is not reported"
        );
    }
    Ok(())
}

/// Lists; the number of names.
fn list(disk: &mut Disk, path: &[u8]) -> Result<usize, Error> {
    let Tree { fs, dir } = open(disk, path);
    let mut count = 0;
    for entry in DirCursor::new().entries(&fs, disk, &dir) {
        entry?;
        count += 1;
        assert!(count <= 2 * NAMES, "the listing does not end");
    }
    Ok(count)
}

fn assert_corrupt<T: std::fmt::Debug>(what: &str, result: Result<T, Error>) {
    let error = result.expect_err(what);
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    assert!(error.offset().is_some(), "{what}: no address in: {error}");
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of what can be wrong")]
fn hash_trees_that_contradict_themselves() {
    if !common::kernel_is_here() {
        return;
    }
    let mut disk = disk();
    let owner = open(&mut disk, b"node").dir.ino.0;
    look_up_all(&mut disk, b"node", NAMES).expect("a sound directory");
    assert_eq!(
        list(&mut disk, b"node").expect("a sound directory"),
        NAMES + 1
    );
    let node = blocks_of(&disk, owner, layout::MAGIC_NODE.into())[0];
    let leaves = blocks_of(&disk, owner, layout::MAGIC_LEAFN.into());
    assert!(leaves.len() > 10, "{} leaves", leaves.len());
    let root_block = u32::try_from(layout::LEAF_SPACE_BYTES / 4096)
        .expect("a block")
        .to_be_bytes();
    let far = 0xffff_fff0_u32.to_be_bytes();
    let leaf = leaves[leaves.len() / 2];
    for (what, block, at, bytes) in [
        (
            "a node whose first child is itself",
            node,
            68,
            root_block.as_slice(),
        ),
        ("a child outside of the index", node, 68, &far),
        ("a child among the names", node, 68, &[0, 0, 0, 0]),
        ("a child in a hole", node, 68, &[0, 0x80, 0x7f, 0xff]),
        ("no entries", node, 56, &[0, 0]),
        ("more entries than fit", node, 56, &[0xff, 0xff]),
        ("level 0", node, 58, &[0, 0]),
        ("a level too high", node, 58, &[0, 2]),
        ("a level beyond all trees", node, 58, &[0xff, 0xff]),
        (
            "hashes of a node out of order",
            node,
            64,
            &[0xff, 0xff, 0xff, 0xff],
        ),
        ("more leaf entries than fit", leaf, 56, &[0xff, 0xff]),
        ("a wrong count of stale entries", leaf, 58, &[0, 9]),
        (
            "hashes of a leaf out of order",
            leaf,
            64,
            &[0xff, 0xff, 0xff, 0xff],
        ),
        (
            "an address beyond the directory",
            leaf,
            68,
            &[0xf0, 0, 0, 0],
        ),
        (
            "an address inside a block's header",
            leaf,
            68,
            &[0, 0, 0, 1],
        ),
        (
            "an address of another name's middle",
            leaf,
            68,
            &[0, 0, 0, 9],
        ),
        ("an address of another name", leaf, 68, &[0, 0, 0, 8]),
        ("another owner", leaf, 48, &[0, 0, 0, 0, 0, 0, 0, 99]),
        ("another address", leaf, 16, &[0, 0, 0, 0, 0, 0, 0, 99]),
        ("another uuid", leaf, 32, &[1, 2, 3, 4]),
        ("another magic", leaf, 8, &[0x12, 0x34]),
        ("a node's magic", leaf, 8, &layout::MAGIC_NODE.to_be_bytes()),
        (
            "a single leaf's magic",
            leaf,
            8,
            &layout::MAGIC_LEAF1.to_be_bytes(),
        ),
    ] {
        let mut broken = patch(&disk, block, at, bytes);
        assert_corrupt(what, look_up_all(&mut broken, b"node", NAMES));
        // The listing does not need the index.
        assert_eq!(list(&mut broken, b"node").expect(what), NAMES + 1);
    }
    let mut broken = disk.clone();
    broken.0[leaf + 100] ^= 1;
    assert_corrupt("a wrong checksum", look_up_all(&mut broken, b"node", NAMES));
}

#[test]
fn leaves_that_point_in_circles() {
    if !common::kernel_is_here() {
        return;
    }
    let mut disk = disk();
    let owner = open(&mut disk, b"node").dir.ino.0;
    let node = blocks_of(&disk, owner, layout::MAGIC_NODE.into())[0];
    let leaves = blocks_of(&disk, owner, layout::MAGIC_LEAFN.into());
    // All leaves of one hash and without addresses, each the next one's neighbour and the last the
    // first's: only a count can end the walk.
    let node_count = usize::from(u16::from_be_bytes([disk.0[node + 56], disk.0[node + 57]]));
    let children: Vec<[u8; 4]> = (0..node_count)
        .map(|i| {
            disk.0[node + 68 + i * 8..][..4]
                .try_into()
                .expect("4 bytes")
        })
        .collect();
    assert_eq!(children.len(), leaves.len(), "a tree of two levels");
    // Which leaf is at which address: a leaf's neighbour knows it.
    let wanted = layout::hash_name(b"sought");
    let mut broken = disk.clone();
    for &leaf in &leaves {
        let count = usize::from(u16::from_be_bytes([
            broken.0[leaf + 56],
            broken.0[leaf + 57],
        ]));
        let forw: [u8; 4] = broken.0[leaf..leaf + 4].try_into().expect("4 bytes");
        if forw == [0; 4] {
            broken = patch(&broken, leaf, 0, &children[0]);
        }
        let back: [u8; 4] = broken.0[leaf + 4..leaf + 8].try_into().expect("4 bytes");
        if back == [0; 4] {
            broken = patch(&broken, leaf, 4, &children[node_count - 1]);
        }
        let stale = u16::try_from(count).expect("a count").to_be_bytes();
        broken = patch(&broken, leaf, 58, &stale);
        for i in 0..count {
            let entry = [wanted.to_be_bytes(), [0; 4]].concat();
            broken.0[leaf + 64 + i * 8..][..8].copy_from_slice(&entry);
        }
        broken = patch(&broken, leaf, 58, &stale);
    }
    for i in 0..node_count {
        broken.0[node + 64 + i * 8..][..4].copy_from_slice(&wanted.to_be_bytes());
    }
    let mut broken = patch(&broken, node, 58, &[0, 1]);
    let Tree { fs, dir } = open(&mut broken, b"node");
    let result = lookup(&fs, &mut broken, &dir, b"sought");
    assert!(
        result
            .as_ref()
            .is_err_and(|error| error.detail().contains("circle")),
        "{result:?}"
    );
    assert_corrupt("leaves in a circle", result);
}

#[test]
fn blocks_of_names_that_contradict_themselves() {
    if !common::kernel_is_here() {
        return;
    }
    let mut disk = disk();
    for (path, magic, count) in [
        (b"block".as_slice(), layout::MAGIC_BLOCK, 30),
        (b"leaf", layout::MAGIC_DATA, 300),
        (b"node", layout::MAGIC_DATA, NAMES),
    ] {
        let owner = open(&mut disk, path).dir.ino.0;
        look_up_all(&mut disk, path, count).expect("a sound directory");
        assert_eq!(list(&mut disk, path).expect("a sound directory"), count + 1);
        let blocks = blocks_of(&disk, owner, magic);
        // The one that begins with `.`.
        let mut blocks = blocks.into_iter();
        let first = blocks
            .find(|&at| disk.0[at + 72..at + 74] == [1, b'.'])
            .expect("the first block");
        // `.` lies at 64, `..` at 80, the first name at 96.
        for (what, at, bytes) in [
            ("no inode", 96, [0u8; 8].as_slice()),
            ("an inode beyond all", 96, &[0xff; 8]),
            ("a free tag of no length", 96, &[0xff, 0xff, 0, 0]),
            ("a free tag beyond the block", 96, &[0xff, 0xff, 0xff, 0xf8]),
            ("a free tag not of 8 bytes", 96, &[0xff, 0xff, 0, 12]),
            ("a name of no length", 104, &[0]),
            ("a longer name", 104, &[200]),
            ("a slash", 105, b"/"),
            ("a NUL", 105, &[0]),
            ("no such type", 110, &[77]),
            ("another magic", 0, &[1, 2, 3, 4]),
            ("another owner", 40, &[9; 8]),
            ("another address", 8, &[9; 8]),
            ("another uuid", 24, &[9; 8]),
        ] {
            let what = format!("{what} in /{}", path.escape_ascii());
            let mut broken = patch(&disk, first, at, bytes);
            assert_corrupt(&what, list(&mut broken, path));
        }
        let mut broken = disk.clone();
        broken.0[first + 2000] ^= 1;
        assert_corrupt("a wrong checksum", list(&mut broken, path));
        assert_corrupt("a wrong checksum", look_up_all(&mut broken, path, count));
        if magic == layout::MAGIC_BLOCK {
            for (what, at, bytes) in [
                (
                    "more leaf entries than fit",
                    BLOCK - 8,
                    [0xffu8; 4].as_slice(),
                ),
                ("a wrong count of stale entries", BLOCK - 4, &[0, 0, 0, 1]),
                ("no leaf entry", BLOCK - 8, &[0, 0, 0, 0]),
            ] {
                let mut broken = patch(&disk, first, at, bytes);
                assert_corrupt(
                    what,
                    list(&mut broken, path).and_then(|_| look_up_all(&mut broken, path, count)),
                );
            }
        }
    }
}
