//! `need_packages` of scripts/lib.sh beside another apt.

use std::fs;
use std::process::{Command, Output};

use crate::{path_with, program};

/// Runs `need_packages` for a program that is not there, with an apt-get that is this script.
/// `$calls` counts its calls.
fn need_packages(apt_get: &str, wait_seconds: u32) -> (Output, String) {
    let dir = tempfile::tempdir().unwrap();
    let calls = dir.path().join("calls");
    let script = format!(
        "echo \"$*\" >>'{}'\ncalls=$(wc -l <'{0}')\n{apt_get}",
        calls.display()
    );
    program(dir.path(), "apt-get", &script);
    program(dir.path(), "sudo", "exec \"$@\"");
    let output = Command::new("bash")
        .args([
            "-ec",
            ". scripts/lib.sh; need_packages no-such-program:package; echo done",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PATH", path_with(dir.path()))
        .env("XTENT_APT_WAIT", wait_seconds.to_string())
        .output()
        .unwrap();
    (output, fs::read_to_string(calls).unwrap())
}

#[test]
fn locks_of_another_apt_are_waited_for() {
    // What apt 2.6 says of the locks that DPkg::Lock::Timeout does not cover, and of those that it
    // does.
    for message in [
        "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 17 (apt-get)",
        "E: Could not get lock /var/cache/apt/archives/lock - open (11: Resource temporarily unavailable)",
        "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?",
    ] {
        let script = format!("[ $calls -gt 1 ] || {{ echo '{message}' >&2; exit 100; }}");
        let (output, calls) = need_packages(&script, 60);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{message}: {stderr}");
        assert!(stderr.contains("Waiting up to 60 s for another apt"));
        assert_eq!(calls.lines().count(), 3, "{calls}");
        assert!(calls.contains("DPkg::Lock::Timeout=60"), "{calls}");
        assert!(calls.contains("install -y -qq package"), "{calls}");
    }
}

#[test]
fn other_failures_of_apt_are_told_at_once() {
    let script = "echo 'E: Unable to locate package package' >&2; exit 100";
    let (output, calls) = need_packages(script, 60);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("Unable to locate package"));
    assert_eq!(calls.lines().count(), 1, "{calls}");
}

#[test]
fn a_lock_that_is_never_given_back_is_an_error() {
    let script = "echo 'E: Could not get lock /var/lib/apt/lists/lock' >&2; exit 100";
    let (output, _) = need_packages(script, 1);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("E: Could not get lock"));
}
