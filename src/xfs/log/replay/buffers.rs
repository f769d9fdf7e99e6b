//! Buffers in a checkpoint: the kernel's xlog_recover_buf_commit_pass2().

use super::super::super::MetaIo;
use super::super::super::format::buffer::{self, BufferLayout, BufferType};
use super::super::super::format::inode as inode_layout;
use super::super::super::format::log::NULL_LSN;
use super::super::super::format::log_items::{self as layout, BufItem};
use super::super::super::format::{self, BASIC_BLOCK_BYTES};
use super::checkpoints::Item;
use super::{Replay, bad_item, buf_item, place_of};
use crate::error::{Error, ErrorKind, Result};

/// Bits of a word of the dirty map.
const WORD_BITS: usize = u32::BITS as usize;
/// Words of the dirty map of the largest buffer, of 64 KiB, and one more.
const MOST_WORDS: u32 = 17;

impl Replay<'_> {
    pub(super) fn buffer(&mut self, io: &mut impl MetaIo, item: &Item) -> Result<()> {
        let header = buf_item(item)?;
        let place = place_of(header)?;
        let flags = header.flags.get();
        if flags & layout::BUF_CANCEL != 0 {
            self.end_cancellation(place);
            return Ok(());
        }
        if self.is_cancelled(place) {
            return Ok(());
        }
        if flags & layout::BUF_DQUOTS != 0 {
            self.result.quotas = true;
            return Ok(());
        }
        let number = flags.wrapping_shr(layout::BUF_TYPE_SHIFT);
        let layouts = match BufferType::of(number) {
            Some(BufferType::Sealed(layouts)) => layouts,
            Some(BufferType::Inodes | BufferType::AttributeValue | BufferType::Unknown) => &[],
            Some(BufferType::Dquot) => {
                self.result.quotas = true;
                return Ok(());
            }
            Some(BufferType::Realtime) | None => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("the log holds a buffer of type {number}, which is not replayed"),
                ));
            }
        };
        if header.map_words.get() > MOST_WORDS {
            return Err(bad_item("the dirty map of a buffer is too long"));
        }
        let (addr, len) = self.check_place(place)?;
        let mut content = self.result.overlay.read(io, addr, len)?;
        if self.is_newer(addr, &content)? {
            return Ok(());
        }
        self.check_whole(number, header)?;
        if flags & layout::BUF_INODES != 0 {
            self.links(item, header, &mut content)?;
            return self.put(addr, &content, None);
        }
        for (at, region) in runs(item, header) {
            let to = at
                .checked_add(region.len())
                .and_then(|end| content.get_mut(at..end));
            let to = to.ok_or_else(|| bad_item("a chunk outside its buffer"))?;
            to.copy_from_slice(region);
        }
        // A block of a fork's btree and one of a group may both be of type btree: the magic number
        // says which.
        let found = layouts.iter().find(|layout| layout.fits(&content));
        if found.is_none() && self.torn.contains_key(&addr) {
            // Its first sector is of a later kind already: that follows in the log.
            return self.put(addr, &content, None);
        }
        if found.is_none() && !layouts.is_empty() {
            return Err(bad_item(&format!(
                "the buffer at {} has not the magic number of its type {number}",
                place.0
            )));
        }
        let is_superblock = found.is_some_and(BufferLayout::is_superblock);
        let sector = u64::from(self.geometry.sector_bytes);
        if is_superblock != (addr == 0) || (is_superblock && len as u64 != sector) {
            return Err(bad_item("a superblock in another place than its own"));
        }
        if is_superblock {
            self.grow(io, &content)?;
        }
        self.put(addr, &content, found.copied())
    }

    /// The buffer was freed here: what comes later in the log is of a new one.
    fn end_cancellation(&mut self, place: super::BufferPlace) {
        if let Some(count) = self.cancelled.get_mut(&place) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.cancelled.remove(&place);
            }
        }
    }

    /// Directory blocks of several filesystem blocks are logged in pieces where these do not
    /// adjoin. The kernel gives each piece a checksum of its own, which is not the block's.
    fn check_whole(&self, number: u16, header: &BufItem) -> Result<()> {
        let geometry = &self.geometry;
        let bytes = u64::from(header.len.get()).saturating_mul(BASIC_BLOCK_BYTES);
        let is_piece = BufferType::is_directory(number)
            && bytes != u64::from(geometry.dir_block_bytes)
            // Blocks of the hash index of extended attributes have the type of a directory's.
            && (number < 15 || bytes != u64::from(geometry.block_bytes));
        if !is_piece {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            "the log holds a directory block in several pieces, which is not replayed: mount the \
             filesystem once with the kernel and unmount it",
        ))
    }

    /// Whether the disk has the buffer as new as the checkpoint, or newer. Buffers of inodes,
    /// remote values and unknown content do not say: they are replayed always.
    ///
    /// A newer one of several sectors with a wrong checksum was being written in place when the
    /// power went, and is a mixture of new and old sectors. All that changed it since the tail is
    /// in the log: replaying all of it must give the block that was being written, whose checksum
    /// its first sector has. Kernels that verify what they skip refuse to mount there.
    fn is_newer(&mut self, addr: u64, content: &[u8]) -> Result<bool> {
        let Some(layout) = buffer::recognise(content) else {
            return Ok(false);
        };
        // One that was changed by this checkpoint, or another of its number, gets its checksum
        // later.
        if !self.is_own(&layout, content) || self.changed.contains_key(&addr) {
            return Ok(false);
        }
        let lsn = buffer::be64(content, layout.lsn).unwrap_or(0);
        let is_newer = lsn != 0 && lsn != NULL_LSN && lsn >= self.lsn;
        if format::checksum_ok(content, layout.crc) {
            return Ok(is_newer);
        }
        let sector = usize::try_from(self.geometry.sector_bytes).unwrap_or(usize::MAX);
        if !is_newer && content.len() > sector {
            // Its first sector is an old one.
            return Ok(false);
        }
        if content.len() <= sector {
            return Err(bad_item(&format!(
                "the checksum of the block at byte {addr} is wrong; run xfs_repair"
            )));
        }
        let crc = buffer::le32(content, layout.crc).unwrap_or(0);
        self.torn.entry(addr).or_insert((lsn, crc));
        Ok(false)
    }

    /// Of a buffer of inodes only the links of the unlinked lists are replayed: the rest was logged
    /// as inodes.
    fn links(&self, item: &Item, header: &BufItem, content: &mut [u8]) -> Result<()> {
        const LINK: usize = std::mem::offset_of!(inode_layout::InodeCore, next_unlinked);
        let size = usize::try_from(self.geometry.inode_bytes).unwrap_or(usize::MAX);
        let runs: Vec<_> = runs(item, header).collect();
        for (index, inode) in content.chunks_exact_mut(size.max(1)).enumerate() {
            let at = index.saturating_mul(size).saturating_add(LINK);
            let logged = runs.iter().find_map(|(start, region)| {
                let from = at.checked_sub(*start)?;
                region.get(from..)?.first_chunk::<4>()
            });
            let Some(link) = logged else {
                continue;
            };
            if *link == [0; 4] {
                return Err(bad_item("an unlinked list leads to inode 0"));
            }
            if let Some(to) = inode
                .get_mut(LINK..)
                .and_then(|rest| rest.first_chunk_mut())
            {
                *to = *link;
            }
            if !format::set_checksum(inode, inode_layout::CRC_OFFSET) {
                return Err(bad_item("an inode is too short"));
            }
        }
        Ok(())
    }
}

/// The runs of dirty chunks of a buffer: where each begins, in bytes, and its content.
fn runs<'a>(item: &'a Item, header: &BufItem) -> impl Iterator<Item = (usize, &'a [u8])> {
    let map = item.region(0).get(size_of::<BufItem>()..);
    let words = usize::try_from(header.map_words.get()).unwrap_or(0);
    let map: Vec<u32> = map
        .unwrap_or_default()
        .chunks_exact(4)
        .take(words)
        .filter_map(|word| Some(u32::from_le_bytes(*word.first_chunk()?)))
        .collect();
    let bits = map.len().saturating_mul(WORD_BITS);
    let is_set = move |bit: usize| {
        let word = map.get(bit / WORD_BITS).copied().unwrap_or(0);
        let mask = 1_u32.rotate_left(u32::try_from(bit % WORD_BITS).unwrap_or(0));
        word & mask != 0
    };
    let mut bit = 0_usize;
    item.regions.iter().skip(1).map_while(move |region| {
        let start = (bit..bits).find(|bit| is_set(*bit))?;
        let end = (start..bits).find(|bit| !is_set(*bit)).unwrap_or(bits);
        // A run that spans pages of the kernel's memory may be in several regions.
        let chunks = (region.len() / layout::CHUNK_BYTES).min(end.saturating_sub(start));
        bit = start.saturating_add(chunks.max(1));
        let bytes = chunks.saturating_mul(layout::CHUNK_BYTES);
        let at = start.saturating_mul(layout::CHUNK_BYTES);
        Some((at, region.get(..bytes).unwrap_or_default()))
    })
}
