//! What a direct operation needs of its file.

use std::fmt::Debug;
use std::ops::Range;

use super::super::{Ops, Versions};
use crate::error::Result;

/// What an operation keeps of its file.
///
/// [`Direct`](super::Direct) keeps one clone for all operations on the same file, so that an
/// operation counts no reference that other threads count too. Beside it is the version of the
/// mappings that the operations use: each operation begins with the current one, and uses that one
/// until it ends.
pub trait Source: Clone {
    /// The file's mappings and size.
    type Version: Debug;

    /// Answers for the file's mappings, for one call.
    type Ops<'a>: Ops
    where
        Self::Version: 'a;

    /// The mappings. Their number is looked at once per submission, on the hot path.
    fn versions(&self) -> &Versions<Self::Version>;

    /// The mappings of a version. Called once per submission, on the hot path.
    fn ops(version: &Self::Version) -> Self::Ops<'_>;

    /// The file's length in bytes.
    fn size_bytes(version: &Self::Version) -> u64;

    /// Whether a write of a range, of one byte at least, is seen at one look to be no overwrite. It
    /// is looked at more closely where the answer is no.
    fn is_no_overwrite(version: &Self::Version, offset: u64, len: u64) -> bool {
        let _ = (version, offset, len);
        false
    }

    /// Whether all mappings of a range are known, so that a read of it is not stopped half-way.
    ///
    /// # Errors
    /// One that says what to do first. The read is rejected with it, before any of it is submitted.
    #[inline]
    fn check_known(_version: &Self::Version, _range: Range<u64>) -> Result<()> {
        Ok(())
    }

    /// Equal for clones of one source; different for sources that exist at the same time and are
    /// not. Never 0, and never `u64::MAX`. Searches are fastest where they are numbers in
    /// succession.
    fn key(&self) -> u64;
}
