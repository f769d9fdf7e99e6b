//! Checkpoints put together from operations, which may be spread over several records and mixed
//! with those of others: the kernel's xlog_recover_process_data() and xlog_recover_add_to_trans().

use std::collections::HashMap;
use std::mem::size_of;

use zerocopy::FromBytes;

use super::super::super::format::log::OpHeader;
use super::super::super::format::log_items::{self as layout, ItemHeader, TransactionHeader};
use super::records::PayloadRecord;

/// An item: its regions, the first of which says how many there are.
#[derive(Debug, Default)]
pub(super) struct Item {
    pub(super) regions: Vec<Vec<u8>>,
    expected: usize,
}

impl Item {
    /// The type, which the first region begins with.
    pub(super) fn item_type(&self) -> u16 {
        let header = self.region(0);
        ItemHeader::ref_from_prefix(header).map_or(0, |(header, _)| header.item_type.get())
    }

    /// A region; empty when there is none of that number.
    pub(super) fn region(&self, index: usize) -> &[u8] {
        self.regions.get(index).map_or(&[], Vec::as_slice)
    }

    fn is_complete(&self) -> bool {
        self.regions.len() >= self.expected
    }
}

/// A complete checkpoint, or transaction.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// Log sequence number of the record that it began in.
    pub(super) lsn: u64,
    pub(super) items: Vec<Item>,
}

/// A fault of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordFault {
    Corrupt(&'static str),
    /// Its checkpoints need more memory than they may have.
    TooLarge,
}

impl From<&'static str> for RecordFault {
    fn from(what: &'static str) -> Self {
        Self::Corrupt(what)
    }
}

/// Memory that a region takes besides its bytes, and that an item of it or a checkpoint takes, at
/// most.
const OVERHEAD_BYTES: u64 = 256;

#[derive(Debug)]
struct OpenCheckpoint {
    checkpoint: Checkpoint,
    /// Memory that it takes, about.
    bytes: u64,
    /// The header as far as it is there; it may be split, too.
    header: Vec<u8>,
}

/// Checkpoints that were begun.
#[derive(Debug)]
pub(super) struct Checkpoints {
    open: HashMap<u32, OpenCheckpoint>,
    bytes: u64,
    limit_bytes: u64,
}

impl Checkpoints {
    /// None is begun. Together they may have `limit_bytes`.
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self {
            open: HashMap::new(),
            bytes: 0,
            limit_bytes,
        }
    }

    /// Takes the operations of a record, and calls `complete` with each checkpoint that they
    /// complete.
    ///
    /// # Errors
    /// A description of the fault of the record; `Ok(Err)` is an error of `complete`.
    pub(super) fn add<E>(
        &mut self,
        record: &PayloadRecord,
        mut complete: impl FnMut(Checkpoint) -> Result<(), E>,
    ) -> Result<Result<(), E>, RecordFault> {
        let mut rest = record.payload.as_slice();
        for _ in 0..record.operations {
            let Ok((header, after)) = OpHeader::ref_from_prefix(rest) else {
                // As the kernel, whose loop ends with the data.
                return match rest.is_empty() {
                    true => Ok(Ok(())),
                    false => Err(RecordFault::Corrupt("an operation is cut off")),
                };
            };
            if !matches!(
                header.clientid,
                layout::CLIENT_TRANSACTION | layout::CLIENT_LOG
            ) {
                return Err(RecordFault::Corrupt("an operation of an unknown client"));
            }
            let len = usize::try_from(header.len.get()).unwrap_or(usize::MAX);
            let (region, after) = after
                .split_at_checked(len)
                .ok_or("an operation is cut off")?;
            rest = after;
            if let Some(checkpoint) = self.operation(header, region, record.lsn)?
                && let Err(error) = complete(checkpoint)
            {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    fn operation(
        &mut self,
        header: &OpHeader,
        region: &[u8],
        lsn: u64,
    ) -> Result<Option<Checkpoint>, RecordFault> {
        let tid = header.tid.get();
        let Some(open) = self.open.get_mut(&tid) else {
            // Others belong to a checkpoint that began before the tail, or fill a gap.
            if header.flags & layout::OP_START != 0 {
                let checkpoint = Checkpoint {
                    lsn,
                    items: Vec::new(),
                };
                let open = OpenCheckpoint {
                    checkpoint,
                    bytes: OVERHEAD_BYTES,
                    header: Vec::new(),
                };
                self.open.insert(tid, open);
                self.charge(OVERHEAD_BYTES)?;
            }
            return Ok(None);
        };
        let flags = match header.flags & !layout::OP_END {
            flags if flags & layout::OP_WAS_CONTINUED != 0 => flags & !layout::OP_CONTINUE,
            flags => flags,
        };
        match flags {
            0 | layout::OP_CONTINUE => open.add(region)?,
            layout::OP_WAS_CONTINUED => open.continue_region(region)?,
            layout::OP_COMMIT => {
                let done = self.open.remove(&tid);
                let bytes = done.as_ref().map_or(0, |open| open.bytes);
                self.bytes = self.bytes.saturating_sub(bytes);
                return Ok(done.map(|open| open.checkpoint));
            }
            _ => return Err(RecordFault::Corrupt("an operation with unexpected flags")),
        }
        let more = (region.len() as u64).saturating_add(OVERHEAD_BYTES);
        open.bytes = open.bytes.saturating_add(more);
        self.charge(more)?;
        Ok(None)
    }

    fn charge(&mut self, bytes: u64) -> Result<(), RecordFault> {
        self.bytes = self.bytes.saturating_add(bytes);
        match self.bytes > self.limit_bytes {
            true => Err(RecordFault::TooLarge),
            false => Ok(()),
        }
    }
}

impl OpenCheckpoint {
    /// A new region.
    fn add(&mut self, region: &[u8]) -> Result<(), &'static str> {
        const HEADER: usize = size_of::<TransactionHeader>();
        if region.is_empty() {
            return Ok(());
        }
        if self.header.len() < HEADER {
            if !self.header.is_empty() || region.len() > HEADER {
                return Err("a transaction without a header");
            }
            self.header.extend_from_slice(region);
            return self.check_header();
        }
        let items = &mut self.checkpoint.items;
        let item = match items.last_mut() {
            Some(item) if !item.is_complete() => item,
            _ => {
                let (header, _) = ItemHeader::ref_from_prefix(region)
                    .map_err(|_| "the first region of an item is too short")?;
                let regions = header.regions.get();
                if regions == 0 || regions > layout::MAX_REGIONS {
                    return Err("an item of an impossible number of regions");
                }
                items.push(Item {
                    regions: Vec::with_capacity(usize::from(regions).min(8)),
                    expected: regions.into(),
                });
                items.last_mut().ok_or("no item")?
            }
        };
        item.regions.push(region.to_vec());
        Ok(())
    }

    /// More of the last region.
    fn continue_region(&mut self, region: &[u8]) -> Result<(), &'static str> {
        const HEADER: usize = size_of::<TransactionHeader>();
        if self.header.len() < HEADER {
            if self.header.len().saturating_add(region.len()) > HEADER {
                return Err("a transaction without a header");
            }
            self.header.extend_from_slice(region);
            return self.check_header();
        }
        let last = self.checkpoint.items.last_mut();
        let last = last.and_then(|item| item.regions.last_mut());
        let last = last.ok_or("more of a region that was not begun")?;
        last.extend_from_slice(region);
        Ok(())
    }

    fn check_header(&self) -> Result<(), &'static str> {
        match TransactionHeader::ref_from_prefix(&self.header) {
            Ok((header, _)) if header.magic.get() != layout::TRANSACTION_MAGIC => {
                Err("a transaction without its magic number")
            }
            // It may be split.
            _ => Ok(()),
        }
    }
}
