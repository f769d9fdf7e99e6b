//! The open filesystem.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::{Arc, Mutex};

use super::cache::{BlockKind, Key, MetaCache};
use super::extents::{Extent, ExtentMap, FoundExtent};
use super::format::btree::InobtRecord;
use super::geometry::{FsBlock, Geometry, Ino};
use super::inode::{Fork, Inode, InodeType};
use super::journal::Journal;
use super::log::{LogEnd, LogState, Recovery};
use super::overlay::Overlay;
use super::superblock::{Features, Superblock};
use super::{MetaIo, corrupt, log};
use crate::error::{Error, ErrorKind, Result};

mod change;
mod recover;

/// How to open a filesystem.
#[derive(Debug, Clone, Copy)]
pub struct FsOptions {
    /// Open a filesystem whose log holds changes, for reading what stands on disk without them, as
    /// the mount option of that name does. Such a filesystem may look torn.
    pub norecovery: bool,
    /// Metadata may be changed, where nothing forbids it: see [`Fs::write_refusal`].
    pub writable: bool,
    /// What to do with a log that holds changes, without `norecovery`.
    pub recovery: Recovery,
    /// Most memory for what a replay of the log changes.
    pub replay_bytes: u64,
    /// Most memory for metadata blocks.
    pub cache_bytes: usize,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            norecovery: false,
            writable: false,
            recovery: Recovery::default(),
            replay_bytes: 1 << 30,
            cache_bytes: 16 << 20,
        }
    }
}

/// An open filesystem. Shared by threads; each brings its own way to the device.
#[derive(Debug)]
pub struct Fs {
    superblock: Superblock,
    /// Where the log ends; `None` when it holds changes that are ignored.
    log_end: Option<LogEnd>,
    read_only: Option<String>,
    /// What the log changed, where that may not be written.
    overlay: Overlay,
    /// Checkpoints that were replayed when it was opened.
    replayed: u64,
    /// Intents of the log that were finished then.
    finished: u64,
    /// Where metadata may be changed.
    journal: Option<Journal>,
    /// Why there is no journal, where its log cannot be written.
    journal_refusal: Option<String>,
    cache: MetaCache,
    /// The inode chunk that was looked up last: allocation group, record and where it was found.
    pub(super) last_chunk: Mutex<Option<(u32, InobtRecord, u64)>>,
}

/// What there is to tell about a filesystem.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct FsInfo {
    /// Sizes and places.
    pub geometry: Geometry,
    /// Names of the features that are on.
    pub features: Vec<String>,
    /// The uuid, written out.
    pub uuid: String,
    /// The label; bytes that are not UTF-8 replaced.
    pub label: String,
    /// Bytes of the data section.
    pub size_bytes: u64,
    /// Free bytes, as the superblock has it.
    pub free_bytes: u64,
    /// Inodes that exist.
    pub inodes: u64,
    /// Those of them that are free.
    pub free_inodes: u64,
    /// Inodes that may exist at most; 0 for no limit.
    pub most_inodes: u64,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Whether the log holds changes.
    pub log_dirty: bool,
    /// Why it can only be read, if so.
    pub read_only: Option<String>,
}

/// A directory block, which may consist of several filesystem blocks.
#[derive(Debug, Clone)]
pub struct DirBlock {
    /// The whole block.
    pub data: Arc<[u8]>,
    /// Byte address on the device of its start: what its header must say (in units of 512 bytes).
    pub addr_bytes: u64,
    /// Its first block in the directory's data fork.
    pub offset_blocks: u64,
}

impl Fs {
    /// Opens the filesystem on a device, with [`FsOptions::default`].
    ///
    /// # Errors
    /// See [`Fs::open_with`].
    pub fn open(io: &mut impl MetaIo) -> Result<Self> {
        Self::open_with(io, &FsOptions::default())
    }

    /// Reads and checks the superblock, and replays the log if it holds changes and the options say
    /// so. Waits for the device.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the superblock is missing or inconsistent,
    /// [`ErrorKind::Unsupported`] with the name of the feature, [`ErrorKind::NeedsRecovery`] when
    /// the log holds changes, and what the device reports.
    pub fn open_with(io: &mut impl MetaIo, options: &FsOptions) -> Result<Self> {
        let mut fs = Self::open_unchecked(io, options)?;
        fs.check_first_group(io)?;
        if options.writable && fs.journal.is_none() {
            fs.open_journal();
        }
        Ok(fs)
    }

    /// As [`Fs::open_with`], but looks at no allocation group.
    pub(super) fn open_unchecked(io: &mut impl MetaIo, options: &FsOptions) -> Result<Self> {
        let superblock = Superblock::read(io, options.norecovery)?;
        let mut fs = Self {
            read_only: superblock.read_only.clone(),
            superblock,
            log_end: None,
            overlay: Overlay::default(),
            replayed: 0,
            finished: 0,
            journal: None,
            journal_refusal: None,
            cache: MetaCache::new(options.cache_bytes),
            last_chunk: Mutex::new(None),
        };
        match check_log(io, &fs.superblock) {
            Ok(end) if end.state == LogState::Clean => fs.log_end = Some(end),
            Ok(_) | Err(_) if options.norecovery => {
                fs.read_only = Some("opened without recovery of the log".to_owned());
            }
            Ok(_) if options.recovery == Recovery::Refuse => {
                return Err(Error::new(
                    ErrorKind::NeedsRecovery,
                    "the log holds changes, and replaying them was ruled out (noreplay): mount the \
                     filesystem once with the kernel and unmount it (if the kernel cannot mount it, \
                     xfs_repair -L clears the log, and the changes in it are lost)",
                ));
            }
            Ok(end) => fs.recover(io, &end, options)?,
            Err(error) => return Err(error),
        }
        Ok(fs)
    }

    /// Reads metadata past the cache, for a look at the structures themselves. What was replayed
    /// into memory takes the place of the device's content.
    pub(super) fn read_fresh(
        &self,
        io: &mut impl MetaIo,
        addr_bytes: u64,
        len_bytes: usize,
    ) -> Result<Vec<u8>> {
        let pieces = [(addr_bytes, len_bytes)];
        let data = self.read_pieces(io, len_bytes, &pieces)?;
        Ok(data.to_vec())
    }

    /// Whether an inode is one of the filesystem itself, which no directory names.
    pub(super) fn is_internal(&self, ino: Ino) -> bool {
        self.superblock.internal_inodes.contains(&ino.0)
    }

    /// Whether metadata with this log sequence number was changed after all that the log holds: the
    /// log is not the one that the change went through, as xfs_log_check_lsn().
    pub(super) fn is_ahead_of_log(&self, lsn: u64) -> bool {
        match &self.journal {
            Some(journal) => journal.is_ahead(lsn),
            None => self.log_end.is_some_and(|end| end.is_behind(lsn)),
        }
    }

    /// Sizes and places.
    #[inline]
    pub fn geometry(&self) -> &Geometry {
        &self.superblock.geometry
    }

    /// Checkpoints of the log that were replayed when it was opened.
    pub fn replayed_checkpoints(&self) -> u64 {
        self.replayed
    }

    /// Intents of the log that were finished then: operations that the log held in parts.
    pub fn finished_intents(&self) -> u64 {
        self.finished
    }

    /// Features.
    pub fn features(&self) -> &Features {
        &self.superblock.features
    }

    /// The uuid that every metadata block must carry.
    pub fn meta_uuid(&self) -> &[u8; 16] {
        &self.superblock.meta_uuid
    }

    /// The root directory.
    pub fn root(&self) -> Ino {
        self.superblock.geometry.root_ino
    }

    /// Whether the log holds changes that are not shown.
    pub fn is_unrecovered(&self) -> bool {
        self.log_end.is_none()
    }

    /// Why nothing may be written, if so.
    pub fn read_only_reason(&self) -> Option<&str> {
        self.read_only.as_deref()
    }

    /// What there is to tell.
    pub fn info(&self) -> FsInfo {
        let sb = &self.superblock;
        let [a, b, c, d, e, f, g, h, rest @ ..] = sb.uuid;
        let tail: String = rest
            .iter()
            .skip(2)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let [i, j, ..] = rest;
        FsInfo {
            geometry: sb.geometry.clone(),
            features: sb.features.names(),
            uuid: format!(
                "{a:02x}{b:02x}{c:02x}{d:02x}-{e:02x}{f:02x}-{g:02x}{h:02x}-{i:02x}{j:02x}-{tail}"
            ),
            label: String::from_utf8_lossy(&sb.label).into_owned(),
            size_bytes: sb.geometry.bytes(sb.geometry.data_blocks),
            free_bytes: sb
                .geometry
                .bytes(sb.free_blocks.min(sb.geometry.data_blocks)),
            inodes: sb.inodes,
            free_inodes: sb.free_inodes,
            most_inodes: sb.most_inodes,
            log_bytes: sb.geometry.bytes(sb.geometry.log_blocks.into()),
            log_dirty: self.log_end.is_none() || !self.overlay.is_empty(),
            read_only: self.read_only.clone(),
        }
    }

    /// Reads `len_bytes` of metadata at a device address, through the cache. `check` runs once on
    /// the bytes read; the block is then kept as one of that kind and owner.
    pub(crate) fn read_block(
        &self,
        io: &mut impl MetaIo,
        (addr_bytes, len_bytes): (u64, usize),
        kind: BlockKind,
        owner: u64,
        check: impl FnOnce(&[u8]) -> Result<()>,
    ) -> Result<Arc<[u8]>> {
        let key = Key {
            addr_bytes,
            len_bytes,
            kind,
            owner,
        };
        if let Some(data) = self.cache.get(&key) {
            return Ok(data);
        }
        let changes = self.cache.changes();
        let data = self.read_pieces(io, len_bytes, &[(addr_bytes, len_bytes)])?;
        check(&data)?;
        self.cache.put(key, Arc::clone(&data), changes);
        Ok(data)
    }

    /// Reads the directory block at `offset_blocks` of a directory's data fork; `None` when that is
    /// a hole. `check` verifies magic, checksum, uuid, owner and address, once; the block is then
    /// kept.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the block is partly a hole or unwritten or the fork is broken;
    /// what `check` and the device report.
    pub fn read_dir_block(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        offset_blocks: u64,
        check: impl FnOnce(&DirBlock) -> Result<()>,
    ) -> Result<Option<DirBlock>> {
        let blocks = self.geometry().dir_block_blocks.into();
        self.read_fork(
            io,
            inode,
            (offset_blocks, blocks),
            BlockKind::Directory,
            check,
        )
    }

    /// Reads `blocks` blocks at `offset_blocks` of an inode's data fork, as one buffer; `None` when
    /// the first of them is a hole. As [`Fs::read_dir_block`]. The range must be that of one
    /// metadata buffer: at most 64 KiB.
    ///
    /// # Errors
    /// As [`Fs::read_dir_block`].
    pub fn read_fork(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        (offset_blocks, blocks): (u64, u64),
        kind: BlockKind,
        check: impl FnOnce(&DirBlock) -> Result<()>,
    ) -> Result<Option<DirBlock>> {
        let fork = (inode, &inode.data);
        self.read_of_fork(io, fork, (offset_blocks, blocks), kind, check)
    }

    /// As [`Fs::read_fork`], of a fork of the inode.
    pub(super) fn read_of_fork(
        &self,
        io: &mut impl MetaIo,
        (inode, fork): (&Inode, &Fork),
        (offset_blocks, blocks): (u64, u64),
        kind: BlockKind,
        check: impl FnOnce(&DirBlock) -> Result<()>,
    ) -> Result<Option<DirBlock>> {
        let found = self.pieces(io, (inode, fork), offset_blocks, blocks)?;
        let Some((pieces, addr_bytes)) = found else {
            return Ok(None);
        };
        let len_bytes = pieces
            .iter()
            .fold(0_usize, |sum, (_, len)| sum.saturating_add(*len));
        let key = Key {
            addr_bytes,
            len_bytes,
            kind,
            owner: inode.ino.0,
        };
        let changes = self.cache.changes();
        let cached = self.cache.get(&key);
        let fresh = cached.is_none();
        let data = match cached {
            Some(data) => data,
            None => self.read_pieces(io, len_bytes, &pieces)?,
        };
        let block = DirBlock {
            data,
            addr_bytes,
            offset_blocks,
        };
        if fresh {
            check(&block)?;
            self.cache.put(key, Arc::clone(&block.data), changes);
        }
        Ok(Some(block))
    }

    /// Where on the device a range of a fork lies: address and length of each piece, and the first
    /// address.
    #[expect(
        clippy::type_complexity,
        reason = "the pieces and their first address; used once"
    )]
    fn pieces(
        &self,
        io: &mut impl MetaIo,
        (inode, fork): (&Inode, &Fork),
        offset_blocks: u64,
        blocks: u64,
    ) -> Result<Option<(Vec<(u64, usize)>, u64)>> {
        let geometry = self.geometry();
        let mut pieces = Vec::new();
        let end = offset_blocks.saturating_add(blocks);
        let mut at = offset_blocks;
        while at < end {
            let extent = match self.find_in_fork(io, inode, fork, at)? {
                // As xfs_dabuf_map() and xfs_symlink_remote_read(): unwritten or not.
                FoundExtent::Extent(extent) => extent,
                FoundExtent::Hole { end_blocks, .. } if pieces.is_empty() && end_blocks > at => {
                    return Ok(None);
                }
                _ => {
                    return Err(corrupt(
                        inode.addr_bytes,
                        format!("{}: a metadata block is partly a hole", inode.ino),
                    ));
                }
            };
            let run = extent.end_blocks().min(end).saturating_sub(at);
            let addr = geometry.block_addr(extent.block_at(at));
            let len = usize::try_from(geometry.bytes(run)).unwrap_or(usize::MAX);
            pieces.push((addr, len));
            at = at.saturating_add(run);
        }
        Ok(pieces.first().copied().map(|(addr, _)| (pieces, addr)))
    }

    /// Reads pieces of the device into one buffer, after a look at the device's end. What was
    /// replayed into memory takes the place of what stands on the device.
    fn read_pieces(
        &self,
        io: &mut impl MetaIo,
        len_bytes: usize,
        pieces: &[(u64, usize)],
    ) -> Result<Arc<[u8]>> {
        let mut data: Arc<[u8]> = std::iter::repeat_n(0, len_bytes).collect();
        let mut rest = Arc::get_mut(&mut data).unwrap_or_default();
        for (addr, len) in pieces {
            let capacity = io.capacity_bytes();
            if addr.saturating_add(*len as u64) > capacity {
                return Err(corrupt(*addr, "metadata beyond the end of the device"));
            }
            let Some((piece, after)) = rest.split_at_mut_checked(*len) else {
                return Err(corrupt(*addr, "metadata of a wrong length"));
            };
            self.read_piece(io, *addr, piece)?;
            rest = after;
        }
        Ok(data)
    }

    /// Reads from the device, and replaces blocks that are newer in memory.
    fn read_piece(&self, io: &mut impl MetaIo, addr: u64, piece: &mut [u8]) -> Result<()> {
        let Some(journal) = &self.journal else {
            io.read_at(addr, piece)?;
            self.overlay.patch(addr, piece);
            return Ok(());
        };
        loop {
            let before = journal.changes();
            io.read_at(addr, piece)?;
            journal.patch(addr, piece);
            // What was written in place and evicted since the read began would be missed.
            if journal.changes() == before {
                return Ok(());
            }
        }
    }

    /// All extents of an inode's data fork, read on first use and kept in the inode.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when they are broken, [`ErrorKind::InvalidInput`] for a fork without
    /// extents.
    pub fn extents<'a>(&self, io: &mut impl MetaIo, inode: &'a Inode) -> Result<&'a ExtentMap> {
        match &inode.data {
            Fork::Extents(map) => Ok(map),
            Fork::Btree(root) => {
                if let Some(map) = inode.extents_loaded() {
                    return Ok(map);
                }
                let map = self.load_bmbt(io, inode, root)?;
                Ok(inode.keep_extents(map))
            }
            Fork::Local(_) | Fork::Special => Err(no_extents(inode)),
        }
    }

    /// The extent of an inode's data fork that covers a block, or the hole that the block lies in.
    /// Of a fork in btree form one block of each level is read.
    ///
    /// # Errors
    /// As [`Fs::extents`].
    pub fn find_extent(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        offset_blocks: u64,
    ) -> Result<FoundExtent> {
        self.find_in_fork(io, inode, &inode.data, offset_blocks)
    }

    fn find_in_fork(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        fork: &Fork,
        offset_blocks: u64,
    ) -> Result<FoundExtent> {
        match fork {
            Fork::Extents(map) => Ok(map.lookup(offset_blocks)),
            Fork::Btree(root) => self.find_in_bmbt(io, inode, root, offset_blocks),
            Fork::Local(_) | Fork::Special => Err(no_extents(inode)),
        }
    }

    /// The last extent of an inode's data fork that begins before a block.
    ///
    /// # Errors
    /// As [`Fs::extents`].
    pub fn last_extent(
        &self,
        io: &mut impl MetaIo,
        inode: &Inode,
        before: u64,
    ) -> Result<Option<Extent>> {
        match &inode.data {
            Fork::Extents(map) => Ok(map.last_before(before)),
            Fork::Btree(root) => self.last_in_bmbt(io, inode, root, before),
            Fork::Local(_) | Fork::Special => Err(no_extents(inode)),
        }
    }

    /// The number of blocks that hold `size_bytes`.
    pub fn blocks_for(&self, size_bytes: u64) -> u64 {
        size_bytes.div_ceil(self.geometry().block_bytes.max(1).into())
    }

    /// The byte address of a block as metadata headers carry it: in units of 512 bytes.
    pub fn disk_address(&self, block: FsBlock) -> u64 {
        self.geometry()
            .block_addr(block)
            .wrapping_div(super::format::BASIC_BLOCK_BYTES)
    }

    /// The root directory's inode.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it is broken or no directory.
    pub fn read_root(&self, io: &mut impl MetaIo) -> Result<Inode> {
        let root = self.read_inode(io, self.root())?;
        if root.file_type == InodeType::Directory {
            Ok(root)
        } else {
            Err(corrupt(root.addr_bytes, "the root inode is no directory"))
        }
    }
}

/// Where the log ends, and whether it holds changes. A log that is older than the superblock is not
/// this filesystem's: what it says of itself counts for nothing, as in xlog_recover().
fn check_log(io: &mut impl MetaIo, superblock: &Superblock) -> Result<LogEnd> {
    let log = log::end(io, superblock)?;
    if log.is_behind(superblock.lsn) {
        return Err(corrupt(
            0,
            format!(
                "the superblock is of log position {}, but the log ends at {}: the log was cleared or \
                 replaced; run xfs_repair",
                log::show_lsn(superblock.lsn),
                log::show_lsn(log.lsn),
            ),
        ));
    }
    Ok(log)
}

#[cold]
fn no_extents(inode: &Inode) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("{} has no extents", inode.ino),
    )
}
