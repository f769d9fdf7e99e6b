//! Changing metadata: transactions on the open filesystem.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::super::Ino;
use super::super::MetaIo;
use super::super::journal::Journal;
use super::super::superblock::Features;
use super::super::trans::{CommitTicket, Trans};
use super::Fs;
use crate::error::{Error, ErrorKind, Result};

impl Fs {
    /// Opens the journal, where nothing forbids that metadata is changed.
    pub(super) fn open_journal(&mut self) {
        if self.write_refusal().is_none()
            && let Some(end) = &self.log_end
        {
            match Journal::new(&self.superblock, end) {
                Ok(journal) => self.journal = Some(journal),
                // Files can be overwritten.
                Err(error) => self.journal_refusal = Some(error.detail().to_owned()),
            }
        }
    }

    /// Has blocks that are freed from now on discarded ([`MetaIo::discard`]), when that is durable
    /// and before they are used again.
    pub fn discard_freed(&self) {
        if let Some(journal) = &self.journal {
            journal.discard_freed();
        }
    }

    /// Why metadata may not be changed, if so: files can be overwritten at most.
    pub fn write_refusal(&self) -> Option<String> {
        if let Some(reason) = &self.read_only {
            return Some(reason.clone());
        }
        if self.log_end.is_none() || !self.overlay.is_empty() {
            return Some(
                "the log holds changes that only the kernel can finish: mount the filesystem once \
                 with the kernel and unmount it"
                    .to_owned(),
            );
        }
        if let Some(reason) = &self.journal_refusal {
            return Some(reason.clone());
        }
        self.superblock
            .has_quotas
            .then(|| "it has quotas, which are not kept up here".to_owned())
    }

    fn journal(&self) -> Result<&Journal> {
        self.journal.as_ref().ok_or_else(|| {
            let why = self.write_refusal();
            let why = why.unwrap_or_else(|| "it was opened for overwrites only".to_owned());
            Error::new(
                ErrorKind::ReadOnly,
                format!("the filesystem's metadata may not be changed: {why}"),
            )
        })
    }

    /// Runs a transaction: all of `operation` reaches the log, or nothing of it. It may be called
    /// again, on the state as it was before. The ticket is for [`Fs::force`].
    pub(in super::super) fn transact<T>(
        &self,
        io: &mut impl MetaIo,
        operation: impl FnMut(&mut Trans<'_>) -> Result<T>,
    ) -> Result<(T, CommitTicket)> {
        self.journal()?.run(io, operation, |changed| {
            for place in changed {
                self.cache.forget(place.addr_bytes, place.len_bytes);
            }
        })
    }

    /// As [`Fs::transact`], of a transaction that changes the bytes of one inode alone.
    pub(in super::super) fn transact_on_inode<T>(
        &self,
        io: &mut impl MetaIo,
        ino: Ino,
        change: impl FnOnce(&mut [u8], &Features) -> Result<T>,
    ) -> Result<(T, CommitTicket)> {
        self.journal()?.run_on_inode(io, ino, change, |place| {
            self.cache.forget(place.addr_bytes, place.len_bytes);
        })
    }

    /// Bytes of changed buffers that one transaction may have: with what was gathered before it,
    /// and some such of other threads, they fit in a checkpoint.
    pub(in super::super) fn most_transaction_bytes(&self) -> u64 {
        let geometry = self.geometry();
        geometry.bytes(geometry.log_blocks.into()) / 32
    }

    /// Looks at metadata as it is now. What `look` changes is undone.
    pub(in super::super) fn look<T>(
        &self,
        io: &mut impl MetaIo,
        look: impl FnOnce(&mut Trans<'_>) -> Result<T>,
    ) -> Result<T> {
        self.journal()?.look(io, look)
    }

    /// The newest bytes of an inode, where those that transactions change are in memory.
    pub(in super::super) fn inode_in_memory(&self, ino: Ino) -> Option<Box<[u8]>> {
        self.journal.as_ref()?.inode_in_memory(ino)
    }

    /// Makes everything that was changed so far durable: the log is forced, and what was written to
    /// the device before is durable with it. Waits for the device.
    ///
    /// # Errors
    /// The device's. After a failed write of the log nothing can be changed any more.
    pub fn sync(&self, io: &mut impl MetaIo) -> Result<()> {
        match &self.journal {
            Some(journal) => journal.sync(io),
            None => io.flush(),
        }
    }

    /// Makes a transaction durable, with all that was committed or written to the device before it.
    /// Waits for the device.
    ///
    /// # Errors
    /// The device's. After a failed write of the log nothing can be changed any more.
    pub fn force(&self, io: &mut impl MetaIo, ticket: CommitTicket) -> Result<()> {
        self.journal()?.force(io, ticket)
    }

    /// As [`Fs::force`], and what was written to the device before this call is durable too, though
    /// the transaction may be durable already.
    ///
    /// # Errors
    /// As [`Fs::force`].
    pub fn force_with_data(&self, io: &mut impl MetaIo, ticket: CommitTicket) -> Result<()> {
        self.journal()?.force_with_data(io, ticket)
    }

    /// The newest transaction that the log does not have yet.
    pub fn newest_unlogged(&self) -> Option<CommitTicket> {
        self.journal.as_ref()?.newest_unlogged()
    }

    /// Checks that metadata may be changed.
    ///
    /// # Errors
    /// [`ErrorKind::ReadOnly`], with the reason.
    pub fn check_changeable(&self) -> Result<()> {
        self.journal().map(|_| ())
    }

    /// Whether anything was changed that the log does not have yet.
    pub fn has_unlogged(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::has_unlogged)
    }

    /// Whether anything was changed since the log was clean.
    pub fn is_changed(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::is_changed)
    }

    /// Writes everything in place and marks the log as clean, as unmounting does. The filesystem
    /// can be used on. Without changes nothing is written. Waits for the device.
    ///
    /// # Errors
    /// As [`Fs::sync`]; the log is replayed at the next open then.
    pub fn clean_log(&self, io: &mut impl MetaIo) -> Result<()> {
        match &self.journal {
            Some(journal) => journal.clean(io),
            None => Ok(()),
        }
    }
}
