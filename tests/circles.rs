//! Files that use each other in circles: none but those in [`KNOWN`], which may only become fewer.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Circles that are still to be opened, by giving what their files share a file of its own. A file
/// that is taken out of a circle is taken out of this list.
const KNOWN: &[&str] = &[];

/// Modules by path, with their code before unit tests, without comments.
fn modules() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    let mut stack = vec![root.clone()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                stack.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
            let Some(name) = name.strip_suffix(".rs") else {
                continue;
            };
            let module = name.trim_end_matches("/mod").replace('/', "::");
            let is_test = module.ends_with("tests") || module.contains("::tests::");
            if is_test || ["lib", "main"].contains(&&*module) {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let code: Vec<_> = text
                .lines()
                .map(|line| line.split("//").next().unwrap())
                .collect();
            let code = code.join("\n");
            let end = code.find("#[cfg(test)]\nmod tests {");
            found.insert(module, code[..end.unwrap_or(code.len())].to_owned());
        }
    }
    assert!(found.len() > 100, "the sources were not found");
    found
}

/// The paths of a use tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let (mut depth, mut start) = (0, 0);
    let mut parts = Vec::new();
    for (at, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&tree[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[start..]);
    for part in parts.iter().map(|part| part.trim()) {
        match part.split_once('{') {
            Some((head, rest)) => {
                let inner = rest.trim_end().trim_end_matches('}');
                expand(&format!("{prefix}{}", head.trim()), inner, paths);
            }
            None if part.is_empty() => {}
            None => {
                let name = part.split(" as ").next().unwrap().trim();
                paths.push(format!("{prefix}{name}"));
            }
        }
    }
}

/// What a module names: `use` declarations (and whether they are public), and paths in its code.
fn uses(code: &str) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    let mut rest = String::new();
    for statement in code.split_inclusive(';') {
        let is_use = |at: &usize| {
            let before = statement[..*at].chars().next_back();
            before.is_none_or(char::is_whitespace)
        };
        match statement
            .match_indices("use ")
            .map(|(at, _)| at)
            .find(is_use)
        {
            Some(at) => {
                let (before, tree) = statement.split_at(at);
                rest.push_str(before);
                let is_public = before
                    .lines()
                    .last()
                    .unwrap_or("")
                    .trim()
                    .starts_with("pub");
                let mut paths = Vec::new();
                expand("", tree["use ".len()..].trim_end_matches(';'), &mut paths);
                found.extend(paths.into_iter().map(|path| (is_public, path)));
            }
            None => rest.push_str(statement),
        }
    }
    let in_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    for word in rest.split(|c| !in_path(c)) {
        if ["super::", "crate::", "self::"]
            .iter()
            .any(|start| word.starts_with(start))
        {
            found.push((false, word.trim_end_matches(':').to_owned()));
        }
    }
    found
}

struct Graph {
    modules: BTreeMap<String, String>,
    /// Names that a module exports from others.
    exports: BTreeMap<(String, String), String>,
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn new() -> Self {
        let mut graph = Self {
            modules: modules(),
            exports: BTreeMap::new(),
            edges: BTreeMap::new(),
        };
        let uses: Vec<_> = graph
            .modules
            .iter()
            .map(|(module, code)| (module.clone(), uses(code)))
            .collect();
        for (module, used) in &uses {
            for (is_public, path) in used {
                if let (true, Some(path)) = (is_public, graph.absolute(module, path)) {
                    let name = path.rsplit("::").next().unwrap().to_owned();
                    graph.exports.insert((module.clone(), name), path);
                }
            }
        }
        for (module, used) in &uses {
            for (is_public, path) in used {
                let Some(path) = graph.absolute(module, path) else {
                    continue;
                };
                let Some(target) = graph.target(&path, 0) else {
                    continue;
                };
                // A module that exports what lies inside it does not use it, and what lies inside a
                // module is part of it: only the files of one level can be a circle.
                let inside = format!("{module}::");
                let is_part = module.starts_with(&format!("{target}::"));
                if target != *module && !is_part && !(*is_public && target.starts_with(&inside)) {
                    graph
                        .edges
                        .entry(module.clone())
                        .or_default()
                        .insert(target);
                }
            }
        }
        graph
    }

    fn absolute(&self, module: &str, path: &str) -> Option<String> {
        let mut base: Vec<_> = module.split("::").collect();
        let mut parts: Vec<_> = path.split("::").collect();
        match parts[0] {
            "crate" => base.clear(),
            "super" | "self" => {}
            child => {
                let inner = format!("{module}::{child}");
                return self
                    .modules
                    .contains_key(&inner)
                    .then(|| format!("{module}::{path}"));
            }
        }
        while parts
            .first()
            .is_some_and(|part| ["super", "crate", "self"].contains(part))
        {
            if parts.remove(0) == "super" {
                base.pop();
            }
        }
        base.extend(parts);
        Some(base.join("::"))
    }

    /// The module that a path leads to, through what modules export.
    fn target(&self, path: &str, depth: usize) -> Option<String> {
        let mut module = path;
        while !self.modules.contains_key(module) {
            module = module.rsplit_once("::")?.0;
        }
        let rest = path[module.len()..].trim_start_matches("::");
        let name = rest.split("::").next().unwrap().to_owned();
        match self.exports.get(&(module.to_owned(), name)) {
            Some(exported) if exported != path && depth < 6 => self.target(exported, depth + 1),
            _ => Some(module.to_owned()),
        }
    }

    fn reached(&self, from: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut stack = vec![from.to_owned()];
        while let Some(module) = stack.pop() {
            for next in self.edges.get(&module).into_iter().flatten() {
                if found.insert(next.clone()) {
                    stack.push(next.clone());
                }
            }
        }
        found
    }

    /// Every circle: modules that reach each other.
    fn circles(&self) -> BTreeSet<String> {
        let reached: BTreeMap<_, _> = self
            .edges
            .keys()
            .map(|module| (module.clone(), self.reached(module)))
            .collect();
        let mut circles = BTreeSet::new();
        for (module, others) in &reached {
            if others.contains(module) {
                let circle: Vec<_> = others
                    .iter()
                    .filter(|other| {
                        reached
                            .get(*other)
                            .is_some_and(|back| back.contains(module))
                    })
                    .map(String::as_str)
                    .collect();
                circles.insert(circle.join(" "));
            }
        }
        circles
    }
}

#[test]
fn no_file_is_in_a_new_circle() {
    let circles = Graph::new().circles();
    let known: BTreeSet<_> = KNOWN.iter().map(|circle| (*circle).to_owned()).collect();
    let new: Vec<_> = circles.difference(&known).collect();
    let gone: Vec<_> = known.difference(&circles).collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "new circles: {new:#?}\ncircles that are in KNOWN and gone: {gone:#?}"
    );
}

#[test]
fn uses_are_found_in_trees_and_in_code() {
    let code = "use super::{a, b::{c, d as e}};\npub use crate::x::Y;\nfn f() { super::g::h(); }";
    let found = uses(code);
    let of = |is_public, path: &str| (is_public, path.to_owned());
    assert_eq!(
        found,
        [
            of(false, "super::a"),
            of(false, "super::b::c"),
            of(false, "super::b::d"),
            of(true, "crate::x::Y"),
            of(false, "super::g::h"),
        ]
    );
}
