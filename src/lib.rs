//! **xtent**: a storage stack that bypasses the kernel on the I/O path, but keeps your XFS files.
//!
//! A file range becomes mappings (`iomap`), each mapping one chain of NVMe commands (`block`,
//! `nvme`) on a controller that is reached over `device` from memory of `mem`; underneath is real
//! XFS (`xfs`). The API is [`volume`], [`target`] and the
//! error type; ARCHITECTURE.md has the design.
//!
//! The library prints nothing. Errors are returned; what has no caller to be returned to (missing
//! hugepages, a failure while the last handle of a volume is dropped) is an event of the `tracing`
//! crate. Install a subscriber to see these events.

// Doorbells rely on stores that stay in order before a device sees them, pages on copies in
// assembly: neither has been written for another processor.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("xtent runs on Linux on x86-64 only");

mod block;
#[cfg(not(loom))]
mod cache;
// Under loom only what it checks is compiled: the cache's index and flusher wakeup, and the pages
// beneath (`mem::pages`); and nothing that uses the cache.
#[cfg(loom)]
#[expect(dead_code, reason = "its users are not compiled")]
mod cache {
    mod alarm;
    mod index;
    #[cfg(test)]
    mod loom_tests;
    mod wait;
    mod waiters;
}
mod device;
mod error;
mod iomap;
mod mem;
mod nvme;
mod probe;
mod spdk;
mod sys;
#[cfg(not(loom))]
pub mod target;
mod units;
mod uring;
#[cfg(not(loom))]
pub mod volume;
mod xfs;

pub use error::{Error, ErrorKind, Result};

/// The modules below `volume`, for the project's own command, tests, benches and fuzz targets.
///
/// Not part of the API: anything here may change in any release, and its functions rely on
/// callers that keep the contracts between the layers.
#[doc(hidden)]
pub mod internals {
    /// Re-exports one module of the crate.
    macro_rules! export {
        ($($name:ident)*) => {
            $(
                #[allow(missing_docs, reason = "documented at the module itself")]
                pub mod $name {
                    pub use crate::$name::*;
                }
            )*
        };
    }
    #[cfg(not(loom))]
    export!(cache);
    /// Of `target`: what the command shows of a controller and serves to other processes.
    #[cfg(not(loom))]
    pub mod target {
        pub use crate::nvme::{ErrorEntry, FirmwareSlots, SmartInfo};
        pub use crate::target::drive::{
            AtomicSummary, Drive, DriveInfo, FormatSummary, HugePageCount, NamespaceSummary,
        };
        pub use crate::target::open::controller_to_serve;
        pub use crate::target::raw::RawIo;
        pub use crate::target::spec::{TargetKind, TargetSpec};
    }
    export!(block device iomap mem nvme probe spdk sys units uring xfs);
    #[cfg(not(loom))]
    pub use crate::target::open::target_on_device;
    #[cfg(not(loom))]
    pub use crate::volume::check::check_target;
}

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// What safe code cannot do: each of these must not compile. (The error codes are checked by
/// nightly compilers only; the last example shows that the rest of such a program is right.)
///
/// A program reaches no module but `target` and `volume`:
/// ```compile_fail,E0603
/// use xtent::mem::Heap;
/// ```
/// ```compile_fail,E0603
/// use xtent::block::Queue;
/// ```
/// ```compile_fail,E0603
/// use xtent::device::Device;
/// ```
/// A segment that lets a device write to memory is made from lent memory only:
/// ```compile_fail,E0451
/// use xtent::internals::{mem::{Heap, HeapConfig, Segment}, units::Iova};
/// let buf = Heap::new(HeapConfig::default()).alloc(4096, 4096).unwrap();
/// let segment = Segment { iova: buf.iova(), len_bytes: 4096 };
/// ```
/// ```compile_fail,E0133
/// use xtent::internals::{mem::{Heap, HeapConfig, Segment}, units::Iova};
/// let buf = Heap::new(HeapConfig::default()).alloc(4096, 4096).unwrap();
/// let segment = Segment::anywhere(buf.iova(), 4096);
/// ```
/// Memory that is with a device is neither read nor taken back:
/// ```compile_fail,E0624
/// use xtent::internals::mem::{Heap, HeapConfig};
/// let lent = Heap::new(HeapConfig::default()).alloc(4096, 4096).unwrap().lend();
/// let buf = lent.take_back();
/// ```
/// ```compile_fail,E0382
/// use xtent::internals::mem::{Heap, HeapConfig};
/// let buf = Heap::new(HeapConfig::default()).alloc(4096, 4096).unwrap();
/// let lent = buf.lend();
/// let first = buf[0];
/// ```
/// What a device sees of memory is not for programs:
/// ```compile_fail,E0624
/// use xtent::internals::{mem::DmaSpace, units::Iova};
/// let range = DmaSpace::default().translate(Iova(0), 8);
/// ```
/// ```compile_fail,E0133
/// use xtent::internals::{mem::DmaSpace, units::Iova};
/// let range = DmaSpace::default().reach(Iova(0), 8);
/// ```
/// Nor are an arena's memory and its file:
/// ```compile_fail,E0624
/// use xtent::internals::mem::Arena;
/// let arena = Arena::ordinary(1).unwrap();
/// let base = arena.base();
/// ```
/// ```compile_fail,E0624
/// use xtent::internals::mem::Arena;
/// let arena = Arena::shared(1, false).unwrap();
/// let file = arena.file();
/// ```
/// ```compile_fail,E0624
/// use xtent::internals::mem::Arena;
/// let arena = std::sync::Arc::new(Arena::ordinary(1).unwrap());
/// let pinned = arena.pinned();
/// ```
/// A buffer that was submitted is gone until the operation ends, and a view ends before its `Io`:
/// ```compile_fail,E0382
/// use xtent::volume::{File, Io};
/// fn twice(io: &mut Io, file: &File) {
///     let buf = io.alloc(4096).unwrap();
///     io.submit_read(file, 0, buf, 1).unwrap();
///     println!("{}", buf[0]);
/// }
/// ```
/// All of the above but the forbidden line:
/// ```
/// use xtent::internals::mem::{Arena, DmaSpace, Heap, HeapConfig, HugePages, Segment};
/// use xtent::internals::units::Iova;
/// let config = HeapConfig { huge_pages: HugePages::Never, ..HeapConfig::default() };
/// let buf = Heap::new(config).alloc(4096, 4096).unwrap();
/// let (first, iova) = (buf[0], buf.iova());
/// let lent = buf.lend();
/// let segment: Segment = lent.segment(0..4096).unwrap();
/// assert_eq!((first, segment.iova()), (0, iova));
/// let arena = std::sync::Arc::new(Arena::ordinary(1).unwrap());
/// assert_eq!(arena.len_bytes(), 2 << 20);
/// let space = DmaSpace::default();
/// assert!(!space.is_edge(Iova(0)));
/// ```
#[cfg(doctest)]
struct Forbidden;
