//! A filesystem of a few files behind `iomap`, with everything that a mapping can be: holes,
//! promised space, written and preallocated blocks, blocks shared with a snapshot, data inside of
//! the inode. Its metadata is in memory; what survives a loss of power is a copy, taken at each
//! commit as a log would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::internals::iomap::buffered::{CachedOps, Validity};
use xtent::internals::iomap::{IterFlags, MapFlags, Mapping, MappingKind, Ops};
use xtent::{Error, ErrorKind, Result};

/// One block of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    Written(u64),
    Unwritten(u64),
    /// Promised.
    Delalloc,
    /// Shared at the first place; writes go to the second one, once it is allocated.
    Copying(u64, Option<u64>),
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Inode {
    pub(crate) blocks: BTreeMap<u64, Block>,
    pub(crate) inline: Option<Vec<u8>>,
    /// Length as it is on disk: grows when data is.
    pub(crate) disk_size: u64,
    pub(crate) cookie: u64,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Metadata {
    pub(crate) inodes: Vec<Inode>,
    /// Snapshots: blocks that are shared, and by which file block.
    pub(crate) shared: Vec<BTreeMap<u64, u64>>,
}

impl Metadata {
    fn used(&self) -> BTreeSet<u64> {
        let mut used = BTreeSet::new();
        for block in self.inodes.iter().flat_map(|inode| inode.blocks.values()) {
            match *block {
                Block::Written(at) | Block::Unwritten(at) | Block::Copying(at, None) => {
                    used.insert(at);
                }
                Block::Copying(at, Some(to)) => used.extend([at, to]),
                Block::Delalloc => {}
            }
        }
        used.extend(self.shared.iter().flat_map(|snapshot| snapshot.values()));
        used
    }

    fn is_shared(&self, at: u64) -> bool {
        self.shared
            .iter()
            .any(|snapshot| snapshot.values().any(|block| *block == at))
    }
}

#[derive(Debug)]
struct State {
    now: Metadata,
    durable: Metadata,
    free: BTreeSet<u64>,
    rng: SmallRng,
}

#[derive(Debug)]
pub(crate) struct Fs {
    state: Mutex<State>,
    pub(crate) block_bytes: u64,
    cookies: AtomicU64,
}

/// A file's operations.
pub(crate) struct FileOps {
    fs: Arc<Fs>,
    ino: usize,
    inline: Vec<u8>,
}

impl Fs {
    /// Over a device of so many blocks; `metadata` is what was durable.
    pub(crate) fn new(
        block_bytes: u64,
        device_blocks: u64,
        metadata: Metadata,
        seed: u64,
    ) -> Arc<Self> {
        let used = metadata.used();
        let cookies = metadata.inodes.iter().map(|inode| inode.cookie);
        let newest = cookies.max().unwrap_or(0);
        Arc::new(Self {
            state: Mutex::new(State {
                free: (0..device_blocks)
                    .filter(|block| !used.contains(block))
                    .collect(),
                durable: metadata.clone(),
                now: metadata,
                rng: SmallRng::seed_from_u64(seed),
            }),
            block_bytes,
            // Above all cookies from before the power cut: `commit` compares them to find the newer
            // state.
            cookies: AtomicU64::new(newest + 1),
        })
    }

    pub(crate) fn ops(self: &Arc<Self>, ino: usize) -> FileOps {
        FileOps {
            fs: Arc::clone(self),
            ino,
            inline: Vec::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn durable(&self) -> Metadata {
        self.lock().durable.clone()
    }

    fn change(&self, inode: &mut Inode) {
        inode.cookie = self.cookies.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes the blocks behind a new size back.
    pub(crate) fn truncate(&self, ino: usize, size: u64) {
        let mut state = self.lock();
        let first = size.div_ceil(self.block_bytes);
        let inode = &mut state.now.inodes[ino];
        inode.blocks.split_off(&first);
        // Exactly: what was written between the size on disk and the new one counts with the next
        // sync.
        inode.disk_size = size;
        if let Some(inline) = &mut inode.inline {
            inline.truncate(usize::try_from(size).unwrap());
        }
        self.change(inode);
        state.collect();
    }

    /// The size on disk, of a file that became longer without data.
    pub(crate) fn set_disk_size(&self, ino: usize, size: u64) {
        let mut state = self.lock();
        let inode = &mut state.now.inodes[ino];
        inode.disk_size = size;
        self.change(inode);
    }

    /// Preallocates holes of a range of blocks.
    pub(crate) fn preallocate(&self, ino: usize, blocks: std::ops::Range<u64>) {
        let mut state = self.lock();
        if state.now.inodes[ino].inline.is_some() {
            return;
        }
        for block in blocks {
            if state.now.inodes[ino].blocks.contains_key(&block) || state.free.len() < 64 {
                continue;
            }
            let Some(at) = state.allocate(None) else {
                return;
            };
            state.now.inodes[ino]
                .blocks
                .insert(block, Block::Unwritten(at));
        }
        self.change(&mut state.now.inodes[ino]);
    }

    /// Shares a file's written blocks with a new snapshot; the oldest of three goes. Nothing of the
    /// file is cached.
    pub(crate) fn snapshot(&self, ino: usize) {
        let mut state = self.lock();
        let inode = &mut state.now.inodes[ino];
        let written = inode.blocks.iter().filter_map(|(block, what)| match what {
            Block::Written(at) => Some((*block, *at)),
            _ => None,
        });
        let snapshot = written.collect();
        self.change(inode);
        state.now.shared.push(snapshot);
        if state.now.shared.len() > 2 {
            state.now.shared.remove(0);
        }
        state.collect();
    }

    /// All snapshots, for comparisons of their content.
    pub(crate) fn snapshots(&self) -> Vec<BTreeMap<u64, u64>> {
        self.lock().now.shared.clone()
    }

    /// Blocks from the device for direct reads: place and kind of one block.
    pub(crate) fn block(&self, ino: usize, block: u64) -> Option<Block> {
        self.lock().now.inodes[ino].blocks.get(&block).copied()
    }

    pub(crate) fn is_inline(&self, ino: usize) -> bool {
        self.lock().now.inodes[ino].inline.is_some()
    }

    /// Whether a direct write may go to a block: written, and its own.
    pub(crate) fn own_block(&self, ino: usize, block: u64) -> Option<u64> {
        let state = self.lock();
        match state.now.inodes[ino].blocks.get(&block) {
            Some(Block::Written(at)) if !state.now.is_shared(*at) => Some(*at),
            _ => None,
        }
    }
}

impl State {
    /// A free block: the one wanted, where it is free.
    fn allocate(&mut self, near: Option<u64>) -> Option<u64> {
        let wanted = near.filter(|block| self.free.contains(block));
        let at = wanted.or_else(|| {
            // Anywhere, so that files are in pieces.
            let from = self.rng.random_range(0..=*self.free.last()?);
            self.free
                .range(from..)
                .next()
                .or_else(|| self.free.first())
                .copied()
        })?;
        self.free.remove(&at);
        Some(at)
    }

    /// Frees the blocks that neither the current nor the durable state uses.
    fn collect(&mut self) {
        if self.free.len() > 512 && self.rng.random_bool(0.9) {
            return;
        }
        self.collect_all();
    }

    fn collect_all(&mut self) {
        let mut used = self.now.used();
        used.extend(self.durable.used());
        let most = self.free.iter().chain(&used).max().copied().unwrap_or(0);
        self.free = (0..=most).filter(|block| !used.contains(block)).collect();
    }
}

fn full() -> Error {
    Error::new(ErrorKind::OutOfMemory, "the test's filesystem is full")
}

impl FileOps {
    /// The mapping at a position, up to the end of the contiguous run.
    fn mapping(&self, state: &State, pos: u64, most: u64) -> Mapping {
        let bytes = self.fs.block_bytes;
        let inode = &state.now.inodes[self.ino];
        let first = pos / bytes;
        let describe = |block: u64| match inode.blocks.get(&block) {
            _ if block == 0 && inode.inline.is_some() => (MappingKind::Inline, 0, false),
            None => (MappingKind::Hole, 0, false),
            Some(Block::Delalloc) => (MappingKind::Delalloc, 0, false),
            Some(Block::Unwritten(at)) => (MappingKind::Unwritten, *at, false),
            Some(Block::Written(at)) => (MappingKind::Mapped, *at, state.now.is_shared(*at)),
            Some(Block::Copying(at, _)) => (MappingKind::Mapped, *at, true),
        };
        let (kind, at, shared) = describe(first);
        let mut len = 1;
        while kind != MappingKind::Inline && len < most {
            let (next, next_at, next_shared) = describe(first + len);
            let follows = !matches!(kind, MappingKind::Mapped | MappingKind::Unwritten)
                || next_at == at + len;
            if next != kind || next_shared != shared || !follows {
                break;
            }
            len += 1;
        }
        Mapping {
            addr: at * bytes,
            offset: first * bytes,
            length: len * bytes,
            kind,
            flags: if shared {
                MapFlags::SHARED
            } else {
                MapFlags::empty()
            },
            cookie: inode.cookie,
        }
    }

    /// Makes room for a write in blocks that have none.
    fn prepare(&self, state: &mut State, pos: u64, len: u64) -> Result<(Mapping, Option<Mapping>)> {
        let bytes = self.fs.block_bytes;
        let blocks = (pos % bytes + len)
            .div_ceil(bytes)
            .min(state.rng.random_range(1..64));
        let found = self.mapping(state, pos, blocks);
        let (first, count) = (pos / bytes, found.length / bytes);
        match found.kind {
            MappingKind::Hole => {
                if state.free.len() < 64 {
                    state.collect_all();
                }
                let now = state.rng.random_bool(0.3);
                let mut last = None;
                for block in first..first + count {
                    let what = if now {
                        last = state.allocate(last.map(|at: u64| at + 1));
                        Block::Unwritten(last.ok_or_else(full)?)
                    } else {
                        Block::Delalloc
                    };
                    state.now.inodes[self.ino].blocks.insert(block, what);
                }
                self.fs.change(&mut state.now.inodes[self.ino]);
                let mut made = self.mapping(state, pos, count);
                if now {
                    made.flags |= MapFlags::NEW;
                    // A new extent may be reported as mapped instead of unwritten.
                    if state.rng.random_bool(0.5) {
                        made.kind = MappingKind::Mapped;
                    }
                }
                Ok((made, None))
            }
            MappingKind::Inline => {
                let inode = &mut state.now.inodes[self.ino];
                inode.blocks.entry(0).or_insert(Block::Delalloc);
                Ok((
                    Mapping {
                        kind: MappingKind::Delalloc,
                        ..found
                    },
                    Some(found),
                ))
            }
            MappingKind::Mapped if found.flags.contains(MapFlags::SHARED) => {
                let inode = &mut state.now.inodes[self.ino];
                for block in first..first + count {
                    if let Some(what) = inode.blocks.get_mut(&block)
                        && let Block::Written(at) = *what
                    {
                        *what = Block::Copying(at, None);
                    }
                }
                let new = Mapping {
                    kind: MappingKind::Delalloc,
                    ..found
                };
                Ok((new, Some(found)))
            }
            _ => Ok((found, None)),
        }
    }
}

impl Ops for FileOps {
    fn begin(
        &mut self,
        pos: u64,
        len: u64,
        flags: IterFlags,
    ) -> Result<(Mapping, Option<Mapping>)> {
        let fs = Arc::clone(&self.fs);
        let mut state = fs.lock();
        if let Some(inline) = &state.now.inodes[self.ino].inline {
            self.inline.clone_from(inline);
        }
        if flags.contains(IterFlags::WRITE) {
            return self.prepare(&mut state, pos, len);
        }
        let most = len.div_ceil(self.fs.block_bytes) + 1;
        Ok((self.mapping(&state, pos, most), None))
    }

    fn inline_data(&self, _: &Mapping) -> &[u8] {
        &self.inline
    }
}

impl CachedOps for FileOps {
    fn is_current(&self, mapping: &Mapping) -> bool {
        self.fs.lock().now.inodes[self.ino].cookie == mapping.cookie
    }

    fn validity(&self) -> Validity {
        let (fs, ino) = (Arc::clone(&self.fs), self.ino);
        Validity::new(move |mapping| fs.lock().now.inodes[ino].cookie == mapping.cookie)
    }

    fn map_writeback(&mut self, pos: u64, len: u64) -> Result<Mapping> {
        let fs = Arc::clone(&self.fs);
        let mut state = fs.lock();
        let bytes = fs.block_bytes;
        let (first, mut behind) = (pos / bytes, (pos + len).div_ceil(bytes));
        // All that is promised side by side gets its blocks at once.
        let inode = &state.now.inodes[self.ino];
        while behind < first + 64 && inode.blocks.get(&behind) == Some(&Block::Delalloc) {
            behind += 1;
        }
        let mut near = first.checked_sub(1).and_then(|before| {
            match state.now.inodes[self.ino].blocks.get(&before) {
                Some(Block::Written(at) | Block::Unwritten(at)) => Some(at + 1),
                _ => None,
            }
        });
        if state.free.len() < 64 {
            state.collect_all();
        }
        let mut copied = false;
        for block in first..behind {
            let what = match state.now.inodes[self.ino].blocks.get(&block).copied() {
                Some(Block::Delalloc) => Block::Unwritten(state.allocate(near).ok_or_else(full)?),
                Some(Block::Copying(at, None)) => {
                    Block::Copying(at, Some(state.allocate(near).ok_or_else(full)?))
                }
                Some(other) => other,
                None => {
                    return Err(
                        Error::new(ErrorKind::Corrupt, "a dirty byte over a hole").at_offset(pos)
                    );
                }
            };
            near = match what {
                Block::Unwritten(at) | Block::Written(at) | Block::Copying(_, Some(at)) => {
                    Some(at + 1)
                }
                _ => None,
            };
            copied |= matches!(what, Block::Copying(..));
            state.now.inodes[self.ino].blocks.insert(block, what);
        }
        self.fs.change(&mut state.now.inodes[self.ino]);
        let inode = &state.now.inodes[self.ino];
        if copied || inode.inline.is_some() {
            // One block: with its new place.
            let at = match inode.blocks.get(&first) {
                Some(Block::Copying(_, Some(to))) => (*to, MappingKind::Mapped),
                Some(Block::Unwritten(at)) => (*at, MappingKind::Unwritten),
                Some(Block::Written(at)) => (*at, MappingKind::Mapped),
                _ => return Err(Error::new(ErrorKind::Corrupt, "nothing was allocated")),
            };
            return Ok(Mapping {
                addr: at.0 * bytes,
                offset: first * bytes,
                length: bytes,
                kind: at.1,
                flags: MapFlags::empty(),
                cookie: inode.cookie,
            });
        }
        let found = self.mapping(&state, pos, behind - first);
        assert!(
            !found.flags.contains(MapFlags::SHARED),
            "a shared block would be overwritten"
        );
        Ok(found)
    }

    fn written_back(&mut self, pos: u64, len: u64, mapping: &Mapping) -> Result<()> {
        let fs = Arc::clone(&self.fs);
        let mut state = fs.lock();
        let bytes = fs.block_bytes;
        let inode = &mut state.now.inodes[self.ino];
        for block in pos / bytes..(pos + len).div_ceil(bytes) {
            let to = (mapping.addr + (block * bytes - mapping.offset)) / bytes;
            let what = inode.blocks.insert(block, Block::Written(to));
            let expected = matches!(what,
                Some(Block::Unwritten(at) | Block::Written(at) | Block::Copying(_, Some(at))) if at == to);
            assert!(expected, "{what:?} was written at {to}");
            if block == 0 {
                inode.inline = None;
            }
        }
        inode.disk_size = inode.disk_size.max(pos + len);
        fs.change(inode);
        state.collect();
        Ok(())
    }

    fn commit(&mut self, flush: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let logged = self.fs.lock().now.clone();
        flush()?;
        let mut state = self.fs.lock();
        // Commits of other threads may have come between: those are not undone.
        let newest = |metadata: &Metadata| metadata.inodes.iter().map(|inode| inode.cookie).max();
        if newest(&logged) >= newest(&state.durable) {
            state.durable = logged;
        }
        Ok(())
    }
}

impl Metadata {
    /// As it is found after a loss of power: promises are gone.
    pub(crate) fn recovered(mut self) -> Self {
        for inode in &mut self.inodes {
            for what in inode.blocks.values_mut() {
                if let Block::Copying(at, _) = *what {
                    *what = Block::Written(at);
                }
            }
            inode.blocks.retain(|_, what| *what != Block::Delalloc);
        }
        self
    }
}
