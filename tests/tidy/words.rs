//! Plain technical English: phrases that the repository must not contain, each with better wording.
//!
//! A phrase matches whole words, also across the line breaks of a comment. A phrase in lower case
//! matches any case; one with a capital letter matches as it stands.

use std::process::Command;

use super::{assert_none, root};

const NAME_IT: &str = "name the actor (the caller, another thread, no thread), or use the passive";

/// `(phrase, better wording)`.
const PHRASES: &[(&str, &str)] = &[
    ("whoever", NAME_IT),
    ("whomever", NAME_IT),
    ("somebody", NAME_IT),
    ("nobody", NAME_IT),
    ("anybody", NAME_IT),
    ("everybody", NAME_IT),
    (
        "what is",
        "name the thing: \"dirty pages\", not \"what is dirty\"",
    ),
    ("on that way", "on that path"),
    ("on this way", "on this path"),
    (
        "takes the kernel out of the hot path",
        "bypasses the kernel on the I/O path",
    ),
    (
        "keeps the kernel out of the hot path",
        "bypasses the kernel on the I/O path",
    ),
    ("the same bytes, two ways", "with no conversion"),
    ("left out", "skipped (with a notice), excluding, omitted"),
    (
        "refused by name",
        "rejected with an error that names the feature",
    ),
    (
        "refuses by name",
        "rejects with an error that names the feature",
    ),
    ("made of metal", "physical hardware"),
    ("old or much", "older than 30 s or more than its share"),
    ("neither of them made", "third-party"),
    ("single turns", "per-round ratios"),
    ("nothing beside them", "machine otherwise idle"),
    ("nothing beside it", "machine otherwise idle"),
    ("IOPS of xtent to SPDK's", "IOPS ratio (xtent / SPDK)"),
    ("beside a cache miss", "say what the kernel column contains"),
    (
        "fetches the lines that it writes",
        "prefetches the destination lines",
    ),
    ("wait for the scheduler", "compete for one CPU"),
    ("lies of a server", "malformed server replies"),
    ("lies of a peer", "malformed messages"),
    ("torn out", "removed by surprise"),
    ("the process lives", "the process keeps running"),
    ("the house", "the design"),
    ("a house", "the design"),
    ("rooms", "module layers, modules"),
    ("every other room", "every other module"),
    ("from the roof down", "top to bottom"),
    ("who runs it keeps it", "if you already run it, keep it"),
    ("ride out", "retry"),
    ("rides out", "retries"),
    ("ridden out", "retried"),
    ("of this process's own", "say: a user-space NVMe driver"),
    ("all that is known of", "metadata, properties"),
    ("goes on for this long", "run for this long"),
    ("over and over", "looping, repeatedly"),
    (
        "keep this machine busy",
        "load average is ...: results may be unreliable",
    ),
    ("do not trust the figures", "results may be unreliable"),
    (
        "smaller than one block",
        "too small to be a disk image (... bytes)",
    ),
    ("cannot make them more", "--size exceeds the file size"),
    ("a target is otherwise", "Other target forms: ..."),
    ("contradicts itself", "is corrupt, is inconsistent"),
    ("contradict itself", "be corrupt, be inconsistent"),
    ("Mind:", "Warning:"),
    ("Mind,", "Note that"),
    ("turn and turn about", "in alternating rounds"),
    ("closed eyes", "interrupt-driven"),
    ("who is told", "the doorbell is polled by"),
    (
        "Of a cache.",
        "say what is counted: entries per 64-byte cache line",
    ),
    ("an operation to be", "a request"),
    ("how a cache fares", "page cache counters"),
    ("beyond belief", "outside the supported range (say which)"),
    ("the hand came by", "CLOCK eviction"),
    (
        "was not opened for the longest time",
        "the least recently opened",
    ),
    ("crowd", "many requests in flight, full"),
    ("crowds", "many requests in flight, full"),
    ("crowded", "many requests in flight, full"),
    ("courtesy", "say what is done and why"),
    ("courtesies", "say what is done and why"),
];

/// Files without this project's prose, or with wording that is still to be revised.
const EXEMPT: &[&str] = &[
    "tests/tidy/words.rs",
    "LICENSE",
    "Cargo.lock",
    "fuzz/Cargo.lock",
    "docs/api.txt",
];

/// The text of a line, without indentation and comment markers.
fn prose(line: &str) -> &str {
    let line = line.trim();
    ["///", "//!", "//", "#", "* "]
        .iter()
        .find_map(|marker| line.strip_prefix(marker))
        .unwrap_or(line)
        .trim()
}

/// A file's prose with its line breaks as spaces.
struct Text {
    text: String,
    lower: String,
    /// Where each line begins.
    starts: Vec<usize>,
}

impl Text {
    fn new(content: &str) -> Self {
        let mut text = String::new();
        let mut starts = Vec::new();
        for line in content.lines() {
            starts.push(text.len());
            text.push_str(prose(line));
            text.push(' ');
        }
        // ASCII only, so that offsets are the same in both.
        let lower = text.to_ascii_lowercase();
        Self {
            text,
            lower,
            starts,
        }
    }

    /// Line numbers where the phrase occurs as whole words.
    fn lines_with(&self, phrase: &str) -> Vec<usize> {
        let has_capital = phrase.contains(|c: char| c.is_ascii_uppercase());
        let text = if has_capital { &self.text } else { &self.lower };
        let in_word = |c: char| c.is_alphanumeric() || c == '_';
        text.match_indices(phrase)
            .filter(|(at, found)| {
                let ends_in_word = found.ends_with(in_word);
                let goes_on = ends_in_word && text[at + found.len()..].starts_with(in_word);
                !(goes_on || text[..*at].ends_with(in_word))
            })
            .map(|(at, _)| self.starts.partition_point(|start| *start <= at))
            .collect()
    }
}

#[test]
fn wording_is_plain() {
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output();
    let Some(listed) = listed.ok().filter(|out| out.status.success()) else {
        eprintln!("SKIPPED: not a git checkout, or git is not installed");
        return;
    };
    let names = String::from_utf8(listed.stdout).unwrap();
    let mut broken = Vec::new();
    let mut seen = 0;
    for name in names.split_terminator('\0') {
        if EXEMPT.iter().any(|exempt| name.starts_with(exempt)) {
            continue;
        }
        // Binary files, and files that are deleted but not committed, have no prose.
        let Ok(content) = std::fs::read_to_string(root().join(name)) else {
            continue;
        };
        seen += 1;
        let text = Text::new(&content);
        for (phrase, advice) in PHRASES {
            for line in text.lines_with(phrase) {
                broken.push(format!("{name}:{line}: \"{phrase}\"; better: {advice}"));
            }
        }
    }
    assert!(seen > 100, "the files were not found");
    broken.sort();
    assert_none(&broken);
}

#[test]
fn phrases_are_found_across_line_breaks_as_whole_words() {
    let text = Text::new("/// For whoever.\n    //! It is what\n    //! is left.\nsomewhoever\n");
    assert_eq!(text.lines_with("whoever"), [1]);
    assert_eq!(text.lines_with("what is"), [2]);
    assert_eq!(text.lines_with("For"), [1]);
    assert!(text.lines_with("It Is").is_empty());
}
