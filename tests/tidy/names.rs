//! A type name means one thing in the crate: no name is defined in two places.

use std::collections::BTreeMap;

use super::{assert_none, code, files};

/// The name that a line defines as a type. Associated types, which are indented, are not such
/// names: a trait has given them theirs.
fn defined(line: &str) -> Option<&str> {
    let item = line.trim_start();
    let is_indented = item.len() < line.len();
    let item = match item.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')')?.1.trim_start(),
        Some(rest) => rest.trim_start(),
        None => item,
    };
    let item = item.strip_prefix("unsafe ").unwrap_or(item);
    let (kind, rest) = item.split_once(' ')?;
    let is_type = match kind {
        "struct" | "enum" | "trait" | "union" => true,
        "type" => !is_indented,
        _ => false,
    };
    let end = rest
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(rest.len());
    (is_type && end > 0).then(|| &rest[..end])
}

/// The text without the modules that only tests have.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let attribute = line.trim_start();
        let opens = |next: &&str| next.contains("mod ") && next.ends_with('{');
        let is_test =
            attribute.starts_with("#[cfg(test)]") || attribute.starts_with("#[cfg(all(test");
        if is_test && lines.peek().is_some_and(opens) {
            let indent = &line[..line.len() - attribute.len()];
            let end = format!("{indent}}}");
            lines.by_ref().find(|line| *line == end);
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// Names with the files that define them, where that is more than one. Definitions in one file are
/// one thing under different conditions (`cfg`): the compiler accepts no others.
fn repeated(sources: &[(String, String)]) -> Vec<String> {
    let mut places: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (file, text) in sources {
        for name in text.lines().filter_map(|line| defined(code(line))) {
            let files = places.entry(name).or_default();
            if files.last() != Some(&&**file) {
                files.push(file);
            }
        }
    }
    places.retain(|_, files| files.len() > 1);
    let told = |(name, files): (_, Vec<&str>)| format!("{name}: {}", files.join(", "));
    places.into_iter().map(told).collect()
}

#[test]
fn a_type_name_is_defined_once() {
    let mut sources = files("src", "rs");
    sources.retain(|(file, _)| !file.ends_with("tests.rs") && !file.contains("/tests/"));
    assert!(sources.len() > 100, "the sources were not found");
    for (_, text) in &mut sources {
        *text = without_tests(text);
    }
    assert_none(&repeated(&sources));
}

#[test]
fn repeated_names_are_found() {
    let source = |file: &str, text: &str| (file.to_owned(), without_tests(text));
    let sources = [
        source(
            "a.rs",
            "pub struct A;\n    struct Local;\npub(crate) enum B {}\n",
        ),
        source(
            "b.rs",
            "struct A<T>(T);\n#[cfg(x)]\ntype C = u8;\n#[cfg(y)]\ntype C = u16;\n",
        ),
        source(
            "c.rs",
            "impl I for A {\n    type C = u8;\n}\npub(in crate::x) trait B {}\n",
        ),
        source(
            "d.rs",
            "#[cfg(test)]\nmod tests {\n    struct A;\n}\n// struct B {}\nstruct D;\n",
        ),
        source("e.rs", "fn f() {\n    struct Local;\n}\nunion D {}\n"),
    ];
    let expected = [
        "A: a.rs, b.rs",
        "B: a.rs, c.rs",
        "D: d.rs, e.rs",
        "Local: a.rs, e.rs",
    ];
    assert_eq!(repeated(&sources), expected);
}
