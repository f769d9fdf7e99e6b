//! The AGF of a group, and its list of free blocks (AGFL).
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;
use zerocopy::big_endian::U32;

use super::super::buf::BufKind;
use super::super::corrupt;
use super::super::format::ag::{self as layout, Agf, AgflHeader, Agi};
use super::super::format::btree;
use super::super::trans::Trans;
use crate::error::{Error, Result};

/// A contradiction in a group's header.
pub(super) fn bad_agf(t: &Trans<'_>, ag: u32, what: &str) -> Error {
    let place = t.place_of_header(ag, BufKind::Agf);
    corrupt(place.addr_bytes, format!("AGF of group {ag}: {what}"))
}

/// A group's AGF, checked as xfs_agf_verify() does.
pub(super) fn read_agf(t: &mut Trans<'_>, ag: u32) -> Result<Agf> {
    let place = t.place_of_header(ag, BufKind::Agf);
    let raw = t.read(place, BufKind::Agf)?;
    let agf = Agf::read_from_prefix(raw).map(|(agf, _)| agf).ok();
    let agf = agf.ok_or_else(|| bad_agf(t, ag, "too short"))?;
    check_agf(t, ag, &agf).map_err(|what| bad_agf(t, ag, what))?;
    Ok(agf)
}

fn check_agf(t: &Trans<'_>, ag: u32, agf: &Agf) -> Result<(), &'static str> {
    let (geometry, features) = (t.geometry(), t.features());
    let length = agf.length.get();
    if agf.versionnum.get() != layout::AG_VERSION {
        return Err("unknown version");
    }
    if agf.seqno.get() != ag {
        return Err("of another allocation group");
    }
    if length == 0 || length != geometry.ag_length(ag) {
        return Err("wrong length of the group");
    }
    if agf.freeblks.get() > length || agf.longest.get() > agf.freeblks.get() {
        return Err("more free blocks than blocks");
    }
    let slots = list_slots(geometry.sector_bytes);
    let (first, last) = (agf.flfirst.get(), agf.fllast.get());
    if first >= slots || last >= slots || agf.flcount.get() > slots {
        return Err("the free list lies outside its sector");
    }
    // xfs_agfl_needs_reset()
    let active = match agf.flcount.get() {
        0 => 0,
        _ => last
            .saturating_add(slots)
            .saturating_sub(first)
            .checked_rem(slots)
            .map_or(0, |between| between.saturating_add(1)),
    };
    if active != agf.flcount.get() {
        return Err("the length of the free list does not fit its ends; run xfs_repair");
    }
    let levels_fit = |levels: U32| (1..=btree::MAX_LEVELS).contains(&levels.get());
    if !levels_fit(agf.bno_level) || !levels_fit(agf.cnt_level) {
        return Err("impossible height of a btree");
    }
    if agf.btreeblks.get() > length {
        return Err("more btree blocks than blocks");
    }
    if features.rmapbt() && (!levels_fit(agf.rmap_level) || agf.rmap_blocks.get() > length) {
        return Err("impossible size of the reverse mapping btree");
    }
    if features.reflink() && (!levels_fit(agf.refcount_level) || agf.refcount_blocks.get() > length)
    {
        return Err("impossible size of the refcount btree");
    }
    Ok(())
}

/// A group's AGI, for the sizes of its btrees.
pub(super) fn read_agi(t: &mut Trans<'_>, ag: u32) -> Result<Agi> {
    let place = t.place_of_header(ag, BufKind::Agi);
    let raw = t.read(place, BufKind::Agi)?;
    let agi = Agi::read_from_prefix(raw).map(|(agi, _)| agi);
    let bad = |what: &str| corrupt(place.addr_bytes, format!("AGI of group {ag}: {what}"));
    let agi = agi.map_err(|_| bad("too short"))?;
    if agi.seqno.get() != ag || agi.length.get() != t.geometry().ag_length(ag) {
        return Err(bad("of another allocation group"));
    }
    Ok(agi)
}

/// Changes a group's AGF, which was read before.
pub(super) fn edit_agf(t: &mut Trans<'_>, ag: u32, change: impl FnOnce(&mut Agf)) -> Result<()> {
    let place = t.place_of_header(ag, BufKind::Agf);
    let raw = t.edit(place, BufKind::Agf)?;
    match Agf::mut_from_prefix(raw) {
        Ok((agf, _)) => {
            change(agf);
            Ok(())
        }
        Err(_) => Err(bad_agf(t, ag, "too short")),
    }
}

/// Block numbers that fit into the sector of the free list.
pub(super) fn list_slots(sector_bytes: u32) -> u32 {
    let header = u32::try_from(size_of::<AgflHeader>()).unwrap_or(u32::MAX);
    sector_bytes.saturating_sub(header) / 4
}

/// The word of the free list's sector that slot `index` is.
fn slot(raw: &mut [u8], index: u32) -> Option<&mut U32> {
    let at = usize::try_from(index).ok()?.checked_mul(4)?;
    let at = at.checked_add(size_of::<AgflHeader>())?;
    let (word, _) = U32::mut_from_prefix(raw.get_mut(at..)?).ok()?;
    Some(word)
}

fn slot_after(slot: u32, slots: u32) -> u32 {
    let next = slot.saturating_add(1);
    if next >= slots { 0 } else { next }
}

/// Takes the first block of the free list, as xfs_alloc_get_freelist(); `None` when it is empty.
pub(super) fn list_take(t: &mut Trans<'_>, ag: u32) -> Result<Option<u32>> {
    let agf = read_agf(t, ag)?;
    if agf.flcount.get() == 0 {
        return Ok(None);
    }
    let place = t.place_of_header(ag, BufKind::Agfl);
    let bad = |what: &str| corrupt(place.addr_bytes, format!("AGFL of group {ag}: {what}"));
    let raw = t.read(place, BufKind::Agfl)?;
    let header = AgflHeader::ref_from_prefix(raw).map_err(|_| bad("too short"));
    if header?.0.seqno.get() != ag {
        return Err(bad("of another allocation group"));
    }
    let first = agf.flfirst.get();
    let at = usize::try_from(first).unwrap_or(usize::MAX);
    let at = at.saturating_mul(4).saturating_add(size_of::<AgflHeader>());
    let word = raw
        .get(at..)
        .and_then(|rest| U32::ref_from_prefix(rest).ok());
    let block = word.map_or(layout::NULL_AG, |(word, _)| word.get());
    let start = t.geometry().fs_block(ag, block);
    if block >= t.geometry().ag_length(ag) || t.geometry().check_extent(start, 1).is_err() {
        return Err(bad("an impossible block number"));
    }
    let slots = list_slots(t.geometry().sector_bytes);
    edit_agf(t, ag, |agf| {
        agf.flfirst.set(slot_after(first, slots));
        agf.flcount.set(agf.flcount.get().saturating_sub(1));
    })?;
    Ok(Some(block))
}

/// Puts a block at the end of the free list, as xfs_alloc_put_freelist().
pub(super) fn list_give(t: &mut Trans<'_>, ag: u32, block: u32) -> Result<()> {
    let agf = read_agf(t, ag)?;
    let slots = list_slots(t.geometry().sector_bytes);
    if agf.flcount.get() >= slots {
        return Err(bad_agf(t, ag, "the free list is full"));
    }
    let last = slot_after(agf.fllast.get(), slots);
    let place = t.place_of_header(ag, BufKind::Agfl);
    let raw = t.edit(place, BufKind::Agfl)?;
    let Some(word) = slot(raw, last) else {
        return Err(corrupt(place.addr_bytes, "AGFL: too short"));
    };
    word.set(block);
    edit_agf(t, ag, |agf| {
        agf.fllast.set(last);
        agf.flcount.set(agf.flcount.get().saturating_add(1));
    })
}
