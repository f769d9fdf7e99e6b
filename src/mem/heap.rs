//! Cuts buffers from arenas and keeps the arenas mapped in the attached devices.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use super::arena::{Arena, Backing};
use super::buf::DmaBuf;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::HUGE_PAGE_BYTES;

/// Smallest piece and alignment, in bytes: a cache line, so that no two buffers share one.
const GRAIN_BYTES: usize = 64;

/// Whether arenas come from hugepages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// Hugepages where there are enough; otherwise ordinary memory, with one warning (`tracing`) a
    /// process.
    #[default]
    Prefer,
    /// Hugepages where there are enough; otherwise ordinary memory, silently.
    IfFree,
    /// Hugepages or an error.
    Require,
    /// Ordinary memory, silently.
    Never,
}

/// How a [`Heap`] gets its memory.
#[derive(Debug, Clone, Copy)]
pub struct HeapConfig {
    /// Size of a new arena in bytes; a larger request gets an arena of its own.
    pub arena_bytes: usize,
    /// The most that all arenas together may have, in bytes.
    pub limit_bytes: usize,
    /// Whether arenas come from hugepages.
    pub huge_pages: HugePages,
    /// Arenas are files in memory, which a device in another process can map. That process is
    /// trusted with what they hold, buffers that a program reads included: it keeps its mapping as
    /// long as it likes.
    pub shareable: bool,
}

impl Default for HeapConfig {
    fn default() -> Self {
        Self {
            arena_bytes: 32 << 20,
            limit_bytes: usize::MAX,
            huge_pages: HugePages::Prefer,
            shareable: false,
        }
    }
}

/// What a device does with an arena: makes it reachable at [`Arena::iova`], or unreachable again.
pub trait Mapper: Send + Sync {
    /// Makes the arena reachable for the device, at its own device address.
    ///
    /// # Errors
    /// When the device cannot reach those addresses or the host refuses the mapping.
    fn map(&self, arena: &Arc<Arena>) -> Result<()>;

    /// Makes the arena unreachable. On return the device no longer touches it.
    ///
    /// # Errors
    /// When the host refuses; the arena's memory is then kept forever rather than reused.
    fn unmap(&self, arena: &Arc<Arena>) -> Result<()>;
}

/// Where arenas come from when a device can only reach memory of one origin.
pub trait ArenaSource: Send + Sync {
    /// An arena of `len_bytes`, a multiple of 2 MiB.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`].
    fn arena(&self, len_bytes: usize) -> Result<Arena>;
}

/// Memory for DMA. Cheap to clone; all clones share the arenas. Freed pieces are reused; arenas
/// live as long as the heap and its buffers.
#[derive(Clone)]
pub struct Heap(Arc<HeapInner>);

pub(super) struct HeapInner {
    config: HeapConfig,
    source: Option<Arc<dyn ArenaSource>>,
    state: Mutex<HeapState>,
}

#[derive(Default)]
struct HeapState {
    arenas: Vec<HeapArena>,
    mappers: Vec<Arc<dyn Mapper>>,
    used_bytes: usize,
}

/// An arena with its free ranges, `offset -> length`.
struct HeapArena {
    arena: Arc<Arena>,
    free: BTreeMap<usize, usize>,
}

impl Heap {
    /// A heap without arenas; the first allocation makes one.
    pub fn new(config: HeapConfig) -> Self {
        Self::with_source(config, None)
    }

    /// As [`Heap::new`], with arenas from `source`, if there is one, instead of the system.
    pub fn with_source(config: HeapConfig, source: Option<Arc<dyn ArenaSource>>) -> Self {
        Self(Arc::new(HeapInner {
            config,
            source,
            state: Mutex::default(),
        }))
    }

    /// Maps all arenas, present and future, in `mapper`.
    ///
    /// # Errors
    /// Those of [`Mapper::map`]; the mapper is then not attached.
    pub fn attach(&self, mapper: Arc<dyn Mapper>) -> Result<()> {
        let mut state = self.0.lock();
        for (done, piece) in state.arenas.iter().enumerate() {
            if let Err(error) = mapper.map(&piece.arena) {
                for piece in &state.arenas[..done] {
                    let _ = mapper.unmap(&piece.arena);
                }
                return Err(error);
            }
        }
        state.mappers.push(mapper);
        Ok(())
    }

    /// Unmaps all arenas from `mapper` and forgets it.
    ///
    /// # Errors
    /// The first of [`Mapper::unmap`]; the others are still unmapped.
    pub fn detach(&self, mapper: &Arc<dyn Mapper>) -> Result<()> {
        let mut state = self.0.lock();
        let Some(at) = state.mappers.iter().position(|m| Arc::ptr_eq(m, mapper)) else {
            return Ok(());
        };
        let mapper = state.mappers.remove(at);
        let results: Vec<_> = state
            .arenas
            .iter()
            .map(|piece| mapper.unmap(&piece.arena))
            .collect();
        results.into_iter().collect()
    }

    /// A zeroed buffer of exactly `len_bytes`, aligned to `align_bytes` (a power of two, at most 2
    /// MiB) in host and device addresses.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] at the heap's limit or the host's, [`ErrorKind::InvalidInput`]
    /// for an alignment that cannot be had, and what an attached device says of a new arena.
    pub fn alloc(&self, len_bytes: usize, align_bytes: usize) -> Result<DmaBuf> {
        if !align_bytes.is_power_of_two() || align_bytes > HUGE_PAGE_BYTES {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("alignment {align_bytes} is not a power of two of at most 2 MiB"),
            ));
        }
        if len_bytes == 0 {
            return Ok(DmaBuf::default());
        }
        let align = align_bytes.max(GRAIN_BYTES);
        let reserve = len_bytes
            .checked_next_multiple_of(GRAIN_BYTES)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::OutOfMemory,
                    format!("{len_bytes} bytes are more than any host has"),
                )
            })?;
        let mut state = self.0.lock();
        let found = match state.cut(reserve, align) {
            Some(found) => found,
            None => {
                self.0.grow(&mut state, reserve)?;
                state.cut(reserve, align).ok_or_else(|| {
                    Error::new(
                        ErrorKind::OutOfMemory,
                        "a new arena does not fit the request",
                    )
                })?
            }
        };
        drop(state);
        let (arena, offset) = found;
        Ok(DmaBuf::cut(
            Arc::clone(&self.0),
            arena,
            offset,
            reserve,
            len_bytes,
        ))
    }

    /// What stands behind the first arena; `None` before the first allocation.
    pub fn backing(&self) -> Option<Backing> {
        self.0
            .lock()
            .arenas
            .first()
            .map(|piece| piece.arena.backing())
    }

    /// Bytes in live buffers.
    pub fn used_bytes(&self) -> usize {
        self.0.lock().used_bytes
    }

    /// Bytes in all arenas.
    pub fn reserved_bytes(&self) -> usize {
        self.0.lock().reserved_bytes()
    }

    /// Whether `buf` was cut from this heap (an empty buffer belongs to every heap).
    #[inline]
    pub fn owns(&self, buf: &DmaBuf) -> bool {
        buf.belongs_to(&self.0)
    }
}

impl HeapInner {
    fn lock(&self) -> MutexGuard<'_, HeapState> {
        // A panic while holding the lock cannot leave the lists half-changed in a way that matters
        // more than losing the memory for good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grow(&self, state: &mut HeapState, need_bytes: usize) -> Result<()> {
        let need = need_bytes.next_multiple_of(HUGE_PAGE_BYTES);
        let room = self
            .config
            .limit_bytes
            .saturating_sub(state.reserved_bytes());
        if need > room {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "the limit of {} bytes for DMA memory is reached",
                    self.config.limit_bytes
                ),
            ));
        }
        let mut want = self
            .config
            .arena_bytes
            .next_multiple_of(HUGE_PAGE_BYTES)
            .min(room)
            .max(need);
        let arena = loop {
            let arena = Arc::new(self.new_arena(want, need)?);
            match state.map(&arena) {
                Ok(()) => break arena,
                // The host pins only so much memory for this user: a smaller arena may be enough.
                Err(error) if error.kind() == ErrorKind::OutOfMemory && want > need => {
                    want = (want.min(arena.len_bytes()) / 2)
                        .next_multiple_of(HUGE_PAGE_BYTES)
                        .max(need);
                }
                Err(error) => return Err(error),
            }
        };
        let free = BTreeMap::from([(0, arena.len_bytes())]);
        state.arenas.push(HeapArena { arena, free });
        Ok(())
    }

    /// An arena of `want` bytes, or of fewer hugepages down to `need` before ordinary memory is
    /// used.
    fn new_arena(&self, want: usize, need: usize) -> Result<Arena> {
        if let Some(source) = &self.source {
            return source.arena(want).or_else(|error| match want > need {
                true => source.arena(need),
                false => Err(error),
            });
        }
        let shareable = self.config.shareable;
        let huge = |len| match shareable {
            true => Arena::shared(len, true),
            false => Arena::huge(len),
        };
        let ordinary = |len| match shareable {
            true => Arena::shared(len, false),
            false => Arena::ordinary(len),
        };
        if self.config.huge_pages == HugePages::Never {
            return ordinary(want);
        }
        let mut len = want;
        let reason = loop {
            match huge(len) {
                Ok(arena) => return Ok(arena),
                Err(_) if len > need => {
                    len = (len / 2).next_multiple_of(HUGE_PAGE_BYTES).max(need);
                }
                Err(error) if self.config.huge_pages == HugePages::Require => return Err(error),
                Err(error) => break error,
            }
        };
        if self.config.huge_pages != HugePages::IfFree {
            warn_once_of_missing_hugepages(want, &reason);
        }
        ordinary(want)
    }
}

fn warn_once_of_missing_hugepages(want_bytes: usize, reason: &Error) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        let pages_wanted = want_bytes / HUGE_PAGE_BYTES;
        tracing::warn!(
            pages_wanted,
            %reason,
            "no free 2 MiB hugepages, or none that this control group may use: using ordinary locked memory. \
             To reserve some: echo {} > /proc/sys/vm/nr_hugepages",
            pages_wanted.max(64) * 2
        );
    });
}

impl HeapState {
    fn reserved_bytes(&self) -> usize {
        self.arenas
            .iter()
            .map(|piece| piece.arena.len_bytes())
            .sum()
    }

    /// Maps an arena in every device, or in none.
    fn map(&self, arena: &Arc<Arena>) -> Result<()> {
        for (done, mapper) in self.mappers.iter().enumerate() {
            if let Err(error) = mapper.map(arena) {
                for mapper in &self.mappers[..done] {
                    let _ = mapper.unmap(arena);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// First fit. Not on the hot path: buffers are cut when a program or a queue starts.
    fn cut(&mut self, len: usize, align: usize) -> Option<(Arc<Arena>, usize)> {
        for piece in &mut self.arenas {
            let fit = piece.free.iter().find_map(|(&start, &free)| {
                let offset = start.next_multiple_of(align);
                (offset + len <= start + free).then_some((start, free, offset))
            });
            if let Some((start, free, offset)) = fit {
                piece.free.remove(&start);
                if offset > start {
                    piece.free.insert(start, offset - start);
                }
                let rest = start + free - (offset + len);
                if rest > 0 {
                    piece.free.insert(offset + len, rest);
                }
                self.used_bytes += len;
                return Some((Arc::clone(&piece.arena), offset));
            }
        }
        None
    }
}

impl HeapInner {
    /// Takes back a range that [`DmaBuf::cut`] was given, joining it with its free neighbours.
    pub(super) fn give_back(&self, arena: &Arc<Arena>, offset: usize, reserved: usize) {
        let mut state = self.lock();
        state.used_bytes = state.used_bytes.saturating_sub(reserved);
        let Some(piece) = state
            .arenas
            .iter_mut()
            .find(|piece| Arc::ptr_eq(&piece.arena, arena))
        else {
            return;
        };
        let (mut start, mut len) = (offset, reserved);
        if let Some((&before, &before_len)) = piece.free.range(..offset).next_back()
            && before + before_len == offset
        {
            piece.free.remove(&before);
            (start, len) = (before, len + before_len);
        }
        if let Some(after_len) = piece.free.remove(&(offset + reserved)) {
            len += after_len;
        }
        piece.free.insert(start, len);
    }
}

impl Drop for HeapInner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for mapper in &state.mappers {
            for piece in &state.arenas {
                if mapper.unmap(&piece.arena).is_err() {
                    // The device may still write there: the memory is lost on purpose.
                    std::mem::forget(Arc::clone(&piece.arena));
                }
            }
        }
    }
}

impl fmt::Debug for HeapInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Heap")
            .field("config", &self.config)
            .field("arenas", &state.arenas.len())
            .field("devices", &state.mappers.len())
            .field("used_bytes", &state.used_bytes)
            .finish()
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap(limit_bytes: usize) -> Heap {
        Heap::new(HeapConfig {
            arena_bytes: 2 << 20,
            limit_bytes,
            huge_pages: HugePages::Never,
            ..HeapConfig::default()
        })
    }

    #[test]
    fn buffers_are_aligned_zeroed_disjoint_and_reused() {
        let heap = heap(2 << 20);
        let mut a = heap.alloc(100, 64).unwrap();
        let b = heap.alloc(4096, 4096).unwrap();
        a.fill(0xaa);
        assert!(b.iter().all(|&byte| byte == 0));
        assert_eq!(b.iova().0 % 4096, 0);
        drop((a, b));
        assert_eq!(heap.used_bytes(), 0);
        let whole = heap.alloc(2 << 20, 4096).unwrap();
        assert!(
            whole.iter().all(|&byte| byte == 0),
            "reused memory is zeroed"
        );
    }

    #[test]
    fn the_limit_holds() {
        let heap = heap(2 << 20);
        let keep = heap.alloc(2 << 20, 64).unwrap();
        let error = heap.alloc(64, 64).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        drop(keep);
        heap.alloc(64, 64).unwrap();
        assert_eq!(heap.reserved_bytes(), 2 << 20);
    }

    /// A host that pins so many bytes and no more, as `RLIMIT_MEMLOCK` has it.
    struct Miser(Mutex<usize>);

    impl Mapper for Miser {
        fn map(&self, arena: &Arc<Arena>) -> Result<()> {
            let mut left = self.0.lock().unwrap();
            *left = left
                .checked_sub(arena.len_bytes())
                .ok_or_else(|| Error::new(ErrorKind::OutOfMemory, "no more may be pinned"))?;
            Ok(())
        }

        fn unmap(&self, arena: &Arc<Arena>) -> Result<()> {
            *self.0.lock().unwrap() += arena.len_bytes();
            Ok(())
        }
    }

    #[test]
    fn arenas_are_as_large_as_the_host_lets_them_be() {
        let heap = Heap::new(HeapConfig {
            arena_bytes: 32 << 20,
            huge_pages: HugePages::Never,
            ..HeapConfig::default()
        });
        heap.attach(Arc::new(Miser(Mutex::new(11 << 20)))).unwrap();
        let small = heap.alloc(4096, 4096).unwrap();
        assert_eq!(heap.reserved_bytes(), 8 << 20);
        // Larger than the rest of the first arena.
        let error = heap.alloc(8 << 20, 4096).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        let more = heap.alloc((8 << 20) - 8192, 4096).unwrap();
        let last = heap.alloc(1 << 20, 4096).unwrap();
        assert_eq!(heap.reserved_bytes(), 10 << 20);
        drop((small, more, last));
    }

    #[test]
    fn seeded_cuts_and_returns_leave_nothing_behind() {
        use rand::{Rng, SeedableRng};
        let heap = heap(8 << 20);
        let mut rng = rand::rngs::StdRng::seed_from_u64(7);
        let mut live: Vec<(DmaBuf, u8)> = Vec::new();
        for round in 0..4000u32 {
            if live.len() < 60 && rng.random_bool(0.6) {
                let len = rng.random_range(1..60_000);
                let align = 1 << rng.random_range(0..13);
                let mut buf = heap.alloc(len, align).unwrap();
                let tag = (round % 251) as u8;
                buf.fill(tag);
                live.push((buf, tag));
            } else if !live.is_empty() {
                let (buf, tag) = live.swap_remove(rng.random_range(0..live.len()));
                assert!(buf.iter().all(|&byte| byte == tag));
            }
        }
        live.clear();
        assert_eq!(heap.used_bytes(), 0);
        heap.alloc(2 << 20, 4096).unwrap();
    }
}
