//! Limits of the process: an error that names the limit; no hang, no panic, no abort.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use super::common;
use super::common::image::Image;
use super::{path_of, prototype_image};

const UNPRIVILEGED: u32 = 65_534;

/// An image that any user may open.
fn open_image() -> Option<Image> {
    let (image, _) = prototype_image()?;
    let path = image.path();
    for (path, mode) in [(path.parent().unwrap(), 0o755), (&path, 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    Some(image)
}

/// Runs the command below limits of the shell, as a user without rights; `None` where that cannot
/// be.
fn limited(limits: &str, args: &[&str]) -> Option<Output> {
    let mut command = Command::new("bash");
    command
        .args(["-c", &format!("{limits}; exec \"$@\""), "sh"])
        .arg(env!("CARGO_BIN_EXE_xtent"))
        .args(args);
    if common::is_root() {
        command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
    }
    let output = command.output().unwrap();
    let code = output.status.code();
    if code == Some(126) || code == Some(127) {
        common::skipped("another user cannot run the command");
        return None;
    }
    Some(output)
}

/// It ended by itself; its exit status and what it said.
fn ended(output: &Output, args: &[&str]) -> (i32, String) {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    let code = code.unwrap_or_else(|| panic!("{args:?}: {:?}: {stderr}", output.status));
    (code, stderr)
}

#[test]
fn threads_that_cannot_be_started_are_an_error() {
    if !common::is_root() {
        // Other processes of this user would count.
        common::skipped("a user without other processes needs root");
        return;
    }
    let Some(image) = open_image() else { return };
    let target = path_of(&image);
    let out = image.path().parent().unwrap().join("out");
    fs::create_dir(&out).unwrap();
    fs::set_permissions(&out, fs::Permissions::from_mode(0o777)).unwrap();
    let out = out.to_str().unwrap().to_owned();
    let (inline, threaded) = (
        format!("image:{target},inline"),
        format!("image:{target},threaded"),
    );
    let bench = |target| {
        [
            "bench",
            target,
            "/data",
            "--numjobs",
            "16",
            "--number-ios",
            "5",
        ]
    };
    for most in [1, 2, 3, 5, 9] {
        let limits = format!("ulimit -u {most}");
        for args in [&bench(&inline), &bench(&threaded)] {
            let Some(output) = limited(&limits, args) else {
                return;
            };
            let (code, stderr) = ended(&output, args);
            assert!(
                code != 0 && stderr.contains("ulimit -u"),
                "{code}: {stderr}"
            );
        }
        let get = ["get", "-rf", &inline, "/", &out];
        let Some(output) = limited(&limits, &get) else {
            return;
        };
        assert_eq!(ended(&output, &get).0, 0);
    }
}

#[test]
fn buffers_are_added_up_before_they_are_taken() {
    let Some(image) = open_image() else { return };
    let target = path_of(&image);
    let args = [
        "bench",
        &target,
        "/data",
        "--numjobs",
        "8",
        "--bs",
        "1m",
        "--iodepth",
        "1024",
    ];
    let args = [&args[..], &["--number-ios", "5"]].concat();
    let Some(output) = limited("ulimit -v 1048576", &args) else {
        return;
    };
    let (code, stderr) = ended(&output, &args);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("the buffers need 8.00 GiB"), "{stderr}");
}

#[test]
fn io_uring_names_descriptors_and_locked_memory() {
    let Some(image) = open_image() else { return };
    let target = format!("uring:{},readonly", path_of(&image));
    let args = [
        "bench",
        &target,
        "/data",
        "--numjobs",
        "16",
        "--number-ios",
        "5",
    ];
    let Some(output) = limited("ulimit -n 100", &args) else {
        return;
    };
    let (code, stderr) = ended(&output, &args);
    if code != 0 {
        common::skipped(&format!("no io_uring, or no direct I/O, here: {stderr}"));
        return;
    }
    let Some(output) = limited("ulimit -n 8", &args) else {
        return;
    };
    let (code, stderr) = ended(&output, &args);
    assert!(
        code != 0 && stderr.contains("ulimit -n"),
        "{code}: {stderr}"
    );
    let args = ["ls", &target];
    let Some(output) = limited("ulimit -l 0", &args) else {
        return;
    };
    let (code, stderr) = ended(&output, &args);
    // Before 5.12 rings were locked memory; where they are not, this works.
    assert!(
        code == 0 || stderr.contains("ulimit -l"),
        "{code}: {stderr}"
    );
}

#[test]
fn a_limit_on_file_sizes_is_an_error_with_words() {
    let Some(image) = open_image() else { return };
    let target = path_of(&image);
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let copy = dir.path().join("copy");
    let args = ["get", &target, "/data", copy.to_str().unwrap()];
    let Some(output) = limited("ulimit -f 64", &args) else {
        return;
    };
    let (code, stderr) = ended(&output, &args);
    assert!(
        code != 0 && stderr.contains("ulimit -f"),
        "{code}: {stderr}"
    );
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "a part is left"
    );
    // Standard output, too.
    let out = dir.path().join("out");
    let redirected = format!(
        "ulimit -f 64; exec {} cat {target} /data >{}",
        env!("CARGO_BIN_EXE_xtent"),
        out.display()
    );
    let output = Command::new("bash")
        .args([OsStr::new("-c"), OsStr::new(&redirected)])
        .output()
        .unwrap();
    let (code, stderr) = ended(&output, &["cat"]);
    assert!(
        code != 0 && stderr.contains("ulimit -f"),
        "{code}: {stderr}"
    );
}
