//! Targets without a filesystem: `bench --raw`.

use super::{json, run};

/// A file of 8 MiB that is no filesystem, behind the embedded controller.
fn blocks() -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(8 << 20).unwrap();
    let target = format!("image:{}", file.path().to_str().unwrap());
    (file, target)
}

#[test]
fn raw_blocks_are_measured_and_written_only_when_named() {
    let (file, target) = blocks();
    let base = ["bench", "--raw", &target, "--bs", "4k", "--iodepth", "16"];
    let with = |more: &[&'static str]| [&base[..], more].concat();

    let value = json(&with(&["--rw", "randread", "--json", "--numjobs", "2"]));
    assert_eq!(value["filesystem"], false);
    let read = &value["jobs"][0]["read"];
    assert_eq!(read["total_ios"], 2048);
    assert!(read["clat_ns"]["percentile"]["99.900000"].as_u64() > Some(0));

    let (_, stderr) = run(2, &with(&["--rw", "write"]));
    assert!(stderr.contains("--i-may-erase"), "{stderr}");
    let (_, stderr) = run(2, &with(&["--rw", "write", "--i-may-erase", "OTHER"]));
    assert!(stderr.contains("nothing was written"), "{stderr}");
    let zeroes = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    assert!(zeroes(&std::fs::read(file.path()).unwrap()));

    let verified = ["--verify", "--seed", "3", "--i-may-erase", "XTENT0001"];
    let (_, stderr) = run(0, &with(&[&["--rw", "write"], &verified[..]].concat()));
    assert!(stderr.contains("overwrites all"), "{stderr}");
    let written = std::fs::read(file.path()).unwrap();
    assert!(written.chunks(4096).all(|block| !zeroes(block)));
    run(0, &with(&["--rw", "randread", "--verify", "--seed", "3"]));
    run(4, &with(&["--rw", "read", "--verify", "--seed", "4"]));
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
