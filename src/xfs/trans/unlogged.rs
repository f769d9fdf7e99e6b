//! Content that is not logged, but written before the transaction is committed: values of
//! attributes.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{BufPlace, Trans};
use crate::error::Result;

impl Trans<'_> {
    /// Has the content of blocks written that is not logged: they were allocated by this
    /// transaction, and are free until its checkpoint is durable. They are written before the
    /// commit, and durable with the checkpoint, which begins with a flush.
    pub(in super::super) fn write_unlogged(&mut self, addr_bytes: u64, content: Box<[u8]>) {
        self.values.push((addr_bytes, content));
    }

    /// Takes the content to be written before the commit.
    pub(in super::super) fn take_unlogged(&mut self) -> Vec<(u64, Box<[u8]>)> {
        std::mem::take(&mut self.values)
    }

    /// Writes the content that is not logged. Its places.
    ///
    /// # Errors
    /// The device's. The transaction must be dropped then.
    pub(in super::super) fn put_unlogged(&mut self) -> Result<Vec<BufPlace>> {
        let values = self.take_unlogged();
        for (addr_bytes, content) in &values {
            self.io.write_at(*addr_bytes, content)?;
        }
        let place = |(addr_bytes, content): &(u64, Box<[u8]>)| BufPlace {
            addr_bytes: *addr_bytes,
            len_bytes: content.len(),
        };
        Ok(values.iter().map(place).collect())
    }
}
