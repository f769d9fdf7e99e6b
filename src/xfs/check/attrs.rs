//! Extended attributes: short form, leaves and the tree over them, values in blocks of their own.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::attr_leaf::{attribute_fault, leaf_faults};
use super::core::CheckedCore;
use super::fork_read::ForkBlocks;
use super::forks::ForkExtent;
use super::state::{At, Checker};
use super::table::name_print;
use crate::error::Result;
use crate::xfs::format::attr::{self as layout, AttrShortHeader, Attribute, RemoteHeader, Value};
use crate::xfs::format::dir::DaHeader;
use crate::xfs::format::{BASIC_BLOCK_BYTES, checksum_ok, inode};

/// Sum of [`name_print`] of the parent pointers among attributes.
fn parent_print(attribute: &Attribute<'_>) -> u64 {
    let (layout::FLAG_PARENT, Value::Here(value)) =
        (attribute.flags & layout::FLAG_PARENT, attribute.value)
    else {
        return 0;
    };
    let (Some(parent), Some(generation)) = (
        value.first_chunk::<8>(),
        value.get(8..).and_then(|rest| rest.first_chunk::<4>()),
    ) else {
        return 0;
    };
    let parent = u64::from_be_bytes(*parent);
    name_print(parent, u32::from_be_bytes(*generation), attribute.name)
}

impl Checker<'_> {
    /// Checks the attributes of an inode. `extents` are those of its attribute fork.
    pub(super) fn check_attributes(
        &mut self,
        at: At,
        ino: u64,
        checked: &CheckedCore<'_>,
        extents: &[ForkExtent],
    ) -> Result<()> {
        if checked.core.forkoff == 0 {
            return Ok(());
        }
        let parents = match checked.core.aformat {
            inode::FORMAT_LOCAL => self.check_short_attributes(at, checked.forks().1),
            _ if extents.is_empty() => return Ok(()),
            _ => self.check_attribute_blocks(at, ino, extents)?,
        };
        if self.has_parents() {
            let geometry = &self.geometry;
            if let Some(state) = self.inodes.state(geometry, ino) {
                state.parents = state.parents.wrapping_sub(parents);
            }
        }
        Ok(())
    }

    /// Whether inodes have pointers to the directories that name them.
    pub(super) fn has_parents(&self) -> bool {
        self.fs.features().incompat & crate::xfs::format::superblock::IN_PARENT != 0
    }

    fn check_short_attributes(&mut self, at: At, fork: &[u8]) -> u64 {
        let entries = match layout::short_entries(fork) {
            Ok(entries) => entries,
            Err(what) => {
                self.finding(at, format!("attributes: {what}"));
                return 0;
            }
        };
        let mut bytes = size_of::<AttrShortHeader>();
        let mut parents = 0_u64;
        let known = layout::NAMESPACE | layout::FLAG_INCOMPLETE;
        for entry in &entries {
            if let Some(what) = attribute_fault(entry, known, self.has_parents()) {
                let name = entry.name.escape_ascii();
                self.finding(at, format!("attribute {name}: {what}"));
            }
            if let Value::Here(value) = entry.value {
                bytes = bytes
                    .saturating_add(size_of::<layout::AttrShortEntry>())
                    .saturating_add(entry.name.len())
                    .saturating_add(value.len());
            }
            parents = parents.wrapping_add(parent_print(entry));
        }
        let total = AttrShortHeader::ref_from_prefix(fork)
            .map_or(0, |(header, _)| usize::from(header.total_bytes.get()));
        if total != bytes {
            self.finding(at, format!("attributes of {total} bytes, expected {bytes}"));
        }
        parents
    }

    fn check_attribute_blocks(&mut self, at: At, ino: u64, extents: &[ForkExtent]) -> Result<u64> {
        let fork = ForkBlocks {
            ino,
            extents,
            step: 1,
            leaf_magic: layout::MAGIC_LEAF,
            name: "attributes",
        };
        let mut parents = 0_u64;
        let mut remote = Vec::new();
        let mut last_hash = 0;
        let has_parents = self.has_parents();
        let mut is_first = true;
        let mut visit = |checker: &mut Checker<'_>, at: At, raw: &[u8]| {
            let faults = leaf_faults(raw, has_parents, |attribute| {
                parents = parents.wrapping_add(parent_print(&attribute));
                if let Value::Remote { block, bytes } = attribute.value {
                    remote.push((block, bytes));
                }
            });
            for fault in faults {
                checker.finding(at, format!("attributes: {fault}"));
            }
            let entries = layout::leaf_entries(raw).unwrap_or_default();
            let has_forw = DaHeader::ref_from_prefix(raw)
                .is_ok_and(|(header, _)| header.forw.get() != 0 || header.back.get() != 0);
            if entries.is_empty() && (has_forw || !is_first) {
                checker.finding(at, "attributes: an empty leaf");
            }
            is_first = false;
            let first = entries.first().map_or(last_hash, |entry| entry.hash.get());
            if first < last_hash {
                checker.finding(at, "attributes: leaves out of order");
            }
            last_hash = entries.last().map_or(last_hash, |entry| entry.hash.get());
            Ok(entries.last().map(|entry| entry.hash.get()))
        };
        self.walk_hashes(&fork, 0, at, &mut visit)?;
        for (block, bytes) in remote {
            self.check_remote_value(&fork, at, block, bytes)?;
        }
        Ok(parents)
    }

    /// A value in blocks of its own.
    fn check_remote_value(
        &mut self,
        fork: &ForkBlocks<'_>,
        at: At,
        block: u32,
        bytes: u32,
    ) -> Result<()> {
        if bytes > layout::VALUE_MAX_BYTES || block == 0 {
            let detail = format!("attributes: impossible value of {bytes} bytes at block {block}");
            self.finding(at, detail);
            return Ok(());
        }
        let (mut done, mut next) = (0_u32, u64::from(block));
        while done < bytes {
            let Some((at, raw)) = self.fork_block(fork, next)? else {
                let detail = format!("attributes: block {next} of a value is a hole");
                self.finding(at, detail);
                return Ok(());
            };
            let Ok((header, rest)) = RemoteHeader::ref_from_prefix(&raw) else {
                return Ok(());
            };
            let room = u32::try_from(rest.len()).unwrap_or(u32::MAX);
            let part = bytes.saturating_sub(done).min(room);
            let fits = header.magic.get() == layout::MAGIC_REMOTE
                && header.offset.get() == done
                && header.bytes.get() == part
                && header.owner.get() == fork.ino
                && header.uuid == *self.fs.meta_uuid()
                && header.daddr.get() == at.addr.unwrap_or(0) / BASIC_BLOCK_BYTES;
            if !fits {
                self.finding(at, "attributes: a block that is not of its value");
                return Ok(());
            }
            if !checksum_ok(&raw, layout::REMOTE_CRC_OFFSET) {
                self.finding(at, "attributes: the checksum of a value is wrong");
            }
            done = done.saturating_add(part.max(1));
            next = next.saturating_add(1);
        }
        Ok(())
    }
}
