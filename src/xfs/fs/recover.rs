//! Opening a filesystem whose log holds changes: into memory, or on the device.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::FromBytes;

use super::super::cache::MetaCache;
use super::super::format::superblock::{self as layout, SuperblockLayout};
use super::super::format::{self, ag};
use super::super::journal::Journal;
use super::super::log::{self, LogEnd, Recovery, ReplayStart, Unfinished};
use super::super::overlay::{Overlaid, Overlay};
use super::super::superblock::Superblock;
use super::super::trans::MetaState;
use super::super::{MetaIo, alloc, corrupt, finish};
use super::{Fs, FsOptions};
use crate::error::{Error, ErrorKind, Result};

/// Counters of the superblock, added up from the allocation groups.
#[derive(Debug, Default)]
struct Counters {
    inodes: u64,
    free_inodes: u64,
    free_blocks: u64,
}

impl Fs {
    /// Replays the log, as the options say. On the device it is written in place, then marked
    /// clean; an end half-way leaves a log that is replayed again, with the same result.
    ///
    /// Where metadata may be changed, what the log leaves open is finished, too: see
    /// [`finish`](mod@super::super::finish). Otherwise it is left to the kernel, with the log as it
    /// is: then the filesystem is used through the overlay, for writing too. Blocks of files may be
    /// overwritten beside it, because no later replay writes to them.
    pub(super) fn recover(
        &mut self,
        io: &mut impl MetaIo,
        end: &LogEnd,
        options: &FsOptions,
    ) -> Result<()> {
        check_log_features(&self.superblock)?;
        let replayed = log::replay(io, &self.superblock, end, options.replay_bytes)?;
        let unfinished = &replayed.unfinished;
        self.overlay = replayed.overlay;
        self.replayed = replayed.checkpoints;
        self.log_end = Some(*end);
        // It may have grown, or have new features.
        self.read_superblock(io)?;
        check_log_features(&self.superblock)?;
        self.read_only.clone_from(&self.superblock.read_only);
        if self.read_only.is_some()
            || replayed.quotas
            || options.recovery == Recovery::InMemory
            || !options.writable
        {
            unfinished.refuse_if_shown()?;
        }
        self.put_superblock(io, unfinished.changes_attributes())?;
        self.read_superblock(io)?;
        if options.recovery == Recovery::InMemory {
            self.read_only = Some("its log was replayed into memory only".to_owned());
            return Ok(());
        }
        if self.read_only.is_some() || replayed.quotas {
            return Ok(());
        }
        if !unfinished.is_empty() || !self.is_nothing_left_over(io)? {
            if options.writable && !self.superblock.has_quotas {
                return self.finish(io, end, &replayed.start, unfinished, options);
            }
            return unfinished.refuse_if_shown();
        }
        if log::has_room(io, &self.superblock, end)? {
            self.check_stands_still(io, end)?;
            self.overlay.write_in_place(io)?;
            io.flush()?;
            self.check_stands_still(io, end)?;
            self.log_end = Some(log::mark_clean(io, &self.superblock, end)?);
            self.overlay = Overlay::default();
        }
        Ok(())
    }

    /// Finishes what the log leaves open, and opens the journal for that. Nothing is written before
    /// all intents were finished in memory.
    fn finish(
        &mut self,
        io: &mut impl MetaIo,
        end: &LogEnd,
        start: &ReplayStart,
        unfinished: &Unfinished,
        options: &FsOptions,
    ) -> Result<()> {
        let mut state = MetaState::new(&self.superblock, end.lsn);
        let mut view = Overlaid {
            io,
            overlay: &self.overlay,
        };
        let done = finish::finish_intents(&mut state, &mut view, unfinished.iter())?;
        let journal = match Journal::resume(&self.superblock, end, start, state) {
            Ok(journal) if journal.has_room()? => journal,
            // Files can be overwritten.
            Ok(_) => return unfinished.refuse_if_shown(),
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                return unfinished.refuse_if_shown();
            }
            Err(error) => return Err(error),
        };
        self.check_stands_still(io, end)?;
        self.overlay.write_in_place(io)?;
        for (addr_bytes, value) in &done.values {
            io.write_at(*addr_bytes, value)?;
        }
        io.flush()?;
        self.overlay = Overlay::default();
        // What was read before may have been changed.
        self.cache = MetaCache::new(options.cache_bytes);
        self.journal = Some(journal);
        self.finished = unfinished.iter().count() as u64;
        self.sync(io)?;
        for ino in done.files {
            while self.transact(io, |t| finish::free_behind_end(t, ino))?.0 {}
        }
        for group in 0..self.geometry().ag_count {
            while self.transact(io, |t| finish::free_first(t, group))?.0 {}
        }
        for group in 0..self.geometry().ag_count {
            while self.transact(io, |t| alloc::free_staged(t, group))?.0 {}
        }
        self.clean_log(io)?;
        self.clear_log_features(io)?;
        self.read_superblock(io)?;
        self.log_end = Some(log::end(io, &self.superblock)?);
        Ok(())
    }

    /// Takes the mark of logged attributes away, after the log was marked clean.
    fn clear_log_features(&self, io: &mut impl MetaIo) -> Result<()> {
        let bytes = usize::try_from(self.geometry().sector_bytes).unwrap_or(512);
        let mut sector = vec![0; bytes];
        io.read_at(0, &mut sector)?;
        let (raw, _) = SuperblockLayout::mut_from_prefix(sector.as_mut_slice())
            .map_err(|_| corrupt(0, "superblock: too short"))?;
        if raw.features_log_incompat.get() == 0 {
            return Ok(());
        }
        raw.features_log_incompat = 0.into();
        format::set_checksum(&mut sector, layout::CRC_OFFSET);
        io.write_at(0, &sector)?;
        io.flush()
    }

    /// Whether the log is as it was found. One that goes on is of a filesystem that is mounted
    /// elsewhere, where no lock or lease tells.
    fn check_stands_still(&self, io: &mut impl MetaIo, end: &LogEnd) -> Result<()> {
        if log::end(io, &self.superblock)? == *end {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Busy,
            "the log changed while it was replayed: the filesystem is mounted elsewhere",
        ))
    }

    /// Reads the superblock once more, as the log made it.
    fn read_superblock(&mut self, io: &mut impl MetaIo) -> Result<()> {
        let mut view = Overlaid {
            io,
            overlay: &self.overlay,
        };
        self.superblock = Superblock::read(&mut view, false)?;
        Ok(())
    }

    /// Whether no file that was deleted while it was open, and no block that was allocated for
    /// copy-on-write, has still to be freed. With a clean log the kernel would not look for the
    /// files.
    fn is_nothing_left_over(&self, io: &mut impl MetaIo) -> Result<bool> {
        for group in 0..self.geometry().ag_count {
            let agi = self.agi(io, group)?;
            let is_deleted = agi.unlinked.iter().any(|head| head.get() != ag::NULL_AG);
            if is_deleted || self.has_staging_blocks(io, group)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// As xfs_initialize_perag_data(): after a crash the superblock's own counters do not count.
    fn count(&self, io: &mut impl MetaIo) -> Result<Counters> {
        let mut sum = Counters::default();
        for group in 0..self.geometry().ag_count {
            let agi = self.agi(io, group)?;
            let (_, agf) = self.agf(io, group)?;
            let free = u64::from(agf.freeblks.get())
                .saturating_add(agf.flcount.get().into())
                .saturating_add(agf.btreeblks.get().into());
            sum.free_blocks = sum.free_blocks.saturating_add(free);
            sum.inodes = sum.inodes.saturating_add(agi.count.get().into());
            sum.free_inodes = sum.free_inodes.saturating_add(agi.freecount.get().into());
        }
        if sum.free_blocks > self.geometry().data_blocks || sum.free_inodes > sum.inodes {
            return Err(corrupt(
                0,
                "the counters of the allocation groups are impossible",
            ));
        }
        Ok(sum)
    }

    /// Puts the counters of the allocation groups into the superblock in the overlay, and takes the
    /// mark of logged attributes away, which a clean log has not; not while such changes are open,
    /// which a replay refuses without it.
    fn put_superblock(&mut self, io: &mut impl MetaIo, keeps_mark: bool) -> Result<()> {
        let counters = self.count(io)?;
        let bytes = usize::try_from(self.geometry().sector_bytes).unwrap_or(512);
        let mut sector = self.overlay.read(io, 0, bytes)?;
        let (raw, _) = SuperblockLayout::mut_from_prefix(sector.as_mut_slice())
            .map_err(|_| corrupt(0, "superblock: too short"))?;
        raw.icount = counters.inodes.into();
        raw.ifree = counters.free_inodes.into();
        raw.fdblocks = counters.free_blocks.into();
        if !keeps_mark {
            raw.features_log_incompat = 0.into();
        }
        if !format::set_checksum(&mut sector, layout::CRC_OFFSET) {
            return Err(corrupt(0, "superblock: too short"));
        }
        self.overlay.put(0, &sector)
    }
}

/// As xlog_recover(): a log that an unknown feature changed cannot be replayed.
fn check_log_features(superblock: &Superblock) -> Result<()> {
    let unknown = superblock.features.unknown_log_features();
    if unknown == 0 {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "the log holds changes of an unknown feature (log_incompat {unknown:#x}): mount the \
             filesystem with a kernel that knows it, and unmount it"
        ),
    ))
}
