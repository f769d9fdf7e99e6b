//! Allocation of one extent: which groups are tried in which order, and how much they can give.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::super::geometry::{FsBlock, Ino};
use super::super::trans::{Trans, no_space, only_busy};
use super::agf::read_agf;
use super::choose::{Choice, GroupWish, choose, choose_exact};
use super::denial::SpaceDenial;
use super::freelist::{FixedList, fix_freelist, least_list_blocks};
use super::reserve::{Reserve, available, group_reserve};
use super::rmap::{self, RmapOwner};
use super::space;
use crate::error::Result;

/// Where an extent has to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) enum Alignment {
    /// At a stripe unit, where the filesystem has one and that is possible.
    #[default]
    Stripe,
    /// Anywhere.
    None,
    /// At a multiple of so many blocks in its group, or nowhere.
    Blocks(u32),
}

/// Blocks that are to be allocated: one extent.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct AllocRequest {
    /// The block to be near to, such as that behind the last extent of the file. Without it, the
    /// inode of the owner.
    pub(in super::super) near: Option<FsBlock>,
    /// Only in the group of `near`.
    pub(in super::super) same_group: bool,
    pub(in super::super) least: u32,
    pub(in super::super) most: u32,
    pub(in super::super) alignment: Alignment,
    pub(in super::super) owner: RmapOwner,
    pub(in super::super) reserve: Reserve,
    /// The blocks are for metadata that is only written in place after its checkpoint: they may be
    /// blocks whose freeing is not durable yet.
    pub(in super::super) is_logged: bool,
}

/// An extent that was allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Allocated {
    pub(in super::super) start: FsBlock,
    pub(in super::super) blocks: u32,
}

impl AllocRequest {
    /// A request for `least` to `most` blocks of file data.
    pub(in super::super) fn new(owner: RmapOwner, least: u32, most: u32) -> Self {
        Self {
            near: None,
            same_group: false,
            least,
            most,
            alignment: Alignment::default(),
            owner,
            reserve: Reserve::default(),
            is_logged: false,
        }
    }
}

/// The group and the block to be near to.
fn home(t: &Trans<'_>, request: &AllocRequest) -> (u32, Option<u32>) {
    let geometry = t.geometry();
    let of_inode = |ino: Ino| {
        let place = geometry.locate_inode(ino)?;
        Some((place.ag, Some(place.ag_block)))
    };
    let found = match request.near {
        Some(near) => Some(geometry.split(near)).map(|(ag, block)| (ag, Some(block))),
        None => request.owner.ino().and_then(of_inode),
    };
    found
        .filter(|(ag, _)| *ag < geometry.ag_count)
        .unwrap_or((0, None))
}

/// Allocates one extent: near to a block, else of the best length in the same group, else in the
/// groups behind it.
///
/// # Errors
/// [`ErrorKind::NoSpace`]; [`ErrorKind::WouldBlock`] when only busy blocks are free;
/// [`ErrorKind::Corrupt`] when structures contradict each other; the device's. The transaction must
/// be dropped then.
pub(in super::super) fn allocate(t: &mut Trans<'_>, request: &AllocRequest) -> Result<Allocated> {
    if SpaceDenial::next() {
        return Err(no_space());
    }
    let allowed = available(t, request.reserve)?;
    let allowed = u32::try_from(allowed).unwrap_or(u32::MAX);
    let (least, most) = (request.least.max(1), request.most.min(allowed));
    if least > most {
        return Err(no_space());
    }
    let (home, near) = home(t, request);
    let groups = match request.same_group {
        true => 1,
        false => t.geometry().ag_count,
    };
    let stripe = t.geometry().stripe_unit_blocks;
    let (align, is_soft) = match request.alignment {
        Alignment::Stripe if stripe > 1 => (stripe, true),
        Alignment::Blocks(blocks) => (blocks.max(1), false),
        Alignment::Stripe | Alignment::None => (1, false),
    };
    let mut attempt = AllocAttempt {
        request,
        home,
        groups,
        near,
        saw_busy: false,
    };
    let longest = attempt.longest(t, least, most)?;
    let full = longest.clamp(least, most);
    if is_soft {
        // A file that grows goes on where it ends.
        if let Some(found) = attempt.exact(t, full, most)? {
            return Ok(found);
        }
        if let Some(found) = attempt.all_groups(t, full, full, align)? {
            return Ok(found);
        }
    }
    let align = if is_soft { 1 } else { align };
    for at_least in [full, least] {
        if let Some(found) = attempt.all_groups(t, at_least, full, align)? {
            return Ok(found);
        }
        if full == least {
            break;
        }
    }
    if attempt.saw_busy {
        return Err(only_busy());
    }
    Err(no_space())
}

/// An allocation in progress.
struct AllocAttempt<'r> {
    request: &'r AllocRequest,
    home: u32,
    /// Groups to be tried from `home`.
    groups: u32,
    near: Option<u32>,
    saw_busy: bool,
}

impl AllocAttempt<'_> {
    /// The group that is tried after so many others.
    fn group(&self, t: &Trans<'_>, index: u32) -> u32 {
        let group = self.home.saturating_add(index);
        group.checked_rem(t.geometry().ag_count).unwrap_or(0)
    }

    fn near_in(&self, ag: u32) -> Option<u32> {
        self.near.filter(|_| ag == self.home)
    }

    /// Blocks of the longest extent that there may be, `most` at most: of the first group that has
    /// as many, else of all.
    fn longest(&self, t: &mut Trans<'_>, least: u32, most: u32) -> Result<u32> {
        let mut longest = 0;
        for index in 0..self.groups {
            let ag = self.group(t, index);
            let room = group_room(t, ag, least, self.request.reserve)?;
            longest = longest.max(room.map_or(0, |room| room.longest.min(room.blocks)));
            if longest >= most {
                break;
            }
        }
        Ok(longest)
    }

    /// Exactly at the block to be near to.
    fn exact(&mut self, t: &mut Trans<'_>, least: u32, most: u32) -> Result<Option<Allocated>> {
        let wish = GroupWish {
            ag: self.home,
            near: self.near,
            least,
            most,
            align: 1,
            may_be_busy: self.request.is_logged,
        };
        self.in_group(t, wish, choose_exact)
    }

    fn all_groups(
        &mut self,
        t: &mut Trans<'_>,
        least: u32,
        most: u32,
        align: u32,
    ) -> Result<Option<Allocated>> {
        for index in 0..self.groups {
            let ag = self.group(t, index);
            let wish = GroupWish {
                ag,
                near: self.near_in(ag),
                least,
                most,
                align,
                may_be_busy: self.request.is_logged,
            };
            if let Some(found) = self.in_group(t, wish, choose)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn in_group(
        &mut self,
        t: &mut Trans<'_>,
        wish: GroupWish,
        choose: fn(&mut Trans<'_>, GroupWish) -> Result<Choice>,
    ) -> Result<Option<Allocated>> {
        let ag = wish.ag;
        let reserve = self.request.reserve;
        // Before the free list of a group is touched that is not used.
        let Some(room) = group_room(t, ag, wish.least, reserve)? else {
            return Ok(None);
        };
        let room = match fix_freelist(t, ag)? {
            FixedList::Unchanged => Some(room),
            FixedList::Changed => group_room(t, ag, wish.least, reserve)?,
            FixedList::Short => None,
        };
        let Some(room) = room else { return Ok(None) };
        let wish = GroupWish {
            most: wish.most.min(room.blocks),
            ..wish
        };
        match choose(t, wish)? {
            Choice::Blocks(extent, blocks) => {
                space::take(t, ag, extent, &blocks)?;
                rmap::map(t, ag, &blocks, self.request.owner)?;
                let count = blocks.end.saturating_sub(blocks.start);
                t.count(i64::from(count).saturating_neg(), 0, 0);
                Ok(Some(Allocated {
                    start: t.geometry().fs_block(ag, blocks.start),
                    blocks: count,
                }))
            }
            Choice::Busy => {
                self.saw_busy = true;
                Ok(None)
            }
            Choice::Nothing => Ok(None),
        }
    }
}

/// What a group has for an allocation.
#[derive(Debug, Clone, Copy)]
struct GroupRoom {
    longest: u32,
    blocks: u32,
}

/// What a group can give without going below the reservations and the needs of its free list, as
/// xfs_alloc_space_available(); `None` when that is less than `least`.
fn group_room(
    t: &mut Trans<'_>,
    ag: u32,
    least: u32,
    reserve: Reserve,
) -> Result<Option<GroupRoom>> {
    let agf = read_agf(t, ag)?;
    let needed = least_list_blocks(t, &agf);
    let to_leave = group_reserve(t, ag)?.to_leave(reserve);
    let (free, longest) = (agf.freeblks.get(), agf.longest.get());
    let listed = agf.flcount.get();
    // What the list and the reservations need beyond the other extents.
    let missing = needed.saturating_sub(listed);
    let others = free.saturating_sub(longest);
    let cut = missing.saturating_add(to_leave.saturating_sub(others));
    let longest = match longest.checked_sub(cut) {
        Some(longest @ 1..) => longest,
        _ => u32::from(longest > 0),
    };
    let kept = to_leave.saturating_add(needed);
    let all = free.saturating_add(listed.min(needed));
    let blocks = all.saturating_sub(kept);
    let room = GroupRoom { longest, blocks };
    Ok((longest >= least && blocks >= least).then_some(room))
}
