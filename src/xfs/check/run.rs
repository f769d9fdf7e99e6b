//! The phases of a check, in order.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::report::{CheckReport, Finding};
use super::state::{At, Checker};
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::format::superblock::SuperblockLayout;
use crate::xfs::{Fs, FsOptions, MetaIo, Recovery};

/// What to do with a log that holds changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirtyLog {
    /// Replay it into memory.
    #[default]
    Replay,
    /// Fail, with [`ErrorKind::NeedsRecovery`].
    Refuse,
    /// Check the state without it, which may be torn.
    Ignore,
}

/// How to check.
#[derive(Debug, Clone, Copy)]
pub struct CheckOptions {
    /// What to do with a log that holds changes.
    pub dirty_log: DirtyLog,
    /// Most findings that are kept; those beyond are counted.
    pub most_findings: usize,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            dirty_log: DirtyLog::default(),
            most_findings: 1000,
        }
    }
}

/// Checks the filesystem on a device, as [`check_with`], with default options.
///
/// # Errors
/// As [`check_with`].
pub fn check(io: &mut dyn MetaIo) -> Result<CheckReport> {
    check_with(io, &CheckOptions::default())
}

/// Checks the filesystem on a device. Reads only; a log that holds changes is replayed into memory.
///
/// # Errors
/// [`ErrorKind::NotXfs`], [`ErrorKind::Unsupported`] with the name of the feature, what the device
/// reports. Corruption is no error, but a finding, also where it makes all else unreadable.
pub fn check_with(io: &mut dyn MetaIo, options: &CheckOptions) -> Result<CheckReport> {
    let mut device = super::state::CheckIo(io);
    let (fs, early) = match open(&mut device, options.dirty_log) {
        Ok(found) => found,
        Err(error) if is_finding(&error) => {
            return Ok(CheckReport {
                findings: vec![finding_of(&error)],
                ..CheckReport::default()
            });
        }
        Err(error) => return Err(error),
    };
    let mut checker = Checker::new(&fs, device.0, options.most_findings);
    checker.report.replayed_checkpoints = fs.replayed_checkpoints();
    checker.report.log_was_dirty = fs.is_unrecovered() || fs.info().log_dirty;
    checker.report.findings.extend(early);
    checker.run()?;
    Ok(checker.report)
}

fn is_finding(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NeedsRecovery)
}

fn finding_of(error: &Error) -> Finding {
    Finding {
        addr_bytes: error.offset(),
        group: None,
        inode: None,
        what: error.detail().to_owned(),
    }
}

/// Opens the filesystem; without its log where that is corrupt, which is a finding.
fn open(io: &mut impl MetaIo, dirty_log: DirtyLog) -> Result<(Fs, Option<Finding>)> {
    let options = FsOptions {
        norecovery: dirty_log == DirtyLog::Ignore,
        recovery: match dirty_log {
            DirtyLog::Refuse => Recovery::Refuse,
            _ => Recovery::InMemory,
        },
        ..FsOptions::default()
    };
    let error = match Fs::open_unchecked(io, &options) {
        Ok(fs) => return Ok((fs, None)),
        Err(error) if is_finding(&error) && !options.norecovery => error,
        Err(error) => return Err(error),
    };
    let options = FsOptions {
        norecovery: true,
        ..options
    };
    match Fs::open_unchecked(io, &options) {
        Ok(fs) => Ok((fs, Some(finding_of(&error)))),
        Err(_) => Err(error),
    }
}

impl Checker<'_> {
    fn run(&mut self) -> Result<()> {
        self.check_superblocks()?;
        for group in 0..self.geometry.ag_count {
            self.check_headers(group)?;
            self.check_group_trees(group)?;
        }
        self.check_inodes()?;
        self.check_directories()?;
        for group in 0..self.geometry.ag_count {
            if let Some(agi) = self.group(group).and_then(|group| group.agi) {
                self.check_unlinked(group, &agi);
            }
        }
        self.check_links();
        for group in 0..self.geometry.ag_count {
            self.check_owners(group);
        }
        self.check_counters()
    }

    fn check_group_trees(&mut self, group: u32) -> Result<()> {
        let heads = self.group(group).map(|group| (group.agf, group.agi));
        let Some((agf, agi)) = heads else {
            return Ok(());
        };
        if let Some(agf) = agf {
            self.check_free_space(group, &agf)?;
            self.check_reverse_trees(group, &agf)?;
        }
        if let Some(agi) = agi {
            self.check_inode_trees(group, &agi)?;
        }
        Ok(())
    }

    /// The counters of the superblock, which count where the log is clean.
    fn check_counters(&mut self) -> Result<()> {
        let (mut inodes, mut free_inodes, mut free_blocks) = (0_u64, 0_u64, 0_u64);
        for group in &self.groups {
            let (Some(agf), Some(agi)) = (group.agf, group.agi) else {
                return Ok(());
            };
            for blocks in [agf.freeblks, agf.flcount, agf.btreeblks] {
                free_blocks = free_blocks.saturating_add(blocks.get().into());
            }
            inodes = inodes.saturating_add(agi.count.get().into());
            free_inodes = free_inodes.saturating_add(agi.freecount.get().into());
        }
        if self.report.log_was_dirty {
            return Ok(());
        }
        let len = usize::try_from(self.geometry.sector_bytes).unwrap_or(512);
        let sector = self.read(0, len)?;
        let Ok((raw, _)) = SuperblockLayout::ref_from_prefix(&sector) else {
            return Ok(());
        };
        let counters = [
            ("inodes", raw.icount.get(), inodes),
            ("free inodes", raw.ifree.get(), free_inodes),
            ("free blocks", raw.fdblocks.get(), free_blocks),
        ];
        for (name, found, expected) in counters {
            if found != expected {
                let detail = format!("superblock: {found} {name}, expected {expected}");
                self.finding(At::group(0, 0), detail);
            }
        }
        Ok(())
    }
}
