//! The polled NVMe driver.
//!
//! Layer 3, safe code throughout. It is written against [`crate::device::Device`]; specification
//! section numbers are those of the NVMe base specification 2.0c and the NVM command set
//! specification 1.0c.
//!
//! [`Controller::open`] brings a controller up; [`Controller::queue`] makes one [`QueuePair`] for
//! each thread, which is a [`crate::block::Queue`].
#![forbid(unsafe_code)]

mod abilities;
mod admin;
mod bell;
mod controller;
mod counters;
mod dataset;
mod event_handling;
mod events;
#[cfg(test)]
mod fake;
mod identify;
mod info;
mod logs;
mod pair;
mod pair_state;
mod port;
mod prp;
mod queue;
mod recovery;
mod setup;
mod sgl;
mod share;
mod sleeper;
mod slots;
pub mod spec;
mod split;
#[cfg(test)]
mod tests;
mod wait;
mod watch;

pub use crate::block::Wait;
pub use abilities::{
    AtomicLimits, admin_command_names, critical_warning_names, nvm_command_names, sgl_names,
};
pub use controller::{Controller, ControllerOptions, QueueOptions};
pub use counters::ControllerStats;
pub use dataset::DatasetLimits;
pub use events::Event;
pub use info::{ControllerInfo, FormatInfo, NamespaceInfo, NvmeVersion};
pub use logs::{DATA_UNIT_BYTES, ErrorEntry, FirmwareSlots, SmartInfo};
pub use pair_state::QueuePair;
pub(crate) use share::{OwnOrShared, PairShare, SharedQueue};
