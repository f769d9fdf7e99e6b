//! Structures and constants of the NVMe specifications, as pure data.
//!
//! Layer 0: both sides of the wire (the driver and the embedded controller) use them. Sections are
//! those of the NVMe base specification 2.0c unless "NVM" names the NVM command set specification
//! 1.0c.

mod command;
mod completion;
mod identify;
mod log;
mod registers;

pub use command::*;
pub use completion::*;
pub use identify::*;
pub use log::*;
pub use registers::*;

/// The page size that the driver sets in CC.MPS and that PRPs count in, in bytes.
pub const PAGE_BYTES: usize = 4096;
