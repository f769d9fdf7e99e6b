//! A block of names: its entries, its unused ranges, and the table of the longest ones.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use crate::xfs::format::dir::{self as layout, DataEntry, DataHeader, DataItem};

/// What a block of names holds.
#[derive(Debug, Default)]
pub(super) struct NamesBlock<'a> {
    pub(super) entries: Vec<DataEntry<'a>>,
    /// Length of the longest unused range.
    pub(super) longest: u16,
    pub(super) faults: Vec<String>,
    /// All of it could be read.
    pub(super) is_whole: bool,
}

/// Reads a block whose names end at byte `end`.
pub(super) fn names_block(raw: &[u8], end: usize) -> NamesBlock<'_> {
    let mut block = NamesBlock {
        is_whole: true,
        ..NamesBlock::default()
    };
    let mut unused: Vec<(u16, u16)> = Vec::new();
    let mut at = layout::DATA_HEADER_BYTES;
    let mut was_unused = false;
    while at < end {
        let (item, length) = match layout::data_item(raw, at, end) {
            Ok(found) => found,
            Err(error) => {
                block.faults.push(error.detail().to_owned());
                block.is_whole = false;
                break;
            }
        };
        match item {
            DataItem::Entry(entry) => {
                block.entries.push(entry);
                was_unused = false;
            }
            DataItem::Unused => {
                if was_unused {
                    let fault = format!("unused ranges before and at byte {at} are not joined");
                    block.faults.push(fault);
                }
                was_unused = true;
                let number = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
                unused.push((number(length), number(at)));
            }
        }
        at = at.saturating_add(length.max(1));
    }
    block.longest = unused.iter().map(|(length, _)| *length).max().unwrap_or(0);
    if block.is_whole {
        check_best(raw, unused, &mut block.faults);
    }
    block
}

/// The table has the three longest unused ranges, longest first.
fn check_best(raw: &[u8], mut unused: Vec<(u16, u16)>, faults: &mut Vec<String>) {
    let Ok((header, _)) = DataHeader::ref_from_prefix(raw) else {
        return;
    };
    unused.sort_unstable_by(|one, other| other.cmp(one));
    let mut lengths = unused.iter().map(|(length, _)| *length);
    let mut seen = Vec::with_capacity(3);
    for best in &header.best_free {
        let found = (best.length.get(), best.offset.get());
        let expected = lengths.next().unwrap_or(0);
        let is_one = match found {
            (0, offset) => offset == 0,
            _ => unused.contains(&found) && !seen.contains(&found),
        };
        if found.0 != expected || !is_one {
            faults.push(format!(
                "longest unused ranges: {} bytes at {}, expected {expected} bytes",
                found.0, found.1
            ));
        }
        seen.push(found);
    }
}
