//! What a direct operation needs of its file.

use super::super::Ops;

/// What an operation keeps of its file.
///
/// [`Direct`](super::Direct) keeps one clone for all operations on the same file, so that an
/// operation counts no reference that other threads count too.
pub trait Source: Clone {
    /// Answers for the file's mappings, for one call.
    type Ops<'a>: Ops
    where
        Self: 'a;

    /// The mappings. Called once per submission, on the hot path.
    fn ops(&self) -> Self::Ops<'_>;

    /// The file's length in bytes.
    fn size_bytes(&self) -> u64;

    /// Equal for clones of one source; different for sources that exist at the same time and are
    /// not. Never 0.
    fn key(&self) -> usize;
}
