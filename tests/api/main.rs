//! The public API against its list, docs/api.txt: what programs may use changes only on purpose.
//!
//! `XTENT_UPDATE=1 cargo test --test api` writes the list anew. The API is read from rustdoc's
//! JSON, which knows of re-exports and hidden items; its format is unstable, so another compiler
//! than the one named in [`FORMAT`] skips the test.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod walk;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The version of rustdoc's JSON that this test reads (Rust 1.95).
const FORMAT: u64 = 57;
/// Types, traits, functions, methods and constants: what a user of the library has to know.
const MOST_ITEMS: usize = 190;
/// The same, of the module of the feature `futures`, which has a list of its own.
const MOST_FUTURES_ITEMS: usize = 10;

const HEADER: &str = "\
# The public API: made by `XTENT_UPDATE=1 cargo test --test api`, compared by `cargo test --test api`.
# Every line that is not indented is an item; fields, variants and implemented traits are indented.
";

/// rustdoc's JSON of the library, or why there is none.
fn api() -> Result<Value, String> {
    let scratch = tempfile::tempdir().unwrap();
    // Only rustdoc itself is told to take unstable options: the environment of everything else
    // stays as it is, so that no dependency is built anew.
    let wrapper = scratch.path().join("rustdoc");
    let rustdoc = std::env::var("RUSTDOC").unwrap_or_else(|_| "rustdoc".into());
    fs::write(
        &wrapper,
        format!("#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec {rustdoc} \"$@\"\n"),
    )
    .unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let out = Command::new(env!("CARGO"))
        .args(["rustdoc", "--lib", "--locked", "--quiet"])
        .args(["--features", "futures", "--"])
        .args(["-Z", "unstable-options", "--output-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RUSTDOC", &wrapper)
        .env_remove("RUSTDOCFLAGS")
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&out.stderr).into_owned();
    if !out.status.success() {
        return Err(format!("rustdoc makes no JSON: {messages}"));
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let text = fs::read(target.join("doc/xtent.json")).unwrap();
    let json: Value = serde_json::from_slice(&text).unwrap();
    match json["format_version"].as_u64() {
        Some(FORMAT) => Ok(json),
        other => Err(format!(
            "rustdoc's JSON has version {other:?}, not {FORMAT}"
        )),
    }
}

fn count(list: &str) -> usize {
    list.lines()
        .filter(|line| !line.starts_with([' ', '#']) && !line.is_empty())
        .count()
}

#[test]
fn the_api_is_what_its_list_says() {
    let json = match api() {
        Ok(json) => json,
        Err(why) => {
            println!("SKIPPED: {why}");
            return;
        }
    };
    let api = walk::items(&json);
    let (items, unnamed, bare) = (api.items, api.unnamed, api.without_example);
    assert!(
        unnamed.is_empty(),
        "the API has types that a program cannot name: {unnamed:?}"
    );
    assert!(
        bare.is_empty(),
        "types without an example in their documentation: {bare:?}"
    );
    let of_futures = |item: &str| item.starts_with("volume::aio::");
    compare(
        "docs/api.txt",
        items.iter().filter(|(item, _)| !of_futures(item)),
        MOST_ITEMS,
    );
    compare(
        "docs/api-futures.txt",
        items.iter().filter(|(item, _)| of_futures(item)),
        MOST_FUTURES_ITEMS,
    );
}

/// Compares items with their list, or writes it anew.
fn compare<'a>(
    path: &str,
    items: impl Iterator<Item = (&'a String, &'a Vec<String>)>,
    most: usize,
) {
    let mut list = String::from(HEADER);
    for (item, inside) in items {
        list.push_str(item);
        list.push('\n');
        for line in inside {
            list.push_str("    ");
            list.push_str(line);
            list.push('\n');
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("XTENT_UPDATE").is_some() {
        fs::write(&path, &list).unwrap();
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    let new: Vec<_> = list
        .lines()
        .filter(|l| !known.lines().any(|k| k == *l))
        .collect();
    let gone: Vec<_> = known
        .lines()
        .filter(|k| !list.lines().any(|l| l == *k))
        .collect();
    assert!(
        known == list,
        "the API is not the one of {}; if that is meant, write it anew \
         (XTENT_UPDATE=1 cargo test --test api) and say so in CHANGELOG.md\nnew: {new:#?}\ngone: {gone:#?}",
        path.display()
    );
    let items = count(&list);
    assert!(items <= most, "{items} items are more than {most}");
}

#[test]
fn items_are_counted_without_what_is_indented() {
    assert_eq!(
        count("# note\nvolume::File (struct)\n    field: u32\n\nvolume::Io (struct)\n"),
        2
    );
}
