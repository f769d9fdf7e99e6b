//! The built command, as a user runs it: help, exit codes, and results beside the kernel's.
#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod archive;
mod cache;
mod changing;
#[path = "../common/mod.rs"]
mod common;
mod containers;
mod contents;
mod copying;
mod fio;
mod kernel;
mod limits;
mod load;
mod owners;
mod partitions;
mod raw;
mod report;
mod signals;
mod smart;
mod space;
mod sysadmin;
mod tar;
mod terminal;
mod tree;
mod usage;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::image::Image;
use serde_json::Value;

fn xtent<S: AsRef<OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtent"))
        .args(args)
        .output()
        .unwrap()
}

/// Runs it and expects this exit status; stdout and stderr.
fn run<S: AsRef<OsStr>>(status: i32, args: &[S]) -> (Vec<u8>, String) {
    let output = xtent(args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let words: Vec<_> = args.iter().map(AsRef::as_ref).collect();
    assert_eq!(output.status.code(), Some(status), "{words:?}: {stderr}");
    if status != 0 && status != 2 {
        assert!(stderr.lines().all(|l| l.starts_with("xtent: ")), "{stderr}");
    }
    (output.stdout, stderr)
}

fn text<S: AsRef<OsStr>>(args: &[S]) -> String {
    String::from_utf8(run(0, args).0).unwrap()
}

fn json<S: AsRef<OsStr>>(args: &[S]) -> Value {
    serde_json::from_slice(&run(0, args).0).unwrap()
}

/// An image that mkfs.xfs fills from a prototype: no root needed. Two files, two directories, a
/// link.
fn prototype_image() -> Option<(Image, Vec<u8>)> {
    if !common::has_tool("mkfs.xfs") {
        common::skipped("mkfs.xfs is not installed");
        return None;
    }
    let image = Image::empty(320 << 20, 512);
    let dir = image.path().parent().unwrap().to_owned();
    let data: Vec<u8> = (0..3_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(dir.join("data"), &data).unwrap();
    let data_path = dir.join("data").display().to_string();
    let proto = format!(
        "/dev/null\n0 0\nd--755 0 0\ndata ---640 7 8 {data_path}\ndir d--750 0 0\ncopy ---644 0 0 \
         {data_path}\n$\nlink l--777 0 0 dir/copy\ndangling l--777 0 0 nowhere\n$\n"
    );
    fs::write(dir.join("proto"), proto).unwrap();
    let (proto, path) = (dir.join("proto"), image.path());
    common::run(
        "mkfs.xfs",
        &[
            "-q",
            "-f",
            "-p",
            proto.to_str().unwrap(),
            path.to_str().unwrap(),
        ],
    );
    Some((image, data))
}

fn path_of(image: &Image) -> String {
    image.path().to_str().unwrap().to_owned()
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let help = text(&["--help"]);
    for word in [
        "info",
        "ls",
        "stat",
        "cat",
        "get",
        "put",
        "fiemap",
        "bench",
        "compare",
        "Exit status",
        "141",
    ] {
        assert!(help.contains(word), "{word}");
    }
    for command in [
        "info", "smart", "ls", "find", "tree", "du", "df", "xattr", "stat", "cat", "get", "put",
        "chmod", "chown", "touch", "fiemap", "check", "bench", "compare",
    ] {
        assert!(text(&[command, "--help"]).contains("Usage"), "{command}");
    }
    assert!(text(&["--version"]).starts_with("xtent 0."));
}

#[test]
fn man_pages_and_completions_are_generated() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("man1");
    run(0, &["man", to.to_str().unwrap()]);
    let page = fs::read_to_string(to.join("xtent.1")).unwrap();
    assert!(page.contains("Exit status") && page.contains(".TH"));
    let page = fs::read_to_string(to.join("xtent-bench.1")).unwrap();
    assert!(page.contains("iodepth"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&["completions", shell]).contains("fiemap"), "{shell}");
    }
}

#[test]
fn wrong_usage_and_targets_have_their_exit_codes() {
    run(2, &["frobnicate"]);
    run(2, &["ls"]);
    run(2, &["bench", "x.img", "/a", "--rw", "sideways"]);
    run(2, &["ls", "imag:disk.img"]);
    run(2, &["ls", "image:disk.img,lba=1000"]);
    let (_, stderr) = run(3, &["ls", "no-such-file.img"]);
    assert!(stderr.contains("no-such-file.img"), "{stderr}");
    run(3, &["ls", "image:no-such-file.img"]);
    run(3, &["ls", "pci:0000:01:00.0"]);
    let dir = tempfile::tempdir().unwrap();
    let zeroes = dir.path().join("zeroes.img");
    fs::File::create(&zeroes).unwrap().set_len(1 << 20).unwrap();
    let output = xtent(&[OsStr::new("ls"), zeroes.as_os_str()]);
    let code = output.status.code().unwrap();
    assert!(code == 3 || code == 4, "not an XFS: exit status {code}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.starts_with("xtent: ") && stderr.lines().count() == 1,
        "{stderr}"
    );
    let empty = dir.path().join("empty.img");
    fs::File::create(&empty).unwrap();
    run(3, &[OsStr::new("info"), empty.as_os_str()]);
    let mut levels = Command::new(env!("CARGO_BIN_EXE_xtent"));
    let levels = levels
        .args(["info", "ram:8M"])
        .env("XTENT_LOG", "xtent=loud");
    let output = levels.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).starts_with("xtent: XTENT_LOG=xtent=loud: "),
        "{output:?}"
    );
}

#[test]
fn info_ls_stat_and_cat_of_a_prototype_image() {
    let Some((image, data)) = prototype_image() else {
        return;
    };
    let image = path_of(&image);
    assert!(text(&["info", &image]).contains("filesystem  xfs"));
    let info = json(&["info", "--json", &image]);
    assert_eq!(info["filesystem"]["block_bytes"], 4096);
    assert_eq!(text(&["ls", &image]), "dangling\ndata\ndir\nlink\n");
    let long = text(&["ls", "-l", &image]);
    assert!(
        long.contains("-rw-r-----   1      7      8      3000000"),
        "{long}"
    );
    assert!(long.contains("link -> dir/copy"), "{long}");
    let all = text(&["ls", "-R", &image]);
    assert!(all.ends_with("\n/dir:\ncopy\n"), "{all}");
    let list = json(&["ls", "-R", "--json", &image]);
    let paths: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["/dangling", "/data", "/dir", "/link", "/dir/copy"]);
    assert!(text(&["stat", &image, "/data"]).contains("Access: (0640/-rw-r-----)"));
    assert_eq!(
        json(&["stat", "--json", &image, "/link"])[0]["target"],
        "dir/copy"
    );
    assert!(run(0, &["cat", &image, "/data", "/link"]).0 == [&data[..], &data[..]].concat());
    let (stdout, stderr) = run(1, &["cat", &image, "/none", "/data"]);
    assert!(stdout == data && stderr.contains("/none"), "{stderr}");
    run(1, &["cat", &image, "/dir"]);
    run(1, &["cat", &image, "/dangling"]);
    run(1, &["ls", &image, "/data/x"]);
    run(1, &["fiemap", &image, "/dir"]);
}

#[test]
fn a_reader_that_goes_away_is_no_reason_to_shout() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let mut child = Command::new(env!("CARGO_BIN_EXE_xtent"))
        .args(["cat", &path_of(&image), "/data", "/data"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.to_lowercase().contains("pipe"), "{stderr}");
}

#[test]
fn get_copies_files_and_trees_and_replaces_only_by_force() {
    let Some((image, data)) = prototype_image() else {
        return;
    };
    let image = path_of(&image);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    run(0, &["get", &image, "/data", &at("file")]);
    assert!(fs::read(at("file")).unwrap() == data);
    assert_eq!(fs::metadata(at("file")).unwrap().mode() & 0o7777, 0o640);
    let (_, stderr) = run(1, &["get", &image, "/data", &at("file")]);
    assert!(stderr.contains("--force"), "{stderr}");
    fs::write(at("file"), "old").unwrap();
    run(0, &["get", "-f", &image, "/data", &at("file")]);
    assert!(fs::read(at("file")).unwrap() == data);
    run(1, &["get", &image, "/dir", &at("dir")]);
    run(0, &["get", "-r", &image, "/", &at("tree")]);
    assert!(fs::read(at("tree/dir/copy")).unwrap() == data);
    assert_eq!(
        fs::read_link(at("tree/link")).unwrap(),
        Path::new("dir/copy")
    );
    assert_eq!(fs::metadata(at("tree/dir")).unwrap().mode() & 0o777, 0o750);
    run(1, &["get", "-r", &image, "/", &at("tree")]);
    run(0, &["get", "-rf", &image, "/", &at("tree")]);
    // A link in the way is replaced, never followed.
    fs::write(at("victim"), "safe").unwrap();
    fs::remove_file(at("file")).unwrap();
    symlink(at("victim"), at("file")).unwrap();
    run(0, &["get", "-f", &image, "/data", &at("file")]);
    assert_eq!(fs::read(at("victim")).unwrap(), b"safe");
    assert!(fs::read(at("file")).unwrap() == data);
    let left: Vec<PathBuf> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert!(
        left.iter()
            .all(|path| !path.to_string_lossy().contains("part")),
        "{left:?}"
    );
}

/// Every name in the image that is `from` becomes `to`, with the checksum of its inode made right
/// again.
fn rename_on_disk(image: &Path, from: &[u8], to: &[u8]) {
    const INODE_BYTES: usize = 512;
    let mut disk = fs::read(image).unwrap();
    let first = disk[..64 << 20]
        .windows(from.len())
        .position(|window| window == from)
        .expect("the name is in a directory inside its inode");
    disk[first..first + to.len()].copy_from_slice(to);
    let start = first / INODE_BYTES * INODE_BYTES;
    let inode = &mut disk[start..start + INODE_BYTES];
    assert_eq!(&inode[..2], b"IN");
    inode[100..104].fill(0);
    let crc = crc32c::crc32c(inode);
    inode[100..104].copy_from_slice(&crc.to_le_bytes());
    fs::write(image, &disk).unwrap();
}

#[test]
fn names_that_lead_elsewhere_lead_nowhere() {
    if !common::has_tool("mkfs.xfs") {
        common::skipped("mkfs.xfs is not installed");
        return;
    }
    for hostile in [
        &b"../../../oops"[..],
        b"/tmp/xt-oops1",
        b"a/b/c/d/e/f/g",
        b"a\0b\0c\0d\0e\0f\0g",
    ] {
        let image = Image::empty(320 << 20, 512);
        let dir = image.path().parent().unwrap().to_owned();
        fs::write(dir.join("data"), "x").unwrap();
        let proto = format!(
            "/dev/null\n0 0\nd--755 0 0\nhostile-name1 ---644 0 0 {0}\nzz ---644 0 0 {0}\n$\n",
            dir.join("data").display()
        );
        fs::write(dir.join("proto"), proto).unwrap();
        let (proto, path) = (dir.join("proto"), image.path());
        common::run(
            "mkfs.xfs",
            &[
                "-q",
                "-f",
                "-p",
                proto.to_str().unwrap(),
                path.to_str().unwrap(),
            ],
        );
        rename_on_disk(&path, b"hostile-name1", hostile);
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("a/b/c/out");
        fs::create_dir_all(out.parent().unwrap()).unwrap();
        let args = [
            OsStr::new("get"),
            OsStr::new("-r"),
            path.as_os_str(),
            OsStr::new("/"),
            out.as_os_str(),
        ];
        let (_, stderr) = run(4, &args);
        let inside = |dir: &Path| -> Vec<OsString> {
            fs::read_dir(dir)
                .map(|entries| entries.map(|e| e.unwrap().file_name()).collect())
                .unwrap_or_default()
        };
        assert_eq!(inside(place.path()), ["a"], "{stderr}");
        assert_eq!(inside(&place.path().join("a/b/c")), ["out"], "{stderr}");
        assert!(!Path::new("/tmp/xt-oops1").exists());
        assert!(
            inside(&out).iter().all(|name| name == "zz"),
            "{:?}",
            inside(&out)
        );
    }
}

#[test]
fn put_overwrites_and_refuses_what_is_not_there() {
    let Some((image, data)) = prototype_image() else {
        return;
    };
    let dir = image.path().parent().unwrap().to_owned();
    let target = path_of(&image);
    let new: Vec<u8> = data.iter().map(|byte| !byte).collect();
    let local = dir.join("new").to_str().unwrap().to_owned();
    fs::write(&local, &new).unwrap();
    run(0, &["put", "--verify", &local, &target, "/data"]);
    assert!(run(0, &["cat", &target, "/data"]).0 == new);
    fs::write(&local, b"middle").unwrap();
    let (_, stderr) = run(0, &["put", "--offset", "1000001", &local, &target, "/data"]);
    assert!(stderr.contains("stay as they are"), "{stderr}");
    let now = run(0, &["cat", &target, "/data"]).0;
    assert_eq!(&now[1_000_001..1_000_007], b"middle");
    assert!(now[..1_000_001] == new[..1_000_001] && now[1_000_007..] == new[1_000_007..]);
    run(1, &["put", &local, &target, "/none"]);
    run(1, &["put", "no-such-local-file", &target, "/data"]);
    run(2, &["put", &local, "imag:x", "/data"]);
    assert!(run(0, &["cat", &target, "/data"]).0 == now);
    if common::has_tool("xfs_repair") {
        image.assert_clean();
    }
}

#[test]
fn bench_reads_writes_and_verifies() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let base = |rw: &'static str| {
        ["bench", &target, "/data", "--rw", rw, "--iodepth", "8"]
            .map(String::from)
            .to_vec()
    };
    let with = |rw, more: &[&str]| {
        let mut args = base(rw);
        args.extend(more.iter().map(|s| String::from(*s)));
        args
    };
    let value = json(&with("randread", &["--json", "--numjobs", "2"]));
    let job = &value["jobs"][0];
    assert_eq!(job["read"]["total_ios"], 2 * (3_000_000 / 4096));
    assert!(job["read"]["clat_ns"]["percentile"]["99.000000"].as_u64() > Some(0));
    assert!(value["environment"]["kernel"].is_string());
    let (stdout, stderr) = run(0, &with("randwrite", &["--verify", "--seed", "5"]));
    assert!(stderr.contains("overwrites /data"), "{stderr}");
    assert!(String::from_utf8_lossy(&stdout).contains("732 blocks read back and right"));
    run(0, &with("read", &["--verify", "--seed", "5"]));
    let (_, stderr) = run(4, &with("read", &["--verify", "--seed", "6"]));
    assert!(stderr.contains("seed"), "{stderr}");
    run(
        0,
        &with(
            "randrw",
            &[
                "--runtime",
                "200ms",
                "--time-based",
                "--ramp-time",
                "50ms",
                "--bs",
                "16k",
            ],
        ),
    );
    run(0, &with("read", &["--number-ios", "3"]));
    run(2, &with("read", &["--bs", "1000"]));
    run(2, &with("read", &["--size", "1g"]));
    run(1, &["bench", &target, "/none"]);
}

/// One short round of it, told as JSON.
const SHORT: [&str; 8] = [
    "--rounds",
    "1",
    "--runtime",
    "100ms",
    "--ramp-time",
    "0",
    "--json",
    "-",
];

/// `xtent compare` on the files of [`prototype_image`].
fn compare_of(target: &str) -> [&str; 7] {
    [
        "compare",
        "--image",
        target,
        "--read-file",
        "/dir/copy",
        "--write-file",
        "/data",
    ]
}

#[test]
fn compare_without_the_kernel_checks_its_own_writes() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let dir = image.path().parent().unwrap().to_owned();
    let report = dir.join("report.html").to_str().unwrap().to_owned();
    let target = path_of(&image);
    let args = [
        &compare_of(&target)[..],
        &["--no-kernel", "--report", &report],
        &SHORT,
    ]
    .concat();
    let value = json(&args);
    assert_eq!(value["workloads"].as_array().unwrap().len(), 7);
    assert!(
        value["checks"]
            .as_array()
            .unwrap()
            .iter()
            .all(|check| check["good"] == true)
    );
    let page = fs::read_to_string(&report).unwrap();
    assert!(page.contains("</html>") && page.contains("--no-kernel was given"));
    let (_, stderr) = run(1, &["compare", "--image", &target, "--no-kernel"]);
    assert!(stderr.contains("--read-file"), "{stderr}");
}

#[test]
fn compare_on_a_disk_refuses_before_it_touches_anything() {
    let absent = "0000:ff:1f.7";
    let erase = format!("--device {absent} --i-may-erase S1");
    for wrong in [
        &format!("--device {absent}"),
        "--i-may-erase S1",
        "--file-size 1m",
        &format!("{erase} --image x"),
        &format!("{erase} --no-kernel"),
        "--device nvme0 --i-may-erase S1",
    ] {
        let mut args = vec!["compare"];
        args.extend(wrong.split(' '));
        run(2, &args);
    }
    let args = ["compare", "--device", absent, "--i-may-erase", "S1"];
    let (_, stderr) = run(3, &args);
    if !common::is_root() {
        assert!(stderr.contains("needs root"), "{stderr}");
        return;
    }
    assert!(stderr.contains("no PCI device"), "{stderr}");
    let mut as_nobody = Command::new(env!("CARGO_BIN_EXE_xtent"));
    as_nobody.args(args).uid(65534).gid(65534);
    match as_nobody.output() {
        Ok(output) => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(3), "{stderr}");
            assert!(stderr.contains("needs root"), "{stderr}");
        }
        Err(error) => common::skipped(&format!("another user cannot run the command: {error}")),
    }
}
