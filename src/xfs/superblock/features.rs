//! Feature words of the superblock, and their names.

use super::super::format::superblock as layout;

/// Feature words of the superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Features {
    /// Compatible.
    pub compat: u32,
    /// Unknown bits allow reading only.
    pub ro_compat: u32,
    /// Unknown bits forbid any use.
    pub incompat: u32,
    /// Unknown bits forbid replaying the log.
    pub log_incompat: u32,
}

impl Features {
    /// Free inode btree.
    pub fn finobt(&self) -> bool {
        self.ro_compat & layout::RO_FINOBT != 0
    }

    /// Shared blocks.
    pub fn reflink(&self) -> bool {
        self.ro_compat & layout::RO_REFLINK != 0
    }

    /// Reverse mapping btree.
    pub fn rmapbt(&self) -> bool {
        self.ro_compat & layout::RO_RMAPBT != 0
    }

    /// Blocks of the inode btrees are counted in the AGI.
    pub fn inobtcount(&self) -> bool {
        self.ro_compat & layout::RO_INOBTCOUNT != 0
    }

    /// File type in directory entries.
    pub fn ftype(&self) -> bool {
        self.incompat & layout::IN_FTYPE != 0
    }

    /// Sparse inode chunks.
    pub fn sparse(&self) -> bool {
        self.incompat & layout::IN_SPARSE != 0
    }

    /// 64-bit time stamps.
    pub fn bigtime(&self) -> bool {
        self.incompat & layout::IN_BIGTIME != 0
    }

    /// Large extent counters.
    pub fn nrext64(&self) -> bool {
        self.incompat & layout::IN_NREXT64 != 0
    }

    /// Contents of files can be exchanged.
    pub fn exchange(&self) -> bool {
        self.incompat & layout::IN_EXCHANGE != 0
    }

    /// Attributes that name the directories of an inode.
    pub fn parent(&self) -> bool {
        self.incompat & layout::IN_PARENT != 0
    }

    /// Bits of features that changed the log in an unknown way.
    pub fn unknown_log_features(&self) -> u32 {
        self.log_incompat & !known_mask(layout::LOG_INCOMPAT.len())
    }

    /// The names of all features that are on, as mkfs.xfs calls them; unknown ones as
    /// `ro_compat bit 9`.
    pub fn names(&self) -> Vec<String> {
        let mut names = bit_names(self.ro_compat, &layout::RO_COMPAT, "ro_compat");
        names.extend(bit_names(self.incompat, &layout::INCOMPAT, "incompat"));
        names.extend(bit_names(
            self.log_incompat,
            &layout::LOG_INCOMPAT,
            "log_incompat",
        ));
        names.extend(bit_names(self.compat, &[], "compat"));
        names
    }
}

pub(super) fn bit_names(word: u32, known: &[&str], kind: &str) -> Vec<String> {
    (0..u32::BITS)
        .filter(|bit| word.wrapping_shr(*bit) & 1 == 1)
        .map(|bit| {
            let name = usize::try_from(bit).ok().and_then(|bit| known.get(bit));
            name.map_or_else(|| format!("{kind} bit {bit}"), |name| (*name).to_owned())
        })
        .collect()
}

pub(super) fn known_mask(names: usize) -> u32 {
    let bits = u32::try_from(names).unwrap_or(u32::BITS);
    1_u32
        .checked_shl(bits)
        .map_or(u32::MAX, |bit| bit.wrapping_sub(1))
}
