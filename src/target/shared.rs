//! An open target, and what its users share.

use std::sync::Arc;
use std::time::Duration;

use super::TargetInfo;
use super::claims::Identity;
use super::engine::TargetEngine;
use crate::block::{BlockRange, Wait};
use crate::error::{Error, Result};
use crate::mem::Heap;
use crate::sys::HeldFile;

/// A controller's namespace, opened, whatever is on it. Cheap to clone.
///
/// ```no_run
/// # use xtent::target::{Target, TargetOptions};
/// # fn main() -> xtent::Result<()> {
/// let target = Target::open("image:disk.img", &TargetOptions::new().read_only(true))?;
/// println!("{}", target.info().model);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Target {
    pub(crate) shared: Arc<TargetShared>,
}

#[derive(Debug)]
pub(crate) struct TargetShared {
    pub(crate) engine: TargetEngine,
    pub(crate) heap: Heap,
    pub(crate) name: String,
    pub(crate) info: TargetInfo,
    pub(crate) queue_depth: usize,
    pub(crate) command_timeout: Duration,
    pub(crate) wait: Wait,
    /// The target's text has the option `norecovery`.
    pub(crate) no_recovery: bool,
    /// The target's text has the option `noreplay`.
    pub(crate) no_replay: bool,
    /// The target's text has the option `discard`.
    pub(crate) discard: Option<bool>,
    /// The target's text has the option `lba`.
    pub(crate) stated_lba_bytes: Option<u32>,
    /// The most DMA memory that it takes.
    pub(crate) memory_limit_bytes: usize,
    /// The file behind it.
    pub(crate) held: Option<Arc<HeldFile>>,
    /// What it is, for claims.
    pub(crate) identity: Identity,
    /// Opened although it is in use elsewhere.
    pub(crate) in_use: bool,
    /// The part of the device that it is. Ownership and claims are of the whole device.
    pub(crate) range: BlockRange,
}

impl TargetShared {
    /// Bytes of the sectors that an MBR on the device counts in; `None` where they are not known.
    ///
    /// Those of a disk are its logical blocks. A file has none of its own: the alignment of direct
    /// I/O is that of the disk below it, so sectors have 512 bytes, as those of the kernel's loop
    /// device by default. With other blocks by the option `lba`, the table may have been made for
    /// either size.
    pub(crate) fn mbr_sector_bytes(&self) -> Option<u32> {
        let is_in_memory = matches!(self.identity, Identity::Memory(_));
        match (&self.engine, self.stated_lba_bytes) {
            (TargetEngine::Uring(disk), _) if disk.info().is_device => {
                Some(disk.info().logical_block_bytes)
            }
            _ if self.held.is_none() && !is_in_memory => Some(self.info.lba_bytes),
            (_, None | Some(512)) => Some(512),
            (_, Some(_)) => None,
        }
    }

    /// Looks again whether the file behind it is still this process's alone, and as long as it was.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] or [`ErrorKind::Io`]: writing has stopped.
    pub(crate) fn look_again(&self) -> Result<()> {
        self.held.as_ref().map_or(Ok(()), |held| held.look_again())
    }

    /// An error of writing, or why writing has stopped, if that is the reason.
    #[cold]
    pub(crate) fn why(&self, error: Error) -> Error {
        let lost = self.held.as_ref().and_then(|held| held.lost());
        match (lost, error.offset()) {
            (Some(lost), _) if lost.detail() == error.detail() => error,
            (Some(lost), Some(offset)) => lost.at_offset(offset),
            (Some(lost), None) => lost,
            (None, _) => error,
        }
    }
}
