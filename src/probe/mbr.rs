//! MBR partition tables, with logical partitions in a chain of extended ones, as the kernel reads them
//! (`block/partitions/msdos.c`).

use std::mem::size_of;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::source::{Source, read};
use super::table::{Partition, PartitionTable, TableKind};
use crate::error::Result;

/// The type of the entry that protects a GPT.
const PROTECTIVE: u8 = 0xee;
/// Most extended boot records that are followed: a chain may be a circle.
const MOST_LINKS: usize = 256;
/// The first number of a logical partition.
const FIRST_LOGICAL: u32 = 5;

/// An entry of a master or extended boot record.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    /// 0x80 for active, otherwise 0.
    status: u8,
    first_chs: [u8; 3],
    kind: u8,
    last_chs: [u8; 3],
    start_sector: U32,
    sectors: U32,
}
const _: () = assert!(size_of::<Entry>() == 16);

/// A sector with a boot record.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BootRecord {
    code: [u8; 446],
    entries: [Entry; 4],
    signature: [u8; 2],
}
const _: () = assert!(size_of::<BootRecord>() == 512);

impl Entry {
    fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors.get() != 0
    }

    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

/// What the first sector of a device says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstSector {
    /// No partition table.
    None,
    /// An entry that protects a GPT; maybe beside others (hybrid).
    Protective,
    /// A partition table.
    Table,
}

fn record(bytes: &[u8]) -> Option<&BootRecord> {
    let (record, _) = BootRecord::ref_from_prefix(bytes).ok()?;
    (record.signature == [0x55, 0xaa]).then_some(record)
}

/// Looks at the first sector.
pub(super) fn look(bytes: &[u8]) -> FirstSector {
    let Some(record) = record(bytes) else {
        return FirstSector::None;
    };
    let plausible = record.entries.iter().all(|e| matches!(e.status, 0 | 0x80));
    let mut kinds = record.entries.iter().filter(|e| e.kind != 0);
    if !plausible || kinds.clone().next().is_none() {
        FirstSector::None
    } else if kinds.any(|entry| entry.kind == PROTECTIVE) {
        FirstSector::Protective
    } else {
        FirstSector::Table
    }
}

/// The table of a device whose first sector has one.
pub(super) fn read_partitions(source: &mut impl Source, first: &[u8]) -> Result<PartitionTable> {
    let sector_bytes = u64::from(source.block_bytes()).max(512);
    let mut table = PartitionTable::new(TableKind::Mbr, sector_bytes);
    let Some(record) = record(first) else {
        return Ok(table);
    };
    for (number, entry) in (1..).zip(&record.entries) {
        if entry.is_used() && !entry.is_extended() {
            table.push(partition(number, 0, entry, sector_bytes));
        }
    }
    // The kernel reads the logical partitions of each extended one, the first number after the last.
    let mut number = FIRST_LOGICAL;
    let mut links = MOST_LINKS;
    for entry in record
        .entries
        .iter()
        .filter(|e| e.is_extended() && e.is_used())
    {
        let start = u64::from(entry.start_sector.get());
        logical(source, start, &mut table, (&mut number, &mut links))?;
    }
    Ok(table)
}

/// Follows the chain of boot records that begins at a sector: each has one partition, and the next link.
fn logical(
    source: &mut impl Source,
    first_sector: u64,
    table: &mut PartitionTable,
    (number, links): (&mut u32, &mut usize),
) -> Result<()> {
    let sector_bytes = table.sector_bytes;
    let mut at = first_sector;
    loop {
        if *links == 0 {
            table.damage = Some("the chain of extended partitions is too long".into());
            return Ok(());
        }
        *links = links.saturating_sub(1);
        let bytes = read(source, at.saturating_mul(sector_bytes), 512)?;
        let Some(record) = record(&bytes) else {
            table.damage = Some("an extended partition has no boot record".into());
            return Ok(());
        };
        for entry in &record.entries {
            if entry.is_used() && !entry.is_extended() {
                table.push(partition(*number, at, entry, sector_bytes));
                *number = number.saturating_add(1);
            }
        }
        let next = record
            .entries
            .iter()
            .find(|e| e.is_extended() && e.is_used());
        let Some(next) = next else { return Ok(()) };
        at = first_sector.saturating_add(u64::from(next.start_sector.get()));
    }
}

fn partition(number: u32, relative_to: u64, entry: &Entry, sector_bytes: u64) -> Partition {
    let start = relative_to.saturating_add(entry.start_sector.get().into());
    Partition {
        number,
        name: String::new(),
        kind: kind_name(entry.kind),
        start_bytes: start.saturating_mul(sector_bytes),
        len_bytes: u64::from(entry.sectors.get()).saturating_mul(sector_bytes),
        content: None,
    }
}

fn kind_name(kind: u8) -> String {
    let name = match kind {
        0x01 | 0x04 | 0x06 | 0x0e => "FAT16",
        0x07 => "NTFS or exFAT",
        0x0b | 0x0c => "FAT32",
        0x82 => "Linux swap",
        0x83 => "Linux",
        0x8e => "Linux LVM",
        0xef => "EFI system",
        0xfd => "Linux RAID",
        other => return format!("type {other:#04x}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bytes;
    use super::*;

    fn entry(kind: u8, start: u32, sectors: u32) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[4] = kind;
        bytes[8..12].copy_from_slice(&start.to_le_bytes());
        bytes[12..16].copy_from_slice(&sectors.to_le_bytes());
        bytes
    }

    fn put(device: &mut [u8], sector: usize, entries: &[[u8; 16]]) {
        let at = sector * 512;
        device[at + 510..at + 512].copy_from_slice(b"\x55\xaa");
        for (n, entry) in entries.iter().enumerate() {
            device[at + 446 + n * 16..at + 462 + n * 16].copy_from_slice(entry);
        }
    }

    #[test]
    fn primary_and_logical_partitions_have_the_numbers_of_the_kernel() {
        let mut device = vec![0; 512 * 100];
        put(
            &mut device,
            0,
            &[entry(0x83, 1, 4), [0; 16], entry(5, 10, 50)],
        );
        put(&mut device, 10, &[entry(0x83, 1, 5), entry(5, 20, 20)]);
        put(&mut device, 30, &[entry(0x82, 2, 6)]);
        let mut device = Bytes(device, 512);
        let first = read(&mut device, 0, 512).unwrap();
        assert_eq!(look(&first), FirstSector::Table);
        let table = read_partitions(&mut device, &first).unwrap();
        let found: Vec<_> = table
            .partitions
            .iter()
            .map(|p| (p.number, p.start_bytes / 512, p.len_bytes / 512))
            .collect();
        assert_eq!(found, [(1, 1, 4), (5, 11, 5), (6, 32, 6)]);
        assert_eq!(table.damage, None);
    }

    #[test]
    fn a_chain_that_is_a_circle_or_leaves_the_device_ends() {
        let mut device = vec![0; 512 * 100];
        put(&mut device, 0, &[entry(0x0f, 10, 50)]);
        put(&mut device, 10, &[entry(0x83, 1, 5), entry(5, 0, 20)]);
        let first = device[..512].to_vec();
        let table = read_partitions(&mut Bytes(device.clone(), 512), &first).unwrap();
        assert_eq!(table.partitions.len(), MOST_LINKS);
        assert!(table.damage.is_some());
        put(
            &mut device,
            10,
            &[entry(0x83, 1, 5), entry(5, u32::MAX, 20)],
        );
        let table = read_partitions(&mut Bytes(device, 512), &first).unwrap();
        assert_eq!(table.partitions.len(), 1);
        assert!(table.damage.is_some());
    }

    #[test]
    fn boot_code_alone_is_no_table() {
        let mut sector = vec![0; 512];
        assert_eq!(look(&sector), FirstSector::None);
        sector[510..].copy_from_slice(b"\x55\xaa");
        assert_eq!(look(&sector), FirstSector::None);
        sector[450] = PROTECTIVE;
        assert_eq!(look(&sector), FirstSector::Protective);
        sector[446] = 0x12;
        assert_eq!(look(&sector), FirstSector::None, "no boot flag");
        assert_eq!(look(&[0; 100]), FirstSector::None);
    }
}
