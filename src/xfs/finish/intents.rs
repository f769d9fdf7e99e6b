//! Intents of the log, checked and finished: extents to be freed (EFI), changes of reverse mappings
//! (RUI), of reference counts (CUI), of mappings of files (BUI) and of attributes (ATTRI),
//! exchanges of mappings (XMI).
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeSet;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::super::alloc::{self, Ownerless, RmapOwner};
use super::super::bmap::{self, ForkId};
use super::super::extents::Extent;
use super::super::format::btree::{
    MAX_EXTENT_BLOCKS, RMAP_ATTR_FORK, RMAP_BMBT_BLOCK, RMAP_OWNER_COW, RMAP_OWNER_FS,
    RMAP_UNWRITTEN,
};
use super::super::format::log_items::{self as layout, FreeItem, LoggedExtent, LoggedMapping};
use super::super::geometry::{FsBlock, Geometry, Ino};
use super::super::log::{LogItem, PendingIntent};
use super::super::superblock::Features;
use super::super::trans::{MetaState, Trans, is_only_busy};
use super::super::tree::ForkKind;
use super::super::{MetaIo, corrupt};
use super::attributes;
use super::exchange::{self, MappingExchange};
use super::inodes::{bad_inode, check_offset, core_of, inode_of, used_inode};
use crate::error::{Error, ErrorKind, Result};

/// The rest of the work for intents that were finished in memory.
#[derive(Debug, Default)]
pub(in super::super) struct FinishedIntents {
    /// Files whose mappings were changed.
    pub(in super::super) files: BTreeSet<Ino>,
    /// Values of attributes that are not logged: addresses and contents of free blocks, which must
    /// be durable with the checkpoint.
    pub(in super::super) values: Vec<(u64, Box<[u8]>)>,
}

/// Finishes intents in this order, in memory: the changes and the items that end the intents are in
/// `state`, for one checkpoint. `io` is only read.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for an intent that is impossible or contradicts the metadata,
/// [`ErrorKind::Unsupported`] for one of another kind; the device's. `state` is of no use then.
pub(in super::super) fn finish_intents<'a>(
    state: &mut MetaState,
    io: &mut dyn MetaIo,
    intents: impl IntoIterator<Item = &'a PendingIntent>,
) -> Result<FinishedIntents> {
    let mut done = FinishedIntents::default();
    // As the kernel, which defers them until all intents of the log were finished.
    let mut ownerless = Vec::new();
    for intent in intents {
        let mut t = Trans::begin(state, io)?;
        if intent.kind == layout::ATTRI {
            let change = attributes::parse(intent, t.geometry(), t.features())
                .map_err(|what| bad(intent, what.into()))?;
            attributes::finish(&mut t, &change)
                .map_err(|error| told_busy(error).during("finish what the log left open"))?;
            t.log_item(done_item(intent, &[]));
            done.values.append(&mut t.take_unlogged());
            t.commit();
            continue;
        }
        let changes =
            parse(intent, t.geometry(), t.features()).map_err(|what| bad(intent, what))?;
        for change in &changes {
            match change {
                IntentChange::Attach(id, _) | IntentChange::Detach(id, _) => {
                    done.files.insert(id.ino);
                }
                IntentChange::Exchange(exchange) => done.files.extend(exchange.inodes()),
                _ => {}
            }
            finish(&mut t, change, &mut ownerless)
                .map_err(|error| error.during("finish what the log left open"))?;
        }
        t.log_item(done_item(intent, &changes));
        t.commit();
    }
    let mut t = Trans::begin(state, io)?;
    for extent in &ownerless {
        alloc::free_ownerless(&mut t, extent)?;
    }
    t.commit();
    Ok(done)
}

/// Blocks that the intents freed cannot be used before all of them are durable.
#[cold]
fn told_busy(error: Error) -> Error {
    match is_only_busy(&error) {
        true => Error::new(
            ErrorKind::NoSpace,
            "the value of an attribute finds no space, or only such as the log frees: mount the \
             filesystem once with the kernel and unmount it",
        ),
        false => error,
    }
}

#[cold]
fn bad(intent: &PendingIntent, what: IntentFault) -> Error {
    let PendingIntent { kind, id, .. } = intent;
    match what {
        IntentFault::Corrupt(what) => corrupt(
            0,
            format!("the log cannot be replayed: intent {id:#x} of type {kind:#x}: {what}"),
        ),
        IntentFault::Unsupported => Error::new(
            ErrorKind::Unsupported,
            format!(
                "the log holds an operation of type {kind:#x} that was not finished: mount the \
                 filesystem once with the kernel and unmount it"
            ),
        ),
    }
}

/// Why an intent cannot be finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IntentFault {
    Corrupt(&'static str),
    Unsupported,
}

impl From<&'static str> for IntentFault {
    fn from(what: &'static str) -> Self {
        Self::Corrupt(what)
    }
}

/// An extent inside of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LoggedRun {
    start: FsBlock,
    blocks: u32,
}

/// What one part of an intent asks for, checked against the geometry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IntentChange {
    Free(LoggedRun),
    MapOwner(LoggedRun, RmapOwner),
    UnmapOwner(LoggedRun, RmapOwner),
    /// The owner has the old state.
    ConvertOwner(LoggedRun, RmapOwner),
    Share(LoggedRun),
    Unshare(LoggedRun),
    Stage(LoggedRun),
    Unstage(LoggedRun),
    Attach(ForkId, Extent),
    Detach(ForkId, Extent),
    Exchange(MappingExchange),
}

/// The parts of an intent.
fn parse(
    intent: &PendingIntent,
    geometry: &Geometry,
    features: &Features,
) -> Result<Vec<IntentChange>, IntentFault> {
    let has = |is_on: bool| match is_on {
        true => Ok(()),
        false => Err("the filesystem has not the feature that it needs"),
    };
    let changes: Result<Vec<_>, _> = match intent.kind {
        layout::EFI => list_of::<LoggedExtent>(intent)?
            .iter()
            .map(|extent| run_of(geometry, extent.start.get(), extent.len.get()))
            .map(|run| Ok(IntentChange::Free(run?)))
            .collect(),
        layout::RUI => {
            has(features.rmapbt())?;
            let list = list_of::<LoggedMapping>(intent)?;
            list.iter().map(|map| rmap_change(geometry, map)).collect()
        }
        layout::CUI => {
            has(features.reflink())?;
            let list = list_of::<LoggedExtent>(intent)?;
            let change = |extent| refcount_change(geometry, extent);
            list.iter().map(change).collect()
        }
        layout::BUI => {
            has(features.rmapbt() || features.reflink())?;
            match list_of::<LoggedMapping>(intent)? {
                [map] => fork_change(geometry, map).map(|change| vec![change]),
                _ => Err("several mappings at once"),
            }
        }
        layout::XMI => {
            has(features.exchange())?;
            let exchange = exchange::parse(&intent.bytes, geometry);
            exchange.map(|exchange| vec![IntentChange::Exchange(exchange)])
        }
        _ => return Err(IntentFault::Unsupported),
    };
    Ok(changes?)
}

/// The list behind the header of an intent.
fn list_of<T>(intent: &PendingIntent) -> Result<&[T], &'static str>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    let (header, rest) = FreeItem::ref_from_prefix(&intent.bytes).map_err(|_| "too short")?;
    let count = usize::try_from(header.nextents.get()).unwrap_or(usize::MAX);
    let list = <[T]>::ref_from_bytes(rest).map_err(|_| "of another length than it says")?;
    match list.len() == count && count > 0 {
        true => Ok(list),
        false => Err("of another length than it says"),
    }
}

fn run_of(geometry: &Geometry, start: u64, blocks: u32) -> Result<LoggedRun, &'static str> {
    let start = FsBlock(start);
    geometry.check_extent(start, blocks.into())?;
    Ok(LoggedRun { start, blocks })
}

/// As xfs_rui_validate_map() and __xfs_rmap_finish_intent().
fn rmap_change(geometry: &Geometry, map: &LoggedMapping) -> Result<IntentChange, &'static str> {
    const FORK: u32 = layout::RUI_ATTR_FORK | layout::RUI_BMBT_BLOCK | layout::RUI_UNWRITTEN;
    let flags = map.flags.get();
    if flags & !(layout::INTENT_CHANGE | FORK) != 0 {
        return Err("unknown flags");
    }
    let run = run_of(geometry, map.startblock.get(), map.len.get())?;
    let (owner, start) = (map.owner.get(), map.startoff.get());
    let is_unwritten = flags & layout::RUI_UNWRITTEN != 0;
    let bit = |flag: u32, bit: u64| if flags & flag != 0 { bit } else { 0 };
    let fork =
        bit(layout::RUI_ATTR_FORK, RMAP_ATTR_FORK) | bit(layout::RUI_BMBT_BLOCK, RMAP_BMBT_BLOCK);
    let of_group = (RMAP_OWNER_COW..=RMAP_OWNER_FS).contains(&owner);
    let offset = if of_group {
        0
    } else {
        inode_of(geometry, owner)?;
        check_offset(start, run.blocks.into())?;
        let start = if fork & RMAP_BMBT_BLOCK != 0 {
            0
        } else {
            start
        };
        start | fork
    };
    let owner = |is_unwritten: bool| {
        let state = if is_unwritten { RMAP_UNWRITTEN } else { 0 };
        RmapOwner::logged(owner, offset | state)
    };
    Ok(match flags & layout::INTENT_CHANGE {
        layout::RUI_MAP | layout::RUI_MAP_SHARED | layout::RUI_ALLOC => {
            IntentChange::MapOwner(run, owner(is_unwritten))
        }
        layout::RUI_UNMAP | layout::RUI_UNMAP_SHARED | layout::RUI_FREE => {
            IntentChange::UnmapOwner(run, owner(is_unwritten))
        }
        layout::RUI_CONVERT | layout::RUI_CONVERT_SHARED => {
            IntentChange::ConvertOwner(run, owner(!is_unwritten))
        }
        _ => return Err("an unknown change"),
    })
}

fn refcount_change(geometry: &Geometry, map: &LoggedExtent) -> Result<IntentChange, &'static str> {
    let run = run_of(geometry, map.start.get(), map.len.get())?;
    let flags = map.pad.get();
    if flags & !layout::INTENT_CHANGE != 0 {
        return Err("unknown flags");
    }
    Ok(match flags {
        layout::CUI_INCREASE => IntentChange::Share(run),
        layout::CUI_DECREASE => IntentChange::Unshare(run),
        layout::CUI_STAGE => IntentChange::Stage(run),
        layout::CUI_UNSTAGE => IntentChange::Unstage(run),
        _ => return Err("an unknown change"),
    })
}

/// As xfs_bui_validate().
fn fork_change(geometry: &Geometry, map: &LoggedMapping) -> Result<IntentChange, &'static str> {
    const FORK: u32 = layout::BUI_ATTR_FORK | layout::BUI_UNWRITTEN;
    let flags = map.flags.get();
    if flags & !(layout::INTENT_CHANGE | FORK) != 0 {
        return Err("unknown flags");
    }
    let run = run_of(geometry, map.startblock.get(), map.len.get())?;
    let ino = inode_of(geometry, map.owner.get())?;
    check_offset(map.startoff.get(), run.blocks.into())?;
    if u64::from(run.blocks) > MAX_EXTENT_BLOCKS {
        return Err("an extent that is too long");
    }
    let fork = match flags & layout::BUI_ATTR_FORK != 0 {
        true => ForkKind::Attribute,
        false => ForkKind::Data,
    };
    let extent = Extent {
        offset_blocks: map.startoff.get(),
        start_block: run.start,
        blocks: run.blocks.into(),
        unwritten: flags & layout::BUI_UNWRITTEN != 0,
    };
    let id = ForkId { ino, fork };
    Ok(match flags & layout::INTENT_CHANGE {
        layout::BUI_MAP => IntentChange::Attach(id, extent),
        layout::BUI_UNMAP => IntentChange::Detach(id, extent),
        _ => return Err("an unknown change"),
    })
}

fn finish(t: &mut Trans<'_>, change: &IntentChange, ownerless: &mut Vec<Ownerless>) -> Result<()> {
    match *change {
        IntentChange::Free(run) => alloc::free_logged(t, run.start, run.blocks),
        IntentChange::MapOwner(run, owner) => alloc::map_owner(t, run.start, run.blocks, owner),
        IntentChange::UnmapOwner(run, owner) => alloc::unmap_owner(t, run.start, run.blocks, owner),
        IntentChange::ConvertOwner(run, owner) => {
            alloc::convert_owner(t, run.start, run.blocks, owner)
        }
        IntentChange::Share(run) => alloc::share(t, run.start, run.blocks),
        IntentChange::Unshare(run) => {
            ownerless.extend(alloc::unshare(t, run.start, run.blocks)?);
            Ok(())
        }
        IntentChange::Stage(run) => alloc::stage(t, run.start, run.blocks),
        IntentChange::Unstage(run) => alloc::unstage(t, run.start, run.blocks),
        IntentChange::Attach(id, extent) => {
            check_file(t, id)?;
            bmap::attach(t, id, &extent)
        }
        IntentChange::Detach(id, extent) => {
            check_file(t, id)?;
            bmap::detach(t, id, extent.offset_blocks..extent.end_blocks())
        }
        IntentChange::Exchange(ref exchange) => exchange::finish(t, exchange),
    }
}

fn check_file(t: &mut Trans<'_>, id: ForkId) -> Result<()> {
    used_inode(t, id.ino)?;
    match core_of(t, id.ino)?.mode.get() {
        0 => Err(bad_inode(t, id.ino, "it is mapped, and not in use")),
        _ => Ok(()),
    }
}

/// The item that says that an intent was done.
fn done_item(intent: &PendingIntent, changes: &[IntentChange]) -> LogItem {
    if intent.kind != layout::EFI {
        return LogItem::intent_done(intent.kind, intent.id);
    }
    let freed: Vec<_> = changes
        .iter()
        .filter_map(|change| match change {
            IntentChange::Free(run) => Some((run.start.0, run.blocks)),
            _ => None,
        })
        .collect();
    LogItem::freed(intent.id, &freed)
}
