//! The error of a device without an XFS superblock: what it holds instead, and what to do.

use super::MetaIo;
use crate::error::{Error, ErrorKind, Result};
use crate::probe::{self, Content, ProbeSource};

/// A device with fewer bytes cannot hold a filesystem.
const LEAST_BYTES: u64 = 4096;

/// A device as [`probe`] reads it.
struct ProbedDevice<'a, I>(&'a mut I);

impl<I: MetaIo> ProbeSource for ProbedDevice<'_, I> {
    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(offset_bytes, buf)
    }

    fn len_bytes(&self) -> u64 {
        let block = u64::from(self.block_bytes());
        self.0.capacity_bytes() / block * block
    }

    fn block_bytes(&self) -> u32 {
        self.0.block_bytes().max(1)
    }

    fn mbr_sector_bytes(&self) -> Option<u32> {
        self.0.mbr_sector_bytes()
    }
}

/// The error of a device whose first bytes are not those of an XFS superblock.
#[cold]
pub(super) fn no_xfs(io: &mut impl MetaIo) -> Error {
    match describe(io) {
        Ok(detail) => Error::new(ErrorKind::NotXfs, detail),
        Err(error) => error,
    }
}

fn describe(io: &mut impl MetaIo) -> Result<String> {
    const NO_XFS: &str = "there is no XFS filesystem";
    let mut device = ProbedDevice(io);
    let empty = device.len_bytes() < LEAST_BYTES;
    Ok(match probe::identify(&mut device)? {
        Content::Known { name, advice } => format!("{NO_XFS}, it is {name}: {advice}"),
        Content::Partitions => {
            let mut table = match probe::read_table(&mut device) {
                Ok(Some(table)) => table,
                Ok(None) => return Ok(NO_XFS.into()),
                Err(error)
                    if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) =>
                {
                    return Ok(format!("{NO_XFS}, and {}", error.detail()));
                }
                Err(error) => return Err(error),
            };
            table.identify_contents(&mut device)?;
            format!(
                "{NO_XFS}, it is a partition table ({}): add part=N to the target ({})",
                table.kind_name(),
                table.list()
            )
        }
        _ if empty => "the device is too small to hold an XFS filesystem".into(),
        Content::Zeroes => {
            format!("{NO_XFS}: the device begins with zeroes (make one with mkfs.xfs)")
        }
        Content::Xfs | Content::Unknown => format!("{NO_XFS}: no superblock magic"),
    })
}

/// The RAID of which a device is a member, by a superblock at or behind the byte `from`: a write to
/// a member does not reach the others. In words, with the remedy.
///
/// # Errors
/// The device's.
pub(super) fn raid_behind(io: &mut impl MetaIo, from: u64) -> Result<Option<String>> {
    let member = probe::raid_at_end(&mut ProbedDevice(io))?;
    Ok(member.filter(|member| member.at_bytes >= from).map(|member| {
        format!(
            "it is a member of a Linux RAID (md, superblock {}): assemble the array (mdadm --assemble \
             --scan) and give uring:/dev/mdN, or remove an old superblock (mdadm --zero-superblock)",
            member.format
        )
    }))
}
