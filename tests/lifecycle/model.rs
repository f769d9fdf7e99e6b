//! What the sectors of one thread may hold. A sector is written by its thread alone.

use xtent::Result;

use super::stand::FILES;

pub(crate) const SECTOR: usize = 512;
const PAGE_SECTORS: usize = 8;
pub(crate) const THREADS: usize = 4;
/// Sectors of a thread in each file.
pub(crate) const OWN: usize = 128;
/// Sectors of all threads lie side by side in it, so that they meet in each page; it is not written
/// by direct I/O.
pub(crate) const SHARED: usize = 2;

/// A run of a thread's sectors in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) file: usize,
    pub(crate) first: usize,
    pub(crate) count: usize,
}

impl Place {
    pub(crate) fn len(self) -> usize {
        self.count * SECTOR
    }

    /// The position in the file, for this thread.
    pub(crate) fn offset(self, thread: usize) -> u64 {
        (sector_no(thread, self.file, self.first) * SECTOR) as u64
    }

    pub(crate) fn range(self, thread: usize) -> std::ops::Range<u64> {
        let offset = self.offset(thread);
        offset..offset + self.len() as u64
    }
}

fn sector_no(thread: usize, file: usize, index: usize) -> usize {
    match file {
        SHARED => index * THREADS + thread,
        _ => thread * OWN + index,
    }
}

#[derive(Debug, Clone)]
struct Sector {
    /// Possible results of a read: one tag if certain. 0 is zeroes.
    now: Vec<u64>,
    /// What the device may hold.
    device: Vec<u64>,
    /// An operation is in flight on it.
    busy: bool,
}

/// The sectors of one thread on one disk.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) thread: usize,
    files: [Vec<Sector>; FILES.len()],
    next_tag: u64,
}

impl Model {
    pub(crate) fn new(thread: usize) -> Self {
        let sector = Sector {
            now: vec![0],
            device: vec![0],
            busy: false,
        };
        Self {
            thread,
            files: std::array::from_fn(|_| vec![sector.clone(); OWN]),
            next_tag: 1,
        }
    }

    fn at(&mut self, place: Place) -> &mut [Sector] {
        &mut self.files[place.file][place.first..place.first + place.count]
    }

    /// Whether something is in flight on the pages of a place: a buffered write beside a direct one
    /// of the same page is not what either of them is for.
    pub(crate) fn is_busy(&self, place: Place) -> bool {
        let end = (place.first + place.count).next_multiple_of(PAGE_SECTORS);
        let pages = place.first / PAGE_SECTORS * PAGE_SECTORS..end.min(OWN);
        self.files[place.file][pages]
            .iter()
            .any(|sector| sector.busy)
    }

    pub(crate) fn set_busy(&mut self, place: Place, busy: bool) {
        self.at(place)
            .iter_mut()
            .for_each(|sector| sector.busy = busy);
    }

    /// A tag that no sector has had, and the bytes of the place with it.
    pub(crate) fn fresh(&mut self, place: Place) -> (u64, Vec<u8>) {
        let tag = self.next_tag;
        self.next_tag += 1;
        let sectors = place.first..place.first + place.count;
        let bytes = sectors.flat_map(|index| self.word(place.file, index, tag).repeat(SECTOR / 8));
        (tag, bytes.collect())
    }

    fn word(&self, file: usize, index: usize, tag: u64) -> [u8; 8] {
        let place = file << 16 | sector_no(self.thread, file, index);
        let word = if tag == 0 {
            0
        } else {
            tag << 24 | place as u64
        };
        word.to_le_bytes()
    }

    /// These are in the cache.
    pub(crate) fn cached(&mut self, place: Place, tag: u64) {
        for sector in self.at(place) {
            sector.now = vec![tag];
            sector.device.push(tag);
        }
    }

    /// A buffered write ended so. One that failed may have left any part of its bytes in the cache,
    /// and the device may have had them since.
    pub(crate) fn wrote(&mut self, place: Place, tag: u64, result: Result<usize>) -> Result<()> {
        let count = match result {
            Ok(written) => written / SECTOR,
            Err(error) => {
                self.maybe(place, tag);
                return Err(error);
            }
        };
        self.cached(Place { count, ..place }, tag);
        Ok(())
    }

    /// These are on the device.
    pub(crate) fn on_device(&mut self, place: Place, tag: u64) {
        for sector in self.at(place) {
            (sector.now, sector.device) = (vec![tag], vec![tag]);
        }
    }

    /// Any part of them may have been written.
    pub(crate) fn maybe(&mut self, place: Place, tag: u64) {
        for sector in self.at(place) {
            sector.now.push(tag);
            sector.device.push(tag);
        }
    }

    /// What was completed before is on the device.
    pub(crate) fn synced(&mut self, file: usize) {
        for sector in &mut self.files[file] {
            if !sector.busy {
                sector.device.clone_from(&sector.now);
            }
        }
    }

    /// The volume was closed, and not all may have been written back.
    pub(crate) fn closed(&mut self) {
        for sector in self.files.iter_mut().flatten() {
            sector.now.clone_from(&sector.device);
        }
    }

    /// What was found must be allowed; it is known then.
    pub(crate) fn check(&mut self, place: Place, found: &[u8], how: &str) {
        for at in 0..found.len() / SECTOR {
            let bytes = &found[at * SECTOR..(at + 1) * SECTOR];
            let index = place.first + at;
            let sector = &self.files[place.file][index];
            let holds = |tag: &&u64| {
                let word = self.word(place.file, index, **tag);
                bytes.chunks_exact(8).all(|chunk| chunk == word)
            };
            let Some(&tag) = sector.now.iter().rev().find(holds) else {
                panic!(
                    "{how}: thread {}, {} sector {index} begins with {:02x?} and ends with {:02x?}; \
                     allowed are the tags {:x?}",
                    self.thread,
                    FILES[place.file],
                    &bytes[..16],
                    &bytes[SECTOR - 8..],
                    sector.now
                );
            };
            self.files[place.file][index].now = vec![tag];
        }
    }

    /// All places, one by one.
    pub(crate) fn places() -> impl Iterator<Item = Place> {
        (0..FILES.len()).flat_map(|file| {
            (0..OWN).map(move |first| Place {
                file,
                first,
                count: 1,
            })
        })
    }
}
