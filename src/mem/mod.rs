//! Memory that devices read and write.
//!
//! Layer 0, an unsafe island. An [`Arena`] is one mapping of 2 MiB hugepages (or, without them, of
//! locked ordinary pages) with one range of device addresses. A [`Heap`] cuts [`DmaBuf`]s from its
//! arenas and keeps every arena mapped in every device that was attached to it. Queue rings are
//! [`SharedWords`]: memory that a device changes at any time and that is therefore only touched by
//! atomic loads and stores.
//!
//! Types determine access to bytes. A `DmaBuf` belongs to the program, like a `Box<[u8]>`.
//! [`DmaBuf::lend`] turns it into a [`Lent`]: the device's, without access to the bytes; only code
//! of this crate that has seen the last command end turns it back.
#![expect(unsafe_code, reason = "raw memory shared with devices is handled here")]

mod arena;
mod buf;
mod heap;
mod heap_state;
mod mmio;
pub mod pages;
mod peer;
mod space;
mod words;

pub use arena::{Arena, Backing};
pub use buf::{DmaBuf, Lent, Segment};
pub use heap::Heap;
pub use heap_state::{ArenaSource, HeapConfig, HugePages, Mapper};
pub use mmio::{DOORBELLS_IN_FILE, Doorbell, DoorbellArray};
pub use peer::{PeerFault, PeerMemory};
pub use space::{DmaFault, DmaRange, DmaSpace};
pub use words::SharedWords;
