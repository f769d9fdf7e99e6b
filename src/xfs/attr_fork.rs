//! The attribute fork of an inode, before it is read.

use super::format::inode::{self, InodeCore};

/// The attribute fork as it stands in the inode.
#[derive(Debug, Clone)]
pub(super) struct AttrFork {
    pub(super) form: u8,
    pub(super) nextents: u64,
    pub(super) raw: Box<[u8]>,
}

impl AttrFork {
    /// That of an inode, if there is one. It is checked when it is used: one that is broken must
    /// not hide the file's content.
    pub(super) fn of(core: &InodeCore, literal: &[u8]) -> Option<Self> {
        let start = usize::from(core.forkoff).saturating_mul(8);
        if start == 0 {
            return None;
        }
        let large = core.flags2.get() & inode::FLAG2_NREXT64 != 0;
        Some(Self {
            form: core.aformat,
            nextents: if large {
                core.nextents.get().into()
            } else {
                core.anextents.get().into()
            },
            raw: literal.get(start..)?.into(),
        })
    }
}
