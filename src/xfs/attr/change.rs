//! Attributes are set and removed, in whatever form they are, each in one transaction.
//!
//! Attributes that do not fit into the inode any more go to a leaf, and come back when they fit, as
//! by xfs_attr_set_iter() and xfs_attr_remove_iter() of the kernel. There an attribute with a long
//! value is marked as incomplete until its blocks are written; here all of it is one transaction.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::blocks::AttrTree;
use super::key::AttrKey;
use super::layout::{FLAG_LOCAL, FLAG_PARENT, Value};
use super::short::{
    AttrForm, OwnedAttr, bad_attributes, form_of, put_no_extents, put_nothing, put_short,
    short_attrs,
};
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::Ino;
use crate::xfs::format::attr_leaf::{
    LeafItem, is_local, item_attribute, leaf_items, local_body, remote_body,
};
use crate::xfs::trans::Trans;

/// Whether an attribute has to be there before it is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetHow {
    /// It may be there or not.
    Any,
    /// It must not, as with `XATTR_CREATE`.
    Create,
    /// It must, as with `XATTR_REPLACE`.
    Replace,
}

/// Sets an attribute. The times of the inode are for the caller.
///
/// # Errors
/// [`ErrorKind::NotFound`] and [`ErrorKind::InvalidInput`] when it is not there, or there, against
/// `how`, and for an impossible name or value; [`ErrorKind::NoSpace`];
/// [`ErrorKind::Unsupported`] when the content of the inode leaves no room for the first attribute;
/// [`ErrorKind::Corrupt`] when the attributes are damaged; the device's. The transaction must be
/// dropped then.
pub(in super::super) fn set(
    t: &mut Trans<'_>,
    ino: Ino,
    key: &AttrKey<'_>,
    value: &[u8],
    how: SetHow,
) -> Result<()> {
    key.check(value.len())?;
    let new = OwnedAttr {
        flags: key.namespace,
        name: key.name.to_vec(),
        value: value.to_vec(),
    };
    match form_of(t, ino)? {
        AttrForm::Blocks => {
            let tree = AttrTree { ino };
            let found = remove_from_tree(t, tree, key)?;
            check_found(key, how, found)?;
            add_to_tree(t, tree, &new)
        }
        form => {
            let mut attrs = match form {
                AttrForm::Short => short_attrs(t, ino)?,
                _ => Vec::new(),
            };
            let found = remove_from_list(&mut attrs, key);
            check_found(key, how, found)?;
            attrs.push(new);
            match put_short(t, ino, &attrs)? {
                true => Ok(()),
                false => grow(t, ino, &attrs),
            }
        }
    }
}

/// Removes an attribute. Whether it was there.
///
/// # Errors
/// As [`set`].
pub(in super::super) fn remove(t: &mut Trans<'_>, ino: Ino, key: &AttrKey<'_>) -> Result<bool> {
    key.check(0)?;
    match form_of(t, ino)? {
        AttrForm::None | AttrForm::Empty => Ok(false),
        AttrForm::Short => {
            let mut attrs = short_attrs(t, ino)?;
            if !remove_from_list(&mut attrs, key) {
                return Ok(false);
            }
            put_rest(t, ino, &attrs)?;
            Ok(true)
        }
        AttrForm::Blocks => {
            let tree = AttrTree { ino };
            if !remove_from_tree(t, tree, key)? {
                return Ok(false);
            }
            shrink(t, tree)?;
            Ok(true)
        }
    }
}

/// The attributes that are left of those in the inode.
fn put_rest(t: &mut Trans<'_>, ino: Ino, attrs: &[OwnedAttr]) -> Result<()> {
    if attrs.is_empty() {
        return put_nothing(t, ino);
    }
    match put_short(t, ino, attrs)? {
        true => Ok(()),
        false => Err(bad_attributes(t, ino, "they do not fit any more")),
    }
}

fn check_found(key: &AttrKey<'_>, how: SetHow, found: bool) -> Result<()> {
    let name = key.name.escape_ascii();
    match (how, found) {
        (SetHow::Create, true) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("there is an attribute {name}"),
        )),
        (SetHow::Replace, false) => Err(Error::new(
            ErrorKind::NotFound,
            format!("there is no attribute {name}"),
        )),
        _ => Ok(()),
    }
}

fn remove_from_list(attrs: &mut Vec<OwnedAttr>, key: &AttrKey<'_>) -> bool {
    let before = attrs.len();
    attrs.retain(|attr| {
        !key.is_of(&super::layout::Attribute {
            flags: attr.flags,
            name: &attr.name,
            value: Value::Here(&attr.value),
        })
    });
    attrs.len() != before
}

/// Attributes that do not fit into the inode go to blocks, as by xfs_attr_shortform_to_leaf().
fn grow(t: &mut Trans<'_>, ino: Ino, attrs: &[OwnedAttr]) -> Result<()> {
    put_no_extents(t, ino)?;
    let tree = AttrTree { ino };
    if tree.take(t)? != 0 {
        return Err(bad_attributes(t, ino, "an empty fork that is not empty"));
    }
    for attr in attrs {
        add_to_tree(t, tree, attr)?;
    }
    Ok(())
}

/// Attributes in blocks that fit into the inode go there, as by xfs_attr3_leaf_to_shortform().
fn shrink(t: &mut Trans<'_>, tree: AttrTree) -> Result<()> {
    let Some(attrs) = tree.all_short(t)? else {
        return Ok(());
    };
    let fits = attrs.is_empty() || super::short::would_fit(t, tree.ino, &attrs)?;
    if !fits {
        return Ok(());
    }
    tree.give(t, 0)?;
    put_rest(t, tree.ino, &attrs)
}

fn add_to_tree(t: &mut Trans<'_>, tree: AttrTree, attr: &OwnedAttr) -> Result<()> {
    let block_bytes = usize::try_from(t.geometry().block_bytes).unwrap_or(0);
    let (name, value) = (&attr.name, &attr.value);
    let (flags, body) = match is_local(block_bytes, name.len(), value.len()) {
        true => (attr.flags | FLAG_LOCAL, local_body(name, value)),
        false => {
            let block = tree.put_value(t, value)?;
            let bytes = u32::try_from(value.len()).unwrap_or(u32::MAX);
            (attr.flags, remote_body(name, block, bytes))
        }
    };
    let body = body.ok_or_else(|| bad_attributes(t, tree.ino, "a name that is too long"))?;
    let is_parent = attr.flags & FLAG_PARENT != 0;
    let key = AttrKey {
        parent: is_parent.then_some(value),
        ..AttrKey::new(attr.flags, name)
    };
    let item = LeafItem {
        hash: key.hash(),
        flags,
        body: &body,
    };
    tree.insert(t, &item)
}

/// Removes all entries of a name from the index, with their values. Whether there was one.
fn remove_from_tree(t: &mut Trans<'_>, tree: AttrTree, key: &AttrKey<'_>) -> Result<bool> {
    let mut was_there = false;
    while let Some((path, index)) = tree.find(t, key)? {
        let value = leaf_items(tree.read(t, path.leaf)?).and_then(|items| {
            let item = items.get(index).ok_or("no such entry")?;
            Ok(match item_attribute(item)?.value {
                Value::Here(_) => None,
                Value::Remote { block, bytes } => Some((block, bytes)),
            })
        });
        let value = value.map_err(|what| tree.bad(t, path.leaf, what))?;
        tree.remove(t, &path, index)?;
        if let Some((block, bytes)) = value {
            tree.free_value(t, block, bytes)?;
        }
        was_there = true;
    }
    Ok(was_there)
}
