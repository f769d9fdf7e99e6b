//! What the side that reads a volume tells the side that writes to the host.

use std::sync::mpsc::SyncSender;

use xtent::internals::sys::HostTime;
use xtent::volume::{Metadata, Timestamp};

use crate::cli::xattr;

/// Permissions that a copy keeps without -a: not set-user-ID and set-group-ID, as the owner is
/// another one. The sticky bit limits rights.
pub(super) const KEPT_MODE: u32 = 0o1777;

/// Something to be made in the current directory of the host. What fails is noted there; the jobs
/// that belong to it are then ignored.
pub(super) enum CopyJob {
    /// Make a directory and go down into it.
    Enter(Vec<u8>),
    /// The same, with an answer.
    AskEnter(Vec<u8>, SyncSender<Entered>),
    /// Finish the current directory and go up.
    Leave(Attributes),
    /// Make a file of `len_bytes` that begins with `data`; what follows is a hole.
    Whole {
        name: Vec<u8>,
        data: Vec<u8>,
        len_bytes: u64,
        attributes: Attributes,
    },
    /// Begin a file that comes in pieces, the `id`th of them.
    Begin {
        name: Vec<u8>,
        len_bytes: u64,
        id: u64,
    },
    /// A piece of it.
    Data { at: u64, data: Vec<u8> },
    /// It is complete.
    End(Attributes),
    /// It cannot be read to its end.
    Abandon,
    Symlink {
        name: Vec<u8>,
        target: Vec<u8>,
        attributes: Attributes,
    },
    /// Make a device node, fifo or socket.
    Node {
        name: Vec<u8>,
        file_type: u32,
        device: u64,
        attributes: Attributes,
    },
    /// Give the copy of an inode another name; false when there is no copy to be linked.
    AskLink {
        name: Vec<u8>,
        ino: u64,
        done: SyncSender<bool>,
    },
}

impl CopyJob {
    /// Bytes of memory that it owns, besides its own size.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            Self::Enter(name)
            | Self::AskEnter(name, _)
            | Self::Begin { name, .. }
            | Self::AskLink { name, .. } => name.len(),
            Self::Leave(attributes) | Self::End(attributes) => attributes.heap_bytes(),
            Self::Data { data, .. } => data.len(),
            Self::Whole {
                name,
                data,
                attributes,
                ..
            } => name.len() + data.len() + attributes.heap_bytes(),
            Self::Symlink {
                name,
                target,
                attributes,
            } => name.len() + target.len() + attributes.heap_bytes(),
            Self::Node {
                name, attributes, ..
            } => name.len() + attributes.heap_bytes(),
            Self::Abandon => 0,
        }
    }
}

/// How entering a directory went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entered {
    /// The directory was made: nothing is in it.
    New,
    /// It was there before.
    Existing,
    /// It could not be made.
    Refused,
}

/// What a copy gets besides its content.
#[derive(Debug)]
pub(super) struct Attributes {
    /// `S_IFMT` of it.
    pub(super) file_type: u32,
    /// Permission bits.
    pub(super) mode: u32,
    pub(super) atime: HostTime,
    pub(super) mtime: HostTime,
    /// With -a.
    pub(super) archive: Option<Box<Archived>>,
}

/// What only -a keeps.
#[derive(Debug)]
pub(super) struct Archived {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Names and values.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The inode number, when it has several names.
    pub(super) linked: Option<u64>,
}

impl Attributes {
    /// Times and mode, as far as they are kept without -a.
    pub(super) fn plain(metadata: &Metadata, mode: u32) -> Self {
        Self {
            file_type: metadata.mode & libc::S_IFMT,
            mode,
            atime: host_time(metadata.atime),
            mtime: host_time(metadata.mtime),
            archive: None,
        }
    }

    fn heap_bytes(&self) -> usize {
        let Some(archive) = &self.archive else {
            return 0;
        };
        let attribute = |(name, value): &(Vec<u8>, Vec<u8>)| xattr::heap_bytes(name, value);
        archive.xattrs.iter().map(attribute).sum()
    }
}

/// Nanoseconds of a second or more mean something else to utimensat().
fn host_time(time: Timestamp) -> HostTime {
    const SECOND: u32 = 1_000_000_000;
    let more = i64::from(time.nanoseconds / SECOND);
    (time.seconds.saturating_add(more), time.nanoseconds % SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_and_link_targets_count_as_memory() {
        let attributes = |xattrs| Attributes {
            file_type: libc::S_IFLNK,
            mode: 0o777,
            atime: (0, 0),
            mtime: (0, 0),
            archive: Some(Box::new(Archived {
                uid: 0,
                gid: 0,
                xattrs,
                linked: None,
            })),
        };
        let large = || vec![(b"user.a".to_vec(), vec![0; 60_000])];
        assert!(CopyJob::Leave(attributes(large())).heap_bytes() > 60_000);
        assert!(CopyJob::End(attributes(large())).heap_bytes() > 60_000);
        let link = CopyJob::Symlink {
            name: b"name".to_vec(),
            target: vec![b'x'; 1000],
            attributes: attributes(large()),
        };
        assert!(link.heap_bytes() > 61_000);
        // Without values, too: each takes memory of its own.
        let small = vec![(Vec::new(), Vec::new()); 1000];
        assert!(CopyJob::Leave(attributes(small)).heap_bytes() > 48_000);
    }
}
