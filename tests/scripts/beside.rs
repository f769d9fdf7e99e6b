//! Steps that run beside others: one that fails is noticed, wherever in it that is.

use std::path::Path;
use std::process::Command;

#[test]
fn a_step_ends_with_its_first_command_that_fails() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = "set -euo pipefail
        . scripts/lib.sh
        good() { echo one; echo two; }
        bad() { echo begun; false; echo 'went on'; }
        never() { echo never; }
        beside \"$work\" good bad never
        ! wait \"$lane\"";
    let output = Command::new("bash")
        .args(["-c", script])
        .current_dir(root)
        .env("work", dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    assert!(read("1-good.passed").starts_with("one\ntwo\n"));
    assert_eq!(read("2-bad.failed"), "begun\n");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

/// A script with a time limit, in which this follows.
fn limited(step: &str) -> std::process::Output {
    let script = format!(
        "set -euo pipefail
        . scripts/lib.sh
        work=$(mktemp -d)
        trap 'end_watchdog; rm -rf \"$work\"' EXIT
        trap 'exit 143' TERM
        no_longer_than 2 \"$work/log\"
        {step}"
    );
    let mut bash = Command::new("bash");
    bash.args(["-c", &script])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    bash.output().unwrap()
}

#[test]
fn a_run_that_hangs_ends_and_says_where() {
    let hanging = [
        "echo 'far as this' >\"$work/log\"; sleep 3210 || true; sleep 3210",
        "hangs() { echo 'far as this'; sleep 3210; }; beside \"$work\" hangs; wait \"$lane\"",
    ];
    for step in hanging {
        let ended = limited(step);
        assert!(!ended.status.success(), "{step}");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains("not ended after 2 s"), "{said}");
        assert!(said.contains("sleep 3210"), "{said}");
        assert!(said.contains("far as this"), "{said}");
    }
}

#[test]
fn a_run_that_ends_in_time_leaves_no_watchdog() {
    let ended = limited("echo done; (exit 7)");
    assert_eq!(ended.status.code(), Some(7));
    // Its output would not end before a process that has it.
    assert_eq!(ended.stdout, b"done\n");
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
}

#[test]
fn a_child_that_does_not_end_is_killed() {
    let script = "set -euo pipefail
        . scripts/lib.sh
        for ignored in INT TERM; do
            bash -c \"trap '' $ignored; echo ready; while :; do sleep 1; done\" >\"$0/said\" &
            until grep -q ready \"$0/said\"; do sleep 0.1; done
            end_process $!
            ! kill -0 $! 2>/dev/null
        done";
    let dir = tempfile::tempdir().unwrap();
    let mut bash = Command::new("bash");
    bash.args(["-c", script])
        .arg(dir.path())
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(bash.status().unwrap().success());
}
