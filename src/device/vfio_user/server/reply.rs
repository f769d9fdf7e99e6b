//! The answer to a client's request.

use zerocopy::{Immutable, IntoBytes};

/// A reason to refuse a request.
pub(super) type Errno = i32;

/// The answer: bytes, and optionally the file of the doorbells.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) bytes: Vec<u8>,
    pub(super) with_doorbells: bool,
}

impl Reply {
    pub(super) fn of(structure: &(impl IntoBytes + Immutable)) -> Self {
        Self {
            bytes: structure.as_bytes().to_vec(),
            with_doorbells: false,
        }
    }

    pub(super) fn and(mut self, more: &[u8]) -> Self {
        self.bytes.extend_from_slice(more);
        self
    }
}
