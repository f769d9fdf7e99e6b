//! The items of rustdoc's JSON that a program can name, as lines.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

/// What a program finds in the API.
pub(crate) struct Api {
    /// Every item with its children.
    pub(crate) items: BTreeMap<String, Vec<String>>,
    /// Types that appear in it although a program cannot name them.
    pub(crate) unnamed: BTreeSet<String>,
    /// Types whose documentation has no example.
    pub(crate) without_example: Vec<String>,
}

pub(crate) fn items(json: &Value) -> Api {
    let mut walk = Walk {
        index: &json["index"],
        found: BTreeMap::new(),
        exported: BTreeSet::new(),
        used: BTreeSet::new(),
        without_example: Vec::new(),
    };
    let root = json["root"].to_string();
    walk.module(&root, "");
    let unnamed = walk.used.difference(&walk.exported);
    let names = unnamed.filter_map(|id| json["index"][id]["name"].as_str());
    let unnamed = names.map(str::to_owned).collect();
    Api {
        items: walk.found,
        unnamed,
        without_example: walk.without_example,
    }
}

struct Walk<'a> {
    index: &'a Value,
    found: BTreeMap<String, Vec<String>>,
    /// Types and traits that a path leads to.
    exported: BTreeSet<String>,
    /// Types of this crate that fields and functions name.
    used: BTreeSet<String>,
    without_example: Vec<String>,
}

impl<'a> Walk<'a> {
    fn item(&self, id: &str) -> Option<&'a Value> {
        self.index.get(id)
    }

    fn module(&mut self, id: &str, path: &str) {
        for child in ids(&self.index[id]["inner"]["module"]["items"]) {
            let Some(item) = self.item(&child) else {
                continue;
            };
            let used = &item["inner"]["use"];
            if used.is_null() {
                let name = item["name"].as_str().unwrap_or_default();
                self.named(&child, &join(path, name));
            } else if let Some(name) = used["name"].as_str() {
                self.named(&used["id"].to_string(), &join(path, name));
            }
        }
    }

    fn named(&mut self, id: &str, path: &str) {
        let Some(item) = self.item(id) else { return };
        let Some((kind, inner)) = item["inner"].as_object().and_then(|o| o.iter().next()) else {
            return;
        };
        match kind.as_str() {
            "module" => self.module(id, path),
            "function" => {
                self.note_types(inner);
                self.add(format!("{path}: {}", signature(item)), Vec::new());
            }
            "struct" | "enum" | "trait" | "type_alias" | "constant" => {
                self.exported.insert(id.to_owned());
                let docs = item["docs"].as_str().unwrap_or_default();
                let is_type = matches!(kind.as_str(), "struct" | "enum" | "trait");
                if is_type && !docs.contains("```") {
                    self.without_example.push(path.to_owned());
                }
                let mut inside = self.fields(inner);
                inside.extend(self.traits(inner));
                self.add(format!("{path} ({})", kind.replace('_', " ")), inside);
                self.methods(inner, path);
            }
            other => self.add(format!("{path} ({other})"), Vec::new()),
        }
    }

    fn add(&mut self, line: String, inside: Vec<String>) {
        self.found.insert(line, inside);
    }

    /// Notes the types of this crate in the JSON of a type or a signature.
    fn note_types(&mut self, json: &Value) {
        match json {
            Value::Object(members) => {
                if let Some(path) = members.get("resolved_path") {
                    let id = path["id"].to_string();
                    if self.item(&id).is_some_and(|item| item["crate_id"] == 0) {
                        self.used.insert(id);
                    }
                }
                members.values().for_each(|member| self.note_types(member));
            }
            Value::Array(list) => list.iter().for_each(|member| self.note_types(member)),
            _ => {}
        }
    }

    /// Public fields, and variants with theirs.
    fn fields(&mut self, inner: &Value) -> Vec<String> {
        let mut lines = Vec::new();
        for id in ids(&inner["kind"]["plain"]["fields"]) {
            if let Some(field) = self.item(&id) {
                self.note_types(&field["inner"]);
                lines.push(source(field));
            }
        }
        for id in ids(&inner["variants"]) {
            if let Some(variant) = self.item(&id) {
                let kind = &variant["inner"]["variant"]["kind"];
                for list in [&kind["tuple"], &kind["struct"]["fields"]] {
                    for field in ids(list) {
                        self.note_types(&self.index[field.as_str()]["inner"]);
                    }
                }
                lines.push(without_comments(&source(variant)));
            }
        }
        lines
    }

    fn impls(&self, inner: &'a Value) -> impl Iterator<Item = &'a Value> {
        let all = ids(&inner["impls"])
            .into_iter()
            .chain(ids(&inner["implementations"]));
        let index = self.index;
        all.filter_map(move |id| index.get(&id).map(|item| &item["inner"]["impl"]))
    }

    /// The traits of other crates that a type implements, but for those that the compiler adds.
    fn traits(&self, inner: &'a Value) -> Option<String> {
        let names: BTreeSet<_> = self
            .impls(inner)
            .filter(|i| i["is_synthetic"] != true && i["blanket_impl"].is_null())
            .filter_map(|i| i["trait"]["path"].as_str())
            .filter(|name| !["StructuralPartialEq", "Freeze", "UseCloned"].contains(name))
            .collect();
        let names: Vec<_> = names.into_iter().collect();
        (!names.is_empty()).then(|| format!("implements {}", names.join(", ")))
    }

    /// Methods and constants. Those that the bitflags crate adds are known by its trait.
    fn methods(&mut self, inner: &'a Value, path: &str) {
        let flags = self.impls(inner).any(|i| {
            i["trait"]["path"]
                .as_str()
                .is_some_and(|t| t.ends_with("Flags"))
        });
        let own = self.impls(inner).filter(|i| i["trait"].is_null());
        let mut members: Vec<String> = own.flat_map(|i| ids(&i["items"])).collect();
        members.extend(ids(&inner["items"]));
        for id in members {
            let Some(item) = self.item(&id) else { continue };
            let name = item["name"].as_str().unwrap_or_default();
            let is_function = !item["inner"]["function"].is_null();
            let hidden = item["visibility"] != "public" && item["visibility"] != "default";
            if hidden || (flags && is_function) {
                continue;
            }
            self.note_types(&item["inner"]);
            let line = match is_function {
                true => format!("{path}::{name}: {}", signature(item)),
                false => format!("{path}::{name} (constant)"),
            };
            self.add(line, Vec::new());
        }
    }
}

fn join(path: &str, name: &str) -> String {
    match path.is_empty() {
        true => name.to_owned(),
        false => format!("{path}::{name}"),
    }
}

fn ids(list: &Value) -> Vec<String> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(Value::to_string).collect()
}

/// An item's source text, its white space made one blank.
fn source(item: &Value) -> String {
    let span = &item["span"];
    let Some(file) = span["filename"].as_str() else {
        return item["name"].as_str().unwrap_or_default().to_owned();
    };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = fs::read_to_string(file).unwrap_or_default();
    let place = |end: &str| {
        let at = |n: usize| span[end][n].as_u64().and_then(|n| usize::try_from(n).ok());
        (at(0).unwrap_or(1), at(1).unwrap_or(1))
    };
    let ((first, from), (last, to)) = (place("begin"), place("end"));
    let mut out = String::new();
    for (number, line) in text.lines().enumerate().map(|(n, line)| (n + 1, line)) {
        if number < first || number > last {
            continue;
        }
        let end = if number == last {
            to.min(line.len() + 1) - 1
        } else {
            line.len()
        };
        let start = if number == first { from - 1 } else { 0 };
        out.push_str(line.get(start..end.max(start)).unwrap_or_default());
        out.push('\n');
    }
    without_comments(&out)
}

fn without_comments(text: &str) -> String {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines
        .flat_map(str::split_whitespace)
        .collect::<Vec<_>>()
        .join(" ")
}

/// A function's source up to its body.
fn signature(item: &Value) -> String {
    let text = source(item);
    let end = text.find(" {").unwrap_or(text.len());
    text[..end].trim_end_matches(';').to_owned()
}
