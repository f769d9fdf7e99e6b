//! Which partition table a device has.

use super::gpt;
use super::mbr::{self, FirstSector};
use super::source::{ProbeSource, read};
use super::table::PartitionTable;
use crate::error::{Error, ErrorKind, Result};

/// The partition table of a device; `None` where it has none.
///
/// As the kernel does, a GPT counts only behind an MBR that protects it, or where the first sector
/// has no partitions.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for a GPT whose headers are both damaged, [`ErrorKind::Unsupported`] for
/// an MBR with sectors of an unknown size; the device's.
pub fn read_table(source: &mut impl ProbeSource) -> Result<Option<PartitionTable>> {
    let first = read(source, 0, 512)?;
    let sector = mbr::look(&first);
    if sector == FirstSector::Table {
        return mbr::read_partitions(source, &first).map(Some);
    }
    let protected = sector == FirstSector::Protective;
    let mut why = None;
    let own = u64::from(source.block_bytes());
    let mut sizes = vec![own, 512, 4096];
    sizes.dedup();
    for sector_bytes in sizes {
        match gpt::read_partitions(source, sector_bytes, protected)? {
            Ok(table) => return Ok(Some(table)),
            Err(damage) => why = why.or(damage),
        }
    }
    if !protected && why.is_none() {
        return Ok(None);
    }
    let why = why.unwrap_or_else(|| "an MBR announces one, and there is no header".into());
    Err(Error::new(
        ErrorKind::Corrupt,
        format!("the GPT partition table is damaged: {why}; repair it with sgdisk or gdisk"),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::TableKind;
    use super::super::testing::Bytes;
    use super::*;

    #[test]
    fn an_mbr_without_protection_hides_an_old_gpt() {
        let mut device = gpt::tests::device(512);
        device[450] = 0x83;
        device[454] = 8;
        device[458] = 8;
        let table = read_table(&mut Bytes(device.clone(), 512))
            .unwrap()
            .unwrap();
        assert_eq!(table.kind, TableKind::Mbr);
        device[450] = 0;
        let table = read_table(&mut Bytes(device.clone(), 512))
            .unwrap()
            .unwrap();
        assert_eq!(table.kind, TableKind::Gpt);
        // Announced, and not there.
        device[450] = 0xee;
        for at in [1, 199] {
            device[at * 512..at * 512 + 512].fill(0);
        }
        let error = read_table(&mut Bytes(device.clone(), 512)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        device.fill(0);
        assert_eq!(read_table(&mut Bytes(device, 512)).unwrap(), None);
    }
}
