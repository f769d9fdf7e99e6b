//! Style and architecture as ordinary tests: layers, unsafe islands, file sizes, licences. One rule
//! a test.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/words.rs"]
mod words;

/// Modules by layer, as drawn in ARCHITECTURE.md. A module may use what lies lower.
const LAYERS: &[(&str, u8)] = &[
    ("mem", 0),
    ("sys", 0),
    ("units", 0),
    ("error", 0),
    ("nvme::spec", 0),
    ("xfs::format", 0),
    ("cache", 1),
    ("device", 1),
    ("probe", 1),
    ("block", 2),
    ("nvme", 3),
    ("spdk", 3),
    ("uring", 3),
    ("iomap", 4),
    ("xfs", 5),
    ("target", 6),
    ("volume", 7),
    ("bench", 8),
    ("cli", 8),
];

/// Peers of one layer that may use each other: `(user, used)`.
const PEERS: &[(&str, &str)] = &[
    ("mem", "sys"),
    ("mem", "units"),
    ("mem", "error"),
    ("sys", "error"),
    ("xfs::format", "error"),
    ("cli", "bench"),
];

/// The only directories with unsafe code.
const UNSAFE_ISLANDS: &[&str] = &["src/device/vfio/", "src/mem/", "src/spdk/", "src/sys/"];

const MAX_LINES: usize = 600;
const MAX_COLUMNS: usize = 100;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `dir` with this extension: path from the root, and text.
fn files(dir: &str, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut stack: Vec<PathBuf> = vec![root().join(dir)];
    while let Some(dir) = stack.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                stack.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap();
                found.push((name.to_owned(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn rust_files() -> Vec<(String, String)> {
    let dirs = ["src", "tests", "benches", "fuzz"];
    let all: Vec<_> = dirs.iter().flat_map(|dir| files(dir, "rs")).collect();
    assert!(all.len() > 10, "the sources were not found");
    all
}

/// The code of a line, without a `//` comment. Good enough for the rules here.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

/// `file:line` of every line that `breaks` the rule.
fn lines_where(files: &[(String, String)], breaks: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (file, text) in files {
        for (number, line) in text.lines().enumerate() {
            if breaks(line) {
                found.push(format!("{file}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    found
}

fn assert_none(broken: &[String]) {
    let count = broken.len();
    assert!(
        broken.is_empty(),
        "{count} places break the rule:\n  {}",
        broken.join("\n  ")
    );
}

/// The module of a file under src/: `src/nvme/spec/mod.rs` is `nvme::spec::mod`.
fn module_of(file: &str) -> String {
    file.trim_start_matches("src/")
        .trim_end_matches(".rs")
        .replace('/', "::")
}

/// The layer entry that a module path belongs to: the longest name that is a prefix of it.
fn layer_of(module: &str) -> Option<(&'static str, u8)> {
    LAYERS
        .iter()
        .filter(|(name, _)| module == *name || module.starts_with(&format!("{name}::")))
        .max_by_key(|(name, _)| name.len())
        .copied()
}

/// The `crate::` paths that a line names.
fn uses_in(line: &str) -> Vec<String> {
    let path = |c: &char| c.is_ascii_alphanumeric() || *c == '_' || *c == ':';
    line.match_indices("crate::")
        .map(|(at, found)| {
            line[at + found.len()..]
                .chars()
                .take_while(path)
                .collect::<String>()
        })
        .map(|path| path.trim_end_matches(':').to_owned())
        .collect()
}

#[test]
fn a_module_uses_only_what_lies_lower() {
    let mut broken = Vec::new();
    for (file, text) in files("src", "rs") {
        let Some((user, layer)) = layer_of(&module_of(&file)) else {
            continue;
        };
        for path in text.lines().flat_map(|line| uses_in(code(line))) {
            let Some((used, used_layer)) = layer_of(&path) else {
                continue;
            };
            if used != user && used_layer >= layer && !PEERS.contains(&(user, used)) {
                broken.push(format!(
                    "{file}: layer {layer} uses {path} of layer {used_layer}"
                ));
            }
        }
    }
    assert_none(&broken);
}

#[test]
fn every_module_has_a_layer() {
    let modules = files("src", "rs")
        .into_iter()
        .map(|(file, _)| module_of(&file));
    let broken: Vec<_> = modules
        .filter(|module| !["lib", "main"].contains(&module.as_str()) && layer_of(module).is_none())
        .collect();
    assert_none(&broken);
}

#[test]
fn crate_paths_are_written_one_by_one() {
    // `use crate::{a, b}` would hide uses from the layer rule.
    assert_none(&lines_where(&files("src", "rs"), |line| {
        code(line).contains("crate::{")
    }));
}

#[test]
fn unsafe_code_lives_on_its_islands() {
    let mut mainland = files("src", "rs");
    mainland.retain(|(file, _)| !UNSAFE_ISLANDS.iter().any(|island| file.starts_with(island)));
    assert_none(&lines_where(&mainland, |line| {
        // The keyword, at a block, an item or an attribute; not the word, which messages may use.
        let mut after = code(line).split("unsafe").skip(1);
        after.any(|rest| {
            let rest = rest.trim_start();
            let items = ["{", "(", "fn ", "impl", "extern", "trait"];
            rest.is_empty() || items.iter().any(|item| rest.starts_with(item))
        })
    }));
}

#[test]
fn every_other_module_forbids_unsafe_code() {
    let mut broken = Vec::new();
    let mut modules = vec![root().join("src")];
    while let Some(dir) = modules.pop() {
        let name = format!("{}/", dir.strip_prefix(root()).unwrap().to_str().unwrap());
        if UNSAFE_ISLANDS.contains(&name.as_str()) {
            continue;
        }
        // A module that contains an island cannot forbid it: then each of its other submodules
        // must.
        if UNSAFE_ISLANDS
            .iter()
            .any(|island| island.starts_with(&name))
        {
            let inside = fs::read_dir(&dir)
                .unwrap()
                .map(|entry| entry.unwrap().path());
            modules.extend(inside.filter(|path| path.is_dir()));
            continue;
        }
        let text = fs::read_to_string(dir.join("mod.rs")).unwrap();
        if !text.contains("#![forbid(unsafe_code)]") {
            broken.push(format!("{name}mod.rs"));
        }
    }
    assert_none(&broken);
}

/// The lines of a source file before its unit tests.
fn before_tests(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let is_tests = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].ends_with(" {");
    let end = lines.windows(2).position(is_tests).unwrap_or(lines.len());
    lines[..end].join("\n")
}

#[test]
fn the_library_prints_nothing() {
    // What a program is to know is an error, or an event of `tracing`.
    let is_test = |file: &str| file.ends_with("tests.rs") || file.contains("/tests/");
    let is_command = |file: &str| {
        ["src/bench/", "src/cli/", "src/main.rs"]
            .iter()
            .any(|command| file.starts_with(command))
    };
    let mut library = files("src", "rs");
    library.retain(|(file, _)| !is_command(file) && !is_test(file));
    assert!(library.len() > 100, "the library was not found");
    for (_, text) in &mut library {
        *text = before_tests(text);
    }
    assert_none(&lines_where(&library, |line| {
        let prints = ["print!(", "println!(", "dbg!(", "stdout()", "stderr()"];
        prints.iter().any(|print| code(line).contains(print))
    }));
}

#[test]
fn every_module_says_what_it_is() {
    let silent = |text: &str| !text.trim_start_matches("#![no_main]\n").starts_with("//!");
    let broken: Vec<_> = rust_files()
        .into_iter()
        .filter(|(_, text)| silent(text))
        .map(|(file, _)| file)
        .collect();
    assert_none(&broken);
}

#[test]
fn files_stay_short() {
    let broken: Vec<_> = rust_files()
        .iter()
        .map(|(file, text)| (file, text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(file, lines)| format!("{file}: {lines} lines"))
        .collect();
    assert_none(&broken);
}

/// Whether a line is a comment that is too wide, and could be broken: links and the rows of tables
/// cannot.
fn is_wide_comment(line: &str) -> bool {
    let comment = line.trim_start();
    let text = comment.trim_start_matches(['/', '!', '*', ' ']);
    let is_comment = comment.starts_with("//") || comment.starts_with("/*");
    let is_link = text.split(' ').any(|word| word.contains("://"));
    is_comment && line.chars().count() > MAX_COLUMNS && !is_link && !text.starts_with('|')
}

#[test]
fn comments_keep_to_the_width_of_code() {
    // rustfmt breaks code, but no comments.
    let mut sources = rust_files();
    for dir in ["examples", "spdk-sys"] {
        sources.extend(["rs", "c", "h"].iter().flat_map(|kind| files(dir, kind)));
    }
    assert_none(&lines_where(&sources, is_wide_comment));
}

#[test]
fn wide_comments_are_found() {
    let wide = "word ".repeat(20);
    assert!(is_wide_comment(&format!("    /// {wide}")));
    assert!(is_wide_comment(&format!("/* {wide}*/")));
    assert!(!is_wide_comment(&format!("    let text = \"{wide}\";")));
    assert!(!is_wide_comment(&format!("/// | {wide}|")));
    assert!(!is_wide_comment(&format!("//! {wide}https://example.org/")));
    assert!(!is_wide_comment(&format!("// {}", "\u{b5}".repeat(97))));
}

#[test]
fn threads_are_started_where_failing_is_an_error() {
    // `std::thread::spawn`, a scope's `spawn` and indicatif's ticker panic where a limit forbids
    // threads.
    let mut sources = files("src", "rs");
    sources.retain(|(file, _)| file != "src/sys/threads.rs" && !file.contains("test"));
    for (_, text) in &mut sources {
        let tests = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
        text.truncate(tests);
    }
    let starts = [
        "thread::spawn(",
        "thread::Builder",
        "scope.spawn(",
        "enable_steady_tick(",
    ];
    assert_none(&lines_where(&sources, |line| {
        starts.iter().any(|start| code(line).contains(start))
    }));
}

#[test]
fn nothing_is_left_for_later() {
    // Spelt so that this file does not break its own rule.
    let words = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("#[ig", "nore"),
        concat!("FIX", "ME"),
    ];
    assert_none(&lines_where(&rust_files(), |line| {
        words.iter().any(|word| line.contains(word))
    }));
}

#[test]
fn tests_do_not_race_the_clock() {
    // Timings belong to benches; a bound that only ends a hang is called hang_limit.
    let mut tests = files("tests", "rs");
    tests.retain(|(file, _)| file != "tests/tidy.rs");
    assert_none(&lines_where(&tests, |line| {
        line.contains("assert") && line.contains("elapsed()") && !line.contains("hang_limit")
    }));
}

#[test]
fn scripts_pass_shellcheck() {
    if Command::new("shellcheck")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("SKIPPED: shellcheck is not installed");
        return;
    }
    let mut scripts: Vec<_> = files("scripts", "sh")
        .into_iter()
        .map(|(file, _)| file)
        .collect();
    assert!(scripts.len() >= 2, "the scripts were not found");
    scripts.extend([".ci/run".into(), "vfio-setup.sh".into()]);
    let out = Command::new("shellcheck")
        .args(scripts)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
}

#[test]
fn licences_of_all_crates_are_permissive() {
    let fine = [
        "MIT",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "ISC",
        "Zlib",
        "Unlicense",
        "0BSD",
        "Unicode-3.0",
        "CC0-1.0",
        "MIT-0",
        "BSL-1.0",
    ];
    // One permissive choice of an OR is enough; "/" is the old way to write OR.
    let permissive = |licence: &str| {
        licence.replace('/', " OR ").split(" OR ").any(|choice| {
            choice
                .split(" AND ")
                .all(|part| fine.contains(&part.trim().trim_matches(['(', ')'])))
        })
    };
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 20);
    let broken: Vec<_> = packages
        .iter()
        .filter(|package| !permissive(package["license"].as_str().unwrap_or("none")))
        .map(|package| format!("{} {}", package["name"], package["license"]))
        .collect();
    assert_none(&broken);
}
