//! `get -a`: all metadata of a file is kept, or its loss is reported.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::common::{self, image::Image, sys};
use super::copying::acl;
use super::{path_of, prototype_image, run};

/// File capabilities: revision 2, `CAP_CHOWN`.
const CAPABILITY: [u8; 20] = [0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A tree with every attribute that the kernel's xfs gives to files.
pub(super) fn fill(root: &Path) {
    let at = |name: &str| root.join(name);
    for (name, mode, owner) in [
        ("plain", 0o644, 0),
        ("setuid", 0o6755, 1000),
        ("nothing", 0o000, 65_534),
        ("readonly", 0o444, 12),
        ("capable", 0o755, 13),
        ("long-attribute", 0o600, 4_000_000_000),
    ] {
        fs::write(at(name), name).unwrap();
        chown(at(name), Some(owner), Some(owner / 2)).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    sys::set_xattr(&at("capable"), "security.capability", &CAPABILITY).unwrap();
    sys::set_xattr(&at("plain"), "trusted.empty", b"").unwrap();
    sys::set_xattr(&at("readonly"), "user.name", b"value\0\xff").unwrap();
    sys::set_xattr(&at("long-attribute"), "user.long", &[7; 60_000]).unwrap();
    for i in 0..100 {
        sys::set_xattr(&at("nothing"), format!("user.many{i}"), &[7; 100]).unwrap();
    }
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len((64 << 20) + 1).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, &[5; 10_000], 30 << 20).unwrap();
    fs::write(at("long"), common::random_bytes(1, 9 << 20)).unwrap();
    fs::write(at("empty"), b"").unwrap();
    symlink("no/where", at("symlink")).unwrap();
    lchown(at("symlink"), Some(1000), Some(1001)).unwrap();
    sys::set_xattr(&at("symlink"), "trusted.of-link", b"x").unwrap();
    for (name, mode, device) in [
        ("fifo", 0o010_640, 0),
        ("socket", 0o140_700, 0),
        ("block", 0o060_660, 7),
        ("char", 0o020_666, 1),
    ] {
        sys::make_node(&at(name), mode, device, device).unwrap();
        chown(at(name), Some(5), Some(6)).unwrap();
    }
    sys::set_xattr(&at("fifo"), "trusted.of-fifo", b"x").unwrap();
    fs::create_dir_all(at("dir/below/deep")).unwrap();
    fs::write(at("dir/below/deep/file"), "x").unwrap();
    for name in ["plain", "symlink", "block", "sparse", "empty"] {
        let link = at("dir/below").join(name);
        common::run(
            "ln",
            &["-P", at(name).to_str().unwrap(), link.to_str().unwrap()],
        );
    }
    for (name, list) in [
        ("setuid", "system.posix_acl_access"),
        ("dir/below", "system.posix_acl_access"),
        ("dir", "system.posix_acl_default"),
    ] {
        sys::set_xattr(&at(name), list, &acl()).unwrap();
    }
    sys::set_xattr(&at("dir"), "user.of-dir", b"x").unwrap();
    fs::set_permissions(at("dir/below/deep"), fs::Permissions::from_mode(0o2551)).unwrap();
    chown(at("dir/below/deep"), Some(77), Some(78)).unwrap();
    for (name, seconds) in [
        ("plain", -1),
        ("fifo", 1 << 32),
        ("symlink", 1),
        ("dir/below", 2),
        ("dir", 3),
        (".", 4),
    ] {
        sys::set_times(&at(name), (seconds, 123_456_789), (seconds, 987_654_321)).unwrap();
    }
}

#[test]
fn an_archive_has_no_difference_that_rsync_finds() {
    if !common::kernel_is_here() {
        return;
    }
    if !common::has_tool("rsync") {
        return common::skipped("rsync is not installed");
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    fill(mount.path());
    mount.unmount();
    let other = Image::make(320 << 20, 512, &[]);
    let to = other.mount("");
    for out in ["new", "existing", "inherits"] {
        let out = to.path().join(out);
        if !out.ends_with("new") {
            fs::create_dir(&out).unwrap();
        }
        if out.ends_with("inherits") {
            sys::set_xattr(&out, "system.posix_acl_default", &acl()).unwrap();
        }
        run(
            0,
            &[
                "get",
                "-a",
                "-r",
                &path_of(&image),
                "/",
                out.to_str().unwrap(),
            ],
        );
        let mount = image.mount("ro");
        let from = format!("{}/", mount.path().display());
        let differences = common::run(
            "rsync",
            &[
                "-aHAXnc",
                "--delete",
                "--itemize-changes",
                &from,
                out.to_str().unwrap(),
            ],
        );
        assert_eq!(differences, "", "{}", out.display());
        let of = |root: &Path| fs::symlink_metadata(root.join("sparse")).unwrap();
        assert!(of(&out).blocks() <= of(mount.path()).blocks() + 64);
        mount.unmount();
    }
    // Again, over existing files: regular files and links are replaced, others are not.
    let out = to.path().join("new");
    let args = [
        "get",
        "-arf",
        &path_of(&image),
        "/dir",
        out.to_str().unwrap(),
    ];
    let (_, stderr) = run(1, &args);
    assert!(
        stderr.starts_with("xtent: block is a device node"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let names = fs::read_dir(out.join("dir/below")).unwrap().count();
    assert_eq!(names, 6, "a temporary name is left");
    to.unmount();
}

#[test]
fn a_dash_is_a_standard_stream() {
    let Some((image, data)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let (out, _) = run(0, &["get", &target, "/data", "-"]);
    assert!(out == data);
    run(2, &["get", "-r", &target, "/", "-"]);
    let put = |bytes: &[u8]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_xtent"))
            .args(["put", "--verify", "-", &target, "/data"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        child.wait_with_output().unwrap()
    };
    let new: Vec<u8> = data.iter().map(|byte| !byte).collect();
    assert!(put(&new).status.success());
    assert!(run(0, &["get", &target, "/data", "-"]).0 == new);
    for bytes in [&new[1..], &[&new[..], b"x"].concat()] {
        assert!(put(bytes).status.success());
        assert!(run(0, &["cat", &target, "/data"]).0 == bytes);
    }
}

#[test]
fn what_cannot_be_kept_is_counted() {
    if !common::kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    fill(mount.path());
    mount.unmount();
    fs::set_permissions(image.path(), fs::Permissions::from_mode(0o644)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    chown(dir.path(), Some(65_534), Some(65_534)).unwrap();
    let out = dir.path().join("out");
    let output = Command::new(env!("CARGO_BIN_EXE_xtent"))
        .args(["get", "-a", "-r", &path_of(&image), "/"])
        .arg(&out)
        .uid(65_534)
        .gid(65_534)
        .output();
    let output = match output {
        Ok(output) if output.status.code() != Some(3) => output,
        _ => return common::skipped("another user cannot run the command or read the image"),
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for word in [
        "the owner or group of 1",
        "extended attributes: ",
        "device nodes: 3;",
    ] {
        assert!(stderr.contains(word), "{word}: {stderr}");
    }
    // Without its owner a file is not to run as its owner.
    let mode = |name: &str| fs::symlink_metadata(out.join(name)).unwrap().mode();
    assert_eq!(mode("setuid") & 0o7000, 0);
    assert_eq!(mode("fifo"), 0o010_640);
    // Without -a they are skipped.
    let plain = dir.path().join("plain");
    let (_, stderr) = run(
        1,
        &["get", "-r", &path_of(&image), "/", plain.to_str().unwrap()],
    );
    assert!(
        stderr.contains("skipped 5 device nodes, fifos and sockets"),
        "{stderr}"
    );
    assert_eq!(fs::read(plain.join("dir/below/plain")).unwrap(), b"plain");
}

/// As cp --preserve=mode: what a directory of the host hands down gives no rights to a copy.
#[test]
fn an_existing_directory_hands_no_access_control_list_down() {
    if !common::has_tool("getfattr") {
        return common::skipped("getfattr is not installed");
    }
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let default = "system.posix_acl_default";
    let lists = |path: &Path| {
        let path = path.to_str().unwrap();
        common::run(
            "getfattr",
            &["--absolute-names", "-m", "^system.posix_acl", path],
        )
    };
    for options in ["-rf", "-arf"] {
        let to = tempfile::tempdir().unwrap();
        // The default list is in the directory below the one where the copy begins.
        let dir = to.path().join("dir");
        fs::create_dir(&dir).unwrap();
        if let Err(error) = sys::set_xattr(&dir, default, &acl()) {
            return common::skipped(&format!("no access control lists here: {error}"));
        }
        sys::set_xattr(&dir, "system.posix_acl_access", &acl()).unwrap();
        let place = to.path().to_str().unwrap();
        let output = super::xtent(&["get", options, &path_of(&image), "/dir", place]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() || stderr.contains("the owner or group"),
            "{stderr}"
        );
        assert_eq!(lists(&dir.join("copy")), "", "{options}");
        let of_dir = lists(&dir);
        assert!(!of_dir.contains("access"), "{options}: {of_dir}");
        assert_eq!(of_dir.contains(default), options == "-rf", "{of_dir}");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&dir), mode(&dir.join("copy"))), (0o750, 0o644));
    }
}

#[test]
fn attributes_beyond_the_limit_of_memory_are_left_out_and_counted() {
    if !common::kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    let file = mount.path().join("file");
    fs::write(&file, "x").unwrap();
    for i in 0..260 {
        sys::set_xattr(&file, format!("user.{i}"), &[7; 64 << 10]).unwrap();
    }
    mount.unmount();
    let target = path_of(&image);
    let to = tempfile::tempdir().unwrap();
    let place = to.path().to_str().unwrap();
    for (args, done) in [
        (&["xattr", &target, "/file"][..], "shown"),
        (&["get", "-a", &target, "/file", place], "kept"),
    ] {
        let (_, stderr) = run(1, args);
        let text = format!("extended attributes beyond 16 MiB are not {done}");
        assert!(stderr.contains(&text), "{stderr}");
    }
    // One of them needs no more memory than itself.
    run(0, &["xattr", "-n", "user.7", &target, "/file"]);
}
