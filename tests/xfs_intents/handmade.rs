//! Logs with intents of all kinds, written by xtent's own writer.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::internals::xfs::format::btree::{BmbtRecord, RMAP_OWNER_COW};
use xtent::internals::xfs::format::inode::{FLAG2_NREXT64, InodeCore};
use xtent::internals::xfs::format::log_items::{self as layout, LoggedExtent, LoggedMapping};
use xtent::internals::xfs::{
    Extent, Fork, Fs, FsBlock, Geometry, Ino, InodeChange, LogItem, LogWriter, MetaIo, dir,
};
use zerocopy::{FromBytes, IntoBytes};

use super::common::image::Image;
use super::common::judge::ImageDisk;
use super::common::{kernel_is_here, number, random_bytes, run};
use super::{compare, disk_form, disk_of};

/// A disk whose log is written by hand.
pub(crate) struct Handmade {
    pub(crate) image: Image,
    pub(super) disk: ImageDisk,
    pub(super) fs: Fs,
    pub(super) rng: SmallRng,
    pub(super) items: Vec<LogItem>,
    rmapbt: bool,
}

/// Where an inode's buffer lies, and the inode in it, as xfs_imap() has it.
pub(crate) fn place_of(geometry: &Geometry, addr_bytes: u64) -> (u64, u32) {
    let cluster = u64::from(geometry.inode_bytes) * 32;
    let (_, block) = geometry.split(geometry.block_at_addr(addr_bytes));
    let blocks = u32::try_from(cluster >> geometry.block_log).unwrap().max(1);
    let skipped = block % geometry.inode_align_blocks % blocks;
    let into =
        addr_bytes % u64::from(geometry.block_bytes) + (u64::from(skipped) << geometry.block_log);
    (addr_bytes - into, u32::try_from(into).unwrap())
}

/// A change of the mapping of an extent; `unwritten` is its flag for blocks that are that.
fn mapping(owner: u64, extent: &Extent, change: u32, unwritten: u32) -> LoggedMapping {
    let state = if extent.unwritten { unwritten } else { 0 };
    LoggedMapping {
        owner: owner.into(),
        startblock: extent.start_block.0.into(),
        startoff: extent.offset_blocks.into(),
        len: u32::try_from(extent.blocks).unwrap().into(),
        flags: (change | state).into(),
    }
}

impl Handmade {
    /// `prepare` gets the new image, and `fill` the root of the mounted filesystem.
    pub(super) fn new(
        rng: SmallRng,
        rmapbt: bool,
        is_small: bool,
        prepare: impl FnOnce(&Image),
        fill: impl FnOnce(&Path, &mut SmallRng),
    ) -> Self {
        let mut rng = rng;
        let features = format!("rmapbt={},reflink=1", u8::from(rmapbt));
        let (sector_bytes, log, block) = disk_form(&mut rng, is_small);
        let args = ["-d", "agcount=2", "-l", &log, "-b", block, "-m", &features];
        let image = Image::make(128 << 20, sector_bytes, &args);
        prepare(&image);
        let mount = image.mount("");
        for number in 0..8 {
            let path = mount.path().join(format!("f{number}"));
            let copy = mount.path().join(format!("g{number}"));
            let file = File::create(&path).unwrap();
            for piece in 0..rng.random_range(1..6) {
                let len = rng.random_range(1..20) * 4096;
                file.write_all_at(&random_bytes(number, len), piece * 300_000)
                    .unwrap();
            }
            file.set_len(64 << 20).unwrap();
            let (from, to) = (path.to_str().unwrap(), copy.to_str().unwrap());
            run("cp", &["--reflink=always", from, to]);
            // Some blocks of both are shared, and some are not.
            let file = File::options().write(true).open(&copy).unwrap();
            file.write_all_at(&random_bytes(number + 100, 8192), 4096)
                .unwrap();
            file.write_all_at(&random_bytes(number + 200, 4096), 2_000_000)
                .unwrap();
        }
        fill(mount.path(), &mut rng);
        mount.unmount();
        let mut disk = disk_of(&image);
        let fs = Fs::open(&mut disk).unwrap();
        Self {
            image,
            disk,
            fs,
            rng,
            items: Vec::new(),
            rmapbt,
        }
    }

    pub(super) fn inode(&mut self, name: &str) -> (Ino, u64, Vec<Extent>) {
        let root = self.fs.read_root(&mut self.disk).unwrap();
        let found = dir::lookup(&self.fs, &mut self.disk, &root, name.as_bytes());
        let ino = found.unwrap().unwrap().0;
        let inode = self.fs.read_inode(&mut self.disk, ino).unwrap();
        let extents = match &inode.data {
            Fork::Extents(map) => map.as_slice().to_vec(),
            _ => Vec::new(),
        };
        (ino, inode.addr_bytes, extents)
    }

    pub(super) fn id(&mut self) -> u64 {
        self.rng.random()
    }

    /// Logs an inode with these extents in the place of those that it has.
    pub(super) fn log_inode(&mut self, addr: u64, old: &[Extent], new: &[Extent]) {
        let geometry = self.fs.geometry().clone();
        let bytes = usize::try_from(geometry.inode_bytes).unwrap();
        let mut raw = self.disk.get(addr, bytes);
        let sum = |extents: &[Extent]| extents.iter().map(|extent| extent.blocks).sum::<u64>();
        let (core, fork) = InodeCore::mut_from_prefix(&mut raw).unwrap();
        let blocks = core.nblocks.get() - sum(old) + sum(new);
        core.nblocks = blocks.into();
        let count = new.len() as u64;
        if core.flags2.get() & FLAG2_NREXT64 == 0 {
            core.nextents = u32::try_from(count).unwrap().into();
        } else {
            core.big_nextents = count.into();
        }
        let records: Vec<_> = new
            .iter()
            .map(|extent| {
                let Extent {
                    offset_blocks,
                    start_block,
                    blocks,
                    unwritten,
                } = *extent;
                BmbtRecord::new(offset_blocks, start_block.0, blocks, unwritten)
            })
            .collect();
        fork[..records.as_bytes().len()].copy_from_slice(records.as_bytes());
        self.push_inode(addr, &raw, true);
    }

    /// Logs an inode with another core and the extents that it has.
    pub(super) fn log_core(&mut self, addr: u64, change: impl FnOnce(&mut InodeCore)) {
        let bytes = usize::try_from(self.fs.geometry().inode_bytes).unwrap();
        let mut raw = self.disk.get(addr, bytes);
        change(InodeCore::mut_from_prefix(&mut raw).unwrap().0);
        self.push_inode(addr, &raw, false);
    }

    fn push_inode(&mut self, addr: u64, dinode: &[u8], data: bool) {
        let geometry = self.fs.geometry();
        let (cluster, offset_bytes) = place_of(geometry, addr);
        let item = LogItem::inode(&InodeChange {
            cluster_addr_bytes: cluster,
            cluster_bytes: (geometry.inode_bytes * 32).max(geometry.block_bytes),
            offset_bytes,
            dinode,
            data,
            attributes: false,
        });
        self.items.push(item.unwrap());
    }

    pub(super) fn rui(&mut self, change: u32, owner: u64, extents: &[Extent]) {
        if !self.rmapbt {
            return;
        }
        let id = self.id();
        let maps: Vec<_> = extents
            .iter()
            .map(|extent| {
                let mut map = mapping(owner, extent, change, layout::RUI_UNWRITTEN);
                if owner == RMAP_OWNER_COW {
                    map.startoff = 0.into();
                }
                map
            })
            .collect();
        self.items
            .push(LogItem::mapping_intent(layout::RUI, id, &maps));
    }

    fn cui(&mut self, change: u32, extents: &[Extent]) {
        let id = self.id();
        let list: Vec<_> = extents
            .iter()
            .map(|extent| LoggedExtent {
                start: extent.start_block.0.into(),
                len: u32::try_from(extent.blocks).unwrap().into(),
                pad: change.into(),
            })
            .collect();
        self.items
            .push(LogItem::extent_intent(layout::CUI, id, &list));
    }

    fn bui(&mut self, change: u32, ino: Ino, extent: &Extent) {
        let id = self.id();
        let map = mapping(ino.0, extent, change, layout::BUI_UNWRITTEN);
        self.items
            .push(LogItem::mapping_intent(layout::BUI, id, &[map]));
    }

    fn efi(&mut self, extents: &[Extent]) {
        let id = self.id();
        let list: Vec<_> = extents
            .iter()
            .map(|extent| (extent.start_block.0, u32::try_from(extent.blocks).unwrap()))
            .collect();
        self.items.push(LogItem::to_free(id, &list));
    }

    /// Which parts of a file's extents are shared, and which are not.
    pub(super) fn parts(&mut self, extents: &[Extent]) -> (Vec<Extent>, Vec<Extent>) {
        let (mut shared, mut own) = (Vec::new(), Vec::new());
        for extent in extents {
            let mut at = 0;
            while at < extent.blocks {
                let start = FsBlock(extent.start_block.0 + at);
                let rest = extent.blocks - at;
                let found = self.fs.shared_in(&mut self.disk, start, rest).unwrap();
                let (len, is_shared) = match found {
                    Some((block, blocks)) if block == start => (blocks, true),
                    Some((block, _)) => (block.0 - start.0, false),
                    None => (rest, false),
                };
                let part = Extent {
                    offset_blocks: extent.offset_blocks + at,
                    start_block: start,
                    blocks: len,
                    unwritten: extent.unwritten,
                };
                if is_shared {
                    shared.push(part)
                } else {
                    own.push(part)
                }
                at += len;
            }
        }
        (shared, own)
    }

    /// A file that was truncated: its inode is done, the rest is to be done.
    fn truncated(&mut self, name: &str) {
        let (ino, addr, extents) = self.inode(name);
        let (shared, own) = self.parts(&extents);
        self.log_inode(addr, &extents, &[]);
        if !shared.is_empty() {
            self.rui(layout::RUI_UNMAP_SHARED, ino.0, &shared);
            self.cui(layout::CUI_DECREASE, &shared);
        }
        if own.is_empty() {
            return;
        }
        match self.rng.random_range(0..3) {
            // The owner is found by the blocks.
            0 => self.efi(&own),
            1 => {
                self.rui(layout::RUI_UNMAP, ino.0, &own);
                self.efi(&own);
            }
            _ => {
                self.rui(layout::RUI_UNMAP, ino.0, &own);
                self.cui(layout::CUI_DECREASE, &own);
            }
        }
    }

    /// A range of a file is to be unmapped.
    fn unmapped(&mut self, name: &str) {
        let (ino, _, extents) = self.inode(name);
        for extent in &extents {
            let skip = self.rng.random_range(0..extent.blocks);
            let part = Extent {
                offset_blocks: extent.offset_blocks + skip,
                start_block: FsBlock(extent.start_block.0 + skip),
                blocks: self.rng.random_range(1..=extent.blocks - skip),
                unwritten: extent.unwritten,
            };
            self.bui(layout::BUI_UNMAP, ino, &part);
            self.cui(layout::CUI_DECREASE, &[part]);
        }
    }

    /// A file is to get blocks of another one.
    fn shared(&mut self, from: &str, to: &str) {
        let (_, _, extents) = self.inode(from);
        let (ino, _, _) = self.inode(to);
        let block = self.fs.geometry().block_bytes;
        let mut offset_blocks = u64::from((32 << 20) / block);
        for extent in extents {
            self.cui(layout::CUI_INCREASE, &[extent]);
            let moved = Extent {
                offset_blocks,
                ..extent
            };
            self.bui(layout::BUI_MAP, ino, &moved);
            offset_blocks += extent.blocks + self.rng.random_range(0..2);
        }
    }

    /// Blocks of a file are staged for copy-on-write, and of none.
    fn staged(&mut self, name: &str) {
        let (ino, addr, extents) = self.inode(name);
        let (shared, own) = self.parts(&extents);
        self.log_inode(addr, &extents, &[]);
        if !shared.is_empty() {
            self.rui(layout::RUI_UNMAP_SHARED, ino.0, &shared);
            self.cui(layout::CUI_DECREASE, &shared);
        }
        if !own.is_empty() {
            self.rui(layout::RUI_UNMAP, ino.0, &own);
            self.cui(layout::CUI_STAGE, &own);
            self.rui(layout::RUI_ALLOC, RMAP_OWNER_COW, &own);
            if self.rng.random() {
                self.rui(layout::RUI_FREE, RMAP_OWNER_COW, &own[..1]);
                self.cui(layout::CUI_UNSTAGE, &own[..1]);
                self.efi(&own[..1]);
            }
        }
    }

    /// Blocks of a file became unwritten.
    fn converted(&mut self, name: &str) {
        let (ino, addr, extents) = self.inode(name);
        let mut new = extents.clone();
        let index = self.rng.random_range(0..new.len());
        // Shared blocks are never unwritten.
        let (shared, _) = self.parts(&new[index..=index]);
        if !shared.is_empty() {
            return;
        }
        new[index].unwritten = true;
        self.log_inode(addr, &extents, &new);
        self.rui(layout::RUI_CONVERT, ino.0, &new[index..=index]);
    }

    pub(super) fn write_log(&mut self) {
        let mut writer = LogWriter::open(&mut self.disk).unwrap();
        let mut writes: Vec<_> = writer.stale_writes().collect();
        let mut checkpoint = |items: &[LogItem], writer: &mut LogWriter| {
            let tail = writer.lsn();
            let built = writer.checkpoint(items, tail).unwrap();
            writes.extend(built.records.into_iter().flat_map(|record| record.writes));
        };
        checkpoint(&self.items, &mut writer);
        for write in writes {
            self.disk.write_at(write.addr_bytes, &write.bytes).unwrap();
        }
    }
}

/// A disk; `is_small` for one with sectors of 512 bytes and without a stripe unit of the log.
pub(crate) fn handmade(seed: u64, is_small: bool) -> (Handmade, String) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let rmapbt = rng.random();
    let mut disk = Handmade::new(rng, rmapbt, is_small, |_| {}, |_, _| {});
    let mut kinds = Vec::new();
    for number in 0..8 {
        let (file, copy) = (format!("f{number}"), format!("g{number}"));
        let kind = disk.rng.random_range(0..6);
        kinds.push(kind);
        match kind {
            0 => disk.truncated(&copy),
            1 => disk.unmapped(&copy),
            2 => disk.shared(&copy, &file),
            3 => disk.staged(&copy),
            4 => disk.converted(&copy),
            _ => {
                disk.truncated(&copy);
                disk.unmapped(&file);
            }
        }
    }
    disk.write_log();
    let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}: rmapbt {rmapbt}, {kinds:?}");
    (disk, what)
}

#[test]
fn intents_are_finished_as_by_the_kernel() {
    if !kernel_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    let mut finished = 0;
    for seed in seed..seed + number("XTENT_RUNS", 6) {
        let (disk, what) = handmade(seed, false);
        let sector_bytes = disk.image.sector_bytes();
        finished += compare(&disk.image.path(), sector_bytes, &what).unwrap();
    }
    println!("{finished} intents finished");
    assert!(finished > 0);
}
