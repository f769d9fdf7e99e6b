//! What `get` may replace, what `put` may mix, and paths that end like directories.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use super::common;
use super::{path_of, prototype_image, run};

#[test]
fn force_replaces_regular_files_and_links_only() {
    let Some((image, data)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    common::run("mkfifo", &[&at("fifo")]);
    let socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    fs::create_dir_all(at("dir/data")).unwrap();
    symlink("/proc/self/fd/1", at("stdout")).unwrap();
    let device = common::is_root().then(|| common::run("mknod", &[&at("null"), "c", "1", "3"]));
    for name in ["fifo", "socket", "dir", "stdout", "null"] {
        if name == "null" && device.is_none() {
            continue;
        }
        let (_, stderr) = run(1, &["get", "-f", &target, "/data", &at(name)]);
        assert!(
            stderr.contains("--force") || stderr.contains("xtent cat"),
            "{name}: {stderr}"
        );
    }
    // A link of the volume does not replace them either.
    let (_, stderr) = run(1, &["get", "-rf", &target, "/link", &at("fifo")]);
    assert!(stderr.contains("fifo"), "{stderr}");
    let kind = |name: &str| fs::symlink_metadata(at(name)).unwrap().file_type();
    assert!(kind("fifo").is_fifo() && kind("socket").is_socket());
    assert!(kind("dir/data").is_dir() && kind("stdout").is_symlink());
    assert!(device.is_none() || kind("null").is_char_device());
    drop(socket);
    fs::write(at("real"), "old").unwrap();
    symlink("real", at("link")).unwrap();
    run(0, &["get", "-f", &target, "/data", &at("link")]);
    assert!(kind("link").is_file() && fs::read(at("link")).unwrap() == data);
    assert_eq!(fs::read(at("real")).unwrap(), b"old");
    let parts = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name());
    assert!(
        parts
            .into_iter()
            .all(|name| !name.to_string_lossy().contains("part"))
    );
}

#[test]
fn a_slash_at_the_end_demands_a_directory() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    run(1, &["get", &target, "/data", &at("none/")]);
    assert!(!dir.path().join("none").exists());
    run(0, &["get", "-r", &target, "/dir", &at("made/")]);
    assert!(dir.path().join("made/copy").is_file());
    for path in [
        "/data/",
        "/data/.",
        "/data/./",
        "/data/..",
        "/data/../data",
        "/dir/copy/.",
    ] {
        let (_, stderr) = run(1, &["stat", &target, path]);
        assert!(stderr.contains("not a directory"), "{path}: {stderr}");
    }
    for path in ["/dir/", "/dir/.", "/./dir/..", "/.", "//", "/dir/copy"] {
        run(0, &["stat", &target, path]);
    }
    // A link to a file, before a slash: the link is followed, and is no directory.
    run(1, &["stat", &target, "/link/"]);
    run(1, &["stat", &target, "/link/."]);
    run(0, &["stat", &target, "/link"]);
}

#[test]
fn put_replaces_the_content_at_any_length() {
    let Some((image, data)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let local = image.path().with_file_name("short");
    fs::write(&local, b"short").unwrap();
    let local = local.to_str().unwrap();
    run(
        0,
        &["put", "--partial", "--verify", local, &target, "/data"],
    );
    let now = run(0, &["cat", &target, "/data"]).0;
    assert!(now.starts_with(b"short") && now[5..] == data[5..]);
    run(0, &["put", "--offset", "0", local, &target, "/data"]);
    assert!(run(0, &["cat", &target, "/data"]).0 == now);
    run(0, &["put", "--verify", local, &target, "/data"]);
    assert_eq!(run(0, &["cat", &target, "/data"]).0, b"short");
    run(0, &["put", "--offset", "10000", local, &target, "/data"]);
    let mut model = b"short".to_vec();
    model.resize(10_000, 0);
    model.extend(b"short");
    assert!(run(0, &["cat", &target, "/data"]).0 == model);
    let long = image.path().with_file_name("long");
    let content = common::random_bytes(9, 5_000_001);
    fs::write(&long, &content).unwrap();
    let long = long.to_str().unwrap();
    run(0, &["put", "--partial", "--verify", long, &target, "/data"]);
    assert!(run(0, &["cat", &target, "/data"]).0 == content);
    // More than there is room for: nothing is touched.
    let huge = image.path().with_file_name("huge");
    let most = fs::metadata(image.path()).unwrap().len();
    fs::File::create(&huge).unwrap().set_len(most).unwrap();
    let (_, stderr) = run(1, &["put", huge.to_str().unwrap(), &target, "/data"]);
    assert!(stderr.contains("are free"), "{stderr}");
    assert!(run(0, &["cat", &target, "/data"]).0 == content);
    if common::has_tool("xfs_repair") {
        image.assert_clean();
    }
}

#[test]
fn put_replaces_the_content_at_once() {
    let Some((image, data)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let local = image.path().with_file_name("new");
    let put = |code: i32, content: &[u8], more: &[&str]| {
        fs::write(&local, content).unwrap();
        let local = local.to_str().unwrap();
        let args = [&["put", "--atomic"], more, &[local, &target, "/data"]].concat();
        run(code, &args).1
    };
    let long = common::random_bytes(9, 5_000_001);
    for content in [&b"short"[..], &long, b"", &long[..4096]] {
        put(0, content, &["--verify"]);
        assert!(run(0, &["cat", &target, "/data"]).0 == content);
    }
    // Both contents need space: one that would fit in place does not fit beside the other.
    let free = fs::metadata(image.path()).unwrap().len() / 2;
    let half = vec![7; usize::try_from(free).unwrap() - (32 << 20)];
    put(0, &half, &[]);
    let said = put(1, &vec![8; half.len() + (16 << 20)], &[]);
    assert!(said.contains("are free"), "{said}");
    assert!(run(0, &["cat", &target, "/data"]).0 == half);
    put(2, &data, &["--partial"]);
    put(0, &data, &[]);
    if common::has_tool("xfs_repair") {
        image.assert_clean();
    }
}

#[test]
fn the_sticky_bit_of_a_directory_is_kept() {
    if !common::kernel_is_here() {
        return;
    }
    let image = common::image::Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    let dir = mount.path().join("shared");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777)).unwrap();
    mount.unmount();
    let to = tempfile::tempdir().unwrap();
    let out = to.path().join("shared");
    run(
        0,
        &[
            "get",
            "-r",
            &path_of(&image),
            "/shared",
            out.to_str().unwrap(),
        ],
    );
    assert_eq!(fs::metadata(&out).unwrap().mode() & 0o7777, 0o1777);
}

/// An access control list as setxattr takes it (linux/posix_acl_xattr.h): the owner may read and
/// write, user 65534 too, the group nothing, the mask is read and write.
pub(super) fn acl() -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    let none = u32::MAX;
    for (tag, rights, id) in [
        (0x01_u16, 6_u16, none),
        (0x02, 6, 65_534),
        (0x04, 0, none),
        (0x10, 6, none),
        (0x20, 0, none),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(rights.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

#[test]
fn the_mask_of_an_access_control_list_gives_the_group_no_rights() {
    if !common::kernel_is_here() {
        return;
    }
    let image = common::image::Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    let at = |name: &str| mount.path().join(name);
    fs::write(at("secret"), "x").unwrap();
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/plain"), "x").unwrap();
    for (name, mode) in [("secret", 0o600), ("dir", 0o700), ("dir/plain", 0o664)] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for name in ["secret", "dir"] {
        common::sys::set_xattr(&at(name), "system.posix_acl_access", &acl()).unwrap();
        assert_eq!(fs::metadata(at(name)).unwrap().mode() & 0o070, 0o060);
    }
    mount.unmount();
    let to = tempfile::tempdir().unwrap();
    let out = to.path().join("out");
    let args = ["get", "-r", &path_of(&image), "/", out.to_str().unwrap()];
    let (_, stderr) = run(0, &args);
    assert!(stderr.contains("no rights to 2 of the copies"), "{stderr}");
    for (name, mode) in [("secret", 0o600), ("dir", 0o600), ("dir/plain", 0o664)] {
        let copied = fs::metadata(out.join(name)).unwrap().mode() & 0o777;
        assert_eq!(copied, mode, "{name}");
    }
}
