//! The times of a file whose content was changed: the kernel's xfs_vn_update_time().
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::super::format::inode::{self as layout, InodeCore, InodeTimestamp};
use super::super::iomap::FileState;
use super::super::{Fs, MetaIo, corrupt};
use super::core::{InodeId, changed_core_in};
use crate::error::Result;

impl Fs {
    /// Notes that the content of a file was changed at this time: it is the time of the last change
    /// of content and inode, and the change count is one higher. In memory only, until
    /// [`Fs::sync`]. What it returns has no blocks.
    ///
    /// The change may lie back by now. Where the inode was changed later than that, its change time
    /// stays, and the time of the content only goes forward.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] when it is not the same file any more;
    /// [`crate::ErrorKind::ReadOnly`] where metadata may not be changed; those of reading and of
    /// the log.
    pub fn note_times(
        &self,
        io: &mut impl MetaIo,
        file: InodeId,
        at: InodeTimestamp,
    ) -> Result<FileState> {
        let (state, _) = self.transact_on_inode(io, file.ino, |raw, features| {
            let (old, _) = InodeCore::read_from_prefix(&*raw)
                .map_err(|_| corrupt(0, format!("{} is too short", file.ino)))?;
            let is_large = old.flags2.get() & layout::FLAG2_BIGTIME != 0;
            let time = |raw: u64| InodeTimestamp::decode(raw, is_large);
            let old = (time(old.mtime.get()), time(old.ctime.get()));
            let (mtime, ctime) = times_after(old, at);
            let (core, bigtime) = changed_core_in(raw, features, file, ctime)?;
            core.mtime = mtime.encode(bigtime).into();
            Ok(FileState::new(self.geometry(), core, &(0..0), &[]))
        })?;
        Ok(state)
    }
}

/// The times of the last change of content and inode after the content was changed at a time that
/// may lie back: a later change of the inode is not undone.
pub fn times_after(
    (mtime, ctime): (InodeTimestamp, InodeTimestamp),
    at: InodeTimestamp,
) -> (InodeTimestamp, InodeTimestamp) {
    match ctime <= at {
        true => (at, at),
        false => (mtime.max(at), ctime),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_lies_back_undoes_no_later_one() {
        let at = |seconds| InodeTimestamp {
            seconds,
            nanoseconds: 0,
        };
        // Nothing was changed since; the time of the content may be one to come.
        assert_eq!(times_after((at(1), at(2)), at(5)), (at(5), at(5)));
        assert_eq!(times_after((at(9), at(2)), at(5)), (at(5), at(5)));
        assert_eq!(times_after((at(9), at(5)), at(5)), (at(5), at(5)));
        // The inode was, and the content with it or not, or its time was set.
        assert_eq!(times_after((at(1), at(7)), at(5)), (at(5), at(7)));
        assert_eq!(times_after((at(7), at(7)), at(5)), (at(7), at(7)));
        assert_eq!(times_after((at(9), at(7)), at(5)), (at(9), at(7)));
    }
}
