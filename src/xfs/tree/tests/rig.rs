//! A filesystem in memory with what trees need: headers of one group, an inode, free blocks.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};

use rand::Rng;
use rand::rngs::StdRng;
use zerocopy::{FromZeros, IntoBytes};

use super::super::super::MetaIo;
use super::super::super::buf::BufKind;
use super::super::super::format::ag::{AG_VERSION, AGF_MAGIC, AGI_MAGIC, Agf, Agi};
use super::super::super::format::{self, inode as layout};
use super::super::super::geometry::{FsBlock, Geometry, Ino};
use super::super::super::superblock::{Features, Superblock};
use super::super::super::trans::{MetaState, Trans};
use super::super::path::TreePath;
use super::super::root::{GroupRoot, RootPlace, set_group_root};
use super::super::{BlockSource, ForkKind, ForkTree, TreeKind, plant};
use crate::error::{Error, ErrorKind, Result};
use crate::xfs::format::btree::BmbtRecord;

const AG_BLOCKS: u32 = 1 << 14;
const INODE_BYTES: u32 = 512;
/// Inodes of the test lie in the cluster that begins with this block.
const INODE_BLOCK: u32 = 64;
/// Blocks from here on are free.
const FIRST_FREE: u32 = 128;
const UUID: [u8; 16] = *b"0123456789abcdef";

/// The seed of a run: `XTENT_SEED`, or another one each time.
pub(in crate::xfs) fn seed() -> u64 {
    let given = std::env::var("XTENT_SEED").ok();
    given.map_or_else(
        || RandomState::new().build_hasher().finish(),
        |seed| seed.parse().expect("a number"),
    )
}

struct MemoryDisk(Vec<u8>);

impl MetaIo for MemoryDisk {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> Result<()> {
        let addr = addr as usize;
        buf.copy_from_slice(&self.0[addr..addr + buf.len()]);
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.0.len() as u64
    }
}

/// A filesystem of one group.
pub(in crate::xfs) struct TestFs {
    disk: MemoryDisk,
    state: MetaState,
}

/// Blocks of the group, lowest first.
#[derive(Clone)]
pub(in crate::xfs) struct TestSource {
    free: BTreeSet<u32>,
    pub(super) used: BTreeSet<u32>,
    left: u32,
    hands_out_used: bool,
}

impl TestSource {
    /// No space after so many more blocks.
    pub(in crate::xfs) fn fail_after(&mut self, blocks: u32) {
        self.left = blocks;
    }

    pub(in crate::xfs) fn hand_out_used(&mut self) {
        self.hands_out_used = true;
    }

    pub(in crate::xfs) fn used(&self) -> usize {
        self.used.len()
    }
}

impl BlockSource for TestSource {
    fn take(&mut self, t: &mut Trans<'_>) -> Result<FsBlock> {
        let full = || Error::new(ErrorKind::OutOfMemory, "no space");
        self.left = self.left.checked_sub(1).ok_or_else(full)?;
        if self.hands_out_used {
            let root = super::super::root::group_root(t, 0, BufKind::Bnobt)?;
            return Ok(FsBlock(root.ag_block.into()));
        }
        let block = self.free.pop_first().ok_or_else(full)?;
        self.used.insert(block);
        Ok(FsBlock(block.into()))
    }

    fn give(&mut self, _: &mut Trans<'_>, block: FsBlock) -> Result<()> {
        let block = block.0 as u32;
        // A damaged tree may give any block.
        self.used.remove(&block);
        self.free.insert(block);
        Ok(())
    }
}

fn superblock(block_log: u32) -> Superblock {
    let block_bytes = 1_u32 << block_log;
    let inopb_log = block_log - INODE_BYTES.ilog2();
    Superblock {
        geometry: Geometry {
            block_bytes,
            block_log,
            sector_bytes: 512,
            inode_bytes: INODE_BYTES,
            inode_log: INODE_BYTES.ilog2(),
            inopb_log,
            dir_block_bytes: 4096,
            dir_block_blocks: 4096 >> block_log,
            data_blocks: AG_BLOCKS.into(),
            ag_blocks: AG_BLOCKS,
            ag_block_log: AG_BLOCKS.ilog2(),
            ag_count: 1,
            log_start: FsBlock(0),
            log_blocks: 0,
            log_sector_bytes: 512,
            log_ignored: true,
            log_stripe_bytes: 0,
            root_ino: Ino(u64::from(INODE_BLOCK) << inopb_log),
            stripe_unit_blocks: 0,
            stripe_width_blocks: 0,
            inode_align_blocks: (INODE_BYTES * 32) >> block_log,
        },
        features: Features {
            ro_compat: 0b1111,
            incompat: format::superblock::IN_NREXT64,
            ..Features::default()
        },
        uuid: UUID,
        meta_uuid: UUID,
        label: Vec::new(),
        inodes: 64,
        free_inodes: 0,
        free_blocks: 0,
        most_inodes: 0,
        lsn: 0,
        has_quotas: false,
        internal_inodes: [0; 5],
        read_only: None,
    }
}

impl TestFs {
    /// With blocks of 512 bytes trees become high soon.
    pub(in crate::xfs) fn new(block_log: u32) -> Self {
        let superblock = superblock(block_log);
        let geometry = &superblock.geometry;
        let mut disk = vec![0; (AG_BLOCKS as usize) << block_log];
        let mut agf = Agf::new_zeroed();
        agf.magicnum = AGF_MAGIC.into();
        agf.versionnum = AG_VERSION.into();
        agf.length = AG_BLOCKS.into();
        agf.uuid = UUID;
        let mut agi = Agi::new_zeroed();
        agi.magicnum = AGI_MAGIC.into();
        agi.versionnum = AG_VERSION.into();
        agi.length = AG_BLOCKS.into();
        agi.uuid = UUID;
        disk[512..512 + size_of::<Agf>()].copy_from_slice(agf.as_bytes());
        disk[1024..1024 + size_of::<Agi>()].copy_from_slice(agi.as_bytes());
        format::set_checksum(&mut disk[512..1024], format::ag::AGF_CRC_OFFSET);
        format::set_checksum(&mut disk[1024..1536], format::ag::AGI_CRC_OFFSET);
        let cluster = geometry.bytes(INODE_BLOCK.into()) as usize;
        for (index, raw) in disk[cluster..][..INODE_BYTES as usize * 32]
            .chunks_mut(INODE_BYTES as usize)
            .enumerate()
        {
            let mut core = layout::InodeCore::new_zeroed();
            core.magic = layout::MAGIC.into();
            core.version = layout::VERSION;
            core.mode = (layout::S_IFREG | 0o644).into();
            core.format = layout::FORMAT_EXTENTS;
            core.aformat = layout::FORMAT_EXTENTS;
            core.forkoff = if index % 2 == 0 { 24 } else { 0 };
            core.flags2 = layout::FLAG2_NREXT64.into();
            core.ino = (geometry.root_ino.0 + index as u64).into();
            core.uuid = UUID;
            raw[..layout::CORE_BYTES].copy_from_slice(core.as_bytes());
            format::set_checksum(raw, layout::CRC_OFFSET);
        }
        let state = MetaState::new(&superblock, (1 << 32) | 100);
        Self {
            disk: MemoryDisk(disk),
            state,
        }
    }

    /// All blocks that no tree has.
    pub(in crate::xfs) fn source(&mut self) -> TestSource {
        let free = (FIRST_FREE..AG_BLOCKS).collect();
        let mut source = TestSource {
            free,
            used: BTreeSet::new(),
            left: u32::MAX,
            hands_out_used: false,
        };
        let geometry = self.state.superblock.geometry.clone();
        for (addr, buffer) in self.state.buffers.overlapping(0, u64::MAX) {
            let block = geometry.block_at_addr(addr).0 as u32;
            if buffer.kind != BufKind::Inodes && source.free.remove(&block) {
                source.used.insert(block);
            }
        }
        source
    }

    /// Runs a transaction; it is committed when the result is `Ok(true)`.
    pub(in crate::xfs) fn transaction<R>(
        &mut self,
        run: impl FnOnce(&mut Trans<'_>) -> Result<R>,
    ) -> Result<R>
    where
        R: Copy + Into<bool>,
    {
        let mut t = Trans::begin(&mut self.state, &mut self.disk)?;
        let done = run(&mut t)?;
        if done.into() {
            t.commit();
        }
        Ok(done)
    }

    pub(in crate::xfs) fn read<R>(&mut self, run: impl FnOnce(&mut Trans<'_>) -> R) -> R {
        let mut t = Trans::begin(&mut self.state, &mut self.disk).unwrap();
        run(&mut t)
    }

    /// An empty tree of the group.
    pub(in crate::xfs) fn plant_group_tree<K: TreeKind>(&mut self) {
        let mut source = self.source();
        self.transaction(|t| {
            let mut path = TreePath::new(t, K::SHAPE, RootPlace::Group(0));
            let block = path.take(0, &mut source)?;
            let root = GroupRoot {
                ag_block: block as u32,
                levels: 1,
            };
            set_group_root(t, 0, K::SHAPE.kind, root)?;
            // The root block is not one of those that are counted with others.
            if matches!(
                K::SHAPE.kind,
                BufKind::Bnobt | BufKind::Cntbt | BufKind::Rmapbt
            ) {
                let place = t.place_of_header(0, BufKind::Agf);
                let agf = t.edit(place, BufKind::Agf)?;
                let at = std::mem::offset_of!(Agf, btreeblks);
                agf[at..at + 4].fill(0);
            }
            Ok(true)
        })
        .unwrap();
    }

    /// The data fork of an inode, with one record at offset 0.
    pub(in crate::xfs) fn fork_tree(&mut self) -> ForkTree {
        self.fork_tree_of(ForkKind::Data)
    }

    pub(in crate::xfs) fn fork_tree_of(&mut self, fork: ForkKind) -> ForkTree {
        let mut source = self.source();
        let tree = ForkTree {
            ino: self.state.superblock.geometry.root_ino,
            fork,
        };
        let form = match fork {
            ForkKind::Data => std::mem::offset_of!(layout::InodeCore, format),
            ForkKind::Attribute => std::mem::offset_of!(layout::InodeCore, aformat),
        };
        self.transaction(|t| {
            t.edit_inode(tree.ino)?[form] = layout::FORMAT_BTREE;
            plant(t, &tree, &[BmbtRecord::new(0, 100, 1, false)], &mut source)?;
            Ok(true)
        })
        .unwrap();
        tree
    }

    /// Changes random bytes of a block of a tree, as if they had been read like that.
    pub(in crate::xfs) fn damage(&mut self, kind: BufKind, rng: &mut StdRng) {
        let all = self.state.buffers.overlapping(0, u64::MAX);
        let addrs: Vec<_> = all
            .filter(|(_, buffer)| buffer.kind == kind)
            .map(|(addr, _)| addr)
            .collect();
        let addr = addrs[rng.random_range(0..addrs.len())];
        let buffer = self.state.buffers.get_mut(addr).unwrap();
        // The fields that are checked when a block is read are right.
        let fixed = if kind == BufKind::Bmbt {
            24..72
        } else {
            16..56
        };
        for _ in 0..rng.random_range(1..4) {
            let at = match rng.random_range(0..3) {
                0 => rng.random_range(4..16),
                1 => rng.random_range(fixed.end..fixed.end + 40),
                _ => rng.random_range(fixed.end..buffer.bytes.len()),
            };
            buffer.bytes[at] = rng.random();
        }
        buffer.is_checked = false;
    }
}
