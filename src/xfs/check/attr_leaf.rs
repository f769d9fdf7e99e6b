//! A leaf block of attributes: its entries, its heap of names and values, its free ranges.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use crate::xfs::format::attr::{self as layout, AttrLeafHeader, Attribute, Value};
use crate::xfs::format::dir::hash_name;

/// The hash of an attribute's name. That of a parent pointer covers the directory, too.
pub(super) fn attribute_hash(attribute: &Attribute<'_>) -> u32 {
    let hash = hash_name(attribute.name);
    match (attribute.flags & layout::FLAG_PARENT, attribute.value) {
        (1.., Value::Here(value)) => match value.first_chunk::<8>() {
            Some([a, b, c, d, e, f, g, h]) => {
                let high = u32::from_be_bytes([*a, *b, *c, *d]);
                hash ^ high ^ u32::from_be_bytes([*e, *f, *g, *h])
            }
            None => hash,
        },
        _ => hash,
    }
}

/// Why an attribute is impossible.
pub(super) fn attribute_fault(
    attribute: &Attribute<'_>,
    known: u8,
    has_parents: bool,
) -> Option<&'static str> {
    let flags = attribute.flags;
    if flags & !known != 0 {
        return Some("unknown flags");
    }
    if flags & layout::FLAG_INCOMPLETE != 0 {
        return Some("incomplete");
    }
    if (flags & layout::NAMESPACE).count_ones() > 1 {
        return Some("several namespaces");
    }
    if flags & layout::FLAG_PARENT == 0 {
        return attribute.name.contains(&0).then_some("a NUL in the name");
    }
    if !has_parents {
        return Some("a parent pointer, which the filesystem has not");
    }
    match attribute.value {
        Value::Here(value) if value.len() == 12 => {
            let is_name = crate::xfs::format::dir::name_is_valid(attribute.name);
            (!is_name).then_some("a parent pointer with an impossible name")
        }
        _ => Some("a parent pointer of a wrong length"),
    }
}

/// Bytes that an entry takes of the heap.
fn heap_bytes(attribute: &Attribute<'_>) -> usize {
    let head = match attribute.value {
        Value::Here(value) => size_of::<layout::LocalName>().saturating_add(value.len()),
        // The kernel counts the structure with its padding, as xfs_attr_leaf_entsize_remote().
        Value::Remote { .. } => size_of::<layout::RemoteName>().saturating_add(2),
    };
    head.saturating_add(attribute.name.len())
        .next_multiple_of(4)
}

/// The faults of a leaf. `visit` gets its attributes.
pub(super) fn leaf_faults<'a>(
    raw: &'a [u8],
    has_parents: bool,
    mut visit: impl FnMut(Attribute<'a>),
) -> Vec<String> {
    let mut faults = Vec::new();
    let Ok((header, _)) = AttrLeafHeader::ref_from_prefix(raw) else {
        return vec!["too short".to_owned()];
    };
    let entries = match layout::leaf_entries(raw) {
        Ok(entries) => entries,
        Err(what) => return vec![what.to_owned()],
    };
    let entries_end = size_of::<AttrLeafHeader>().saturating_add(size_of_val(entries));
    let known = layout::FLAG_LOCAL | layout::NAMESPACE | layout::FLAG_INCOMPLETE;
    let mut used = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let attribute = match layout::leaf_entry(raw, entry) {
            Ok(attribute) => attribute,
            Err(what) => {
                faults.push(format!("entry {index}: {what}"));
                continue;
            }
        };
        if let Some(what) = attribute_fault(&attribute, known, has_parents) {
            faults.push(format!("entry {index}: {what}"));
        }
        if attribute_hash(&attribute) != entry.hash.get() {
            faults.push(format!("entry {index}: not the hash of its name"));
        }
        let start = usize::from(entry.name_offset.get());
        used.push((start, start.saturating_add(heap_bytes(&attribute))));
        visit(attribute);
    }
    used.sort_unstable();
    let mut end = entries_end;
    for (start, next) in &used {
        if *start < end {
            faults.push(format!("names or values at byte {start} overlap others"));
        }
        end = end.max(*next);
    }
    if end > raw.len() {
        faults.push("names or values end behind the block".to_owned());
    }
    // 0 means the end of a block of 64 KiB.
    let first_used = match header.first_used.get() {
        0 => raw.len(),
        first => first.into(),
    };
    let first = used.first().map_or(raw.len(), |(start, _)| *start);
    let is_first = match header.holes {
        0 => first_used == first,
        _ => first_used <= first,
    };
    if !used.is_empty() && (!is_first || first_used < entries_end) {
        faults.push(format!("first used byte {first_used}, expected {first}"));
    }
    let sum = used.iter().fold(0_usize, |sum, (start, end)| {
        sum.saturating_add(end.saturating_sub(*start))
    });
    if usize::from(header.used_bytes.get()) != sum {
        let found = header.used_bytes.get();
        faults.push(format!("{found} bytes used, expected {sum}"));
    }
    for range in &header.free {
        let (base, bytes) = (
            usize::from(range.base.get()),
            usize::from(range.bytes.get()),
        );
        let is_aligned = base.is_multiple_of(4) && bytes.is_multiple_of(4);
        if !is_aligned || base.saturating_add(bytes) > raw.len() {
            faults.push(format!("impossible free range of {bytes} bytes at {base}"));
        }
    }
    faults
}
