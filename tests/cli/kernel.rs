//! The command's results beside the kernel's; all of it needs root.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use serde_json::Value;

use super::common::{self, image::Image};
use super::{SHORT, compare_of, json, path_of, prototype_image, run, text};

/// A tree on the kernel's xfs with everything odd; the image, unmounted.
fn kernel_image() -> Option<Image> {
    if !common::kernel_is_here() {
        return None;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    let root = mount.path();
    fs::create_dir(root.join("d")).unwrap();
    let odd = OsStr::from_bytes(b"odd \xff\x1b[31m\n");
    fs::write(root.join("d").join(odd), "odd").unwrap();
    symlink("/etc", root.join("d/escape")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 30 << 20).unwrap();
    let preallocated = fs::File::create(root.join("preallocated")).unwrap();
    common::sys::fallocate(&preallocated, 0, 0, 1 << 20).unwrap();
    drop((sparse, preallocated));
    common::sys::make_node(&root.join("fifo"), 0o010_644, 0, 0).unwrap();
    fs::write(root.join("setuid"), "x").unwrap();
    fs::set_permissions(root.join("setuid"), fs::Permissions::from_mode(0o4755)).unwrap();
    mount.unmount();
    Some(image)
}

#[test]
fn results_are_the_kernels() {
    let Some(image) = kernel_image() else { return };
    let target = path_of(&image);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let args: Vec<OsString> = vec![
        "get".into(),
        "-r".into(),
        target.clone().into(),
        "/".into(),
        out.clone().into(),
    ];
    let (_, stderr) = run(1, &args);
    assert!(stderr.contains("skipped /fifo: a fifo"), "{stderr}");
    let stat = json(&["stat", "--json", &target, "/sparse"]);
    let fiemap = json(&["fiemap", "--json", &target, "/sparse"]);
    let table = text(&["fiemap", &target, "/preallocated"]);
    assert!(
        table.contains("unwritten") && table.contains("1 extent found"),
        "{table}"
    );
    let listing = json(&["ls", "--json", &target, "/d"]);
    assert_eq!(listing[1]["name_hex"], "6f646420ff1b5b33316d0a");
    let mount = image.mount("ro");
    let kernel = fs::metadata(mount.path().join("sparse")).unwrap();
    assert_eq!(stat[0]["ino"], kernel.ino());
    assert_eq!(stat[0]["blocks_512"], kernel.blocks());
    assert_eq!(stat[0]["mtime"]["nanoseconds"], kernel.mtime_nsec());
    let copied = fs::metadata(out.join("sparse")).unwrap();
    assert!(
        copied.blocks() * 512 < 1 << 20,
        "holes were filled: {}",
        copied.blocks()
    );
    assert_eq!(
        (copied.mtime(), copied.mtime_nsec()),
        (kernel.mtime(), kernel.mtime_nsec())
    );
    let extents =
        common::sys::fiemap(&fs::File::open(mount.path().join("sparse")).unwrap()).unwrap();
    assert_eq!(fiemap["extents"].as_array().unwrap().len(), extents.len());
    for name in [&b"sparse"[..], b"preallocated", b"d/odd \xff\x1b[31m\n"] {
        let name = OsStr::from_bytes(name);
        let (ours, theirs) = (
            fs::read(out.join(name)).unwrap(),
            fs::read(mount.path().join(name)).unwrap(),
        );
        assert!(ours == theirs, "{name:?}");
    }
    assert_eq!(
        fs::read_link(out.join("d/escape")).unwrap(),
        Path::new("/etc")
    );
    assert_eq!(
        fs::metadata(out.join("setuid")).unwrap().mode() & 0o7777,
        0o755
    );
}

#[test]
fn images_in_use_are_refused_and_dirty_logs_are_replayed() {
    let Some(image) = kernel_image() else { return };
    let target = path_of(&image);
    let mount = image.mount("");
    let (_, stderr) = run(3, &["ls", &target]);
    assert!(stderr.contains("loop"), "{stderr}");
    run(3, &["compare", "--image", &target]);
    fs::write(mount.path().join("fresh"), "x").unwrap();
    common::run("sync", &["-f", mount.path().to_str().unwrap()]);
    let copy = image.path().with_file_name("copy.img");
    fs::copy(image.path(), &copy).unwrap();
    mount.unmount();
    let copy = copy.to_str().unwrap();
    assert!(text(&["ls", copy]).contains("fresh"));
    assert!(text(&["info", copy]).contains("holds changes"));
    let (_, stderr) = run(3, &["ls", &format!("image:{copy},noreplay")]);
    assert!(stderr.contains("log"), "{stderr}");
    let unrecovered = format!("image:{copy},norecovery");
    assert!(text(&["ls", &unrecovered]).contains("sparse"));
    for command in ["ls", "stat", "info"] {
        let path = if command == "stat" { &["/"][..] } else { &[] };
        let (_, stderr) = run(0, &[&[command, &unrecovered], path].concat());
        assert!(
            stderr.contains("warning: norecovery: the log was not replayed"),
            "{stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    run(0, &["ls", &target]);
}

#[test]
fn compare_with_the_kernel_agrees_and_leaves_nothing_behind() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    if !common::kernel_is_here() {
        return;
    }
    let target = path_of(&image);
    let args = [&compare_of(&target)[..], &SHORT].concat();
    let value = json(&args);
    assert_eq!(value["kernel skipped"], Value::Null);
    assert_eq!(
        value["checks"].as_array().unwrap().len(),
        5,
        "{}",
        value["checks"]
    );
    assert!(value["workloads"][6]["times better"]["IOPS"].is_number());
    // A link on the way to the file could lead the kernel to a file of the host.
    let linked = [
        "compare",
        "--image",
        &target,
        "--read-file",
        "/link",
        "--write-file",
        "/data",
        "--json",
        "-",
        "--rounds",
        "1",
        "--runtime",
        "50ms",
    ];
    let value = json(&linked);
    assert!(
        value["kernel skipped"]
            .as_str()
            .unwrap()
            .contains("symbolic link")
    );
    let loops = fs::read_dir("/sys/block").unwrap().filter_map(|entry| {
        fs::read_to_string(entry.unwrap().path().join("loop/backing_file")).ok()
    });
    assert_eq!(loops.filter(|backing| backing.trim() == target).count(), 0);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("/xtent-") || !mounts.contains(&target));
}
