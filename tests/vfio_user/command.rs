//! `xtent serve vfio-user`, as a user runs it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use super::common::{kernel_is_here, run};

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
