//! Who has an image: other processes and the kernel, before and while it is written.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{common, path_of, prototype_image, run, xtent};

/// A loop device on an image, detached in the end.
struct Attached(String);

impl Attached {
    fn to(path: &str, options: &[&str]) -> Option<Self> {
        if let Some(why) = common::loop_is_missing() {
            common::skipped(&why);
            return None;
        }
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .args(options)
            .arg(path)
            .output()
            .unwrap();
        if !output.status.success() {
            common::skipped(&String::from_utf8_lossy(&output.stderr));
            return None;
        }
        let name = String::from_utf8(output.stdout).unwrap();
        Some(Self(name.trim().to_owned()))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

fn sum(path: &str) -> u32 {
    crc32c::crc32c(&fs::read(path).unwrap())
}

fn writer(target: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_xtent"))
        .args([
            "bench",
            target,
            "/data",
            "--rw",
            "randwrite",
            "--iodepth",
            "4",
        ])
        .args(["--runtime", "60s", "--time-based"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until it has written something; false, with the reason, when it ended instead.
fn is_writing(child: &mut Child, path: &str, before: &fs::Metadata) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if fs::metadata(path).unwrap().modified().unwrap() > before.modified().unwrap() {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            println!("SKIPPED: {}", said(child));
            return false;
        }
        sleep(Duration::from_millis(20));
    }
    panic!("nothing was written");
}

fn said(child: &mut Child) -> String {
    let mut text = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    text
}

fn has_leases(path: &str) -> bool {
    use xtent::internals::sys::{LeaseKind, give_lease_back, take_lease};
    let file = File::options().read(true).write(true).open(path).unwrap();
    let taken = take_lease(&file, LeaseKind::Write);
    if let Err(why) = &taken {
        common::skipped(&format!("no leases here: {why}"));
        return false;
    }
    give_lease_back(&file).unwrap();
    true
}

#[test]
fn an_attached_image_is_in_use_by_every_name() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let path = path_of(&image);
    let Some(device) = Attached::to(&path, &[]) else {
        return;
    };
    let dir = Path::new(&path).parent().unwrap().to_owned();
    let name = |name: &str| dir.join(name).display().to_string();
    let (hard, soft) = (name("hard.img"), name("soft.img"));
    fs::hard_link(&path, &hard).unwrap();
    std::os::unix::fs::symlink(&path, &soft).unwrap();
    fs::write(name("src"), [b'B'; 4096]).unwrap();
    let refused = |target: &str, words: &str| {
        let (_, stderr) = run(3, &["put", &name("src"), target, "/data"]);
        assert!(stderr.contains(words), "{target}: {stderr}");
    };
    for path in [&path, &hard, &soft] {
        refused(path, &device.0);
        refused(&format!("uring:{path}"), &device.0);
    }
    run(3, &["ls", &format!("ram:400M,load={path}"), "/"]);
    // The path that the kernel knows is gone.
    fs::rename(&path, name("moved (deleted)")).unwrap();
    refused(&hard, &device.0);
    fs::rename(name("moved (deleted)"), &path).unwrap();
    drop(device);
}

#[test]
fn an_image_that_is_open_elsewhere_is_in_use() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let path = path_of(&image);
    if !has_leases(&path) {
        return;
    }
    // As a loop device looks from a container without device nodes.
    let other = File::options().read(true).write(true).open(&path).unwrap();
    let write = [
        "bench",
        &path,
        "/data",
        "--rw",
        "randwrite",
        "--number-ios",
        "1",
    ];
    let (_, stderr) = run(3, &write);
    assert!(stderr.contains("has the image open"), "{stderr}");
    run(3, &["ls", &path, "/"]);
    run(0, &["ls", &format!("{path},inuse"), "/"]);
    drop(other);
    run(0, &write);
}

/// What opens the image while it is written stops that; nothing is written after it was let in.
fn stops_the_writer(target: &str, path: &str, open: impl FnOnce() -> Option<Attached>) {
    let before = fs::metadata(path).unwrap();
    let mut child = writer(target);
    if !is_writing(&mut child, path, &before) {
        return;
    }
    let Some(device) = open() else {
        child.kill().unwrap();
        child.wait().unwrap();
        return;
    };
    let opened = sum(path);
    let status = child.wait().unwrap();
    let stderr = said(&mut child);
    assert_eq!(status.code(), Some(3), "{stderr}");
    assert!(stderr.contains(&device.0), "{stderr}");
    assert_eq!(sum(path), opened, "written after the kernel had it");
    drop(device);
    run(0, &["ls", path, "/"]);
}

#[test]
fn a_loop_device_that_comes_later_stops_the_writer() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let path = path_of(&image);
    if !has_leases(&path) {
        return;
    }
    stops_the_writer(&path, &path, || Attached::to(&path, &[]));
    stops_the_writer(&path, &path, || Attached::to(&path, &["--read-only"]));
    stops_the_writer(&format!("{path},threaded"), &path, || {
        Attached::to(&path, &[])
    });
    stops_the_writer(&format!("uring:{path}"), &path, || Attached::to(&path, &[]));
}

#[test]
fn other_readers_and_refused_openers_do_not_stop_it() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let path = path_of(&image);
    let before = fs::metadata(&path).unwrap();
    let mut child = writer(&path);
    assert!(is_writing(&mut child, &path, &before));
    run(3, &["ls", &path, "/"]);
    run(3, &["bench", &path, "/data", "--rw", "randwrite"]);
    run(0, &["ls", &format!("{path},inuse"), "/"]);
    let paused = fs::metadata(&path).unwrap();
    let start = Instant::now();
    while fs::metadata(&path).unwrap().modified().unwrap() <= paused.modified().unwrap() {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "{}", said(&mut child));
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "it does not go on"
        );
        sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_image_that_is_cut_short_is_an_error_and_stays_short() {
    for scheme in ["image:", "uring:"] {
        let Some((image, _)) = prototype_image() else {
            return;
        };
        let path = path_of(&image);
        if !has_leases(&path) {
            return;
        }
        let before = fs::metadata(&path).unwrap();
        let mut child = writer(&format!("{scheme}{path}"));
        if !is_writing(&mut child, &path, &before) {
            continue;
        }
        // truncate(1) does not wait, and is refused.
        let other = File::options().write(true).open(&path).unwrap();
        other.set_len(1 << 20).unwrap();
        drop(other);
        let status = child.wait().unwrap();
        let stderr = said(&mut child);
        assert_eq!(status.code(), Some(5), "{stderr}");
        assert!(stderr.contains("was cut"), "{stderr}");
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
    }
}

#[test]
fn a_limit_of_file_sizes_is_an_error_that_names_it() {
    let Some((image, data)) = prototype_image() else {
        return;
    };
    let path = path_of(&image);
    // In blocks of 512 bytes: less than any file that is wanted, those in memory included.
    let limited = |words: &str| {
        Command::new("sh")
            .args([
                "-c",
                &format!("ulimit -f 1; exec {} {words}", env!("CARGO_BIN_EXE_xtent")),
            ])
            .output()
            .unwrap()
    };
    let output = limited(&format!(
        "bench {path} /data --rw randwrite --number-ios 10"
    ));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("ulimit -f"), "{stderr}");
    let output = limited(&format!("cat {path} /data"));
    assert!(output.status.success() && output.stdout == data);
}

/// A control group (v2) with the hugetlb controller, in which `xtent` is run.
struct Group(std::path::PathBuf);

impl Group {
    fn with_hugetlb(limit: &str) -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let root = mounts
            .lines()
            .find_map(|line| {
                let mut words = line.split(' ');
                let at = words.nth(1)?;
                (words.next()? == "cgroup2").then(|| Path::new(at).to_owned())
            })
            .ok_or("there are no control groups (v2)")?;
        let enable = root.join("cgroup.subtree_control");
        fs::write(&enable, "+hugetlb").map_err(|e| format!("{}: {e}", enable.display()))?;
        let dir = root.join(format!("xtent-test-{}", std::process::id()));
        fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let group = Self(dir);
        fs::write(group.0.join("hugetlb.2MB.max"), limit).map_err(|e| e.to_string())?;
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn hugepages_that_a_control_group_refuses_are_no_fault() {
    let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    if free.is_ok_and(|text| text.trim() == "0") {
        common::skipped("there are no free hugepages to be refused");
        return;
    }
    for limit in ["0", "4194304"] {
        let group = match Group::with_hugetlb(limit) {
            Ok(group) => group,
            Err(why) => return common::skipped(&why),
        };
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec {} bench --raw ram:64M --rw randread --number-ios 100",
            group.0.display(),
            env!("CARGO_BIN_EXE_xtent")
        );
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{limit}: {:?}: {stderr}",
            output.status
        );
        drop(group);
    }
    assert!(xtent(&["info", "ram:64M"]).status.code().is_some());
}
