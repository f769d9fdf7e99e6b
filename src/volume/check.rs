//! The consistency of the filesystem on a target.

use super::core::IoCore;
use crate::error::Result;
use crate::target::Target;
use crate::target::claims::{Claim, Use};
use crate::xfs::check::{CheckOptions, CheckReport, DirtyLog, check_with};

/// Checks the filesystem on a target, which is only read.
///
/// # Errors
/// As [`check_with`]; [`ErrorKind::Busy`](crate::ErrorKind::Busy) while this process has a
/// filesystem on the device open that may write.
pub fn check_target(target: &Target, options: &CheckOptions) -> Result<CheckReport> {
    let target = &target.shared;
    let mut options = *options;
    if target.no_recovery {
        options.dirty_log = DirtyLog::Ignore;
    } else if target.no_replay {
        options.dirty_log = DirtyLog::Refuse;
    }
    let run = || {
        let _claim = match target.in_use {
            true => None,
            false => Some(Claim::new(&target.identity, Use::MountReadOnly)?),
        };
        let mut io = IoCore::new(target)?;
        check_with(&mut io, &options)
    };
    run().map_err(|error| error.during("check").on_device(&*target.name))
}
