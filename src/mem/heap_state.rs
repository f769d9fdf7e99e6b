//! The state behind a heap: its configuration, its arenas with their free ranges, and the devices.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use super::arena::Arena;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::HUGE_PAGE_BYTES;

/// Whether arenas come from hugepages.
///
/// ```
/// use xtent::target::{HugePages, TargetOptions};
/// let options = TargetOptions::new().huge_pages(HugePages::Require);
/// # drop(options);
/// ```
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

/// How a [`super::Heap`] gets its memory.
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

pub(super) struct HeapInner {
    pub(super) config: HeapConfig,
    pub(super) source: Option<Arc<dyn ArenaSource>>,
    pub(super) state: Mutex<HeapState>,
}

#[derive(Default)]
pub(super) struct HeapState {
    pub(super) arenas: Vec<HeapArena>,
    pub(super) mappers: Vec<Arc<dyn Mapper>>,
    pub(super) used_bytes: usize,
}

/// An arena with its free ranges, `offset -> length`.
pub(super) struct HeapArena {
    pub(super) arena: Arc<Arena>,
    free: BTreeMap<usize, usize>,
}

impl HeapInner {
    pub(super) fn lock(&self) -> MutexGuard<'_, HeapState> {
        // A panic while holding the lock cannot leave the lists half-changed in a way that matters
        // more than losing the memory for good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn grow(&self, state: &mut HeapState, need_bytes: usize) -> Result<()> {
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
    pub(super) fn reserved_bytes(&self) -> usize {
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
    pub(super) fn cut(&mut self, len: usize, align: usize) -> Option<(Arc<Arena>, usize)> {
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
    /// Takes back a range that `DmaBuf::cut` was given, joining it with its free neighbours.
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
