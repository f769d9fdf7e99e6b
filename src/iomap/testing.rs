//! A file laid out by hand, for the tests of this layer.

use super::{IterFlags, MapFlags, Mapping, MappingKind, Ops};
use crate::error::{Error, ErrorKind, Result};

/// Extents one after the other from file byte 0, with a hole behind them.
#[derive(Debug, Clone, Default)]
pub(super) struct TestLayout {
    pub(super) mappings: Vec<Mapping>,
    pub(super) ends: Vec<(u64, u64, u64)>,
    pub(super) end_error: Option<ErrorKind>,
    pub(super) inline: Vec<u8>,
}

impl TestLayout {
    /// Device addresses follow the file's, 1 MiB on, one extent after the other with gaps of 64
    /// KiB.
    pub(super) fn new(extents: &[(MappingKind, u64)]) -> Self {
        let mut offset = 0;
        let mut addr = 1 << 20;
        let mut mappings = Vec::new();
        for &(kind, length) in extents {
            mappings.push(Mapping {
                addr,
                offset,
                length,
                kind,
                flags: MapFlags::empty(),
                cookie: 0,
            });
            offset += length;
            addr += length + (64 << 10);
        }
        Self {
            mappings,
            ..Self::default()
        }
    }
}

impl Ops for TestLayout {
    /// For every other file, so that both ways are gone.
    fn whole(&self, pos: u64, len: u64, _: IterFlags) -> Option<u64> {
        let mapping = self
            .mappings
            .iter()
            .find(|m| m.offset <= pos && pos < m.end())?;
        let plain = mapping.kind == MappingKind::Mapped && mapping.flags.is_empty();
        let covered = len <= mapping.end() - pos;
        let taken = self.mappings.len() % 2 == 1;
        (taken && plain && covered && mapping.addr.checked_add(mapping.length).is_some())
            .then(|| mapping.addr_at(pos))
    }

    fn begin(&mut self, pos: u64, _: u64, _: IterFlags) -> Result<(Mapping, Option<Mapping>)> {
        let found = self
            .mappings
            .iter()
            .find(|m| m.offset <= pos && pos < m.end());
        let tail = self.mappings.last().map_or(0, Mapping::end);
        let hole = Mapping {
            addr: 0,
            offset: tail,
            length: u64::MAX - tail,
            kind: MappingKind::Hole,
            flags: MapFlags::empty(),
            cookie: 0,
        };
        Ok((found.copied().unwrap_or(hole), None))
    }

    fn inline_data(&self, _: &Mapping) -> &[u8] {
        &self.inline
    }

    fn end(&mut self, pos: u64, len: u64, done: u64, _: IterFlags, _: &Mapping) -> Result<()> {
        self.ends.push((pos, len, done));
        match self.end_error {
            Some(kind) => Err(Error::new(kind, "end")),
            None => Ok(()),
        }
    }
}
