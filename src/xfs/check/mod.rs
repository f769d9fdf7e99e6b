//! The consistency of a whole filesystem, read-only: what xfs_repair -n looks at, and more.
//!
//! The checker is an oracle for the code that changes filesystems: it shares nothing with it but
//! the layouts of [`format`](mod@super::format). The order of its phases: superblocks and group
//! headers, btrees of each group, inodes with their forks and attributes, directories, unlinked
//! lists and link counts, owners of all blocks. It goes on after a finding where it can.
//!
//! Memory is bounded by the metadata on the device: an entry for each extent, and for each inode
//! that exists. Every walk goes down a tree, and no block of a tree is visited twice.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attr_leaf;
mod attrs;
mod chunks;
mod core;
mod dir_block;
mod dir_index;
mod dirs;
mod fork_read;
mod forks;
mod free;
mod headers;
mod inodes;
mod links;
mod owners;
mod report;
mod reverse;
mod run;
mod state;
mod superblocks;
mod symlinks;
mod table;
mod tree;
mod unlinked;

pub use report::{CheckReport, Finding};
pub use run::{CheckOptions, DirtyLog, check, check_with};
