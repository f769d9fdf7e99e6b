//! Pages of files in memory that threads and devices share. One atomic word a page controls access.
//!
//! Layer 0, part of the unsafe island `mem`. A [`PageTable`] has *frames*, pages of DMA memory, and
//! *slots*, places in files that a frame can be put into. A slot is one atomic word: the frame
//! number, the pin count, the up-to-date and dirty granules, and whether a thread has exclusive
//! access. Every right to access bytes is a value that only a successful change of a word creates,
//! so that code outside this module needs no unsafe:
//!
//! | value | right | while it lives |
//! |---|---|---|
//! | [`FrameRun`] | all | the frames are in no slot |
//! | [`LentRun`] | a device's | the frames are in no slot, or marked there as being filled |
//! | [`Pin`] | read | the word counts it; the slot cannot be locked |
//! | [`WriteLock`] | all | the word is locked and has no pins |
//! | [`WritebackPage`] | a device's, to read | the word counts it as a pin |
//!
//! A page can also be copied without any right; the copy is discarded if the page was written to
//! during the copy (`place.rs`). Cache hits read this way.
//!
//! No thread waits for a pin to end. A writer of a pinned page puts another frame into its slot
//! ([`PageTable::replace`]), and a removal empties the slot ([`PageTable::remove`]). The old frame
//! is then *detached*: its pins are counted apart, and the last one to go gives it back. A frame
//! has a number, never a pointer, and nothing here is freed while the table lives; so a stale slot
//! number or word does no harm, and no reclamation by epochs is needed.
//!
//! `loom_tests.rs` runs the protocol under loom (`scripts/loom.sh`).
#![cfg_attr(
    loom,
    allow(
        dead_code,
        unused_imports,
        reason = "nothing that uses the pages is compiled under loom"
    )
)]

mod group;
mod guards;
#[cfg(loom)]
#[cfg(test)]
mod loom_tests;
mod memory;
mod place;
#[cfg(not(loom))]
mod racy;
mod run;
mod slots;
pub(crate) mod sync;
mod table;
#[cfg(not(loom))]
#[cfg(test)]
mod tests;
mod word;

pub use group::GROUP_SLOTS;
pub(crate) use group::{Groups, Tag};
pub use guards::{Pin, WriteLock, WritebackPage};
pub(crate) use place::Place;
pub use run::{FrameRun, LentRun};
pub use slots::{Blocked, PageTable};
pub use table::{Look, Removed, Which};
pub use word::{ALL_GRANULES, GRANULE_BYTES, MAX_FRAMES, PAGE_BYTES};
pub(crate) use word::{granules_covered, granules_touched};
