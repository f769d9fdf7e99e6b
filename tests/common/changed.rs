//! An image in memory, with the sectors that were written to it since.

use std::collections::BTreeMap;

use xtent::{Error, ErrorKind};

const BB: usize = 512;

/// A sector.
pub type Sector = [u8; BB];

/// An image that stays as it is, and the sectors that differ from it, by number.
#[derive(Debug)]
pub struct ChangedImage<'a> {
    pub base: &'a [u8],
    pub changed: BTreeMap<u64, Sector>,
}

impl<'a> ChangedImage<'a> {
    pub fn new(base: &'a [u8]) -> Self {
        Self {
            base,
            changed: BTreeMap::new(),
        }
    }

    /// Reads whole sectors; an error behind the end.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        let start = usize::try_from(addr).unwrap();
        assert!(start.is_multiple_of(BB) && buf.len().is_multiple_of(BB));
        let Some(from) = self.base.get(start..start + buf.len()) else {
            return Err(Error::new(ErrorKind::Io, "beyond the end"));
        };
        buf.copy_from_slice(from);
        let first = addr / BB as u64;
        for (number, sector) in self.changed.range(first..first + (buf.len() / BB) as u64) {
            let at = usize::try_from(number - first).unwrap() * BB;
            buf[at..at + BB].copy_from_slice(sector);
        }
        Ok(())
    }

    /// Writes whole sectors inside of the image. `replaced` hears of each, with the one before if
    /// it was changed already.
    pub fn write(&mut self, addr: u64, buf: &[u8], mut replaced: impl FnMut(u64, Option<Sector>)) {
        assert!(addr.is_multiple_of(BB as u64) && buf.len().is_multiple_of(BB));
        assert!(
            addr + buf.len() as u64 <= self.base.len() as u64,
            "outside of the disk"
        );
        for (index, sector) in buf.chunks_exact(BB).enumerate() {
            let number = addr / BB as u64 + index as u64;
            let old = self.changed.insert(number, sector.try_into().unwrap());
            replaced(number, old);
        }
    }

    /// All of it as it is now.
    pub fn whole(&self) -> Vec<u8> {
        let mut bytes = self.base.to_vec();
        for (number, sector) in &self.changed {
            let at = usize::try_from(*number).unwrap() * BB;
            bytes[at..at + BB].copy_from_slice(sector);
        }
        bytes
    }
}
