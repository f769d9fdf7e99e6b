//! Link counts, and the way from the root directory to every inode.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::HashSet;

use super::state::{At, Checker};
use super::table::InodeState;
use crate::xfs::format::ag::NULL_AG;
use crate::xfs::{Ino, InodeType};

impl Checker<'_> {
    /// Checks each inode in use, after all directories were read.
    pub(super) fn check_links(&mut self) {
        let has_parents = self.has_parents();
        let root = self.geometry.root_ino.0;
        let all = std::mem::take(&mut self.inodes);
        let geometry = self.geometry.clone();
        if all.has_unread_names {
            let at = At::default();
            self.finding(
                at,
                "not all directories could be read: names and link counts were not checked",
            );
        }
        for (ino, state) in all.used(&geometry) {
            let at = At::inode(ino, self.inode_addr(ino));
            if !state.is_unlinked && state.next_unlinked != NULL_AG {
                let next = state.next_unlinked;
                self.finding(at, format!("on no unlinked list, but {next} is next on it"));
            }
            if state.is_broken || all.has_unread_names {
                continue;
            }
            let is_internal = self.fs.is_internal(Ino(ino));
            self.check_link_count(at, state, is_internal, ino == root);
            if has_parents && !is_internal && !state.is_unlinked && state.parents != 0 {
                self.finding(at, "its parent pointers are not those of its names");
            }
        }
        self.inodes = all;
        if !self.inodes.has_unread_names {
            self.check_tree(root);
        }
    }

    fn check_link_count(&mut self, at: At, state: &InodeState, is_internal: bool, is_root: bool) {
        let nlink = state.nlink;
        if is_internal {
            if nlink == 0 {
                self.finding(at, "an inode of the filesystem itself, without links");
            }
            return;
        }
        if state.is_unlinked {
            return;
        }
        let is_directory = state.file_type == Some(InodeType::Directory);
        // A directory has a name in another one, or is the root.
        let is_named = match is_directory {
            true => is_root || state.is_named,
            false => state.names > 0,
        };
        if !is_named {
            self.finding(at, format!("has no name, but {nlink} links"));
        } else if state.names != nlink {
            self.finding(at, format!("{nlink} links, expected {}", state.names));
        }
    }

    /// All directories hang below the root, and say so.
    fn check_tree(&mut self, root: u64) {
        let mut order: Vec<u64> = self.inodes.places.keys().copied().collect();
        order.sort_unstable();
        let mut reached = HashSet::from([root]);
        for ino in order {
            let Some(place) = self.inodes.places.get(&ino).copied() else {
                continue;
            };
            let expected = match ino == root {
                true => Some(root),
                false => place.parent,
            };
            if let (Some(dot_dot), Some(parent)) = (place.dot_dot, expected)
                && dot_dot != parent
            {
                let at = At::inode(ino, self.inode_addr(ino));
                let detail = format!("`..` is inode {dot_dot}, expected {parent}");
                self.finding(at, detail);
            }
            // Upwards, to the root or to a directory that was there before.
            let mut path = Vec::new();
            let mut here = ino;
            let mut on_path = HashSet::new();
            while !reached.contains(&here) && on_path.insert(here) {
                path.push(here);
                match self.inodes.places.get(&here).and_then(|place| place.parent) {
                    Some(parent) => here = parent,
                    // Without a name, which is a finding already.
                    None => break,
                }
            }
            if on_path.contains(&here) && path.last() != Some(&here)
                || path.len() > 1 && path.first() == Some(&here)
            {
                let at = At::inode(here, self.inode_addr(here));
                self.finding(at, "directories contain each other in a circle");
            }
            reached.extend(path);
        }
    }
}
