//! One signal ends every command, whatever it waits for.

use std::fs::File;
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
