//! MBR partition tables, with logical partitions in a chain of extended ones, as the kernel reads
//! them (`block/partitions/msdos.c`).

use std::mem::size_of;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::source::{ProbeSource, read};
use super::table::{Partition, PartitionTable, TableKind};
use crate::error::{Error, ErrorKind, Result};

/// The type of the entry that protects a GPT.
const PROTECTIVE: u8 = 0xee;
/// Links without a partition that are followed in a row, as the kernel does: a chain may be a
/// circle.
const MOST_EMPTY_LINKS: usize = 100;
/// The first number of a logical partition.
const FIRST_LOGICAL: u32 = 5;
/// Numbers are less (the kernel's `DISK_MAX_PARTS`).
const NUMBERS_END: u32 = 256;

/// An entry of a master or extended boot record.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MbrEntry {
    /// 0x80 for active, otherwise 0.
    status: u8,
    first_chs: [u8; 3],
    kind: u8,
    last_chs: [u8; 3],
    start_sector: U32,
    sectors: U32,
}
const _: () = assert!(size_of::<MbrEntry>() == 16);

/// A sector with a boot record.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BootRecord {
    code: [u8; 446],
    entries: [MbrEntry; 4],
    signature: [u8; 2],
}
const _: () = assert!(size_of::<BootRecord>() == 512);

impl MbrEntry {
    fn is_used(&self) -> bool {
        // Of any type, also 0: otherwise those behind would have other numbers than the kernel's.
        self.sectors.get() != 0
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
///
/// # Errors
/// [`ErrorKind::Unsupported`] where the size of its sectors is not known; the device's.
pub(super) fn read_partitions(
    source: &mut impl ProbeSource,
    first: &[u8],
) -> Result<PartitionTable> {
    let sector_bytes = u64::from(source.mbr_sector_bytes().ok_or_else(unknown_sectors)?);
    let mut table = PartitionTable::new(TableKind::Mbr, sector_bytes);
    let Some(record) = record(first) else {
        return Ok(table);
    };
    for (number, entry) in (1..).zip(&record.entries) {
        if entry.is_used() && !entry.is_extended() {
            table.push(partition(number, 0, entry, sector_bytes));
        }
    }
    // The kernel reads the logical partitions of each extended one, the first number after the
    // last.
    let mut number = FIRST_LOGICAL;
    for entry in record
        .entries
        .iter()
        .filter(|e| e.is_extended() && e.is_used())
    {
        logical(source, MbrArea::of(entry, 0), &mut table, &mut number)?;
    }
    Ok(table)
}

#[cold]
fn unknown_sectors() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "an MBR partition table does not say how large its sectors are: leave out the option `lba` for sectors of \
         512 bytes, as in the image of most disks, or give offset=BYTES instead of a partition",
    )
}

/// Sectors of an entry.
#[derive(Debug, Clone, Copy)]
struct MbrArea {
    start: u64,
    sectors: u64,
}

impl MbrArea {
    fn of(entry: &MbrEntry, relative_to: u64) -> Self {
        Self {
            start: relative_to.saturating_add(entry.start_sector.get().into()),
            sectors: entry.sectors.get().into(),
        }
    }

    fn end(self) -> u64 {
        self.start.saturating_add(self.sectors)
    }
}

/// Follows the chain of boot records of an extended partition as parse_extended() does, so that the
/// numbers are the kernel's: each has a partition, or several, and the next link.
fn logical(
    source: &mut impl ProbeSource,
    first: MbrArea,
    table: &mut PartitionTable,
    number: &mut u32,
) -> Result<()> {
    let sector_bytes = table.sector_bytes;
    let mut link = first;
    let mut empty_links = 0_usize;
    loop {
        if empty_links == MOST_EMPTY_LINKS {
            table.damage = Some("the chain of extended partitions is too long".into());
            return Ok(());
        }
        if *number >= NUMBERS_END {
            table.damage = Some(format!(
                "partitions from the number {NUMBERS_END} on are omitted"
            ));
            return Ok(());
        }
        let bytes = read(source, link.start.saturating_mul(sector_bytes), 512)?;
        let Some(record) = record(&bytes) else {
            table.damage = Some("an extended partition has no boot record".into());
            return Ok(());
        };
        empty_links = empty_links.saturating_add(1);
        for (slot, entry) in record.entries.iter().enumerate() {
            if !entry.is_used() || entry.is_extended() {
                continue;
            }
            // The third and fourth may be anything.
            let in_link = MbrArea::of(entry, 0).end() <= link.sectors;
            let in_first = MbrArea::of(entry, link.start).end() <= first.end();
            if slot >= 2 && !(in_link && in_first) {
                continue;
            }
            if *number < NUMBERS_END {
                table.push(partition(*number, link.start, entry, sector_bytes));
                *number = number.saturating_add(1);
            }
            empty_links = 0;
        }
        let next = record
            .entries
            .iter()
            .find(|e| e.is_extended() && e.is_used());
        let Some(next) = next else { return Ok(()) };
        link = MbrArea::of(next, first.start);
    }
}

fn partition(number: u32, relative_to: u64, entry: &MbrEntry, sector_bytes: u64) -> Partition {
    let area = MbrArea::of(entry, relative_to);
    Partition {
        number,
        name: String::new(),
        kind: kind_name(entry.kind),
        start_bytes: area.start.saturating_mul(sector_bytes),
        len_bytes: area.sectors.saturating_mul(sector_bytes),
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
        let numbers = table.partitions.iter().map(|p| p.number);
        assert!(numbers.eq(FIRST_LOGICAL..NUMBERS_END));
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

    fn numbers(device: &[u8]) -> (Vec<(u32, u64)>, bool) {
        let table = read_partitions(&mut Bytes(device.to_vec(), 512), &device[..512]).unwrap();
        let found = table.partitions.iter();
        let found = found.map(|p| (p.number, p.start_bytes / 512)).collect();
        (found, table.damage.is_some())
    }

    #[test]
    fn entries_that_the_kernel_counts_are_counted() {
        let mut device = vec![0; 512 * 200];
        put(&mut device, 0, &[entry(0, 1, 4), entry(5, 10, 80)]);
        // Of type 0; one in the third place; others there that leave the link or the extended
        // partition.
        put(
            &mut device,
            10,
            &[
                entry(0, 1, 2),
                entry(5, 40, 20),
                entry(0x83, 4, 76),
                entry(0x83, 5, 76),
            ],
        );
        put(
            &mut device,
            50,
            &[
                entry(0x83, 1, 500),
                entry(0x83, 2, 0),
                entry(0x83, 3, 18),
                entry(0x83, 4, 16),
            ],
        );
        let found = vec![(1, 1), (5, 11), (6, 14), (7, 51), (8, 54)];
        assert_eq!(numbers(&device), (found, false));
        // The link would take it, but not the extended partition.
        let third = entry(0x83, 3, 38);
        put(&mut device, 10, &[entry(0x83, 1, 2), entry(5, 40, 100)]);
        put(
            &mut device,
            50,
            &[entry(0x83, 1, 5), [0; 16], third, [0; 16]],
        );
        let found = vec![(1, 1), (5, 11), (6, 14), (7, 51)];
        assert_eq!(numbers(&device), (found, false));
    }

    #[test]
    fn links_without_a_partition_are_followed_as_far_as_the_kernel_does() {
        for (empty, found) in [(99, vec![(5, 110)]), (100, vec![])] {
            let mut device = vec![0; 512 * 200];
            put(&mut device, 0, &[entry(5, 10, 180)]);
            for at in 0..empty {
                let next = u32::try_from(at + 1).unwrap();
                put(&mut device, 10 + at, &[entry(5, next, 180)]);
            }
            put(&mut device, 10 + empty, &[entry(0x83, 1, 2)]);
            assert_eq!(numbers(&device), (found.clone(), found.is_empty()));
        }
        // More than a hundred with partitions between them are no reason to stop.
        let mut device = vec![0; 512 * 400];
        put(&mut device, 0, &[entry(5, 10, 380)]);
        for at in 0..300 {
            let data = u32::from(matches!(at, 80 | 160 | 240));
            let next = entry(5, u32::try_from(at + 1).unwrap(), 370);
            put(&mut device, 10 + at, &[entry(0x83, 1, data), next]);
        }
        put(&mut device, 310, &[entry(0x83, 1, 1)]);
        let found = vec![(5, 91), (6, 171), (7, 251), (8, 311)];
        assert_eq!(numbers(&device), (found, false));
    }

    /// A device whose blocks are not the sectors of its table.
    struct Image(Bytes, Option<u32>);

    impl ProbeSource for Image {
        fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
            self.0.read_at(offset_bytes, buf)
        }

        fn len_bytes(&self) -> u64 {
            self.0.len_bytes()
        }

        fn block_bytes(&self) -> u32 {
            self.0.block_bytes()
        }

        fn mbr_sector_bytes(&self) -> Option<u32> {
            self.1
        }
    }

    #[test]
    fn sectors_are_those_of_the_table_not_those_of_the_reads() {
        let mut device = vec![0; 512 * 104];
        put(&mut device, 0, &[entry(0x83, 8, 8), entry(5, 16, 50)]);
        put(&mut device, 16, &[entry(0x83, 1, 5)]);
        let first = device[..512].to_vec();
        let mut image = Image(Bytes(device, 4096), Some(512));
        let table = read_partitions(&mut image, &first).unwrap();
        let found: Vec<_> = table.partitions.iter().map(|p| p.start_bytes).collect();
        assert_eq!(found, [4096, 17 * 512]);
        image.1 = None;
        let error = read_partitions(&mut image, &first).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
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
