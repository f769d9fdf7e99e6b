//! The attribute fork inside of the inode: where it begins, and attributes in short form.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::{FromBytes, IntoBytes};

use super::layout::{self, AttrShortHeader, Value};
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::Ino;
use crate::xfs::buf::BufKind;
use crate::xfs::corrupt;
use crate::xfs::format::btree::BmdrHeader;
use crate::xfs::format::inode::{self as core_layout, InodeCore};
use crate::xfs::format::superblock::{SuperblockLayout, VERSION_ATTR};
use crate::xfs::trans::Trans;

/// Bytes of an extent in a fork, and of a key and a pointer of a fork's btree.
const RECORD_BYTES: usize = 16;
/// Records that there must be room for in the root of a data fork's btree.
const LEAST_DATA_RECORDS: usize = 3;
/// The same of an attribute fork.
const LEAST_ATTR_RECORDS: usize = 2;
/// Unit of the place of the attribute fork in bytes.
const UNIT_BYTES: usize = 8;

/// The longest name and value of an entry in short form.
const SHORT_MOST_BYTES: usize = 255;

/// What an inode has for attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AttrForm {
    /// No attribute fork.
    None,
    /// A fork without anything in it.
    Empty,
    /// Attributes in the fork itself.
    Short,
    /// Attributes in blocks.
    Blocks,
}

/// An attribute outside of its leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnedAttr {
    pub(super) flags: u8,
    pub(super) name: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl OwnedAttr {
    /// Whether it can be an entry in short form.
    pub(super) fn is_short(&self) -> bool {
        self.value.len() <= SHORT_MOST_BYTES && self.name.len() <= SHORT_MOST_BYTES
    }
}

/// An error about the attributes of an inode.
#[cold]
pub(super) fn bad_attributes(t: &Trans<'_>, ino: Ino, what: &str) -> Error {
    let addr = t.inode_place(ino).map_or(0, |(place, range)| {
        place.addr_bytes.saturating_add(range.start as u64)
    });
    corrupt(addr, format!("attributes of {ino}: {what}; run xfs_repair"))
}

fn core_of(t: &mut Trans<'_>, ino: Ino) -> Result<InodeCore> {
    let raw = t.inode(ino)?;
    let core = InodeCore::read_from_prefix(raw).map(|(core, _)| core).ok();
    core.ok_or_else(|| bad_attributes(t, ino, "the inode is too short"))
}

/// Extents of the attribute fork and of the data fork.
fn extents(core: &InodeCore) -> (u64, u64) {
    match core.flags2.get() & core_layout::FLAG2_NREXT64 != 0 {
        true => (core.nextents.get().into(), core.big_nextents.get()),
        false => (core.anextents.get().into(), core.nextents.get().into()),
    }
}

/// The form of the attributes.
pub(super) fn form_of(t: &mut Trans<'_>, ino: Ino) -> Result<AttrForm> {
    let core = core_of(t, ino)?;
    if core.forkoff == 0 {
        return Ok(AttrForm::None);
    }
    Ok(match core.aformat {
        core_layout::FORMAT_LOCAL => AttrForm::Short,
        core_layout::FORMAT_EXTENTS if extents(&core).0 == 0 => AttrForm::Empty,
        core_layout::FORMAT_EXTENTS | core_layout::FORMAT_BTREE => AttrForm::Blocks,
        _ => return Err(bad_attributes(t, ino, "a fork of an unknown form")),
    })
}

/// The attributes in short form.
pub(super) fn short_attrs(t: &mut Trans<'_>, ino: Ino) -> Result<Vec<OwnedAttr>> {
    let start = usize::from(core_of(t, ino)?.forkoff).saturating_mul(UNIT_BYTES);
    let raw = t.inode(ino)?;
    let fork = raw.get(core_layout::CORE_BYTES.saturating_add(start)..);
    let owned = layout::short_entries(fork.unwrap_or_default()).map(|entries| {
        let own = |entry: &layout::Attribute<'_>| OwnedAttr {
            flags: entry.flags,
            name: entry.name.to_vec(),
            value: match entry.value {
                Value::Here(value) => value.to_vec(),
                Value::Remote { .. } => Vec::new(),
            },
        };
        entries.iter().map(own).collect()
    });
    owned.map_err(|what| bad_attributes(t, ino, what))
}

/// The bytes of a fork in short form; `None` when an entry is too long for it.
fn short_bytes(attrs: &[OwnedAttr]) -> Option<Vec<u8>> {
    let mut bytes = vec![0; size_of::<AttrShortHeader>()];
    for attr in attrs {
        let name_bytes = u8::try_from(attr.name.len()).ok()?;
        let value_bytes = u8::try_from(attr.value.len()).ok()?;
        bytes.extend([name_bytes, value_bytes, attr.flags]);
        bytes.extend(attr.name.iter().chain(&attr.value));
    }
    let header = AttrShortHeader {
        total_bytes: u16::try_from(bytes.len()).ok()?.into(),
        count: u8::try_from(attrs.len()).ok()?,
        pad: 0,
    };
    let (head, _) = bytes.split_at_mut(size_of::<AttrShortHeader>());
    head.copy_from_slice(header.as_bytes());
    Some(bytes)
}

/// Bytes that a root of so many records takes: xfs_bmdr_space_calc().
fn root_bytes(records: usize) -> usize {
    size_of::<BmdrHeader>().saturating_add(records.saturating_mul(RECORD_BYTES))
}

/// Bytes of the inode behind its core.
fn literal_bytes(t: &Trans<'_>) -> usize {
    let inode = usize::try_from(t.geometry().inode_bytes).unwrap_or(0);
    inode.saturating_sub(core_layout::CORE_BYTES)
}

/// Bytes that the data fork needs of an inode, and whether it may not move.
fn data_bytes(t: &mut Trans<'_>, ino: Ino, core: &InodeCore) -> Result<usize> {
    let long = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    Ok(match core.format {
        core_layout::FORMAT_LOCAL => long(core.size.get()),
        core_layout::FORMAT_EXTENTS => long(extents(core).1).saturating_mul(RECORD_BYTES),
        core_layout::FORMAT_BTREE => {
            let raw = t.inode(ino)?.get(core_layout::CORE_BYTES..);
            let root = BmdrHeader::ref_from_prefix(raw.unwrap_or_default()).ok();
            let records = root.map_or(0, |(root, _)| usize::from(root.numrecs.get()));
            root_bytes(records)
        }
        core_layout::FORMAT_DEV => 1,
        _ => return Err(bad_attributes(t, ino, "a data fork of an unknown form")),
    })
}

/// The unit at which an attribute fork of so many bytes begins, as
/// xfs_attr_shortform_bytesfit(). `None` when it does not fit.
fn fitting_unit(
    t: &mut Trans<'_>,
    ino: Ino,
    core: &InodeCore,
    bytes: usize,
) -> Result<Option<usize>> {
    let literal = literal_bytes(t);
    let Some(room) = literal.checked_sub(bytes) else {
        return Ok(None);
    };
    let unit = room / UNIT_BYTES;
    if core.format == core_layout::FORMAT_DEV {
        return Ok((unit >= 1).then_some(1));
    }
    let now = usize::from(core.forkoff);
    if now != 0 && now.saturating_mul(UNIT_BYTES) <= room {
        return Ok(Some(now));
    }
    if now != 0 && core.format == core_layout::FORMAT_BTREE {
        return Ok(None);
    }
    let data = data_bytes(t, ino, core)?;
    let least = data
        .max(root_bytes(LEAST_DATA_RECORDS))
        .div_ceil(UNIT_BYTES);
    let most = most_unit(literal);
    let unit = unit.min(most);
    Ok((unit >= least).then_some(unit))
}

/// The last unit at which an attribute fork may begin.
fn most_unit(literal: usize) -> usize {
    literal.saturating_sub(root_bytes(LEAST_ATTR_RECORDS)) / UNIT_BYTES
}

/// Whether these attributes fit into the inode.
pub(super) fn would_fit(t: &mut Trans<'_>, ino: Ino, attrs: &[OwnedAttr]) -> Result<bool> {
    let Some(bytes) = short_bytes(attrs) else {
        return Ok(false);
    };
    let core = core_of(t, ino)?;
    Ok(fitting_unit(t, ino, &core, bytes.len())?.is_some())
}

/// Puts attributes into the inode. `false`, and nothing is changed, when they do not fit.
pub(super) fn put_short(t: &mut Trans<'_>, ino: Ino, attrs: &[OwnedAttr]) -> Result<bool> {
    let Some(bytes) = short_bytes(attrs) else {
        return Ok(false);
    };
    let core = core_of(t, ino)?;
    let Some(unit) = fitting_unit(t, ino, &core, bytes.len())? else {
        return Ok(false);
    };
    if core.forkoff == 0 {
        make_fork(t, ino, unit)?;
    }
    put_fork(t, ino, unit, core_layout::FORMAT_LOCAL, &bytes)?;
    Ok(true)
}

/// Sets place, form and content of the attribute fork. The data fork in front of it fits.
fn put_fork(t: &mut Trans<'_>, ino: Ino, unit: usize, form: u8, content: &[u8]) -> Result<()> {
    let start = unit.saturating_mul(UNIT_BYTES);
    let raw = t.edit_inode(ino)?;
    let placed = InodeCore::mut_from_prefix(raw).ok().and_then(|parts| {
        let (core, literal) = parts;
        core.forkoff = u8::try_from(unit).ok()?;
        core.aformat = form;
        let fork = literal.get_mut(start..)?;
        fork.fill(0);
        fork.get_mut(..content.len())?.copy_from_slice(content);
        Some(())
    });
    placed.ok_or_else(|| bad_attributes(t, ino, "the fork does not fit"))
}

/// Makes the attribute fork one of extents, without any. An inode without the fork gets one, as by
/// xfs_bmap_add_attrfork().
pub(super) fn put_no_extents(t: &mut Trans<'_>, ino: Ino) -> Result<()> {
    let core = core_of(t, ino)?;
    let mut unit = usize::from(core.forkoff);
    if unit == 0 {
        unit = unit_for_blocks(t, ino, &core)?;
        make_fork(t, ino, unit)?;
    }
    put_fork(t, ino, unit, core_layout::FORMAT_EXTENTS, &[])
}

/// Where a fork with extents begins in an inode that has none: as xfs_bmap_set_attrforkoff() where
/// the data fork is small, else as far behind as needed.
fn unit_for_blocks(t: &mut Trans<'_>, ino: Ino, core: &InodeCore) -> Result<usize> {
    let default = root_bytes(LEAST_ATTR_RECORDS.saturating_mul(6)) / UNIT_BYTES;
    if core.format == core_layout::FORMAT_DEV {
        return Ok(1);
    }
    let least = data_bytes(t, ino, core)?.div_ceil(UNIT_BYTES);
    let unit = default.max(least);
    if unit <= most_unit(literal_bytes(t)) {
        return Ok(unit);
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "{ino} has no attributes yet, and its content leaves no room for them in the inode: \
             set the first one with the kernel"
        ),
    ))
}

/// Prepares the data fork for an attribute fork that begins at `unit`, and notes in the superblock
/// that there are attributes.
fn make_fork(t: &mut Trans<'_>, ino: Ino, unit: usize) -> Result<()> {
    let core = core_of(t, ino)?;
    if core.format == core_layout::FORMAT_BTREE {
        move_root_pointers(t, ino, unit)?;
    }
    let place = t.place_of_header(0, BufKind::Superblock);
    let has_attributes = |raw: &[u8]| {
        let raw = SuperblockLayout::ref_from_prefix(raw).ok();
        raw.is_none_or(|(raw, _)| raw.versionnum.get() & VERSION_ATTR != 0)
    };
    if has_attributes(t.read(place, BufKind::Superblock)?) {
        return Ok(());
    }
    let raw = t.edit(place, BufKind::Superblock)?;
    if let Ok((raw, _)) = SuperblockLayout::mut_from_prefix(raw) {
        raw.versionnum = (raw.versionnum.get() | VERSION_ATTR).into();
    }
    Ok(())
}

/// Moves the pointers of the root of the data fork's btree, which lie behind the room for keys, to
/// where they are in a fork that ends at `unit`.
fn move_root_pointers(t: &mut Trans<'_>, ino: Ino, unit: usize) -> Result<()> {
    const HALF: usize = RECORD_BYTES / 2;
    let raw = t.edit_inode(ino)?;
    let literal = raw.get_mut(core_layout::CORE_BYTES..).unwrap_or_default();
    let head = size_of::<BmdrHeader>();
    let most = |bytes: usize| bytes.saturating_sub(head) / RECORD_BYTES;
    let pointers = |most: usize| head.saturating_add(most.saturating_mul(HALF));
    let count = BmdrHeader::ref_from_prefix(literal).map_or(0, |(root, _)| root.numrecs.get());
    let bytes = usize::from(count).saturating_mul(HALF);
    let end = unit.saturating_mul(UNIT_BYTES);
    let (from, to) = (pointers(most(literal.len())), pointers(most(end)));
    let old = from..from.saturating_add(bytes);
    let fits = usize::from(count) <= most(end) && old.end <= literal.len() && to <= from;
    if !fits {
        return Err(bad_attributes(
            t,
            ino,
            "the root of the data fork does not fit",
        ));
    }
    literal.copy_within(old, to);
    let behind = literal.get_mut(to.saturating_add(bytes)..);
    behind.unwrap_or_default().fill(0);
    Ok(())
}

/// Removes the attribute fork, which has no attribute left, as xfs_attr_fork_remove(). It stays,
/// in short form, where the data fork is a btree, whose root has the size of its fork, where the
/// filesystem has parent pointers, and where the target of a symbolic link has a block: kernels
/// before 6.10 reject one that would have room in the inode then.
pub(super) fn put_nothing(t: &mut Trans<'_>, ino: Ino) -> Result<()> {
    let core = core_of(t, ino)?;
    let is_link = core.mode.get() & core_layout::S_IFMT == core_layout::S_IFLNK;
    let has_target = is_link && core.format == core_layout::FORMAT_EXTENTS;
    let is_btree = core.format == core_layout::FORMAT_BTREE;
    if is_btree || has_target || t.features().parent() {
        let empty = short_bytes(&[]).unwrap_or_default();
        let unit = usize::from(core.forkoff);
        return put_fork(t, ino, unit, core_layout::FORMAT_LOCAL, &empty);
    }
    put_fork(
        t,
        ino,
        core.forkoff.into(),
        core_layout::FORMAT_EXTENTS,
        &[],
    )?;
    let raw = t.edit_inode(ino)?;
    if let Ok((core, _)) = InodeCore::mut_from_prefix(raw) {
        core.forkoff = 0;
    }
    Ok(())
}
