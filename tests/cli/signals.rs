//! One signal ends every command, whatever it waits for.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::common;
use super::{path_of, prototype_image};

fn start(args: &[&str], stdout: Stdio) -> Child {
    Command::new(env!("CARGO_BIN_EXE_xtent"))
        .args(args)
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Sends one signal, and waits; the process is killed where that was not enough.
fn end(mut child: Child, signal: i32) -> ExitStatus {
    // Past its start, and in whatever it waits for.
    std::thread::sleep(Duration::from_millis(700));
    assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
    let name = if signal == libc::SIGINT {
        "-INT"
    } else {
        "-TERM"
    };
    common::run("kill", &[name, &child.id().to_string()]);
    let hang_limit = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > hang_limit {
            child.kill().unwrap();
            panic!("still there 30 s after one signal");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_command_that_writes_to_a_full_pipe_ends() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut child = start(&["cat", &target, "/data"], Stdio::piped());
        // Held open, and nothing is read.
        let pipe = child.stdout.take();
        let status = end(child, signal);
        assert_eq!(status.code(), Some(128 + signal), "{status}");
        drop(pipe);
    }
}

#[test]
fn a_command_that_waits_for_a_fifo_or_a_server_ends() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let dir = image.path().parent().unwrap().to_owned();
    let fifo = dir.join("fifo").to_str().unwrap().to_owned();
    common::run("mkfifo", &[&fifo]);
    // What need not wait says so.
    let target = path_of(&image);
    let put = Command::new(env!("CARGO_BIN_EXE_xtent"))
        .args(["put", &fifo, &target, "/data"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&put.stderr).into_owned();
    assert!(
        put.status.code() == Some(1) && stderr.contains("not a regular file"),
        "{stderr}"
    );
    let child = start(&["ls", &format!("ram:64M,load={fifo}")], Stdio::null());
    let hung = {
        let mut child = child;
        std::thread::sleep(Duration::from_millis(300));
        (child.try_wait().unwrap().is_none()).then_some(child)
    };
    if let Some(child) = hung {
        assert_eq!(end(child, libc::SIGTERM).code(), Some(128 + libc::SIGTERM));
    }
    // A server that accepts, and is silent.
    let socket = dir.join("silent");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let target = format!("vfio-user:{}", socket.display());
    let child = start(&["ls", &target], Stdio::null());
    let (stream, _) = listener.accept().unwrap();
    let status = end(child, libc::SIGTERM);
    assert_eq!(status.code(), Some(128 + libc::SIGTERM), "{status}");
    assert!(status.signal().is_none());
    drop(stream);
}

/// Starts it with its output kept, interrupts it while it measures, and returns what it printed.
fn interrupted_output(args: &[&str]) -> String {
    // On a busy machine it may take a while until something is measured: then there are no results
    // yet.
    for seconds in [0, 1, 4, 16, 40] {
        let mut child = start(args, Stdio::piped());
        let mut stdout = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            text
        });
        std::thread::sleep(Duration::from_secs(seconds));
        let status = end(child, libc::SIGINT);
        assert_eq!(status.code(), Some(130), "{status}");
        let text = reader.join().unwrap();
        if !text.is_empty() {
            return text;
        }
    }
    panic!("no results: {args:?}");
}

#[test]
fn an_interrupted_measurement_shows_the_results_so_far() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let long = ["--runtime", "600"];
    for rw in ["--rw=randread", "--rw=randwrite"] {
        let bench = [&["bench", &target, "/data", "--time_based", rw], &long[..]].concat();
        let text = interrupted_output(&bench);
        assert!(
            text.contains("INTERRUPTED after") && text.contains("IOPS="),
            "{text}"
        );
        let text = interrupted_output(&[&bench[..], &["--json"]].concat());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["interrupted"], true);
        let job = &value["jobs"][0];
        let ios = |name: &str| job[name]["total_ios"].as_u64().unwrap();
        assert!(ios("read") + ios("write") > 0);
    }
    let files = ["--read-file", "/data", "--write-file", "/dir/copy"];
    let compare = [
        "compare",
        "--image",
        &target,
        "--ramp-time",
        "0",
        "--no-kernel",
    ];
    let compare = [&compare[..], &files, &long].concat();
    let text = interrupted_output(&compare);
    assert!(text.starts_with("INTERRUPTED"), "{text}");
    assert!(text.contains("4k random read, depth 1*"), "{text}");
    let text = interrupted_output(&[&compare[..], &["--json", "-"]].concat());
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["interrupted"], true);
    let round = &value["workloads"][0]["xtent"]["rounds"][0];
    assert_eq!(round["interrupted"], true);
    assert!(round["read"]["total_ios"].as_u64() > Some(0));
    let engines = ["compare", "--engines", "native", "--target", &target];
    let engines = [&engines[..], &long, &["--json", "-"]].concat();
    let value: serde_json::Value = serde_json::from_str(&interrupted_output(&engines)).unwrap();
    assert_eq!(value["interrupted"], true);
}

#[test]
fn a_load_ends_in_order() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let args = [
        "bench",
        &target,
        "/data",
        "--rw",
        "randread",
        "--runtime",
        "600",
        "--time-based",
    ];
    let child = start(&args, Stdio::null());
    assert_eq!(end(child, libc::SIGINT).code(), Some(130));
    // Nothing holds the image any more.
    drop(File::open(image.path()).unwrap());
    super::run(0, &["ls", &target]);
}
