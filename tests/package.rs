//! xtent as a dependency: the crates that a user of the library builds, and the published files.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::process::Command;

/// Crates that a program builds for the library, xtent included.
const MOST_CRATES: usize = 25;

fn cargo(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "cargo {args:?}: {messages}");
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn the_library_without_the_command_is_few_crates() {
    let tree = cargo(&[
        "tree",
        "--locked",
        "--no-default-features",
        "--edges=normal,build",
        "--prefix=none",
        "--format={p}",
    ]);
    let crates: BTreeSet<_> = tree
        .lines()
        .map(|line| line.split(" (").next().unwrap())
        .filter(|line| !line.is_empty())
        .collect();
    assert!(crates.iter().any(|name| name.starts_with("xtent ")));
    assert!(
        crates.len() <= MOST_CRATES,
        "{} crates: {crates:#?}",
        crates.len()
    );
    for name in ["clap", "serde", "serde_json", "indicatif", "plotters"] {
        let prefix = format!("{name} ");
        assert!(!crates.iter().any(|found| found.starts_with(&prefix)));
    }
}

#[test]
fn the_package_has_what_a_user_needs() {
    let list = cargo(&["package", "--locked", "--list", "--allow-dirty"]);
    let files: BTreeSet<_> = list.lines().collect();
    for file in [
        "Cargo.lock",
        "README.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "src/lib.rs",
        "src/main.rs",
        "vfio-setup.sh",
    ] {
        assert!(files.contains(file), "{file} is not in the package");
    }
    assert!(!files.iter().any(|file| file.starts_with(".ci/")));
}
