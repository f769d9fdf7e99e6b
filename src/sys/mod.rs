//! System calls, wrapped so that the rest of the crate stays safe.
//!
//! Layer 0, an unsafe island: nothing here knows of devices or files of a volume.
#![expect(unsafe_code, reason = "system calls are made here and nowhere else")]

mod pages;

pub use pages::{HUGE_PAGE_BYTES, PageKind, Pages};
