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
