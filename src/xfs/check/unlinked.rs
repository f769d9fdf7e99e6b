//! The lists of inodes that were removed while they were open.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::state::{At, Checker};
use crate::xfs::format::ag::{Agi, NULL_AG};

impl Checker<'_> {
    /// Walks the lists of a group.
    pub(super) fn check_unlinked(&mut self, group: u32, agi: &Agi) {
        let at = self.head_at(group, 2);
        let bits = self
            .geometry
            .ag_block_log
            .saturating_add(self.geometry.inopb_log);
        let base = u64::from(group).wrapping_shl(bits);
        for (bucket, head) in (0_u32..).zip(&agi.unlinked) {
            let mut next = head.get();
            if next != NULL_AG && !self.report.log_was_dirty {
                let detail = format!(
                    "AGI: unlinked list {bucket} begins at inode {}, and the log is clean",
                    base | u64::from(next)
                );
                self.finding(at, detail);
            }
            while next != NULL_AG {
                let ino = base | u64::from(next);
                let at = At {
                    inode: Some(ino),
                    ..at
                };
                let geometry = &self.geometry;
                if !self.inodes.is_used(geometry, ino) {
                    self.finding(at, format!("on unlinked list {bucket}, and not in use"));
                    break;
                }
                let Some(state) = self.inodes.state(geometry, ino) else {
                    break;
                };
                let (was_there, nlink) = (state.is_unlinked, state.nlink);
                state.is_unlinked = true;
                let follow = state.next_unlinked;
                if was_there {
                    self.finding(at, format!("unlinked list {bucket} leads to it twice"));
                    break;
                }
                if next % 64 != bucket {
                    self.finding(
                        at,
                        format!("on unlinked list {bucket}, which is not its own"),
                    );
                }
                if nlink != 0 {
                    self.finding(at, format!("on an unlinked list, with {nlink} links"));
                }
                next = follow;
            }
        }
    }
}
