//! `xtent bench` in the words that it shares with fio, and what it says of the file under load.

use serde_json::Value;

use super::common;
use super::{json, path_of, prototype_image, run};

const BYTES: u64 = 3_000_000;

fn bench(target: &str, more: &[&str]) -> Value {
    json(&[&["bench", target, "/data", "--json"], more].concat())["jobs"][0].clone()
}

/// Reads and writes that it did.
fn counts(target: &str, more: &[&str]) -> (u64, u64) {
    let job = bench(target, more);
    let of = |name: &str| job[name]["total_ios"].as_u64().unwrap();
    (of("read"), of("write"))
}

#[test]
fn words_mean_what_they_mean_to_fio() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let pass = BYTES / 4096;
    for (words, reads) in [
        ("--rw=randread --number_ios=0", pass),
        ("--rw=randread --runtime=0", pass),
        ("--rw=read --size=50%", BYTES / 2 / 4096),
        ("--rw=read --size=0", pass),
        ("--rw=read --bs=0x1000", pass),
        ("--rw=read --bs=128k --runtime=600", BYTES >> 17),
        (
            "--rw=read --runtime=600 --time_based --number_ios=2000",
            2000,
        ),
        ("--rw=read --numjobs=3", 3 * pass),
        ("--rw=randread --numjobs=2 --number_ios=100", 200),
        ("--rw=read --ramp_time=0 --number-ios=7", 7),
        ("--readwrite=randread --blocksize=4k", pass),
        (
            "--rw=randread --runtime=600 --time_based=1 --number_ios=9",
            9,
        ),
        ("--rw=read --runtime=600 --time-based=0", pass),
        ("--rw=read --offset=1m", (BYTES - (1 << 20)) / 4096),
        ("--rw=randread --offset=1m --size=64k", 16),
        // Of the whole file, down to a block.
        ("--rw=read --offset=50% --size=25%", BYTES / 4 / 4096),
        ("--rw=read --direct=1 --buffered=0 --group_reporting", pass),
        ("--rw=read --direct=0", pass),
        ("--rw=readwrite --rwmixwrite=0", pass),
    ] {
        let words: Vec<_> = words.split(' ').collect();
        assert_eq!(counts(&target, &words), (reads, 0), "{words:?}");
    }
    run(2, &["bench", &target, "/data", "--time-based"]);
    run(2, &["bench", &target, "/data", "--size", "101%"]);
    for beyond in ["--offset=3m", "--offset=100"] {
        run(2, &["bench", &target, "/data", beyond]);
    }
    run(2, &["bench", &target, "/data", "--offset=1m", "--size=2m"]);
    run(2, &["bench", "--raw", &target, "--buffered"]);
}

#[test]
fn figures_are_whole_numbers_and_those_of_the_samples() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let job = bench(&path_of(&image), &["--rw=randread", "--number-ios=1"]);
    let read = &job["read"];
    let clat = &read["clat_ns"];
    assert_eq!(clat["min"].as_f64(), clat["mean"].as_f64());
    assert_eq!(clat["min"], clat["max"]);
    for field in ["bw", "bw_bytes", "io_bytes", "runtime", "total_ios"] {
        assert!(read[field].is_u64(), "{field}: {}", read[field]);
    }
}

#[test]
fn a_load_within_its_ramp_is_counted_and_said() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let args = [
        "bench",
        &target,
        "/data",
        "--number-ios",
        "10",
        "--ramp-time",
        "600",
    ];
    let (stdout, stderr) = run(0, &args);
    assert!(stderr.contains("--ramp-time"), "{stderr}");
    assert!(String::from_utf8_lossy(&stdout).contains("10 operations"));
}

#[test]
fn several_jobs_leave_no_block_out_and_verify_their_own() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let write = [
        "bench",
        &target,
        "/data",
        "--rw",
        "write",
        "--verify",
        "--numjobs",
        "3",
    ];
    run(0, &write);
    run(0, &["bench", &target, "/data", "--rw", "read", "--verify"]);
    // From an offset, too.
    let part = ["--rw=randrw", "--verify", "--offset=1m", "--seed=7"];
    run(0, &[&["bench", &target, "/data"], &part[..]].concat());
    let part = ["--rw=read", "--verify", "--size=1m"];
    run(0, &[&["bench", &target, "/data"], &part[..]].concat());
    run(0, &write);
    // What no job wrote is not looked at.
    let some = [
        "--rw",
        "randwrite",
        "--verify",
        "--number-ios",
        "10",
        "--seed",
        "9",
    ];
    run(0, &[&["bench", &target, "/data"], &some[..]].concat());
    let (_, stderr) = run(
        4,
        &[
            "bench", &target, "/data", "--rw", "read", "--verify", "--bs", "8k",
        ],
    );
    assert!(stderr.contains("blocks of 4096 bytes"), "{stderr}");
}

#[test]
fn holes_and_preallocated_blocks_are_said() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let (_, stderr) = run(0, &["bench", &path_of(&image), "/data"]);
    assert!(!stderr.contains("holes"), "{stderr}");
    if !common::kernel_is_here() || !common::has_tool("xfs_io") {
        common::skipped("holes are made by the kernel and xfs_io");
        return;
    }
    let mount = image.mount("");
    let file = |name: &str| mount.path().join(name).to_str().unwrap().to_owned();
    common::run(
        "xfs_io",
        &[
            "-f",
            "-c",
            "truncate 8m",
            "-c",
            "pwrite -q 0 1m",
            &file("sparse"),
        ],
    );
    common::run("xfs_io", &["-f", "-c", "falloc 0 8m", &file("falloc")]);
    mount.unmount();
    let target = path_of(&image);
    for (path, words, hole, unwritten) in [
        ("/sparse", "7.00 MiB are holes", 7 << 20, 0),
        ("/falloc", "8.00 MiB are preallocated", 0, 8 << 20),
    ] {
        let (stdout, stderr) = run(0, &["bench", &target, path, "--json"]);
        assert!(stderr.contains(words), "{stderr}");
        let value: Value = serde_json::from_slice(&stdout).unwrap();
        assert_eq!(value["hole_bytes"], hole);
        assert_eq!(value["unwritten_bytes"], unwritten);
    }
    let (_, stderr) = run(0, &["bench", &target, "/sparse", "--size", "1m"]);
    assert!(!stderr.contains("holes"), "{stderr}");
    let (_, stderr) = run(0, &["bench", &target, "/sparse", "--offset", "1m"]);
    assert!(stderr.contains("7.00 MiB are holes"), "{stderr}");
}

/// Ends a process, however the test ends.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn load_of_other_programs_is_said() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let busy = || {
        let mut shell = std::process::Command::new("sh");
        Killed(shell.args(["-c", "while :; do :; done"]).spawn().unwrap())
    };
    let cpus = std::thread::available_parallelism().unwrap().get();
    let others: Vec<Killed> = (0..cpus).map(|_| busy()).collect();
    let words = ["--rw=randread", "--runtime=1", "--time_based", "--json"];
    let target = path_of(&image);
    let args = [&["bench", &target, "/data"], &words[..]].concat();
    let (stdout, stderr) = run(0, &args);
    drop(others);
    assert!(
        stderr.contains("other programs used") && stderr.contains("results may be unreliable"),
        "{stderr}"
    );
    let value: Value = serde_json::from_slice(&stdout).unwrap();
    let used = &value["cpus_used"];
    let of = |name: &str| used[name].as_f64().unwrap();
    assert!(of("machine_cpus") > of("process_cpus"), "{used}");
}
