//! `scripts/vm/supervise.py`: what it says of machines that do not come up, do not end, or end
//! well.

use std::path::Path;
use std::process::Command;

/// The exit status and the output of the script for a "machine" that is the shell script `machine`.
fn supervised(dir: &Path, machine: &str, timeouts: [&str; 2]) -> (i32, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/vm/supervise.py");
    let [whole, boot] = timeouts;
    let output = Command::new("python3")
        .arg(script)
        .args([
            "--timeout",
            whole,
            "--boot-timeout",
            boot,
            "--quiet",
            "--qmp",
            "none",
            "--console",
        ])
        .arg(dir.join("console"))
        .args(["--", "sh", "-c", machine])
        .output()
        .unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

#[test]
fn a_machine_that_never_comes_up_is_no_failure_of_its_jobs() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("SKIPPED: python3 is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();

    // 98 is what scripts/vm/test starts again; the rest is the jobs' or xtent's fault.
    let (status, said) = supervised(dir, "exec sleep 1000", ["500", "0.2"]);
    assert_eq!(status, 98, "{said}");
    assert!(said.contains("the guest did not come up"), "{said}");

    let (status, said) = supervised(dir, "echo @@BOOTED 1; exec sleep 1000", ["1", "500"]);
    assert_eq!(status, 124, "{said}");
    assert!(said.contains("did not end in time"), "{said}");

    // The debug exit of the guest's status 0, and of 3.
    let (status, said) = supervised(dir, "echo @@BOOTED 1; exit 33", ["500", "500"]);
    assert_eq!(status, 0, "{said}");
    let (status, said) = supervised(dir, "echo @@BOOTED 1; exit 39", ["500", "500"]);
    assert_eq!(status, 3, "{said}");
}
