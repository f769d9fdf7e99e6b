//! The part of a device that a target names: a partition, or what lies from a byte on.

use std::sync::Arc;

use super::raw::RawIo;
use super::shared::TargetShared;
use super::{Target, TargetInfo, TargetSpec};
use crate::block::{BlockRange, Op};
use crate::error::{Error, ErrorKind, Result};
use crate::probe::{self, PartitionTable, ProbeSource};
use crate::units::Lba;

/// Blocks that are read at once, where a queue takes so many.
const IN_FLIGHT: usize = 32;

/// A part of a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct DevicePart {
    pub(super) range: BlockRange,
    pub(super) start_bytes: u64,
    pub(super) len_bytes: u64,
    /// Its number, of a partition.
    pub(super) number: Option<u32>,
}

/// The whole device, for probing: always from its first block on.
struct WholeDevice {
    raw: RawIo,
    target: Arc<TargetShared>,
}

impl WholeDevice {
    fn new(target: &Arc<TargetShared>) -> Result<Self> {
        let raw = RawIo::read_only(target, IN_FLIGHT, target.info.lba_bytes as usize)?;
        let target = Arc::clone(target);
        Ok(Self { raw, target })
    }
}

impl ProbeSource for WholeDevice {
    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        let block_bytes = self.block_bytes().max(1);
        let in_flight = self.raw.slots().max(1);
        let mut lba = offset_bytes / u64::from(block_bytes);
        for round in buf.chunks_mut(in_flight.saturating_mul(block_bytes as usize)) {
            let pieces = round.chunks_mut(block_bytes as usize);
            let count = pieces.len();
            for slot in 0..count {
                self.raw.submit(slot, Op::Read, Lba(lba))?;
                lba = lba.saturating_add(1);
            }
            let mut failed = None;
            while self.raw.outstanding() > 0 {
                let ended = self.raw.poll(|_, status| {
                    if !status.is_success() {
                        failed = Some(status);
                    }
                });
                if ended == 0 {
                    self.raw.relax();
                }
            }
            if let Some(error) = failed.and_then(|status| self.raw.error(status)) {
                return Err(error.during("read").at_offset(offset_bytes));
            }
            for (slot, piece) in pieces.enumerate() {
                let read = self.raw.slot_mut(slot).unwrap_or_default();
                if read.len() != piece.len() {
                    let detail = "a buffer did not come back from the device";
                    return Err(Error::new(ErrorKind::DeviceGone, detail));
                }
                piece.copy_from_slice(read);
            }
        }
        Ok(())
    }

    fn len_bytes(&self) -> u64 {
        let blocks = self.raw.limits().capacity_blocks;
        blocks.saturating_mul(self.block_bytes().into())
    }

    fn block_bytes(&self) -> u32 {
        self.target.info.lba_bytes
    }

    fn mbr_sector_bytes(&self) -> Option<u32> {
        self.target.mbr_sector_bytes()
    }
}

/// The part that the options of a target name, on the target opened without them.
pub(super) fn part_of(spec: &TargetSpec, whole: &Arc<TargetShared>) -> Result<Option<DevicePart>> {
    if let Some(offset_bytes) = spec.offset_bytes {
        return from_offset(&whole.info, offset_bytes).map(Some);
    }
    let Some(wanted) = &spec.partition else {
        return Ok(None);
    };
    let mut device = WholeDevice::new(whole)?;
    let Some(mut table) = probe::read_table(&mut device)? else {
        return Err(Error::new(
            ErrorKind::NotFound,
            "there is no partition table: leave out the option `part`",
        ));
    };
    if table.find(wanted).is_err() {
        // The error names them with what they hold.
        table.identify_contents(&mut device)?;
    }
    if let Some(damage) = &table.damage {
        tracing::warn!(target_name = &*spec.text, "partition table: {damage}");
    }
    let found = table.find(wanted)?;
    let (start_bytes, len_bytes) = found.range_on(whole.info.capacity_bytes)?;
    let range = blocks_of(&whole.info, start_bytes, len_bytes).map_err(|why| {
        let detail = format!("partition {} cannot be opened: {why}", found.number);
        Error::new(ErrorKind::Unsupported, detail)
    })?;
    Ok(Some(DevicePart {
        range,
        start_bytes,
        len_bytes,
        number: Some(found.number),
    }))
}

fn from_offset(info: &TargetInfo, offset_bytes: u64) -> Result<DevicePart> {
    let device_bytes = info.capacity_bytes;
    let len_bytes = device_bytes
        .checked_sub(offset_bytes)
        .filter(|&len| len > 0)
        .ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "offset={offset_bytes} is beyond the end of the device ({device_bytes} bytes)"
                ),
            )
        })?;
    let range = blocks_of(info, offset_bytes, len_bytes).map_err(|why| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("offset={offset_bytes}: {why}"),
        )
    })?;
    Ok(DevicePart {
        range,
        start_bytes: offset_bytes,
        len_bytes,
        number: None,
    })
}

/// Commands are of whole logical blocks.
fn blocks_of(info: &TargetInfo, start_bytes: u64, len_bytes: u64) -> Result<BlockRange, String> {
    let block = u64::from(info.lba_bytes).max(1);
    if !start_bytes.is_multiple_of(block) || !len_bytes.is_multiple_of(block) {
        return Err(format!(
            "it begins at byte {start_bytes} and has {len_bytes} bytes, which are not multiples of the \
             device's logical block of {block} bytes (for image: and ram: targets the option lba=512 \
             makes that smaller)"
        ));
    }
    Ok(BlockRange::new(start_bytes / block, len_bytes / block))
}

impl Target {
    /// The partition table of the device behind the target, the whole of it also where the target
    /// is a partition, with what the partitions hold.
    ///
    /// # Errors
    /// As [`probe::read_table`].
    #[doc(hidden)]
    pub fn partition_table(&self) -> Result<Option<PartitionTable>> {
        let read = || {
            let mut device = WholeDevice::new(&self.shared)?;
            let mut table = probe::read_table(&mut device)?;
            if let Some(table) = &mut table {
                table.identify_contents(&mut device)?;
            }
            Ok(table)
        };
        read().map_err(|error: Error| {
            error
                .during("read the partition table")
                .on_device(&*self.shared.name)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::TargetOptions;
    use super::super::open::target_on_device;
    use super::*;
    use crate::device::emu::{EmuConfig, EmuDevice, Medium, Mode};
    use crate::mem::HugePages;
    use crate::nvme::ControllerOptions;

    /// An MBR with one partition of 64 sectors, from the sector 8 on.
    fn mbr() -> [u8; 512] {
        let mut sector = [0; 512];
        sector[450] = 0x83;
        sector[454] = 8;
        sector[458] = 64;
        sector[510..].copy_from_slice(b"\x55\xaa");
        sector
    }

    fn options() -> TargetOptions {
        TargetOptions {
            huge_pages: HugePages::Never,
            ..TargetOptions::default()
        }
    }

    #[test]
    fn the_table_is_read_by_a_short_queue() {
        for max_queue_entries in [2, 16] {
            let mut medium = Medium::memory(1 << 20);
            medium.write_at(0, &mbr()).unwrap();
            let device = EmuDevice::start(EmuConfig {
                medium,
                max_queue_entries,
                mode: Mode::Inline,
                ..EmuConfig::default()
            });
            let controller = ControllerOptions::default();
            let target = target_on_device(device.unwrap(), &options(), controller).unwrap();
            let table = target.partition_table().unwrap().unwrap();
            assert_eq!(table.partitions[0].start_bytes, 8 * 512);
        }
    }

    /// The kernel's loop device reads the table of a file in sectors of 512 bytes, whatever disk
    /// the file is on.
    #[test]
    fn an_mbr_in_a_file_counts_in_sectors_of_512_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        file.as_file().write_all_at(&mbr(), 0).unwrap();
        let kept = file.into_temp_path();
        let path = kept.to_str().unwrap();
        for text in [
            format!("image:{path},part=1"),
            format!("image:{path},lba=512,part=1"),
            format!("uring:{path},part=1"),
            format!("ram:1M,load={path},part=1"),
        ] {
            match Target::open(&text, &options()) {
                Ok(target) => {
                    let info = target.info();
                    assert_eq!(
                        (info.start_bytes, info.capacity_bytes),
                        (8 * 512, 64 * 512),
                        "{text}"
                    );
                }
                Err(error) if text.starts_with("uring") => println!("SKIPPED: {error}"),
                Err(error) => panic!("{text}: {error}"),
            }
        }
        for name in [format!("image:{path}"), format!("ram:1M,load={path}")] {
            let error = Target::open(&format!("{name},lba=4096,part=1"), &options()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(
                error.to_string().contains("leave out the option `lba`"),
                "{error}"
            );
            let target = Target::open(&format!("{name},lba=4096"), &options()).unwrap();
            let error = target.partition_table().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            drop(target);
            Target::open(&format!("{name},lba=4096,offset=4096"), &options()).unwrap();
        }
    }
}
