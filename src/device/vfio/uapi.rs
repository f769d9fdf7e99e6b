//! The system calls of VFIO and iommufd (`linux/vfio.h`, `linux/iommufd.h`), each with the memory
//! it needs.
//!
//! Structures come from `vfio-bindings` and `iommufd-bindings`, which assert their layouts.

use std::fs::File;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use iommufd_bindings::iommufd as iommu;
use vfio_bindings::bindings::vfio;
use zerocopy::IntoBytes;

use super::address::PciAddress;
use super::caps::{KernelStruct, VfioRegion};

/// `_IO(';', number)`: what all these calls are, on the architectures that this runs on.
const fn request(number: u32) -> libc::Ioctl {
    ((b';' as libc::Ioctl) << 8) | number as libc::Ioctl
}

const VFIO_GET_API_VERSION: libc::Ioctl = request(100);
const VFIO_CHECK_EXTENSION: libc::Ioctl = request(101);
const VFIO_SET_IOMMU: libc::Ioctl = request(102);
const VFIO_GROUP_GET_STATUS: libc::Ioctl = request(103);
const VFIO_GROUP_SET_CONTAINER: libc::Ioctl = request(104);
const VFIO_GROUP_GET_DEVICE_FD: libc::Ioctl = request(106);
const VFIO_DEVICE_GET_INFO: libc::Ioctl = request(107);
const VFIO_DEVICE_GET_REGION_INFO: libc::Ioctl = request(108);
const VFIO_DEVICE_GET_IRQ_INFO: libc::Ioctl = request(109);
const VFIO_DEVICE_SET_IRQS: libc::Ioctl = request(110);
const VFIO_DEVICE_RESET: libc::Ioctl = request(111);
const VFIO_IOMMU_GET_INFO: libc::Ioctl = request(112);
const VFIO_IOMMU_MAP_DMA: libc::Ioctl = request(113);
const VFIO_IOMMU_UNMAP_DMA: libc::Ioctl = request(114);
const VFIO_DEVICE_BIND_IOMMUFD: libc::Ioctl = request(118);
const VFIO_DEVICE_ATTACH_IOMMUFD_PT: libc::Ioctl = request(119);
const IOMMU_IOAS_ALLOC: libc::Ioctl = request(0x81);
const IOMMU_IOAS_IOVA_RANGES: libc::Ioctl = request(0x84);
const IOMMU_IOAS_MAP: libc::Ioctl = request(0x85);
const IOMMU_IOAS_UNMAP: libc::Ioctl = request(0x86);

/// The most that an answer may grow to, in bytes.
const ANSWER_LIMIT_BYTES: u32 = 64 << 10;

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A call that takes a plain number.
///
/// # Safety
/// The kernel does not take `value` for an address under this `request`.
unsafe fn call_number(
    fd: BorrowedFd<'_>,
    request: libc::Ioctl,
    value: libc::c_ulong,
) -> io::Result<libc::c_int> {
    // SAFETY: the descriptor is open; no memory of ours is involved (caller).
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, value) })
}

/// A call that takes a structure.
///
/// # Safety
/// Under this `request` the kernel reads and writes at `argument` no more than a `T`, and whatever
/// addresses are inside of it are what the request needs.
unsafe fn call<T>(
    fd: BorrowedFd<'_>,
    request: libc::Ioctl,
    argument: &mut T,
) -> io::Result<libc::c_int> {
    // SAFETY: the descriptor is open and `argument` is a `T` that may be written to; the rest is
    // the caller's.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) })
}

fn size_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

/// A call whose answer begins with its own size (`argsz`) and may be longer than first thought:
/// asked again with as much memory as the kernel wants. `words` follow `argsz` in the question.
///
/// # Safety
/// `request` takes a structure of at least `least_bytes` that begins with `argsz`, and the kernel
/// writes no more than that says.
unsafe fn ask(
    fd: BorrowedFd<'_>,
    request: libc::Ioctl,
    least_bytes: u32,
    words: &[u32],
) -> io::Result<Vec<u8>> {
    let mut len_bytes = least_bytes;
    loop {
        // Whole 64-bit words keep the structure aligned.
        let mut memory = vec![0_u32; (len_bytes as usize).next_multiple_of(8) / 4];
        memory[0] = len_bytes;
        memory[1..=words.len()].copy_from_slice(words);
        // SAFETY: the descriptor is open; `memory` has the length that its first word, argsz, says,
        // and the kernel copies bytes, so that 4-byte alignment is enough.
        checked(unsafe { libc::ioctl(fd.as_raw_fd(), request, memory.as_mut_ptr()) })?;
        let wanted = memory[0];
        if wanted <= len_bytes || len_bytes > least_bytes {
            return Ok(memory.as_bytes()[..len_bytes as usize].to_vec());
        }
        len_bytes = wanted.min(ANSWER_LIMIT_BYTES);
    }
}

fn nonsense() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's answer makes no sense",
    )
}

/// The legacy container's version; 0 is the one there is.
pub(super) fn api_version(container: &File) -> io::Result<i32> {
    // SAFETY: the argument is not looked at.
    unsafe { call_number(container.as_fd(), VFIO_GET_API_VERSION, 0) }
}

/// Whether the container offers type1 (v2) IOMMUs.
pub(super) fn has_type1v2(container: &File) -> io::Result<bool> {
    let extension = libc::c_ulong::from(vfio::VFIO_TYPE1v2_IOMMU);
    // SAFETY: the argument is a number.
    let has = unsafe { call_number(container.as_fd(), VFIO_CHECK_EXTENSION, extension) }?;
    Ok(has == 1)
}

/// Makes the container one of the type1 (v2) kind.
pub(super) fn set_type1v2(container: &File) -> io::Result<()> {
    let kind = libc::c_ulong::from(vfio::VFIO_TYPE1v2_IOMMU);
    // SAFETY: the argument is a number.
    unsafe { call_number(container.as_fd(), VFIO_SET_IOMMU, kind) }.map(drop)
}

/// The flags of a group (`VFIO_GROUP_FLAGS_*`).
pub(super) fn group_flags(group: &File) -> io::Result<u32> {
    let mut status = vfio::vfio_group_status {
        argsz: size_u32::<vfio::vfio_group_status>(),
        flags: 0,
    };
    // SAFETY: the request takes this structure, which has no addresses.
    unsafe { call(group.as_fd(), VFIO_GROUP_GET_STATUS, &mut status) }?;
    Ok(status.flags)
}

/// Puts a group into a container.
pub(super) fn set_container(group: &File, container: &File) -> io::Result<()> {
    let mut fd = container.as_raw_fd();
    // SAFETY: the request takes a descriptor's number by its address.
    unsafe { call(group.as_fd(), VFIO_GROUP_SET_CONTAINER, &mut fd) }.map(drop)
}

/// Opens a device of a group.
pub(super) fn device_of_group(group: &File, address: PciAddress) -> io::Result<File> {
    let mut name = [0_u8; 32];
    let text = address.to_string();
    name[..text.len()].copy_from_slice(text.as_bytes());
    // SAFETY: the request takes a string that ends in a zero byte: the text is at most 16 bytes of
    // the 32.
    let fd = unsafe { call(group.as_fd(), VFIO_GROUP_GET_DEVICE_FD, &mut name) }?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// The flags of a device (`VFIO_DEVICE_FLAGS_*`).
pub(super) fn device_flags(device: &File) -> io::Result<u32> {
    let size = size_u32::<vfio::vfio_device_info>();
    // SAFETY: the request takes this structure, argsz first.
    let bytes = unsafe { ask(device.as_fd(), VFIO_DEVICE_GET_INFO, size, &[]) }?;
    let flags = KernelStruct(&bytes).u32(offset_of!(vfio::vfio_device_info, flags));
    flags.ok_or_else(nonsense)
}

/// A region of a device, by its index.
pub(super) fn region(device: &File, index: u32) -> io::Result<VfioRegion> {
    let size = size_u32::<vfio::vfio_region_info>();
    // SAFETY: the request takes this structure: argsz, flags, index.
    let bytes = unsafe {
        ask(
            device.as_fd(),
            VFIO_DEVICE_GET_REGION_INFO,
            size,
            &[0, index],
        )
    }?;
    VfioRegion::parse(&bytes).ok_or_else(nonsense)
}

/// How many interrupts of the kind `index` a device has.
pub(super) fn irq_count(device: &File, index: u32) -> io::Result<u32> {
    let mut info = vfio::vfio_irq_info {
        argsz: size_u32::<vfio::vfio_irq_info>(),
        index,
        ..Default::default()
    };
    // SAFETY: the request takes this structure, which has no addresses.
    unsafe { call(device.as_fd(), VFIO_DEVICE_GET_IRQ_INFO, &mut info) }?;
    Ok(info.count)
}

/// Connects interrupts of the kind `index`, from number `start` on, to counters; `None` connects
/// nothing.
///
/// # Errors
/// The call's errno. `Ok(Some(n))`: nothing is connected, the host could have given `n`.
pub(super) fn set_irqs(
    device: &File,
    index: u32,
    start: u32,
    events: &[Option<BorrowedFd<'_>>],
) -> io::Result<Option<u32>> {
    let count = u32::try_from(events.len()).map_err(io::Error::other)?;
    let flags = vfio::VFIO_IRQ_SET_DATA_EVENTFD | vfio::VFIO_IRQ_SET_ACTION_TRIGGER;
    let size = size_u32::<vfio::vfio_irq_set>().saturating_add(count.saturating_mul(4));
    // The structure is five words; the descriptors' numbers follow it, -1 for none.
    const { assert!(size_of::<vfio::vfio_irq_set>() == 20) };
    let mut words = vec![size, flags, index, start, count];
    words.extend(events.iter().map(|event| {
        let fd: RawFd = event.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        fd.cast_unsigned()
    }));
    // SAFETY: the descriptor is open; the request reads argsz bytes, which is what `words` has.
    let result = checked(unsafe {
        libc::ioctl(device.as_raw_fd(), VFIO_DEVICE_SET_IRQS, words.as_mut_ptr())
    })?;
    Ok((result > 0).then_some(result.unsigned_abs()))
}

/// Resets the device's function.
pub(super) fn reset(device: &File) -> io::Result<()> {
    // SAFETY: the argument is not looked at.
    unsafe { call_number(device.as_fd(), VFIO_DEVICE_RESET, 0) }.map(drop)
}

/// What the container's IOMMU can do, as bytes for [`super::caps::parse_iommu`].
pub(super) fn iommu_info(container: &File) -> io::Result<Vec<u8>> {
    let size = size_u32::<vfio::vfio_iommu_type1_info>();
    // SAFETY: the request takes this structure, argsz first.
    unsafe { ask(container.as_fd(), VFIO_IOMMU_GET_INFO, size, &[]) }
}

/// Memory of ours and the device addresses that shall stand for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct VfioMapping {
    pub(super) base: NonNull<u8>,
    pub(super) iova: u64,
    pub(super) len_bytes: u64,
}

/// Maps memory for reading and writing.
///
/// # Safety
/// The memory belongs to the caller, who accesses it as memory that changes at any time, and keeps
/// it until it is unmapped.
pub(super) unsafe fn map_dma(container: &File, mapping: VfioMapping) -> io::Result<()> {
    let mut map = vfio::vfio_iommu_type1_dma_map {
        argsz: size_u32::<vfio::vfio_iommu_type1_dma_map>(),
        flags: vfio::VFIO_DMA_MAP_FLAG_READ | vfio::VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: mapping.base.as_ptr().expose_provenance() as u64,
        iova: mapping.iova,
        size: mapping.len_bytes,
    };
    // SAFETY: the request takes this structure; the memory it names is the caller's to give.
    unsafe { call(container.as_fd(), VFIO_IOMMU_MAP_DMA, &mut map) }.map(drop)
}

/// Unmaps device addresses; how many bytes were mapped there.
pub(super) fn unmap_dma(container: &File, iova: u64, len_bytes: u64) -> io::Result<u64> {
    let mut unmap = vfio::vfio_iommu_type1_dma_unmap {
        argsz: size_u32::<vfio::vfio_iommu_type1_dma_unmap>(),
        flags: 0,
        iova,
        size: len_bytes,
        ..Default::default()
    };
    // SAFETY: the request takes this structure; without flags nothing follows it.
    unsafe { call(container.as_fd(), VFIO_IOMMU_UNMAP_DMA, &mut unmap) }?;
    Ok(unmap.size)
}

/// Gives a device that was opened by its character device to an iommufd.
pub(super) fn bind_iommufd(device: &File, iommufd: &File) -> io::Result<()> {
    let mut bind = vfio::vfio_device_bind_iommufd {
        argsz: size_u32::<vfio::vfio_device_bind_iommufd>(),
        iommufd: iommufd.as_raw_fd(),
        ..Default::default()
    };
    // SAFETY: the request takes this structure; without flags its address is not looked at.
    unsafe { call(device.as_fd(), VFIO_DEVICE_BIND_IOMMUFD, &mut bind) }.map(drop)
}

/// Attaches a bound device to an address space.
pub(super) fn attach_iommufd(device: &File, ioas: u32) -> io::Result<()> {
    let mut attach = vfio::vfio_device_attach_iommufd_pt {
        argsz: size_u32::<vfio::vfio_device_attach_iommufd_pt>(),
        pt_id: ioas,
        ..Default::default()
    };
    // SAFETY: the request takes this structure, which has no addresses.
    unsafe { call(device.as_fd(), VFIO_DEVICE_ATTACH_IOMMUFD_PT, &mut attach) }.map(drop)
}

/// Makes an address space; its id.
pub(super) fn alloc_ioas(iommufd: &File) -> io::Result<u32> {
    let mut alloc = iommu::iommu_ioas_alloc {
        size: size_u32::<iommu::iommu_ioas_alloc>(),
        ..Default::default()
    };
    // SAFETY: the request takes this structure, which has no addresses.
    unsafe { call(iommufd.as_fd(), IOMMU_IOAS_ALLOC, &mut alloc) }?;
    Ok(alloc.out_ioas_id)
}

/// The ranges of an address space as `(first, last)`, and its alignment in bytes.
pub(super) fn ioas_ranges(iommufd: &File, ioas: u32) -> io::Result<(Vec<(u64, u64)>, u64)> {
    /// More ranges than any platform has holes.
    const MOST: u32 = 512;
    let mut pairs = vec![(0_u64, 0_u64); MOST as usize];
    let mut raw = vec![iommu::iommu_iova_range::default(); MOST as usize];
    let mut ranges = iommu::iommu_ioas_iova_ranges {
        size: size_u32::<iommu::iommu_ioas_iova_ranges>(),
        ioas_id: ioas,
        num_iovas: MOST,
        allowed_iovas: raw.as_mut_ptr().expose_provenance() as u64,
        ..Default::default()
    };
    // SAFETY: the request takes this structure and writes at most `num_iovas` ranges, as many as
    // `raw` has.
    unsafe { call(iommufd.as_fd(), IOMMU_IOAS_IOVA_RANGES, &mut ranges) }?;
    pairs.truncate(ranges.num_iovas as usize);
    for (pair, range) in pairs.iter_mut().zip(&raw) {
        *pair = (range.start, range.last);
    }
    Ok((pairs, ranges.out_iova_alignment))
}

/// Maps memory into an address space, for reading and writing.
///
/// # Safety
/// As [`map_dma`].
pub(super) unsafe fn map_ioas(iommufd: &File, ioas: u32, mapping: VfioMapping) -> io::Result<()> {
    let mut map = iommu::iommu_ioas_map {
        size: size_u32::<iommu::iommu_ioas_map>(),
        flags: iommu::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA
            | iommu::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE
            | iommu::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
        ioas_id: ioas,
        user_va: mapping.base.as_ptr().expose_provenance() as u64,
        length: mapping.len_bytes,
        iova: mapping.iova,
        ..Default::default()
    };
    // SAFETY: the request takes this structure; the memory it names is the caller's to give.
    unsafe { call(iommufd.as_fd(), IOMMU_IOAS_MAP, &mut map) }.map(drop)
}

/// Unmaps device addresses from an address space; how many bytes were mapped there.
pub(super) fn unmap_ioas(iommufd: &File, ioas: u32, iova: u64, len_bytes: u64) -> io::Result<u64> {
    let mut unmap = iommu::iommu_ioas_unmap {
        size: size_u32::<iommu::iommu_ioas_unmap>(),
        ioas_id: ioas,
        iova,
        length: len_bytes,
    };
    // SAFETY: the request takes this structure, which has no addresses.
    unsafe { call(iommufd.as_fd(), IOMMU_IOAS_UNMAP, &mut unmap) }?;
    Ok(unmap.length)
}

/// The limit of locked memory in bytes (`RLIMIT_MEMLOCK`), which pinned memory counts against.
pub(super) fn memlock_limit_bytes() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a structure of ours that the call fills in.
    checked(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) }).ok()?;
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Reads from a region through the device's descriptor.
pub(super) fn read_region<const N: usize>(
    device: &File,
    region: &VfioRegion,
    at: u64,
) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    device.read_exact_at(&mut bytes, position(region, at, N)?)?;
    Ok(bytes)
}

/// Writes to a region through the device's descriptor.
pub(super) fn write_region(
    device: &File,
    region: &VfioRegion,
    at: u64,
    bytes: &[u8],
) -> io::Result<()> {
    device.write_all_at(bytes, position(region, at, bytes.len())?)
}

fn position(region: &VfioRegion, at: u64, len_bytes: usize) -> io::Result<u64> {
    let end = at.checked_add(len_bytes as u64);
    end.filter(|end| *end <= region.len_bytes)
        .and_then(|_| region.offset.checked_add(at))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "past the end of the region"))
}
