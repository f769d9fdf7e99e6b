//! The embedded controller, driven by a host of a few lines that can say what a real driver never
//! would.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail like the test itself"
)]

mod data;
mod faults;
mod host;
mod hostile;
mod interrupts;
mod modes;
mod power;
mod protocol;
