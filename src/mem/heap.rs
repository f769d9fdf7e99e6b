//! Cuts buffers from arenas and keeps the arenas mapped in the attached devices.

use std::fmt;
use std::sync::{Arc, Mutex};

use super::arena::Backing;
use super::buf::DmaBuf;
use super::heap_state::{ArenaSource, HeapConfig, HeapInner, Mapper};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::HUGE_PAGE_BYTES;

/// Smallest piece and alignment, in bytes: a cache line, so that no two buffers share one.
const GRAIN_BYTES: usize = 64;

/// Memory for DMA. Cheap to clone; all clones share the arenas. Freed pieces are reused; arenas
/// live as long as the heap and its buffers.
#[derive(Clone)]
pub struct Heap(Arc<HeapInner>);

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

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Arena, HugePages};
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
