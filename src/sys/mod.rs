//! System calls, wrapped so that the rest of the crate stays safe.
//!
//! Layer 0, an unsafe island: nothing here knows of devices or files of a volume.
#![expect(unsafe_code, reason = "system calls are made here and nowhere else")]

mod affinity;
mod aio;
mod bytelock;
mod clock;
mod direct_file;
mod direct_ring;
mod epoll;
mod eventfd;
mod fallocate;
mod gate;
mod held;
mod hostdir;
mod hostnode;
mod hostpath;
mod hugetlb;
mod lease;
mod limits;
mod loopmount;
mod loopstat;
mod membarrier;
mod memfd;
mod pages;
mod peer;
mod peerfds;
mod process_limit;
mod sigbus;
mod signal;
mod threads;
mod ticks;
mod unix;
mod uring;
mod zeroed;

pub use affinity::pin_thread;
pub use bytelock::{are_bytes_locked, lock_bytes};
pub use clock::{coarse_time, fine_time};
pub use direct_file::{DirectAlign, set_blocking, set_direct};
pub use direct_ring::{DirectRing, Pinned, PinnedMemory, RingMemory, RingOp};
pub use epoll::EpollSet;
pub use eventfd::EventFd;
pub use fallocate::{collapse_range, file_size_limit, preallocate, punch_hole, zero_range};
pub use gate::{GateState, GateWriter, WriteGate};
pub use held::HeldFile;
pub use hostdir::{HostDir, HostTime};
pub use hostnode::{HostNode, umask};
pub use hostpath::HostPath;
pub use hugetlb::{hugetlbfs_mounts, remove_stale_huge_files, unreserved_huge_pages};
pub use lease::{LeaseKind, give_lease_back, take_lease};
pub use limits::{available_bytes, charge_room_bytes, memory_limit_bytes};
pub use loopmount::{LoopDevice, LoopOptions, XfsMount, is_root, private_mounts};
pub use loopstat::{FileId, file_serial, loop_device_of};
pub use membarrier::{heavy_barrier, is_fenced_by_kernel, kernel_light_barrier, light_barrier};
pub use memfd::{
    HUGE_PAGE_BYTES, is_eventfd, is_local_file, is_memory, memory_file, memory_page_bytes,
};
pub use pages::{PageKind, Pages, prefer_huge_pages};
pub use peer::SocketPeer;
pub use peerfds::PeerFds;
pub use process_limit::{ProcessLimit, address_space_left, limit_error};
pub use sigbus::{Cover, Guard, handle_sigbus, leave_out_handler};
pub use signal::{
    catch_interrupts, end_within, hold_interrupts, ignore_file_size_signal, interrupted,
};
pub use threads::{spawn_scoped, spawn_small_thread, spawn_thread};
pub use ticks::Ticks;
pub use unix::{
    MOST_FDS, connect_unix, listen_unix, receive_with_fds, send_with_fds, wait_readable,
};
pub use uring::{Slots, Uring, UringOp};
pub use zeroed::zeroed_bytes;
