//! The polled NVMe driver.
//!
//! Layer 3, safe code throughout. It is written against [`crate::device::Device`]; specification section
//! numbers are those of the NVMe base specification 2.0c and the NVM command set specification 1.0c.
#![forbid(unsafe_code)]

pub mod spec;
