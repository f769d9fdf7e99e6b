//! What a check found.

use std::fmt;

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Finding {
    /// Byte address on the device of the structure.
    pub addr_bytes: Option<u64>,
    /// Allocation group.
    pub group: Option<u32>,
    /// Inode.
    pub inode: Option<u64>,
    /// The fault: what was found, and what was expected.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ino) = self.inode {
            write!(f, "inode {ino}: ")?;
        } else if let Some(group) = self.group {
            write!(f, "group {group}: ")?;
        }
        f.write_str(&self.what)?;
        match self.addr_bytes {
            Some(addr) => write!(f, " (at byte {addr})"),
            None => Ok(()),
        }
    }
}

/// The outcome of a check.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CheckReport {
    /// In the order in which they were found, as many as the options allow.
    pub findings: Vec<Finding>,
    /// Findings beyond that number.
    pub more_findings: u64,
    /// Checkpoints of the log that were replayed into memory first.
    pub replayed_checkpoints: u64,
    /// Whether the log held changes: then counters of the superblock, unlinked files and blocks
    /// staged for copy-on-write may be left over.
    pub log_was_dirty: bool,
    /// Allocation groups.
    pub groups: u32,
    /// Inodes in use.
    pub inodes: u64,
    /// Directories.
    pub directories: u64,
    /// Extents of files, and of their attributes.
    pub extents: u64,
    /// Free blocks, those of the free lists excluded.
    pub free_blocks: u64,
}

impl CheckReport {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.more_findings == 0
    }
}
