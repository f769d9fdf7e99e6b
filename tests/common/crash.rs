//! A disk that records all writes, and all disks that a loss of power may leave of it.
//!
//! Writes before a completed flush are there, and those with Force Unit Access that completed. Of
//! the others any may be missing, and of each that is there any sector may have its old content.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::Rng;
use rand::rngs::SmallRng;
use xtent::internals::xfs::MetaIo;

/// What happened, in the order of completion.
#[derive(Debug, Clone)]
pub enum DiskEvent<P> {
    /// Bytes were written at an address.
    Write(u64, Vec<u8>),
    /// All writes before it are durable.
    Flush,
    /// The write before it is durable; it was made with Force Unit Access.
    Durable,
    /// The program under test was promised something.
    Promise(P),
}

type Sectors = BTreeMap<u64, Vec<u8>>;

#[derive(Debug)]
struct DiskState<P> {
    sectors: Sectors,
    /// What was there when the history began.
    start: Option<Arc<Vec<u8>>>,
    history: Vec<DiskEvent<P>>,
    /// Where was written last.
    last_addr: u64,
}

/// A disk in memory with its history. Clones are ways to the same disk, for threads.
#[derive(Debug)]
pub struct RecordedDisk<P> {
    base: Arc<Vec<u8>>,
    state: Arc<Mutex<DiskState<P>>>,
    sector_bytes: usize,
}

impl<P> Clone for RecordedDisk<P> {
    fn clone(&self) -> Self {
        Self {
            base: Arc::clone(&self.base),
            state: Arc::clone(&self.state),
            sector_bytes: self.sector_bytes,
        }
    }
}

fn put(sectors: &mut Sectors, sector_bytes: usize, addr: u64, bytes: &[u8]) {
    for (index, sector) in bytes.chunks(sector_bytes).enumerate() {
        let at = addr + (index * sector_bytes) as u64;
        sectors.insert(at, sector.to_vec());
    }
}

fn read(base: &[u8], sectors: &Sectors, addr: u64, buf: &mut [u8]) {
    let start = usize::try_from(addr).unwrap();
    buf.copy_from_slice(&base[start..start + buf.len()]);
    let end = addr + buf.len() as u64;
    for (at, sector) in sectors.range(addr..end) {
        let into = usize::try_from(at - addr).unwrap();
        buf[into..into + sector.len()].copy_from_slice(sector);
    }
}

impl<P> RecordedDisk<P> {
    /// A disk with this content, whose history begins now.
    pub fn new(content: Vec<u8>, sector_bytes: u32) -> Self {
        let disk = Self::unrecorded(&Arc::new(content), sector_bytes);
        disk.lock().start = Some(Arc::clone(&disk.base));
        disk
    }

    /// A disk with this content, without a history.
    pub fn unrecorded(content: &Arc<Vec<u8>>, sector_bytes: u32) -> Self {
        Self {
            base: Arc::clone(content),
            state: Arc::new(Mutex::new(DiskState {
                sectors: Sectors::new(),
                start: None,
                history: Vec::new(),
                last_addr: 0,
            })),
            sector_bytes: usize::try_from(sector_bytes).unwrap(),
        }
    }

    /// The history begins now; all that was written before is durable.
    pub fn record(&self) {
        let content = self.content();
        self.lock().start = Some(Arc::new(content));
    }

    /// All of its bytes.
    pub fn content(&self) -> Vec<u8> {
        let mut content = self.base.to_vec();
        read(&self.base, &self.lock().sectors, 0, &mut content);
        content
    }

    fn lock(&self) -> MutexGuard<'_, DiskState<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes, with further events at the same moment.
    fn write(&self, addr: u64, buf: &[u8], events: &[DiskEvent<P>])
    where
        P: Clone,
    {
        let sector = self.sector_bytes as u64;
        assert!(addr.is_multiple_of(sector) && (buf.len() as u64).is_multiple_of(sector));
        let state = &mut *self.lock();
        put(&mut state.sectors, self.sector_bytes, addr, buf);
        state.last_addr = addr;
        if state.start.is_some() {
            let write = DiskEvent::Write(addr, buf.to_vec());
            state.history.push(write);
            state.history.extend_from_slice(events);
        }
    }

    fn note(&self, event: DiskEvent<P>) {
        let mut state = self.lock();
        if state.start.is_some() {
            state.history.push(event);
        }
    }

    /// Notes a promise: whatever happens later, it must be kept.
    pub fn promise(&self, promise: P) {
        self.note(DiskEvent::Promise(promise));
    }

    /// Events so far.
    pub fn events(&self) -> usize {
        self.lock().history.len()
    }

    /// Takes the history so far.
    pub fn take_history(&self) -> Vec<DiskEvent<P>> {
        std::mem::take(&mut self.lock().history)
    }

    /// Where was written last.
    pub fn last_addr(&self) -> u64 {
        self.lock().last_addr
    }
}

impl<P: Clone> MetaIo for RecordedDisk<P> {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        read(&self.base, &self.lock().sectors, addr, buf);
        Ok(())
    }

    fn write_at(&mut self, addr: u64, buf: &[u8]) -> xtent::Result<()> {
        self.write(addr, buf, &[]);
        Ok(())
    }

    fn write_durable_at(&mut self, addr: u64, buf: &[u8]) -> xtent::Result<()> {
        self.flush()?;
        // Others may write between the two, which the flush does not make durable.
        self.write(addr, buf, &[DiskEvent::Durable]);
        Ok(())
    }

    fn flush(&mut self) -> xtent::Result<()> {
        self.note(DiskEvent::Flush);
        Ok(())
    }

    /// Overwrites the range, so that content that was needed is missed.
    fn discard(&mut self, addr: u64, len: u64) -> xtent::Result<()> {
        let garbage = vec![0xd5; usize::try_from(len).unwrap()];
        self.write(addr, &garbage, &[]);
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.base.len() as u64
    }

    fn block_bytes(&self) -> u32 {
        u32::try_from(self.sector_bytes).unwrap()
    }
}

/// What a loss of power left.
#[derive(Debug)]
pub struct CrashedDisk {
    base: Arc<Vec<u8>>,
    sectors: Sectors,
    sector_bytes: u32,
    /// Outside of the log each block is old or new as a whole. The kernel needs that: its replay
    /// takes a block whose first sector is new for one that is in place.
    pub has_whole_blocks: bool,
}

/// Where blocks are that the kernel needs whole: everywhere but in the log.
#[derive(Debug, Clone)]
pub struct WholeBlocks {
    pub block_bytes: u64,
    pub log: Range<u64>,
}

impl WholeBlocks {
    fn first_sector(&self, at: u64) -> u64 {
        match self.log.contains(&at) {
            true => at,
            false => at / self.block_bytes * self.block_bytes,
        }
    }
}

impl CrashedDisk {
    /// All of its bytes.
    pub fn content(&self) -> Vec<u8> {
        let mut content = self.base.to_vec();
        read(&self.base, &self.sectors, 0, &mut content);
        content
    }
}

impl MetaIo for CrashedDisk {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        read(&self.base, &self.sectors, addr, buf);
        Ok(())
    }

    fn write_at(&mut self, addr: u64, buf: &[u8]) -> xtent::Result<()> {
        let sector_bytes = usize::try_from(self.sector_bytes).unwrap();
        put(&mut self.sectors, sector_bytes, addr, buf);
        Ok(())
    }

    fn flush(&mut self) -> xtent::Result<()> {
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.base.len() as u64
    }

    fn block_bytes(&self) -> u32 {
        self.sector_bytes
    }
}

/// Writes that are in the cache of the disk, in their order: the sectors of each.
#[derive(Debug, Default)]
struct Pending<'a>(Vec<BTreeMap<u64, &'a [u8]>>);

impl<'a> Pending<'a> {
    fn write(&mut self, addr: u64, bytes: &'a [u8], sector_bytes: usize) {
        let sectors = bytes.chunks(sector_bytes).enumerate();
        let at = |index: usize| addr + (index * sector_bytes) as u64;
        self.0
            .push(sectors.map(|(index, bytes)| (at(index), bytes)).collect());
    }

    fn flush(&mut self, durable: &mut [u8]) {
        for write in self.0.drain(..) {
            put_sectors(durable, &write);
        }
    }

    /// Older content of the same sectors in the cache is never written.
    fn last_is_durable(&mut self, durable: &mut [u8]) {
        let last = self.0.pop().unwrap_or_default();
        put_sectors(durable, &last);
        for write in &mut self.0 {
            write.retain(|at, _| !last.contains_key(at));
        }
    }

    /// Sectors that survive: all, none, or any of any of them.
    fn survivors(&self, whole: Option<&WholeBlocks>, rng: &mut SmallRng) -> Sectors {
        let mut sectors = Sectors::new();
        let mode = rng.random_range(0..4);
        for write in &self.0 {
            let lost = mode == 0 || mode > 1 && rng.random_range(0..3) == 0;
            if lost {
                continue;
            }
            let mut last = None;
            for (at, sector) in write {
                let first = whole.map_or(*at, |whole| whole.first_sector(*at));
                let survives = match last {
                    Some((block, survives)) if block == first => survives,
                    _ => mode < 3 || rng.random_range(0..4) > 0,
                };
                last = Some((first, survives));
                if survives {
                    sectors.insert(*at, sector.to_vec());
                }
            }
        }
        sectors
    }
}

fn put_sectors(content: &mut [u8], write: &BTreeMap<u64, &[u8]>) {
    for (at, sector) in write {
        let start = usize::try_from(*at).unwrap();
        content[start..start + sector.len()].copy_from_slice(sector);
    }
}

/// Goes through a history, and calls `look` with `images` disks for each border between two events
/// from `first` on, and with the promises that were given before it. Of every second one no block
/// is torn, as `whole` says.
pub fn each_crash<P: Clone>(
    disk: &RecordedDisk<P>,
    (history, first, images): (&[DiskEvent<P>], usize, u64),
    whole: Option<&WholeBlocks>,
    rng: &mut SmallRng,
    mut look: impl FnMut(CrashedDisk, &[P], &mut SmallRng),
) {
    // Written to while no crashed disk has it.
    let start = disk.lock().start.clone().expect("a history");
    let mut durable = Arc::new(start.to_vec());
    let mut pending = Pending::default();
    let mut promises = Vec::new();
    for (index, event) in history.iter().enumerate() {
        let content = Arc::get_mut(&mut durable).expect("no crashed disk is left");
        match event {
            DiskEvent::Promise(promise) => {
                promises.push(promise.clone());
                continue;
            }
            DiskEvent::Write(addr, bytes) => pending.write(*addr, bytes, disk.sector_bytes),
            DiskEvent::Flush => pending.flush(content),
            DiskEvent::Durable => pending.last_is_durable(content),
        }
        if index < first {
            continue;
        }
        // Without unflushed writes there is one disk only.
        let images = if pending.0.is_empty() { 1 } else { images };
        for image in 0..images {
            let whole = whole.filter(|_| (image + index as u64).is_multiple_of(2));
            let crashed = CrashedDisk {
                base: Arc::clone(&durable),
                sectors: pending.survivors(whole, rng),
                sector_bytes: disk.block_bytes(),
                has_whole_blocks: whole.is_some() || pending.0.is_empty(),
            };
            look(crashed, &promises, rng);
        }
    }
}
