//! The name of an attribute, and how it is looked for.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::layout::{self, Attribute, Value};
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::format::dir::hash_name;

/// Namespace and name of an attribute.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct AttrKey<'a> {
    /// `FLAG_*` of [`layout::NAMESPACE`]; 0 for `user`.
    pub(in super::super) namespace: u8,
    pub(in super::super) name: &'a [u8],
    /// Of a parent pointer its value, which belongs to its name.
    pub(in super::super) parent: Option<&'a [u8]>,
    /// Entries that are being made or removed count, too: for recovery.
    pub(in super::super) with_incomplete: bool,
}

impl<'a> AttrKey<'a> {
    /// That of an attribute other than a parent pointer.
    pub(in super::super) fn new(namespace: u8, name: &'a [u8]) -> Self {
        Self {
            namespace,
            name,
            parent: None,
            with_incomplete: false,
        }
    }

    /// As xfs_attr_hashval(): that of a parent pointer covers the directory, too.
    pub(super) fn hash(&self) -> u32 {
        let hash = hash_name(self.name);
        let parent = self.parent.and_then(|value| value.first_chunk());
        parent.map_or(hash, |[a, b, c, d, e, f, g, h]| {
            let high = u32::from_be_bytes([*a, *b, *c, *d]);
            hash ^ high ^ u32::from_be_bytes([*e, *f, *g, *h])
        })
    }

    /// As xfs_attr_match().
    pub(super) fn is_of(&self, entry: &Attribute<'_>) -> bool {
        entry.flags & layout::NAMESPACE == self.namespace
            && (self.with_incomplete || entry.flags & layout::FLAG_INCOMPLETE == 0)
            && entry.name == self.name
            && self
                .parent
                .is_none_or(|parent| entry.value == Value::Here(parent))
    }

    /// Checks that an attribute can have this name and a value of this length.
    pub(super) fn check(&self, value_bytes: usize) -> Result<()> {
        let bad = |kind, what: &str| Err(Error::new(kind, what.to_owned()));
        if self.name.is_empty() || self.name.contains(&0) {
            return bad(
                ErrorKind::InvalidInput,
                "the name of an attribute is empty or has a NUL",
            );
        }
        if self.name.len() > layout::NAME_MAX_BYTES {
            return bad(
                ErrorKind::NameTooLong,
                "the name of an attribute is longer than 255 bytes",
            );
        }
        let most = usize::try_from(layout::VALUE_MAX_BYTES).unwrap_or(usize::MAX);
        if value_bytes > most {
            return bad(
                ErrorKind::InvalidInput,
                "the value of an attribute is longer than 64 KiB",
            );
        }
        let one = self.namespace & (self.namespace.wrapping_sub(1)) == 0;
        if !one || self.namespace & !layout::NAMESPACE != 0 {
            return bad(ErrorKind::InvalidInput, "impossible namespace");
        }
        Ok(())
    }
}
