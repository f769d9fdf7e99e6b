//! Intents: changes that were begun in the log, until an item says that they were done.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::btree_map::{BTreeMap, Values};
use std::collections::hash_map::{Entry, HashMap};

use super::super::super::format::log_items as layout;
use super::bad_item;
use super::checkpoints::Item;
use crate::error::{Error, ErrorKind, Result};

/// Memory that an intent takes besides its bytes, at most.
const OVERHEAD_BYTES: u64 = 256;

/// An intent as it is in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingIntent {
    /// Item type: [`layout::EFI`] and others.
    pub(crate) kind: u16,
    /// Its number, which the item that ends it has, too.
    pub(crate) id: u64,
    /// Its first region. Nothing of it was checked but that it has a number.
    pub(crate) bytes: Vec<u8>,
    /// Its other regions: names and values of an attribute.
    pub(crate) parts: Vec<Vec<u8>>,
}

/// Intents without the item that says that they were done, in the order of the log.
#[derive(Debug, Default)]
pub(crate) struct Unfinished {
    intents: BTreeMap<u64, PendingIntent>,
    /// Places in the order, by type and number.
    places: HashMap<(u16, u64), u64>,
    next: u64,
    bytes: u64,
}

impl Unfinished {
    pub(crate) fn is_empty(&self) -> bool {
        self.intents.is_empty()
    }

    /// Whether files look otherwise before they are finished. Extents that are not yet freed, and
    /// reverse mappings and reference counts that are not yet made, show in no file.
    pub(crate) fn show_in_files(&self) -> bool {
        let hidden = |kind: u16| matches!(kind, layout::EFI | layout::RUI | layout::CUI);
        self.iter().any(|intent| !hidden(intent.kind))
    }

    /// Whether attributes are to be changed.
    pub(crate) fn changes_attributes(&self) -> bool {
        self.iter().any(|intent| intent.kind == layout::ATTRI)
    }

    /// All of them, in the order in which they are finished.
    pub(crate) fn iter(&self) -> Values<'_, u64, PendingIntent> {
        self.intents.values()
    }

    /// Memory that they take, about.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.bytes
    }

    /// An intent was found in the log.
    pub(super) fn add(&mut self, item: &Item) -> Result<()> {
        let (kind, id) = (item.item_type(), id_of(item)?);
        let Entry::Vacant(place) = self.places.entry((kind, id)) else {
            return Err(bad_item("two intents of one number"));
        };
        place.insert(self.next);
        let intent = PendingIntent {
            kind,
            id,
            bytes: item.region(0).to_vec(),
            parts: item.regions.get(1..).unwrap_or_default().to_vec(),
        };
        self.bytes = self.bytes.saturating_add(memory_of(&intent));
        self.intents.insert(self.next, intent);
        self.next = self.next.saturating_add(1);
        Ok(())
    }

    /// An item was found that says that an intent was done. It may have begun before the log that
    /// is replayed.
    pub(super) fn end(&mut self, item: &Item) -> Result<()> {
        // The type of each is that of its intent, and one.
        let kind = item.item_type().saturating_sub(1);
        let place = self.places.remove(&(kind, id_of(item)?));
        if let Some(intent) = place.and_then(|place| self.intents.remove(&place)) {
            self.bytes = self.bytes.saturating_sub(memory_of(&intent));
        }
        Ok(())
    }

    /// The error of a filesystem that cannot be used before they are finished.
    ///
    /// # Errors
    /// [`ErrorKind::NeedsRecovery`] when they show in files.
    pub(crate) fn refuse_if_shown(&self) -> Result<()> {
        if !self.show_in_files() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NeedsRecovery,
            "the log holds operations that were not finished, which are not replayed here: mount \
             the filesystem once with the kernel and unmount it",
        ))
    }
}

fn memory_of(intent: &PendingIntent) -> u64 {
    let regions = intent.parts.iter().chain([&intent.bytes]);
    regions.fold(0, |sum: u64, region| {
        sum.saturating_add(OVERHEAD_BYTES)
            .saturating_add(region.len() as u64)
    })
}

fn id_of(item: &Item) -> Result<u64> {
    let id = item.region(0).get(layout::INTENT_ID_OFFSET..);
    let id = id.and_then(|rest| rest.first_chunk());
    id.map(|bytes| u64::from_le_bytes(*bytes))
        .ok_or_else(|| bad_item("an intent is too short"))
}
