//! What a log leaves open, finished after its replay as the kernel finishes it when it mounts:
//! intents without the item that says that they were done, inodes that were deleted while they were
//! open, and blocks that were staged for copy-on-write.
//!
//! Intents are finished in the order of the log, as xlog_recover_process_intents(), all of them in
//! memory before anything is written. Their changes and the items that end them are one checkpoint
//! at the head of the log. Until it is durable, a replay begins where the old one did and finds the
//! intents; from then on it finds them done. The unlinked lists and the staged blocks follow, one
//! transaction after another, each of which leaves them consistent: after a crash the next recovery
//! goes on with the rest.
//!
//! Blocks behind the end of a file are freed where an intent changed the mappings of the file.
//! Chunks of which no inode is in use any more are freed, as without the mount option `ikeep`.
//!
//! The log is hostile input: every extent, offset, inode number and flag is checked before it is
//! used, and inodes must be in use by the inode btree.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attributes;
mod deleted;
mod exchange;
mod inodes;
mod intents;

pub(super) use deleted::{free_behind_end, free_first};
pub(super) use intents::finish_intents;
