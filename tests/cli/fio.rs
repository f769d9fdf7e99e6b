//! `xtent bench` as users and tools of fio meet it: options, JSON, logs.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::common;
use super::{compare_of, json, path_of, prototype_image, run, text};

fn bench<'a>(target: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["bench", target, "/data"], more].concat()
}

fn sum_of_bins(latency: &Value) -> u64 {
    let bins = latency["bins"].as_object().unwrap();
    bins.values().map(|count| count.as_u64().unwrap()).sum()
}

#[test]
fn json_is_read_by_fios_own_tool() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let dir = tempfile::tempdir().unwrap();
    let (source, csv) = (dir.path().join("x.json"), dir.path().join("x.csv"));
    let output = format!("--output={}", source.display());
    let words = "--rw=randrw --iodepth=4 --numjobs=2 --group_reporting=0 --lat_percentiles=1 --slat_percentiles=1 \
                 --output-format=json+";
    let mut args = bench(&target, &words.split_ascii_whitespace().collect::<Vec<_>>());
    args.push(&output);
    let (stdout, _) = run(0, &args);
    assert!(stdout.is_empty(), "it goes to the file alone");
    let value: Value = serde_json::from_slice(&fs::read(&source).unwrap()).unwrap();
    assert_eq!(value["jobs"].as_array().unwrap().len(), 2);
    for job in value["jobs"].as_array().unwrap() {
        for direction in ["read", "write"] {
            for latency in ["slat_ns", "clat_ns", "lat_ns"] {
                let latency = &job[direction][latency];
                assert_eq!(latency["N"], job[direction]["total_ios"]);
                assert_eq!(sum_of_bins(latency), latency["N"].as_u64().unwrap());
            }
        }
    }
    if !common::has_tool("fio_jsonplus_clat2csv") {
        common::skipped("fio_jsonplus_clat2csv is not installed (Debian's package fio)");
        return;
    }
    let convert = |more: &[&str]| {
        let output = Command::new("fio_jsonplus_clat2csv")
            .arg(&source)
            .arg(&csv)
            .args(more)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    convert(&[]);
    let validated = convert(&["--validate"]);
    assert_eq!(validated.matches("validated").count(), 2, "{validated}");
    let lines = fs::read_to_string(dir.path().join("x_job1.csv")).unwrap();
    assert!(lines.lines().count() > 5, "{lines}");
}

/// What fio-plot 1.1 looks up in each file.
#[test]
fn json_has_what_fio_plot_reads() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let value = json(&bench(
        &path_of(&image),
        &["--rw=randread", "--json", "--output=-"],
    ));
    assert!(value["fio version"].is_string());
    let job = &value["jobs"][0];
    for key in ["rw", "bs", "iodepth", "numjobs"] {
        assert!(!job["job options"][key].is_null(), "{key}");
    }
    assert!(job["jobname"].is_string() && job["usr_cpu"].is_number() && job["sys_cpu"].is_number());
    for key in ["bw", "iops", "iops_stddev"] {
        assert!(job["read"][key].is_number(), "{key}");
    }
    for key in ["mean", "stddev"] {
        assert!(job["read"]["lat_ns"][key].is_number(), "{key}");
    }
    for (key, classes) in [("latency_ns", 10), ("latency_us", 10), ("latency_ms", 12)] {
        assert_eq!(job[key].as_object().unwrap().len(), classes);
    }
    assert_eq!(job["trim"]["total_ios"], 0);
    // What every result names.
    for key in [
        "target",
        "controller",
        "wait",
        "memory",
        "hugepages",
        "environment",
    ] {
        assert!(!value[key].is_null(), "{key}");
    }
    assert_eq!(value["interrupted"], false);
}

#[test]
fn latencies_jobs_and_processor_time_are_shown() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let words = "--rw=randrw --numjobs=2 --fsync=16 --percentile_list=50:99.9999 --name=mine";
    let words: Vec<_> = words.split(' ').collect();
    let shown = text(&bench(&target, &words));
    for text in [
        "mine: rw=randrw",
        "slat (",
        "clat (",
        " lat (",
        "sync (",
        "clat percentiles (",
        " 50.0000th=[",
        "cpu: usr=",
        "sys=",
        "  job 1: IOPS=",
        "  job 2: IOPS=",
        "controller: ",
        "waiting by ",
    ] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    // Of a few hundred operations none is a 99.9999th percentile.
    let marked = shown
        .lines()
        .any(|l| l.contains("99.9999th=[") && l.ends_with("]*"));
    assert!(
        marked && shown.contains("too few for this percentile"),
        "{shown}"
    );
    let value = json(&bench(&target, &[&words[..], &["--json"]].concat()));
    let job = &value["jobs"][0];
    assert_eq!(job["jobname"], "mine");
    let clat = &job["read"]["clat_ns"];
    assert_eq!(clat["percentile_too_few_samples"][0], "99.999900");
    let writes = job["write"]["total_ios"].as_u64().unwrap();
    let syncs = job["sync"]["total_ios"].as_u64().unwrap();
    assert!(
        syncs > 0 && syncs <= writes / 16,
        "{syncs} syncs of {writes} writes"
    );
    assert_eq!(job["sync"]["lat_ns"]["N"], syncs);
    let each = job["per_job"].as_array().unwrap();
    let ios = |job: &Value| job["read"]["total_ios"].as_u64().unwrap();
    assert_eq!(each.iter().map(ios).sum::<u64>(), ios(job));
    // In one call there is nothing between submission and completion.
    let value = json(&bench(&target, &["--buffered", "--json"]));
    let read = &value["jobs"][0]["read"];
    assert_eq!(read["slat_ns"]["N"], 0);
    assert_eq!(read["lat_ns"]["mean"], read["clat_ns"]["mean"]);
}

#[test]
fn histogram_logs_have_every_operation() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path().join("log");
    let hlog = dir.path().join("log.hlog");
    let logs = [
        format!("--write_hist_log={}", prefix.display()),
        format!("--write-hlog={}", hlog.display()),
    ];
    let words = ["--rw=randrw", "--numjobs=2", "--log_hist_msec=10", "--json"];
    let value = json(&bench(
        &target,
        &[&words[..], &[&logs[0], &logs[1]]].concat(),
    ));
    for (number, job) in value["jobs"][0]["per_job"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        let log = dir.path().join(format!("log_clat_hist.{}.log", number + 1));
        let mut counts = [0, 0];
        for line in fs::read_to_string(log).unwrap().lines() {
            let fields: Vec<u64> = line.split(", ").map(|n| n.parse().unwrap()).collect();
            // As fio 3.33: time, direction, block size, 29 * 64 buckets.
            assert_eq!((fields.len(), fields[2]), (3 + 29 * 64, 4096));
            counts[usize::try_from(fields[1]).unwrap()] += fields[3..].iter().sum::<u64>();
        }
        assert_eq!(job["read"]["total_ios"], counts[0]);
        assert_eq!(job["write"]["total_ios"], counts[1]);
    }
    percentiles_by_fios_script(dir.path());
    let hlog = fs::read_to_string(hlog).unwrap();
    assert!(
        hlog.starts_with("#[Histogram log format version 1.3]"),
        "{hlog}"
    );
    for tag in ["Tag=read-1,", "Tag=write-1,", "Tag=read-2,", "Tag=write-2,"] {
        assert!(
            hlog.lines().any(|line| line.starts_with(tag)),
            "{tag}: {hlog}"
        );
    }
    run(1, &bench(&target, &["--write-hlog=/no/such/directory/x"]));
    // Nothing of the ramp time.
    let words = "--ramp_time=200ms --runtime=300ms --time_based --log_hist_msec=50 --json";
    let words: Vec<_> = words.split(' ').chain([&logs[0][..]]).collect();
    let value = json(&bench(&target, &words));
    let mut count = 0;
    let log = fs::read_to_string(dir.path().join("log_clat_hist.1.log")).unwrap();
    for line in log.lines() {
        let buckets = line.split(", ").skip(3).map(|n| n.parse::<u64>().unwrap());
        count += buckets.sum::<u64>();
    }
    assert_eq!(value["jobs"][0]["read"]["total_ios"], count);
}

/// Has the script that Debian's fio brings read both logs.
fn percentiles_by_fios_script(dir: &Path) {
    let packed = "/usr/share/doc/fio/fio-histo-log-pctiles.py.gz";
    if !Path::new(packed).is_file() || !common::has_tool("python3") {
        common::skipped("fio-histo-log-pctiles.py is not installed (Debian's package fio)");
        return;
    }
    let script = dir.join("pctiles.py");
    let unpacked = Command::new("gzip").args(["-dc", packed]).output().unwrap();
    fs::write(&script, unpacked.stdout).unwrap();
    let output = Command::new("python3")
        .arg(&script)
        .args(["--fio-version", "3", "--time-quantum", "1"])
        .args([1, 2].map(|job| dir.join(format!("log_clat_hist.{job}.log"))))
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    let lines = shown
        .lines()
        .skip_while(|line| !line.starts_with("msec-since-start"));
    let samples = lines.skip(1).filter_map(|line| {
        let samples = line.split(',').nth(1)?;
        samples.trim().parse::<u64>().ok()
    });
    assert!(samples.sum::<u64>() > 0, "{shown}");
}

#[test]
fn jobs_run_on_the_cpus_that_are_allowed() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let first = allowed.unwrap().trim().split([',', '-']).next().unwrap();
    run(0, &bench(&target, &[&format!("--cpus_allowed={first}")]));
    let (_, stderr) = run(2, &bench(&target, &["--cpus-allowed=8000"]));
    assert!(stderr.contains("--cpus-allowed"), "{stderr}");
    run(2, &bench(&target, &["--cpus-allowed=x"]));
}

#[test]
fn options_and_job_files_that_only_fio_has_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let job = dir.path().join("load.fio");
    fs::write(&job, "[global]\nrw=read\n").unwrap();
    let job = job.to_str().unwrap();
    for (args, words) in [
        (
            &["x.img", "/data", "--rate=1m"][..],
            "--rate is an option of fio",
        ),
        (&["x.img", "/data", "--rate_iops", "100"], "run fio itself"),
        (
            &["x.img", "/data", "--random_distribution=zipf:1.2"],
            "run fio itself",
        ),
        (
            &["x.img", "/data", "--bssplit=4k/50:8k/50"],
            "run fio itself",
        ),
        (&["x.img", "--filename=/data"], "xtent bench TARGET PATH"),
        (
            &["x.img", "/data", "--ioengine=libaio"],
            "the target chooses the engine",
        ),
        (&[job], "reads no job files"),
        (&[job, "--rw=read"], "reads no job files"),
        (&[job, "/data"], "reads no job files"),
    ] {
        let (_, stderr) = run(2, &[&["bench"], args].concat());
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }
    let (_, stderr) = run(2, &["bench", "x.img", "/data", "--frobnicate"]);
    assert!(
        stderr.contains("unexpected argument '--frobnicate'"),
        "{stderr}"
    );
}

#[test]
fn the_help_lists_the_differences_from_fio() {
    let help = text(&["bench", "--help"]);
    for word in [
        "Differences from fio",
        "--rate",
        "--verify is a flag",
        "job files",
        "--percentile-list",
        "--write-hist-log",
        "Ctrl-C",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
}

#[test]
fn progress_has_units() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    if !common::has_tool("script") {
        common::skipped("script (a terminal for the command) is not installed");
        return;
    }
    let command = format!(
        "{} bench {} /data --rw=randread --runtime=4 --time_based",
        env!("CARGO_BIN_EXE_xtent"),
        path_of(&image)
    );
    let output = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown}");
    let line = shown.split(['\r', '\n']).find(|line| line.contains("ETA"));
    let line = line.unwrap_or_else(|| panic!("no progress: {shown}"));
    for word in ["randread: ", " IOPS, ", "B/s, ETA "] {
        assert!(line.contains(word), "{line}");
    }
}

#[test]
fn durable_writes_and_syncs_are_those_of_fio() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    for (words, options, syncs) in [
        ("--sync=dsync", [("sync", "dsync"), ("touch", "false")], 0),
        ("--sync=1 --fsync=1", [("sync", "sync"), ("fsync", "1")], 40),
        (
            "--fdatasync=8 --touch --numjobs=2",
            [("fdatasync", "8"), ("touch", "true")],
            10,
        ),
    ] {
        let all = format!("--rw=randwrite --number_ios=40 --json {words}");
        let value = json(&bench(&target, &all.split(' ').collect::<Vec<_>>()));
        let job = &value["jobs"][0];
        for (name, expected) in options {
            let value = job["job options"][name].to_string();
            assert_eq!(value.trim_matches('"'), expected, "{words}: {name}");
        }
        assert_eq!(job["sync"]["total_ios"], syncs, "{words}");
    }
    for wrong in [
        "--sync=dsync",
        "--rw=write --touch",
        "--rw=write --fsync=1 --fdatasync=1",
        "--rw=write --file-append",
        "--rw=randwrite --file-append --size=4k",
        "--rw=randrw --fallocate=none",
        "--rw=write --fallocate=posix --raw",
    ] {
        run(2, &bench(&target, &wrong.split(' ').collect::<Vec<_>>()));
    }
    image.assert_clean();
}

#[test]
fn compare_has_workloads_that_wait_for_the_log() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let short = "--no-kernel --rounds=1 --runtime=50ms --ramp-time=0 --json=- --workloads";
    let short: Vec<_> = short.split(' ').collect();
    let value = json(&[&compare_of(&target)[..], &short, &["sync"]].concat());
    let rows = value["workloads"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0]["job options"]["sync"], "dsync");
    assert_eq!(rows[2]["job options"]["numjobs"], 4);
    let syncs = |row: &Value| row["xtent"]["rounds"][0]["sync"]["total_ios"].as_u64();
    assert!(syncs(&rows[2]) > syncs(&rows[0]), "{rows:?}");
    let mut checks = value["checks"].as_array().unwrap().iter();
    assert!(checks.all(|check| check["good"] == true), "{value}");
    let (_, stderr) = run(1, &[&compare_of(&target)[..], &short, &["grow"]].concat());
    assert!(stderr.contains("--grow-file"), "{stderr}");
}

#[test]
fn compare_has_workloads_that_allocate() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    if !common::kernel_is_here() {
        return;
    }
    let mount = image.mount("");
    fs::write(mount.path().join("grow"), "text").unwrap();
    mount.unmount();
    let target = path_of(&image);
    let words =
        "--rounds=1 --runtime=50ms --ramp-time=0 --json=- --workloads=grow --grow-file=/grow";
    let words: Vec<_> = words.split(' ').collect();
    let value = json(&[&compare_of(&target)[..], &words].concat());
    let rows = value["workloads"].as_array().unwrap();
    assert_eq!(rows.len(), 5);
    for row in rows {
        let operations = |side: &str| row[side]["rounds"][0]["write"]["total_ios"].as_u64();
        assert!(operations("kernel") > Some(0), "{row}");
        let is_skipped = !row["xtent skipped"].is_null();
        assert!(is_skipped || operations("xtent") > Some(0), "{row}");
    }
    let mut checks = value["checks"].as_array().unwrap().iter();
    assert!(checks.all(|check| check["good"] == true), "{value}");
}
