//! Partition tables: a GPT or an MBR from the input, modified, with the checksums recomputed, on a
//! device of any block size. An accepted table has numbers in order, and can be listed, looked up
//! and probed; the number of reads is bounded.
#![no_main]

#[path = "../tree.rs"]
#[allow(dead_code, reason = "each target uses its own part")]
mod tree;

use crc::{CRC_32_ISO_HDLC, Crc};
use libfuzzer_sys::fuzz_target;
use tree::Bytes;
use xtent::Result;
use xtent::internals::probe::{ProbeSource, identify, read_table};

static CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Blocks of the device.
const BLOCKS: usize = 160;
/// More than two headers of three sizes, 256 logical partitions with their empty links, and the
/// probes of 16 partitions take.
const MOST_READS: usize = 60_000;
/// Most bytes of a GPT's entries that are read.
const MOST_TABLE_BYTES: usize = 1 << 20;

struct Device {
    bytes: Vec<u8>,
    block: usize,
    mbr_sector: Option<u32>,
    reads: usize,
}

impl ProbeSource for Device {
    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        self.reads += 1;
        assert!(self.reads < MOST_READS, "reads without a bound");
        let start = usize::try_from(offset_bytes).expect("on the device");
        assert!(start % self.block == 0 && buf.len() % self.block == 0);
        buf.copy_from_slice(&self.bytes[start..start + buf.len()]);
        Ok(())
    }

    fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn block_bytes(&self) -> u32 {
        self.block as u32
    }

    fn mbr_sector_bytes(&self) -> Option<u32> {
        self.mbr_sector
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

fn word(bytes: &[u8], at: usize) -> usize {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, |word| u32::from_le_bytes(word) as usize)
}

/// An entry of a boot record.
fn mbr_entry(record: &mut [u8], slot: usize, kind: u8, start: u32, sectors: u32) {
    let at = 446 + 16 * slot;
    put(record, at + 4, &[kind]);
    put(record, at + 8, &start.to_le_bytes());
    put(record, at + 12, &sectors.to_le_bytes());
    put(record, 510, &[0x55, 0xaa]);
}

/// Both headers, and entries behind each, for sectors of this size.
fn make_gpt(device: &mut [u8], sector: usize, input: &mut Bytes<'_>) {
    let last = device.len() / sector - 1;
    mbr_entry(device, 0, 0xee, 1, u32::MAX);
    let count = 1 + usize::from(input.u8() & 31);
    let mut entries = vec![0; count * 128];
    for entry in entries.chunks_mut(128) {
        let (first, len) = (u64::from(input.u8()), u64::from(input.u8() & 31));
        put(entry, 0, &[input.u8() & 3; 16]);
        put(entry, 32, &first.to_le_bytes());
        put(entry, 40, &(first + len).to_le_bytes());
        put(entry, 56, &[input.u8(), 0, input.u8(), input.u8() & 1]);
    }
    let behind = last.saturating_sub(entries.len().div_ceil(sector));
    for (own, other, table) in [(1, last, 2), (last, 1, behind)] {
        put(device, table * sector, &entries);
        let at = own * sector;
        put(device, at, b"EFI PART\0\0\x01\0\x5c\0\0\0");
        for (field, value) in [(24, own), (32, other), (40, 3), (48, last - 1), (72, table)] {
            put(device, at + field, &(value as u64).to_le_bytes());
        }
        put(device, at + 80, &(count as u32).to_le_bytes());
        put(device, at + 84, &128_u32.to_le_bytes());
    }
}

/// A chain of boot records; its links and partitions may lie anywhere.
fn make_mbr(device: &mut [u8], sector: usize, input: &mut Bytes<'_>) {
    let extended = 1 + usize::from(input.u8() & 15);
    let own = u32::from(input.u8());
    mbr_entry(device, 0, input.u8(), own, u32::from(input.u8()));
    mbr_entry(
        device,
        1,
        0x0f,
        extended as u32,
        100 + u32::from(input.u8()),
    );
    let links = 1 + usize::from(input.u8() & 63);
    for link in 0..links {
        let Some(record) = device.get_mut((extended + link) * sector..) else {
            return;
        };
        let size = u32::from(input.u8() & 7);
        mbr_entry(record, 0, 0x83, u32::from(input.u8()), size);
        // Mostly to the next record; a jump may close a circle.
        let next = match input.u8() {
            jump @ 0..8 => u32::from(jump),
            _ => link as u32 + 1,
        };
        mbr_entry(record, 1, 0x05, next, u32::from(link + 1 < links) * 50);
    }
}

/// Makes the checksums of a header right, as far as the table lies on the device.
fn mend(device: &mut [u8], sector: usize, lba: usize) {
    let at = lba * sector;
    let (len, count, each) = (
        word(device, at + 12),
        word(device, at + 80),
        word(device, at + 84),
    );
    let table = word(device, at + 72).saturating_mul(sector);
    let table_bytes = count.saturating_mul(each);
    if table_bytes <= MOST_TABLE_BYTES
        && let Some(entries) = device.get(table..table.saturating_add(table_bytes))
    {
        let sum = CRC32.checksum(entries);
        put(device, at + 88, &sum.to_le_bytes());
    }
    put(device, at + 16, &[0; 4]);
    if let Some(header) = device.get(at..at.saturating_add(len)) {
        let sum = CRC32.checksum(header);
        put(device, at + 16, &sum.to_le_bytes());
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Bytes(data);
    let how = input.u8();
    let block = [512, 4096, 2048, 512][usize::from(how & 3)];
    let sector = if how & 4 == 0 { block } else { 512 };
    let mut device = vec![0; BLOCKS * block];
    let is_gpt = how & 8 != 0;
    if is_gpt {
        make_gpt(&mut device, sector, &mut input);
    } else {
        make_mbr(&mut device, sector, &mut input);
    }
    let last = device.len() / sector - 1;
    let is_unchanged = input.is_empty();
    while !input.is_empty() {
        // In the first blocks and the last ones.
        let area = input.u8();
        let at = usize::from(input.u16()) % (8 * sector);
        let at = match area & 1 {
            0 => at,
            _ => device.len() - 8 * sector + at,
        };
        put(&mut device, at, &[input.u8()]);
    }
    if is_gpt && how & 16 == 0 {
        // That of the second first: its entries may be the first header.
        mend(&mut device, sector, last);
        mend(&mut device, sector, 1);
    }
    let mut device = Device {
        bytes: device,
        block,
        mbr_sector: (how & 32 == 0).then_some(sector as u32),
        reads: 0,
    };
    let _ = identify(&mut device);
    let found = read_table(&mut device);
    if is_unchanged && is_gpt && how & 16 == 0 {
        let table = found.as_ref().expect("a valid table").as_ref();
        assert!(table.is_some_and(|table| table.damage.is_none()));
    }
    let Ok(Some(mut table)) = found else { return };
    let _ = table.identify_contents(&mut device);
    assert!(table.list().len() < 64 << 10);
    let numbers: Vec<_> = table.partitions.iter().map(|p| p.number).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b) && numbers.len() <= 8192);
    for partition in table.partitions.iter().take(300) {
        let found = table
            .find(&partition.number.to_string())
            .expect("it is there");
        assert_eq!(found.number, partition.number);
        if let Ok((start, len)) = partition.range_on(device.len_bytes()) {
            assert!(len > 0 && start + len <= device.len_bytes());
        }
    }
});
