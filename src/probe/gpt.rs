//! GUID partition tables (UEFI 2.10, section 5.3): both headers, their checksums, and the entries.

use crc::{CRC_32_ISO_HDLC, Crc};
use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::source::{ProbeSource, read};
use super::table::{Partition, PartitionTable, TableKind};
use crate::error::Result;

/// The checksum of GPT (UEFI specification, section 5.3.2).
static CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

fn checksum_of(bytes: &[u8]) -> u32 {
    CRC32.checksum(bytes)
}

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Most bytes of the entries: 8,192 of the usual 128 bytes. Tables have 128 entries, as a rule.
const MOST_TABLE_BYTES: u64 = 1 << 20;

/// A header, in the second and in the last block of the device.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GptHeader {
    signature: [u8; 8],
    revision: U32,
    header_bytes: U32,
    /// CRC32 of the header, with this field as zero.
    checksum: U32,
    reserved: U32,
    /// Where this header lies.
    own_lba: U64,
    other_lba: U64,
    first_usable_lba: U64,
    last_usable_lba: U64,
    disk_guid: [u8; 16],
    entries_lba: U64,
    entries: U32,
    entry_bytes: U32,
    entries_checksum: U32,
}
const _: () = assert!(size_of::<GptHeader>() == 92);
const _: () = assert!(offset_of!(GptHeader, checksum) == 16);
const _: () = assert!(offset_of!(GptHeader, entries_lba) == 72);

/// An entry; those that are not used have a type of zeroes.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GptEntry {
    kind: [u8; 16],
    guid: [u8; 16],
    first_lba: U64,
    last_lba: U64,
    attributes: U64,
    /// UTF-16, ended by zero where it is shorter.
    name: [U16; 36],
}
const _: () = assert!(size_of::<GptEntry>() == 128);

/// The table of a device that has one, with blocks of `sector_bytes`. `None` without
/// a header; with `must` an error that names the fault.
pub(super) fn read_partitions(
    source: &mut impl ProbeSource,
    sector_bytes: u64,
    must: bool,
) -> Result<Result<PartitionTable, Option<String>>> {
    let last = source
        .len_bytes()
        .checked_div(sector_bytes)
        .unwrap_or(0)
        .saturating_sub(1);
    let primary = match read_one(source, sector_bytes, 1)? {
        Ok(table) => return Ok(Ok(table)),
        Err(None) if !must => return Ok(Err(None)),
        Err(why) => why,
    };
    // The backup header is used as the kernel uses it (`find_valid_gpt`), which warns.
    match (primary, read_one(source, sector_bytes, last)?) {
        (why, Ok(mut table)) => {
            let why = why.unwrap_or_else(|| "it has no signature".into());
            table.damage = Some(format!(
                "the primary header is damaged ({why}), the backup at the end was used: repair it \
                 with sgdisk or gdisk"
            ));
            Ok(Ok(table))
        }
        (None, Err(None)) => Ok(Err(None)),
        (primary, Err(backup)) => {
            let or = |why: Option<String>| why.unwrap_or_else(|| "no signature".into());
            Ok(Err(Some(format!(
                "both headers are damaged (primary: {}; backup: {})",
                or(primary),
                or(backup)
            ))))
        }
    }
}

/// The table by the header in one block; otherwise the fault in it, `None` for no signature.
fn read_one(
    source: &mut impl ProbeSource,
    sector_bytes: u64,
    lba: u64,
) -> Result<Result<PartitionTable, Option<String>>> {
    let sector = read(source, lba.saturating_mul(sector_bytes), sector_bytes)?;
    let Ok((header, _)) = GptHeader::read_from_prefix(&sector) else {
        return Ok(Err(None));
    };
    if header.signature != *SIGNATURE {
        return Ok(Err(None));
    }
    if let Err(why) = check_header(&header, &sector, lba) {
        return Ok(Err(Some(why.into())));
    }
    let entry_bytes = u64::from(header.entry_bytes.get());
    let table_bytes = entry_bytes.saturating_mul(header.entries.get().into());
    if table_bytes > MOST_TABLE_BYTES {
        let why = format!("it has {} entries", header.entries.get());
        return Ok(Err(Some(why)));
    }
    let at = header.entries_lba.get().saturating_mul(sector_bytes);
    let bytes = read(source, at, table_bytes)?;
    if bytes.len() as u64 != table_bytes {
        return Ok(Err(Some("its entries are not on the device".into())));
    }
    if checksum_of(&bytes) != header.entries_checksum.get() {
        return Ok(Err(Some("the checksum of its entries is wrong".into())));
    }
    let mut table = PartitionTable::new(TableKind::Gpt, sector_bytes);
    let step = usize::try_from(entry_bytes).unwrap_or(usize::MAX);
    for (number, bytes) in (1..).zip(bytes.chunks_exact(step)) {
        let Ok((entry, _)) = GptEntry::read_from_prefix(bytes) else {
            continue;
        };
        if entry.kind != [0; 16] {
            table.push(partition(number, &entry, sector_bytes));
        }
    }
    Ok(Ok(table))
}

fn check_header(header: &GptHeader, sector: &[u8], lba: u64) -> Result<(), &'static str> {
    let len = usize::try_from(header.header_bytes.get()).unwrap_or(usize::MAX);
    let mut bytes = sector
        .get(..len)
        .filter(|bytes| bytes.len() >= size_of::<GptHeader>())
        .ok_or("its length is impossible")?
        .to_vec();
    let field = offset_of!(GptHeader, checksum)..offset_of!(GptHeader, reserved);
    bytes
        .get_mut(field)
        .ok_or("its length is impossible")?
        .fill(0);
    if checksum_of(&bytes) != header.checksum.get() {
        return Err("its checksum is wrong");
    }
    if header.own_lba.get() != lba {
        return Err("it is of another place");
    }
    // UEFI has 128 times a power of two.
    let entry_bytes = header.entry_bytes.get();
    if !(128..=4096).contains(&entry_bytes) || !entry_bytes.is_power_of_two() {
        return Err("the size of its entries is impossible");
    }
    Ok(())
}

fn partition(number: u32, entry: &GptEntry, sector_bytes: u64) -> Partition {
    let (first, last) = (entry.first_lba.get(), entry.last_lba.get());
    // One that ends before it begins is empty, and cannot be opened.
    let sectors = match last.checked_sub(first) {
        Some(more) => more.saturating_add(1),
        None => 0,
    };
    let name = entry.name.iter().map(|unit| unit.get());
    let name = char::decode_utf16(name.take_while(|unit| *unit != 0));
    Partition {
        number,
        name: name
            .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
            .collect(),
        kind: kind_name(&guid_text(&entry.kind)),
        start_bytes: first.saturating_mul(sector_bytes),
        len_bytes: sectors.saturating_mul(sector_bytes),
        content: None,
    }
}

/// A GUID as it is written: the first three fields are little endian.
fn guid_text(bytes: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02X}")).collect() };
    let (clock, node) = rest.split_at(2);
    format!(
        "{}-{}-{}-{}-{}",
        hex(&[*d, *c, *b, *a]),
        hex(&[*f, *e]),
        hex(&[*h, *g]),
        hex(clock),
        hex(node)
    )
}

/// The name of a type, as sfdisk has it; its GUID where that is not known.
fn kind_name(guid: &str) -> String {
    let name = match guid {
        "0FC63DAF-8483-4772-8E79-3D69D8477DE4" => "Linux filesystem",
        "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709" => "Linux root (x86-64)",
        "933AC7E1-2EB4-4F13-B844-0E14E2AEF915" => "Linux home",
        "BC13C2FF-59E6-4262-A352-B275FD6F7172" => "Linux extended boot",
        "3B8F8425-20E0-4F3B-907F-1A25A76F98E8" => "Linux server data",
        "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F" => "Linux swap",
        "E6D6D379-F507-44C2-A23C-238F2A3DF928" => "Linux LVM",
        "A19D880F-05FC-4D3B-A006-743F0F84911E" => "Linux RAID",
        "CA7D7CCB-63ED-4C53-861C-1742536059CC" => "Linux LUKS",
        "C12A7328-F81F-11D2-BA4B-00A0C93EC93B" => "EFI system",
        "21686148-6449-6E6F-744E-656564454649" => "BIOS boot",
        "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7" => "Microsoft basic data",
        "E3C9E316-0B5C-4DB8-817D-F92DF00215AE" => "Microsoft reserved",
        "DE94BBA4-06D1-4D40-A16A-BFD50179D6AC" => "Windows recovery",
        other => return format!("type {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::testing::Bytes;
    use super::*;

    /// A device of 200 sectors with one partition, 40 to 99, and both headers.
    pub(in super::super) fn device(sector_bytes: usize) -> Vec<u8> {
        let mut device = vec![0; 200 * sector_bytes];
        let mut entries = vec![0; 128 * 128];
        // Linux filesystem, with its first fields turned round.
        entries[..16].copy_from_slice(&[
            0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47,
            0x7d, 0xe4,
        ]);
        entries[32..40].copy_from_slice(&40u64.to_le_bytes());
        entries[40..48].copy_from_slice(&99u64.to_le_bytes());
        for (at, unit) in "daten".encode_utf16().enumerate() {
            entries[56 + at * 2..58 + at * 2].copy_from_slice(&unit.to_le_bytes());
        }
        let table_sectors = (entries.len() / sector_bytes) as u64;
        for (own, other, at) in [(1, 199, 2), (199, 1, 199 - table_sectors)] {
            let start = usize::try_from(at).unwrap() * sector_bytes;
            device[start..start + entries.len()].copy_from_slice(&entries);
            put_header(&mut device, sector_bytes, own, other, at);
        }
        device[510..512].copy_from_slice(b"\x55\xaa");
        device[450] = 0xee;
        device
    }

    fn put_header(device: &mut [u8], sector_bytes: usize, own: u64, other: u64, entries_at: u64) {
        let start = usize::try_from(entries_at).unwrap() * sector_bytes;
        let checksum = checksum_of(&device[start..start + 128 * 128]);
        let mut header = Vec::new();
        header.extend_from_slice(SIGNATURE);
        for word in [0x1_0000, 92, 0, 0u32] {
            header.extend(word.to_le_bytes());
        }
        for word in [own, other, 34, 166u64] {
            header.extend(word.to_le_bytes());
        }
        header.extend([7; 16]);
        header.extend(entries_at.to_le_bytes());
        for word in [128, 128, checksum] {
            header.extend(word.to_le_bytes());
        }
        let own_checksum = checksum_of(&header);
        header[16..20].copy_from_slice(&own_checksum.to_le_bytes());
        let at = usize::try_from(own).unwrap() * sector_bytes;
        device[at..at + header.len()].copy_from_slice(&header);
    }

    #[test]
    fn partitions_have_numbers_names_and_places() {
        for sector_bytes in [512, 4096] {
            let mut device = Bytes(device(sector_bytes), 512);
            let table = read_partitions(&mut device, sector_bytes as u64, true);
            let table = table.unwrap().unwrap();
            assert_eq!(table.damage, None);
            let [one] = &table.partitions[..] else {
                panic!("{table:?}")
            };
            assert_eq!((one.number, &*one.name), (1, "daten"));
            assert_eq!(one.kind, "Linux filesystem");
            assert_eq!(one.start_bytes, 40 * sector_bytes as u64);
            assert_eq!(one.len_bytes, 60 * sector_bytes as u64);
        }
    }

    #[test]
    fn the_backup_is_used_when_the_primary_is_damaged() {
        for at in [512 + 16, 512 + 90, 1024 + 40] {
            let mut bytes = device(512);
            bytes[at] ^= 1;
            let table = read_partitions(&mut Bytes(bytes, 512), 512, true);
            let table = table.unwrap().unwrap();
            assert!(table.damage.unwrap().contains("checksum"), "byte {at}");
            assert_eq!(table.partitions.len(), 1);
        }
        let mut bytes = device(512);
        bytes[512 + 16] ^= 1;
        bytes[199 * 512 + 24] ^= 1;
        let error = read_partitions(&mut Bytes(bytes, 512), 512, true);
        let why = error.unwrap().unwrap_err().unwrap();
        assert!(why.contains("both headers are damaged"), "{why}");
    }

    #[test]
    fn hostile_headers_are_bounded() {
        for (field, value) in [
            (80, u32::MAX),
            (84, u32::MAX),
            (84, 0),
            (84, 129),
            (12, 0),
            (12, u32::MAX),
            (72, u32::MAX),
            (76, u32::MAX),
        ] {
            let mut bytes = device(512);
            bytes[512 + field..512 + field + 4].copy_from_slice(&value.to_le_bytes());
            bytes[512 + 16..512 + 20].fill(0);
            let checksum = checksum_of(&bytes[512..512 + 92]);
            bytes[512 + 16..512 + 20].copy_from_slice(&checksum.to_le_bytes());
            let table = read_partitions(&mut Bytes(bytes, 512), 512, true);
            assert!(table.unwrap().unwrap().damage.is_some(), "{field} {value}");
        }
    }
}
