//! The oldest supported Rust is the same wherever it is stated.

use std::fs;
use std::path::Path;

#[test]
fn the_oldest_supported_rust_is_stated_alike() {
    let read = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        fs::read_to_string(path).unwrap()
    };
    let manifest = read("Cargo.toml");
    let line = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("rust-version"));
        line.unwrap().to_owned()
    };
    let stated = line(&manifest);
    assert_eq!(line(&read("spdk-sys/Cargo.toml")), stated);
    let version = stated.split('"').nth(1).unwrap();
    assert!(read("README.md").contains(&format!("a Rust toolchain ({version} or newer")));
    // Without a toolchain of that version the lint is what holds it.
    assert!(manifest.contains("incompatible_msrv = \"warn\""));
    assert!(read("clippy.toml").contains("check-incompatible-msrv-in-tests = true"));
}
