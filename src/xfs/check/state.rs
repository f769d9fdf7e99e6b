//! What the phases of a check share.

use std::collections::HashSet;

use super::report::{CheckReport, Finding};
use super::table::InodeTable;
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::format::ag::{Agf, Agi};
use crate::xfs::format::btree::{RefcountRecord, RmapRecord};
use crate::xfs::format::checksum_ok;
use crate::xfs::{Fs, Geometry, MetaIo};

/// The device, as the functions of the filesystem take it.
pub(super) struct CheckIo<'a>(pub(super) &'a mut dyn MetaIo);

impl MetaIo for CheckIo<'_> {
    fn read_at(&mut self, addr_bytes: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(addr_bytes, buf)
    }

    fn capacity_bytes(&self) -> u64 {
        self.0.capacity_bytes()
    }

    fn block_bytes(&self) -> u32 {
        self.0.block_bytes()
    }

    fn mbr_sector_bytes(&self) -> Option<u32> {
        self.0.mbr_sector_bytes()
    }
}

/// Blocks of a group and their owner, as a record of the reverse mapping btree has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) start: u32,
    pub(super) blocks: u32,
    /// An inode, or one of the numbers of that btree, or [`OWNER_FREE`].
    pub(super) owner: u64,
    /// As in that btree.
    pub(super) offset: u64,
}

impl Owned {
    pub(super) fn end(&self) -> u32 {
        self.start.saturating_add(self.blocks)
    }
}

/// The owner of free blocks.
pub(super) const OWNER_FREE: u64 = u64::MAX;

/// The headers and owners of a group.
#[derive(Debug, Default)]
pub(super) struct CheckedGroup {
    /// The headers, where they can be used.
    pub(super) agf: Option<Agf>,
    pub(super) agi: Option<Agi>,
    /// In the order in which the owners were met.
    pub(super) owned: Vec<Owned>,
    /// Blocks of its btrees.
    pub(super) tree_blocks: HashSet<u32>,
    /// Blocks of free space btrees and the reverse mapping btree below their roots.
    pub(super) lower_blocks: u32,
    /// All records of the btree; `None` where it could not be read, or does not exist.
    pub(super) rmaps: Option<Vec<RmapRecord>>,
    pub(super) refcounts: Option<Vec<RefcountRecord>>,
    /// An owner of blocks could not be read: what has no owner means nothing.
    pub(super) is_incomplete: bool,
}

/// Where a finding was made.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct At {
    pub(super) addr: Option<u64>,
    pub(super) group: Option<u32>,
    pub(super) inode: Option<u64>,
}

impl At {
    /// A structure of a group.
    pub(super) fn group(group: u32, addr: u64) -> Self {
        Self {
            addr: Some(addr),
            group: Some(group),
            inode: None,
        }
    }

    /// A structure of an inode.
    pub(super) fn inode(ino: u64, addr: u64) -> Self {
        Self {
            addr: Some(addr),
            group: None,
            inode: Some(ino),
        }
    }
}

/// A check on its way.
pub(super) struct Checker<'a> {
    pub(super) fs: &'a Fs,
    pub(super) geometry: Geometry,
    pub(super) io: CheckIo<'a>,
    pub(super) report: CheckReport,
    pub(super) most_findings: usize,
    pub(super) groups: Vec<CheckedGroup>,
    pub(super) inodes: InodeTable,
    /// Directories, as the inode btrees have them.
    pub(super) directories: Vec<u64>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(fs: &'a Fs, io: &'a mut dyn MetaIo, most_findings: usize) -> Self {
        let geometry = fs.geometry().clone();
        let count = usize::try_from(geometry.ag_count).unwrap_or(0);
        Self {
            fs,
            io: CheckIo(io),
            report: CheckReport {
                groups: geometry.ag_count,
                ..CheckReport::default()
            },
            most_findings,
            groups: std::iter::repeat_with(CheckedGroup::default)
                .take(count)
                .collect(),
            inodes: InodeTable::default(),
            directories: Vec::new(),
            geometry,
        }
    }

    /// Notes a finding.
    pub(super) fn finding(&mut self, at: At, what: impl Into<String>) {
        if self.report.findings.len() >= self.most_findings {
            self.report.more_findings = self.report.more_findings.saturating_add(1);
            return;
        }
        self.report.findings.push(Finding {
            addr_bytes: at.addr,
            group: at.group,
            inode: at.inode,
            what: what.into(),
        });
    }

    /// Notes an error that says that the filesystem is corrupt; returns any other.
    pub(super) fn note(&mut self, at: At, error: &Error) -> bool {
        let is_finding = matches!(
            error.kind(),
            ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unsupported
        );
        if is_finding {
            let at = At {
                addr: error.offset().or(at.addr),
                ..at
            };
            self.finding(at, error.detail());
        }
        is_finding
    }

    /// The value, unless it is a finding, which is noted.
    pub(super) fn or_finding<T>(&mut self, at: At, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if self.note(at, &error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads bytes of the device, as the log made them.
    pub(super) fn read(&mut self, addr: u64, len: usize) -> Result<Vec<u8>> {
        self.fs.read_fresh(&mut self.io, addr, len)
    }

    pub(super) fn block_bytes(&self) -> usize {
        usize::try_from(self.geometry.block_bytes).unwrap_or(usize::MAX)
    }

    pub(super) fn group(&mut self, group: u32) -> Option<&mut CheckedGroup> {
        self.groups.get_mut(usize::try_from(group).ok()?)
    }

    /// Notes the owner of blocks, which must lie in their group.
    pub(super) fn own(&mut self, group: u32, owned: Owned) {
        if let Some(group) = self.group(group) {
            group.owned.push(owned);
        }
    }

    /// Blocks of the group may have owners that are not known.
    pub(super) fn group_is_incomplete(&mut self, group: u32) {
        if let Some(group) = self.group(group) {
            group.is_incomplete = true;
        }
    }

    /// As [`Checker::group_is_incomplete`], for all groups.
    pub(super) fn all_are_incomplete(&mut self) {
        for group in &mut self.groups {
            group.is_incomplete = true;
        }
    }

    /// Checks what all headers of metadata have; `name` is the structure's.
    pub(super) fn check_seal(
        &mut self,
        at: At,
        name: &str,
        raw: &[u8],
        (crc_offset, uuid, lsn): (usize, &[u8; 16], u64),
    ) {
        if !checksum_ok(raw, crc_offset) {
            self.finding(at, format!("{name}: the checksum is wrong"));
        }
        if uuid != self.fs.meta_uuid() {
            self.finding(at, format!("{name}: of another filesystem (uuid)"));
        }
        if self.fs.is_ahead_of_log(lsn) {
            let detail = format!("{name}: changed at {lsn:#x}, behind the end of the log");
            self.finding(at, detail);
        }
    }
}
