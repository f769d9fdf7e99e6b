//! `get -r` and `ls -R` on deep trees, and on trees that are none.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use xtent::internals::sys::{HostDir, HostPath};
use xtent::internals::xfs::format::set_checksum;
use xtent::target::TargetOptions;
use xtent::volume::{MountOptions, Volume};

use super::common::{self, image::Image};
use super::{path_of, run};

/// An image that mkfs.xfs fills from a prototype: no root needed.
fn image_of(tree: &str) -> Option<Image> {
    if !common::has_tool("mkfs.xfs") {
        common::skipped("mkfs.xfs is not installed");
        return None;
    }
    let image = Image::empty(320 << 20, 512);
    let proto = image.path().with_file_name("proto");
    fs::write(&proto, format!("/dev/null\n0 0\nd--755 0 0\n{tree}$\n")).unwrap();
    let path = path_of(&image);
    common::run(
        "mkfs.xfs",
        &[
            "-q",
            "-f",
            "-d",
            "agcount=1",
            "-p",
            proto.to_str().unwrap(),
            &path,
        ],
    );
    Some(image)
}

fn ino(image: &Image, path: &str) -> u64 {
    let options = TargetOptions::new().read_only(true);
    let volume = Volume::open_with(&path_of(image), &options, &MountOptions::new()).unwrap();
    let mut io = volume.io().unwrap();
    volume.symlink_metadata(&mut io, path).unwrap().ino
}

/// Changes bytes of an inode with 512 bytes; all inodes here are in the first chunk, side by side.
fn change_inode(image: &Image, ino: u64, change: impl FnOnce(&mut [u8])) {
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(image.path())
        .unwrap();
    let at = ino * 512;
    let mut raw = vec![0; 512];
    file.read_exact_at(&mut raw, at).unwrap();
    assert_eq!(&raw[..2], b"IN");
    change(&mut raw);
    assert!(set_checksum(&mut raw, 100));
    file.write_all_at(&raw, at).unwrap();
}

/// Points the entry `name` of a short-form directory to another inode.
fn repoint(image: &Image, dir: &str, name: &str, to: u64) {
    change_inode(image, ino(image, dir), |raw| {
        let fork = 176..512;
        let found = raw[fork.clone()]
            .windows(name.len())
            .position(|window| window == name.as_bytes());
        // Behind the name the file type, then the number.
        let at = fork.start + found.unwrap() + name.len() + 1;
        raw[at..at + 4].copy_from_slice(&u32::try_from(to).unwrap().to_be_bytes());
    });
}

/// `get -r` and `ls -R` of `path` fail with a corrupt filesystem, named by `word`, and end.
fn refused(image: &Image, path: &str, word: &str) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let target = path_of(image);
    for args in [
        &["ls", "-R", &target, path][..],
        &["get", "-r", &target, path, out.to_str().unwrap()],
    ] {
        let (_, stderr) = run(4, args);
        assert!(stderr.contains(word), "{args:?}: {stderr}");
    }
}

#[test]
fn a_directory_with_two_parents_is_refused_by_its_number() {
    let tree = "a d--755 0 0\nxx d--755 0 0\n$\n$\nb d--755 0 0\nyy d--755 0 0\n$\n$\n";
    let Some(image) = image_of(tree) else { return };
    let twice = ino(&image, "/a/xx");
    repoint(&image, "/b", "yy", twice);
    refused(&image, "/", &format!("inode {twice}"));
    // By path as well, and only by the wrong one.
    let target = path_of(&image);
    let (_, stderr) = run(4, &["stat", &target, "/b/yy"]);
    assert!(stderr.contains(&format!("inode {twice}")), "{stderr}");
    run(0, &["stat", &target, "/a/xx"]);
}

#[test]
fn a_directory_with_two_names_in_one_directory_is_refused_by_its_number() {
    let tree = "a d--755 0 0\nxx d--755 0 0\n$\nyy d--755 0 0\n$\n$\n";
    let Some(image) = image_of(tree) else { return };
    let twice = ino(&image, "/a/xx");
    repoint(&image, "/a", "yy", twice);
    refused(&image, "/a", &format!("inode {twice}"));
}

#[test]
fn a_name_of_the_root_directory_is_refused() {
    let tree = "a d--755 0 0\nxx d--755 0 0\n$\n$\n";
    let Some(image) = image_of(tree) else { return };
    let (root, a) = (ino(&image, "/"), ino(&image, "/a"));
    repoint(&image, "/a", "xx", root);
    // `..` of the root directory says that the name is right.
    change_inode(&image, root, |raw| {
        raw[178..182].copy_from_slice(&u32::try_from(a).unwrap().to_be_bytes());
    });
    refused(&image, "/", &format!("inode {root}"));
}

#[test]
fn walks_go_on_after_a_file_that_cannot_be_read() {
    let tree = "a d--755 0 0\nbad d--755 0 0\n$\nlink l--777 0 0 target\n$\nc d--755 0 0\n$\n";
    let Some(image) = image_of(tree) else { return };
    let target = path_of(&image);
    let text = |status, args: &[&str]| String::from_utf8(run(status, args).0).unwrap();
    let du = ["du", "-ac", "--apparent-size", "--bytes", &target, "/"];
    let sums = text(0, &du);
    // `..` leads elsewhere: the directory cannot be read, but its inode can.
    change_inode(&image, ino(&image, "/a/bad"), |raw| raw[181] ^= 1);
    assert_eq!(text(4, &du), sums);
    let found = text(4, &["find", &target, "/", "-empty"]);
    assert_eq!(found, "/c\n");
    change_inode(&image, ino(&image, "/a/link"), |raw| raw[176] = 0);
    let shown = text(4, &["tree", &target]);
    let lines = ["├── a", "│   ├── bad", "│   └── link", "└── c"];
    assert!(shown.contains(&lines.join("\n")), "{shown}");
    assert!(shown.ends_with("3 directories, 1 file\n"), "{shown}");
    let directories = text(4, &["tree", "-d", &target, "/a"]);
    assert!(directories.starts_with("/a\n└── bad\n"), "{directories}");
}

/// A path longer than the kernel's and xtent's longest, with few descriptors and a small stack.
#[test]
fn a_tree_deeper_than_paths_and_descriptors_reach_is_copied() {
    const DEPTH: usize = 400;
    let name = |level: usize| format!("directory-{level:03}");
    let data = tempfile::NamedTempFile::new().unwrap();
    fs::write(data.path(), b"deep").unwrap();
    let mut tree = String::new();
    for level in 0..DEPTH {
        tree += &format!("{} d--750 0 0\n", name(level));
    }
    tree += &format!(
        "file ---640 0 0 {}\nlink l--777 0 0 file\n",
        data.path().display()
    );
    tree += &"$\n".repeat(DEPTH);
    let Some(image) = image_of(&tree) else { return };
    let dir = tempfile::tempdir().unwrap();
    let few = |args: &[&str]| {
        let output = Command::new("sh")
            .args(["-c", "ulimit -n 40; ulimit -s 1024; exec \"$0\" \"$@\""])
            .arg(env!("CARGO_BIN_EXE_xtent"))
            .args(args)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {stderr}");
        output.stdout
    };
    let target = path_of(&image);
    let listed = String::from_utf8(few(&["ls", "-R", &target])).unwrap();
    assert!(listed.ends_with("\nfile\nlink\n"), "{}", listed.len());
    assert_eq!(
        listed.lines().filter(|line| line.ends_with(':')).count(),
        DEPTH + 1
    );
    let out = dir.path().join("out");
    few(&["get", "-r", &target, "/", out.to_str().unwrap()]);
    let mut path = HostPath::new(HostDir::open(&out).unwrap());
    for level in 0..DEPTH {
        path.down(name(level).as_bytes()).unwrap();
    }
    let kind = |name: &[u8]| path.here().kind_of(name).unwrap().unwrap();
    assert_eq!((kind(b"file"), kind(b"link")), (0o100_000, 0o120_000));
}
