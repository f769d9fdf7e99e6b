//! Partition tables of either kind, and how one of their partitions is chosen.

use super::source::size_text;
use crate::error::{Error, ErrorKind, Result};

/// The kind of a partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum TableKind {
    /// GUID partition table.
    Gpt,
    /// Master boot record, with logical partitions in extended ones.
    Mbr,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Partition {
    /// As the kernel counts: from 1, logical ones of an MBR from 5.
    pub number: u32,
    /// Its name in a GPT; empty where it has none.
    pub name: String,
    /// The type that the table says it has.
    #[cfg_attr(feature = "serde", serde(rename = "type"))]
    pub kind: String,
    /// The first byte on the device.
    pub start_bytes: u64,
    /// Bytes in it.
    pub len_bytes: u64,
    /// What it holds, where that was looked for and is known.
    pub content: Option<String>,
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PartitionTable {
    /// GPT or MBR.
    pub kind: TableKind,
    /// Bytes of the sectors that it counts in.
    pub sector_bytes: u64,
    /// In order of their numbers.
    pub partitions: Vec<Partition>,
    /// A fault in the table, if any.
    pub damage: Option<String>,
}

/// Partitions that a message lists.
const MOST_LISTED: usize = 16;

impl PartitionTable {
    pub(super) fn new(kind: TableKind, sector_bytes: u64) -> Self {
        Self {
            kind,
            sector_bytes,
            partitions: Vec::new(),
            damage: None,
        }
    }

    pub(super) fn push(&mut self, partition: Partition) {
        self.partitions.push(partition);
    }

    /// The name of its kind.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            TableKind::Gpt => "GPT",
            TableKind::Mbr => "MBR",
        }
    }

    /// The partition of this number or name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] with those that there are; [`ErrorKind::InvalidInput`] for a name
    /// that several have.
    pub fn find(&self, wanted: &str) -> Result<&Partition> {
        let number: Option<u32> = wanted.parse().ok();
        let by_number = |p: &&Partition| Some(p.number) == number;
        if let Some(found) = self.partitions.iter().find(by_number) {
            return Ok(found);
        }
        let named: Vec<_> = self
            .partitions
            .iter()
            .filter(|p| p.name == wanted)
            .collect();
        match &named[..] {
            [one] => Ok(one),
            [] => Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no partition {wanted}: {}", self.list()),
            )),
            several => {
                let numbers: Vec<_> = several.iter().map(|p| p.number.to_string()).collect();
                Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "the partitions {} are all named {wanted}: give a number (part=N)",
                        numbers.join(", ")
                    ),
                ))
            }
        }
    }

    /// Its partitions, for a message.
    pub fn list(&self) -> String {
        let mut text = match self.partitions.len() {
            0 => format!("the {} has no partitions", self.kind_name()),
            _ => format!("the {} has", self.kind_name()),
        };
        for (at, partition) in self.partitions.iter().take(MOST_LISTED).enumerate() {
            text.push_str(if at == 0 { " " } else { ", " });
            text.push_str(&partition.describe());
        }
        let more = self.partitions.len().saturating_sub(MOST_LISTED);
        if more > 0 {
            text.push_str(&format!(", and {more} more"));
        }
        text
    }
}

impl Partition {
    /// For a message: `1 (320 MiB, XFS, named data)`.
    fn describe(&self) -> String {
        let holds = self.content.as_deref().unwrap_or(&self.kind);
        let size = size_text(self.len_bytes);
        if self.name.is_empty() {
            return format!("{} ({size}, {holds})", self.number);
        }
        format!("{} ({size}, {holds}, named {})", self.number, self.name)
    }

    /// Start and length, on a device of so many bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it does not lie on the device.
    pub fn range_on(&self, device_bytes: u64) -> Result<(u64, u64)> {
        let end = self.start_bytes.checked_add(self.len_bytes);
        if self.len_bytes > 0 && end.is_some_and(|end| end <= device_bytes) {
            return Ok((self.start_bytes, self.len_bytes));
        }
        let end = end.unwrap_or(u64::MAX);
        let detail = match self.len_bytes {
            0 => format!("partition {} ends before it begins", self.number),
            _ => format!(
                "partition {} ends at byte {end}, and the device has {device_bytes} bytes: it was \
                 cut off",
                self.number
            ),
        };
        Err(Error::new(ErrorKind::Corrupt, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bytes;
    use super::super::{gpt, read_table};
    use super::*;

    #[test]
    fn a_partition_is_found_by_number_and_by_name() {
        let table = read_table(&mut Bytes(gpt::tests::device(512), 512));
        let mut table = table.unwrap().unwrap();
        assert_eq!(table.find("1").unwrap().number, 1);
        assert_eq!(table.find("daten").unwrap().number, 1);
        let error = table.find("2").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(
            error
                .to_string()
                .contains("1 (30 KiB, Linux filesystem, named daten)"),
            "{error}"
        );
        let mut second = table.partitions[0].clone();
        second.number = 2;
        table.push(second);
        let error = table.find("daten").unwrap_err();
        assert!(error.to_string().contains("1, 2 are all named"), "{error}");
    }

    #[test]
    fn what_does_not_lie_on_the_device_is_not_opened() {
        let part = |start_bytes, len_bytes| Partition {
            number: 1,
            name: String::new(),
            kind: String::new(),
            start_bytes,
            len_bytes,
            content: None,
        };
        assert_eq!(part(100, 50).range_on(150).unwrap(), (100, 50));
        for bad in [part(100, 51), part(100, 0), part(u64::MAX, u64::MAX)] {
            assert_eq!(bad.range_on(150).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }
}
