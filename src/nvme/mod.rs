//! The polled NVMe driver.
//!
//! Layer 3, safe code throughout. It is written against [`crate::device::Device`]; specification section
//! numbers are those of the NVMe base specification 2.0c and the NVM command set specification 1.0c.
//!
//! [`Controller::open`] brings a controller up; [`Controller::queue`] makes one [`QueuePair`] for each
//! thread, which is a [`crate::block::Queue`].
#![forbid(unsafe_code)]

mod controller;
#[cfg_attr(not(test), expect(dead_code, reason = "bring-up will call the checks"))]
mod info;
mod pair;
pub mod spec;

pub use controller::{Controller, ControllerOptions, QueueOptions, Stats};
pub use info::{ControllerInfo, NamespaceInfo, Version};
pub use pair::QueuePair;
