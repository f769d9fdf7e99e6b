//! Files through the page cache, as the command has it.

use serde_json::Value;

use super::{common, compare_of, json, path_of, prototype_image, run};

#[test]
fn cat_and_stat_read_through_the_cache() {
    let Some((image, data)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let args = [
        "cat",
        &target,
        "/data",
        "/dir/copy",
        "--buffered",
        "--cache-stats",
    ];
    let (stdout, stderr) = run(0, &args);
    assert!(stdout == [&data[..], &data].concat());
    assert!(stderr.contains("read ahead"), "{stderr}");
    run(2, &["cat", &target, "/data", "--cache-stats"]);
    let value = json(&["stat", &target, "--cache", "--json", "/data", "/dir"]);
    let cache = &value[0]["cache"];
    assert_eq!(
        value[0]["size"].as_u64().or(value[0]["len_bytes"].as_u64()),
        Some(3_000_000)
    );
    let pages = |name: &str| cache[name].as_u64().unwrap();
    assert_eq!(
        pages("misses") + pages("ahead"),
        3_000_000_u64.div_ceil(4096)
    );
    assert_eq!(pages("ahead_used"), pages("ahead"));
    assert!(value[1]["cache"].is_null());
    let (stdout, _) = run(0, &["stat", &target, "--cache", "/data"]);
    let stdout = String::from_utf8(stdout).unwrap();
    assert!(
        stdout.contains("used") && stdout.contains("(100.0 %)"),
        "{stdout}"
    );
}

#[test]
fn bench_goes_through_the_cache_and_syncs() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let bench = |more: &[&str]| -> Vec<String> {
        let args = ["bench", &target, "/data", "--buffered", "--memory", "1m"];
        let args = args.iter().chain(more);
        args.map(|arg| (*arg).to_owned()).collect()
    };
    // A cache of a third of the file, and writes of odd sizes.
    let value = json(&bench(&[
        "--rw",
        "randwrite",
        "--bs",
        "777",
        "--fsync",
        "500",
        "--json",
    ]));
    let job = &value["jobs"][0];
    assert_eq!(job["write"]["total_ios"], 3_000_000 / 777);
    assert_eq!(job["job options"]["fsync"], 500);
    let cache = &value["cache"];
    assert_eq!(cache["dirty_pages"], 0);
    assert!(cache["evicted"].as_u64() > Some(0) && cache["written_back"].as_u64() > Some(0));
    assert!(cache["limit_bytes"].as_u64() == Some(1 << 20));
    let (stdout, _) = run(
        0,
        &bench(&[
            "--rw",
            "randrw",
            "--verify",
            "--cache-stats",
            "--numjobs",
            "2",
        ]),
    );
    let stdout = String::from_utf8(stdout).unwrap();
    assert!(stdout.contains("read back and right"), "{stdout}");
    assert!(
        stdout.contains("buffered I/O") && stdout.contains("  Page cache: 1.00"),
        "{stdout}"
    );
    // Past the cache, with syncs between.
    let direct = [
        "bench",
        &target,
        "/data",
        "--rw",
        "write",
        "--iodepth",
        "8",
        "--fsync",
        "100",
        "--json",
    ];
    assert!(json(&direct)["cache"].is_null());
    for wrong in [
        &["--iodepth", "2"][..],
        &["--bs", "100", "--verify"],
        &["--raw"],
    ] {
        run(2, &bench(wrong));
    }
    run(2, &["bench", &target, "/data", "--memory", "1m"]);
}

#[test]
fn compare_goes_through_both_caches() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    if !common::kernel_is_here() {
        return;
    }
    let target = path_of(&image);
    let compare = |more: &[&str]| -> Value {
        let short = [
            "--rounds",
            "1",
            "--runtime",
            "50ms",
            "--ramp-time",
            "0",
            "--json",
            "-",
            "--buffered",
        ];
        json(&[&compare_of(&target)[..], &short, more].concat())
    };
    let value = compare(&[]);
    assert_eq!(
        value["checks"].as_array().unwrap().len(),
        5,
        "{}",
        value["checks"]
    );
    let kernel = value["workloads"][0]["kernel"]["engine"].as_str().unwrap();
    assert!(kernel.contains("page cache"), "{kernel}");
    assert!(value["workloads"][6]["times better"]["IOPS"].is_number());
    let value = compare(&["--fsync", "16", "--memory", "2m"]);
    assert_eq!(
        (&value["cache_bytes"], &value["fsync"]),
        (&(2 << 20).into(), &16.into())
    );
    // Limited, or it is said why not.
    let behind = value["behind"]["kernel"].as_str().unwrap();
    let limited = value["kernel not limited"].is_null();
    assert_eq!(limited, behind.contains("by a cgroup"), "{behind}");
    assert_eq!(!limited, behind.contains("NOT limited"), "{behind}");
}
