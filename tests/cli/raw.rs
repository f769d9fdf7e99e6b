//! Targets without a filesystem (`bench --raw`), and those that are not NVMe (`uring:`).

use std::process::Command;

use super::{json, path_of, prototype_image, run, text, xtent};

/// A file of 8 MiB that is no filesystem, behind the embedded controller.
fn blocks() -> (tempfile::TempPath, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(8 << 20).unwrap();
    // Closed, for an image that another process has open is in use.
    let file = file.into_temp_path();
    let target = format!("image:{}", file.to_str().unwrap());
    (file, target)
}

/// The serial number of an image.
fn serial(target: &str) -> String {
    let output = xtent(&["info", "--json", target]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    value["controller"]["serial"].as_str().unwrap().to_owned()
}

#[test]
fn every_image_has_a_serial_number_of_its_own() {
    let ((_a, a), (_b, b)) = (blocks(), blocks());
    assert_ne!(serial(&a), serial(&b));
    assert_eq!(serial(&a), serial(&format!("{a},lba=4096")));
}

#[test]
fn results_name_the_controllers_mode() {
    let (_file, target) = blocks();
    for (options, mode) in [
        ("", "inline"),
        (",threaded", "threaded"),
        (",wait=interrupt", "threaded"),
    ] {
        let target = format!("{target}{options},readonly");
        let base = ["bench", "--raw", &target, "--number-ios", "10"];
        let value = json(&[&base[..], &["--rw", "randread", "--json"]].concat());
        assert_eq!(value["controller"], mode, "{target}");
        let text = text(&[&base[..], &["--rw", "randread"]].concat());
        assert!(text.contains(&format!("controller: {mode}")), "{text}");
    }
}

#[test]
fn raw_blocks_are_measured_and_written_only_when_named() {
    let (file, target) = blocks();
    let serial = serial(&target);
    let base = ["bench", "--raw", &target, "--bs", "4k", "--iodepth", "16"];
    let with = |more: &[&'static str]| [&base[..], more].concat();

    let value = json(&with(&["--rw", "randread", "--json", "--numjobs", "2"]));
    assert_eq!(value["filesystem"], false);
    let read = &value["jobs"][0]["read"];
    assert_eq!(read["total_ios"], 2 * 2048);
    assert!(read["clat_ns"]["percentile"]["99.900000"].as_u64() > Some(0));

    let (_, stderr) = run(2, &with(&["--rw", "write"]));
    assert!(stderr.contains("--i-may-erase"), "{stderr}");
    let (_, stderr) = run(2, &with(&["--rw", "write", "--i-may-erase", "OTHER"]));
    assert!(stderr.contains("nothing was written"), "{stderr}");
    let zeroes = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    assert!(zeroes(&std::fs::read(&file).unwrap()));

    let verified = ["--verify", "--seed", "3", "--i-may-erase", &serial];
    let (_, stderr) = run(0, &[&base[..], &["--rw", "write"], &verified[..]].concat());
    assert!(stderr.contains("overwrites all"), "{stderr}");
    let written = std::fs::read(&file).unwrap();
    assert!(written.chunks(4096).all(|block| !zeroes(block)));
    run(0, &with(&["--rw", "randread", "--verify", "--seed", "3"]));
    run(4, &with(&["--rw", "read", "--verify", "--seed", "4"]));
}

#[test]
fn an_image_is_put_onto_blocks() {
    let (file, target) = blocks();
    let mut image: Vec<u8> = (0..3_000_001u32).map(|n| (n % 251) as u8).collect();
    let local = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(local.path(), &image).unwrap();
    let local_path = local.path().to_str().unwrap();
    let base = ["put", "--raw", local_path, &target];
    run(2, &base);
    let serial = serial(&target);
    let named = [&base[..], &["--i-may-erase", &serial]].concat();
    run(0, &[&named[..], &["--verify"]].concat());
    image.resize(8 << 20, 0);
    assert_eq!(std::fs::read(&file).unwrap(), image);
    local.as_file().set_len(9 << 20).unwrap();
    let (_, stderr) = run(1, &named);
    assert!(stderr.contains("nothing was written"), "{stderr}");
    run(2, &[&base[..], &["/data"]].concat());
}

#[test]
fn a_file_or_the_blocks_but_not_both() {
    let (_file, target) = blocks();
    run(2, &["bench", "--raw", &target, "/data"]);
    run(2, &["bench", &target]);
    run(2, &["bench", &target, "/data", "--i-may-erase", "X"]);
    run(
        2,
        &["bench", "--raw", &target, "--bs", "512", "--size", "1g"],
    );
}

#[test]
fn engines_are_compared_on_one_target() {
    let (file, target) = blocks();
    let path = file.to_str().unwrap();
    let base = ["compare", "--target", &target, "--rounds", "2"];
    let quick = ["--runtime", "50ms", "--ramp-time", "5ms", "--json", "-"];
    let with = |more: &[&'static str]| [&base[..], &quick, more].concat();

    let all = with(&["--engines", "native,spdk,uring"]);
    let value = json(&all);
    assert_eq!(value["skipped"][0]["engine"], "spdk");
    let workloads = value["workloads"].as_array().unwrap();
    assert_eq!(workloads.len(), 4, "nothing is written");
    for row in workloads {
        let native = &row["engines"]["native"];
        assert_eq!(native["rounds"].as_array().unwrap().len(), 2);
        let [least, most] = [0, 1].map(|n| native["iops_spread"][n].as_f64().unwrap());
        let median = native["median"]["iops"].as_f64().unwrap();
        assert!(least > 0.0 && least <= median && median <= most, "{row}");
    }
    assert!(std::fs::read(path).unwrap().iter().all(|&byte| byte == 0));
    if ring_is_here(&format!("uring:{path}")) {
        assert!(workloads[0]["engines"]["uring"]["median"]["p50_ns"].as_f64() > Some(0.0));
    }

    let (_, stderr) = run(2, &with(&["--engines", "native", "--i-may-erase", "OTHER"]));
    assert!(stderr.contains("nothing was written"), "{stderr}");
    let serial = serial(&target);
    let named = ["--engines", "native", "--i-may-erase", &serial];
    let writing = [&base[..], &quick, &named].concat();
    assert_eq!(json(&writing)["workloads"].as_array().unwrap().len(), 6);
    run(2, &["compare", "--engines", "native"]);
    run(2, &["compare", "--i-may-erase", "X"]);
    run(3, &with(&["--engines", "spdk"]));
}

/// Each engine writes to the part of the file that the target names, and nowhere else.
#[test]
fn engines_are_compared_on_a_part_of_a_target() {
    const OFFSET: usize = 4 << 20;
    let (file, target) = blocks();
    let path = file.to_str().unwrap();
    let uring = format!("uring:{path}");
    if !ring_is_here(&uring) {
        return;
    }
    let serial = serial(&target);
    for name in [&target, &uring] {
        std::fs::write(path, vec![0; 2 * OFFSET]).unwrap();
        let part = format!("{name},offset={OFFSET},lba=4096");
        let base = ["compare", "--target", &part, "--engines", "native,uring"];
        let quick = ["--rounds", "1", "--runtime", "50ms", "--ramp-time", "5ms"];
        let erase = ["--json", "-", "--i-may-erase", &serial];
        let value = json(&[&base[..], &quick, &erase].concat());
        let engines = value["engines"].as_array().unwrap();
        assert_eq!(engines.len(), 2);
        for engine in engines {
            assert_eq!(engine["info"]["start_bytes"], OFFSET, "{engine}");
            assert_eq!(engine["info"]["capacity_bytes"], OFFSET, "{engine}");
        }
        let bytes = std::fs::read(path).unwrap();
        let (outside, part) = bytes.split_at(OFFSET);
        assert!(outside.iter().all(|&byte| byte == 0), "{name}");
        assert!(part.iter().any(|&byte| byte != 0), "{name}");
    }
}

/// Whether the kernel opens the target by io_uring; says why not.
pub(super) fn ring_is_here(target: &str) -> bool {
    let info = xtent(&["info", target]);
    let why = String::from_utf8_lossy(&info.stderr).into_owned();
    let possible = !why.contains("io_uring cannot be had") && !why.contains("no direct I/O");
    if !possible {
        println!("SKIPPED: {why}");
    }
    possible
}

#[test]
fn files_and_blocks_through_the_kernel() {
    let Some((image, data)) = prototype_image() else {
        return;
    };
    let path = path_of(&image);
    let (ring, embedded) = (format!("uring:{path}"), format!("image:{path}"));
    if !ring_is_here(&ring) {
        return;
    }
    assert_eq!(run(0, &["cat", &ring, "/data"]).0, data);
    assert_eq!(
        text(&["ls", "-R", &ring, "/"]),
        text(&["ls", "-R", &embedded, "/"])
    );
    let write = [
        "bench",
        &ring,
        "/data",
        "--rw",
        "randwrite",
        "--iodepth",
        "32",
    ];
    run(0, &[&write[..], &["--verify", "--seed", "7"]].concat());
    let read = ["bench", &embedded, "/data", "--rw", "read", "--verify"];
    run(0, &[&read[..], &["--seed", "7"]].concat());
    for wait in ["poll", "interrupt", "adaptive"] {
        let target = format!("{ring},wait={wait},readonly");
        let raw = ["bench", "--raw", &target, "--rw", "randread", "--json"];
        let value = json(&[&raw[..], &["--iodepth", "16", "--number-ios", "500"]].concat());
        assert_eq!(value["jobs"][0]["read"]["total_ios"], 500);
        assert!(
            value["target"]["engine"]
                .as_str()
                .unwrap()
                .contains("io_uring")
        );
    }
    run(2, &["info", &format!("{ring},mdts=5")]);
    run(3, &["info", "uring:/proc/version"]);
}

#[test]
fn a_block_device_is_not_taken_from_others() {
    let Some((image, data)) = prototype_image() else {
        return;
    };
    if !xtent::internals::sys::is_root() {
        println!("SKIPPED: loop devices need root");
        return;
    }
    let losetup = Command::new("losetup")
        .args(["--find", "--show", &path_of(&image)])
        .output()
        .unwrap();
    let device = String::from_utf8(losetup.stdout).unwrap().trim().to_owned();
    if !losetup.status.success() {
        println!(
            "SKIPPED: losetup: {}",
            String::from_utf8_lossy(&losetup.stderr)
        );
        return;
    }
    let detach = Detach(device.clone());
    let target = format!("uring:{device}");
    if !ring_is_here(&target) {
        return;
    }
    assert_eq!(run(0, &["cat", &target, "/data"]).0, data);
    // Another opener has it exclusively, as a mount has.
    let holder = std::os::unix::fs::OpenOptionsExt::custom_flags(
        std::fs::File::options().read(true),
        libc::O_EXCL,
    )
    .open(&device)
    .unwrap();
    let (_, stderr) = run(3, &["info", &target]);
    assert!(stderr.contains("in use"), "{stderr}");
    assert_eq!(
        run(0, &["cat", &format!("{target},inuse"), "/data"]).0,
        data
    );
    drop(holder);
    run(0, &["info", &target]);
    drop(detach);
}

struct Detach(String);

impl Drop for Detach {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}
