//! `xtent serve vfio-user`, as a user runs it.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Output, Stdio};

use xtent::internals::block::Status;

use super::common::{kernel_is_here, run};
use super::raw::{Raw, memory};
use super::{PLENTY, drive, fill};

const XTENT: &str = env!("CARGO_BIN_EXE_xtent");

/// Any file that is there.
const LOCAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

/// A server that is killed, should a test leave it behind.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn xtent(args: &[&str]) -> Output {
    Command::new(XTENT).args(args).output().unwrap()
}

fn serve(args: &[&str]) -> (Server, BufReader<std::process::ChildStderr>) {
    let mut command = Command::new(XTENT);
    command.args(["serve", "vfio-user"]).args(args);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    (Server(child), stderr)
}

fn line(stderr: &mut BufReader<std::process::ChildStderr>) -> String {
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    line
}

fn terminate(Server(child): &mut Server) -> i32 {
    let pid = i32::try_from(child.id()).unwrap();
    run("kill", &["-TERM", &pid.to_string()]);
    child.wait().unwrap().code().unwrap_or(-1)
}

#[test]
fn a_volume_of_another_process_is_opened_and_the_server_ends_orderly() {
    if !kernel_is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(320 << 20).unwrap();
    // An image that another process has open is refused.
    drop(file);
    run("mkfs.xfs", &["-q", image.to_str().unwrap()]);
    let socket = dir.path().join("cntrl");
    let (socket_text, media) = (
        socket.to_str().unwrap(),
        format!("image:{}", image.display()),
    );
    let (mut child, mut stderr) = serve(&[socket_text, "--media", &media, "--serial", "S1"]);
    let said = line(&mut stderr);
    assert!(
        said.contains("serving image:") && said.contains(socket_text),
        "{said}"
    );

    let target = format!("vfio-user:{}", dir.path().display());
    let info = xtent(&["info", &target]);
    let text = String::from_utf8_lossy(&info.stdout).into_owned();
    assert!(
        info.status.success(),
        "{}",
        String::from_utf8_lossy(&info.stderr)
    );
    assert!(
        text.contains("serial S1") && text.contains("filesystem  xfs"),
        "{text}"
    );
    assert!(xtent(&["ls", &target, "/"]).status.success());
    assert!(line(&mut stderr).contains("has connected"));
    assert!(line(&mut stderr).contains("has left"));

    let second = xtent(&["serve", "vfio-user", socket_text, "--media", "ram:1M"]);
    assert_eq!(second.status.code(), Some(3), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains("another server"));
    // The image is held meanwhile.
    assert_eq!(xtent(&["put", LOCAL, &media, "/x"]).status.code(), Some(3));

    assert_eq!(terminate(&mut child), 0);
    assert!(!socket.exists());
    let gone = xtent(&["info", &target]);
    assert_eq!(gone.status.code(), Some(3), "{gone:?}");
    let words = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(words.contains("no socket"), "{words}");
}

#[test]
fn a_socket_that_a_server_left_behind_is_replaced_and_a_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("cntrl");
    let text = dir.path().to_str().unwrap();
    let (mut child, mut stderr) = serve(&[text, "--media", "ram:1M"]);
    line(&mut stderr);
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    assert!(socket.exists());
    let (mut child, mut stderr) = serve(&[text, "--media", "ram:1M,lba=4096"]);
    let said = line(&mut stderr);
    assert!(said.contains("blocks of 4096"), "{said}");
    assert_eq!(terminate(&mut child), 0);
    std::fs::write(&socket, "a file").unwrap();
    let refused = xtent(&["serve", "vfio-user", text, "--media", "ram:1M"]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert_eq!(std::fs::read(&socket).unwrap(), b"a file");
    let wrong = xtent(&["serve", "vfio-user", text, "--media", "pci:01:00.0"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("only image: and ram:"));
}

#[test]
fn the_socket_has_the_mode_that_was_asked_for_and_refused_memory_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, text) = (dir.path().join("cntrl"), dir.path().to_str().unwrap());
    let arguments = [
        text,
        "--media",
        "ram:1M",
        "--mode",
        "640",
        "--client-memory",
        "64k",
    ];
    let (mut child, mut stderr) = serve(&arguments);
    let said = line(&mut stderr);
    assert!(said.contains("may lend up to 64.0 KiB"), "{said}");
    assert_eq!(socket.metadata().unwrap().mode() & 0o7777, 0o640);
    let mut raw = Raw::greeted(&socket);
    let lent = memory(1 << 20);
    assert_eq!(
        raw.map(Some(lent.as_fd()), 0x10_0000, 1 << 20),
        Err(libc::ENOMEM)
    );
    let refused = loop {
        let said = line(&mut stderr);
        if said.contains("refused") || said.is_empty() {
            break said;
        }
    };
    assert!(
        refused.contains("1.00 MiB of the client's at 0x100000: the client would lend more"),
        "{refused}"
    );
    drop(raw);
    assert_eq!(terminate(&mut child), 0);
    for bad in ["rw", "1777", "999"] {
        let refused = xtent(&[
            "serve",
            "vfio-user",
            text,
            "--media",
            "ram:1M",
            "--mode",
            bad,
        ]);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    }
}

#[test]
fn a_connection_that_is_lost_is_reported_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().to_str().unwrap();
    let (mut child, mut stderr) = serve(&[text, "--media", "ram:8M"]);
    line(&mut stderr);
    let target = format!("vfio-user:{text}");
    let mut bench = Command::new(XTENT);
    bench.args([
        "bench",
        "--raw",
        &target,
        "--runtime",
        "600",
        "--time-based",
    ]);
    let bench = bench.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    while !line(&mut stderr).contains("connected") {}
    std::thread::sleep(std::time::Duration::from_secs(1));
    child.0.kill().unwrap();
    let ended = bench.unwrap().wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success(), "{said}");
    // It may not have come so far within the second; then the error itself says so.
    let told = "the connection to the controller's server is lost";
    assert!(said.contains(told) || said.contains("open"), "{said}");
    assert!(said.contains("the connection was closed"), "{said}");
}

#[test]
fn memory_that_cannot_be_had_fails_the_write_and_not_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().to_str().unwrap();
    // Enough for the process and its threads, but not for written blocks.
    let limit = format!("ulimit -v 600000; exec \"$0\" serve vfio-user {text} --media ram:4G");
    let mut command = Command::new("sh");
    command.args(["-c", &limit, XTENT]).stderr(Stdio::piped());
    let mut child = Server(command.spawn().unwrap());
    let mut stderr = BufReader::new(child.0.stderr.take().unwrap());
    let said = line(&mut stderr);
    assert!(said.contains("serving"), "{said}");
    let status = fill(&dir.path().join("cntrl"), 4 << 30, 2 << 20).unwrap();
    let capacity_exceeded = Status::Device { sct: 0, sc: 0x81 };
    assert_eq!(status, Some(capacity_exceeded));
    // What there is room for still works.
    drive(&dir.path().join("cntrl"), PLENTY, 1).unwrap();
    assert_eq!(terminate(&mut child), 0);
}
