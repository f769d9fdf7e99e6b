//! The two interfaces of an IOMMU: a container with the device's group (the legacy one,
//! everywhere), and an address space of iommufd (kernels with `CONFIG_IOMMUFD` and
//! `CONFIG_VFIO_DEVICE_CDEV`).
//!
//! Every device gets a container or an address space of its own: devices and processes do not share
//! faults.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vfio_bindings::bindings::vfio::VFIO_GROUP_FLAGS_VIABLE;

use super::VfioBackend;
use super::address::{FoundDevice, holders};
use super::caps::parse_iommu;
use super::iova::{IovaLimits, IovaRange};
use super::uapi::{self, VfioMapping};
use crate::error::{Error, ErrorKind, Result};

/// Retries while a device is open elsewhere: in a program that is just ending, or in a child that
/// another thread of this process has forked and that has all its descriptors until its exec.
struct OpenRetry(Instant);

impl OpenRetry {
    fn new() -> Self {
        Self(Instant::now() + Duration::from_millis(500))
    }

    /// Sleeps until the next try; false when there were enough of them.
    fn lasts(&self) -> bool {
        let lasts = Instant::now() <= self.0;
        if lasts {
            std::thread::sleep(Duration::from_millis(5));
        }
        lasts
    }
}

/// A device's address space, as the IOMMU translates it.
#[derive(Debug)]
pub(super) struct Iommu {
    kind: IommuKind,
    limits: IovaLimits,
}

/// Descriptors close in the order of the fields: a group leaves its container before that goes.
#[derive(Debug)]
enum IommuKind {
    Container { _group: File, container: File },
    Iommufd { iommufd: File, ioas: u32 },
}

impl Iommu {
    pub(super) fn limits(&self) -> &IovaLimits {
        &self.limits
    }

    /// Maps memory. The caller has checked the addresses against the limits.
    ///
    /// # Safety
    /// As [`uapi::map_dma`].
    pub(super) unsafe fn map(&self, mapping: VfioMapping) -> Result<()> {
        let result = match &self.kind {
            // SAFETY: the caller's.
            IommuKind::Container { container, .. } => unsafe { uapi::map_dma(container, mapping) },
            // SAFETY: the caller's.
            IommuKind::Iommufd { iommufd, ioas } => unsafe {
                uapi::map_ioas(iommufd, *ioas, mapping)
            },
        };
        result.map_err(|e| map_error(mapping, e))
    }

    /// Unmaps what one [`Iommu::map`] mapped.
    pub(super) fn unmap(&self, iova: u64, len_bytes: u64) -> Result<()> {
        let unmapped = match &self.kind {
            IommuKind::Container { container, .. } => uapi::unmap_dma(container, iova, len_bytes),
            IommuKind::Iommufd { iommufd, ioas } => {
                uapi::unmap_ioas(iommufd, *ioas, iova, len_bytes)
            }
        };
        let unmapped = unmapped.map_err(|e| {
            Error::system(format!("cannot unmap {len_bytes} bytes at {iova:#x}"), e)
        })?;
        if unmapped == len_bytes {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::System,
            format!("the kernel unmapped {unmapped} of {len_bytes} bytes at {iova:#x}"),
        ))
    }

    /// Opens the device with the backend that is wanted, or the first that is there.
    pub(super) fn open(found: &FoundDevice, backend: VfioBackend) -> Result<(Self, File)> {
        match backend {
            VfioBackend::Group => open_group(found),
            VfioBackend::Iommufd => open_iommufd(found),
            VfioBackend::Auto => {
                let legacy = Path::new(CONTAINER).exists() && group_path(found).exists();
                if legacy || found.cdev.is_none() {
                    open_group(found)
                } else {
                    open_iommufd(found)
                }
            }
        }
    }
}

const CONTAINER: &str = "/dev/vfio/vfio";

fn group_path(found: &FoundDevice) -> PathBuf {
    PathBuf::from(format!("/dev/vfio/{}", found.group))
}

fn open_group(found: &FoundDevice) -> Result<(Iommu, File)> {
    let container = open_rw(Path::new(CONTAINER), found)?;
    let version = uapi::api_version(&container);
    let type1v2 = uapi::has_type1v2(&container);
    if version.as_ref().ok() != Some(&0) || !type1v2.is_ok_and(|has| has) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the kernel's VFIO has no type1 (v2) IOMMU; run: sudo modprobe vfio_iommu_type1",
        ));
    }
    let group = open_rw(&group_path(found), found)?;
    let flags = uapi::group_flags(&group).map_err(|e| failed("ask for the group's status", e))?;
    if flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
        return Err(not_viable(found));
    }
    uapi::set_container(&group, &container).map_err(|e| failed("give the group an IOMMU", e))?;
    uapi::set_type1v2(&container).map_err(|e| match e.raw_os_error() {
        Some(libc::EPERM) => Error::new(
            ErrorKind::Unsupported,
            "this host's IOMMU does not remap interrupts; to take the risk, load vfio_iommu_type1 with \
             allow_unsafe_interrupts=1",
        ),
        _ => failed("set the IOMMU up", e),
    })?;
    let answer =
        uapi::iommu_info(&container).map_err(|e| failed("ask what the IOMMU can do", e))?;
    let limits = parse_iommu(&answer).ok_or_else(|| failed("read what the IOMMU can do", bad()))?;
    let device = uapi::device_of_group(&group, found.address)
        .map_err(|e| failed("open the device of the group", e))?;
    let kind = IommuKind::Container {
        _group: group,
        container,
    };
    Ok((Iommu { kind, limits }, device))
}

fn open_iommufd(found: &FoundDevice) -> Result<(Iommu, File)> {
    let Some(name) = &found.cdev else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "this kernel offers no VFIO character devices (CONFIG_VFIO_DEVICE_CDEV), which iommufd needs",
        ));
    };
    let iommufd = open_rw(Path::new("/dev/iommu"), found)?;
    let device = bind(&Path::new("/dev/vfio/devices").join(name), &iommufd, found)?;
    let ioas = uapi::alloc_ioas(&iommufd).map_err(|e| failed("make an address space", e))?;
    uapi::attach_iommufd(&device, ioas).map_err(|e| failed("attach the address space", e))?;
    let (pairs, alignment) =
        uapi::ioas_ranges(&iommufd, ioas).map_err(|e| failed("ask what the IOMMU can do", e))?;
    let limits = IovaLimits::new(Some(IovaRange::list(&pairs)), alignment);
    let kind = IommuKind::Iommufd { iommufd, ioas };
    Ok((Iommu { kind, limits }, device))
}

/// Opens the device for this address space. Several processes may open the file; the second one to
/// bind is refused, with an errno that does not say why.
fn bind(path: &Path, iommufd: &File, found: &FoundDevice) -> Result<File> {
    let patience = OpenRetry::new();
    loop {
        let device = open_rw(path, found)?;
        let Err(error) = uapi::bind_iommufd(&device, iommufd) else {
            return Ok(device);
        };
        drop(device);
        if holders(path).is_empty() {
            return Err(match error.raw_os_error() {
                Some(libc::EINVAL | libc::EPERM) if !found.in_the_way().is_empty() => {
                    not_viable(found)
                }
                _ => failed("bind the device to iommufd", error),
            });
        }
        if !patience.lasts() {
            return Err(Error::new(ErrorKind::Busy, busy(path)).because(error));
        }
    }
}

fn open_rw(path: &Path, found: &FoundDevice) -> Result<File> {
    open_when_free(path).map_err(|e| {
        let shown = path.display();
        let address = found.address;
        let (kind, detail) = match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => (
                ErrorKind::Unsupported,
                format!("{shown} is missing: the vfio modules are not loaded; run: sudo ./vfio-setup.sh bind {address}"),
            ),
            Some(libc::EACCES | libc::EPERM) => (
                ErrorKind::PermissionDenied,
                format!(
                    "{shown} belongs to another user; run: sudo ./vfio-setup.sh bind {address} --user \"$USER\""
                ),
            ),
            Some(libc::EBUSY) => (ErrorKind::Busy, busy(path)),
            _ => (ErrorKind::System, format!("cannot open {shown}")),
        };
        Error::new(kind, detail).because(e)
    })
}

/// Opens it, and retries for a short time while another process has it open.
fn open_when_free(path: &Path) -> io::Result<File> {
    let patience = OpenRetry::new();
    loop {
        let result = OpenOptions::new().read(true).write(true).open(path);
        let busy = |error: &io::Error| error.raw_os_error() == Some(libc::EBUSY);
        if !(result.as_ref().is_err_and(busy) && patience.lasts()) {
            return result;
        }
    }
}

fn busy(path: &Path) -> String {
    let holders = holders(path);
    let who = if holders.is_empty() {
        "another process".to_owned()
    } else {
        holders.join(", ")
    };
    format!("{who} has this controller open; one program at a time can drive it")
}

fn not_viable(found: &FoundDevice) -> Error {
    let others = found.in_the_way();
    let detail = format!(
        "IOMMU group {} cannot be used: the kernel still drives other devices in it: {}; bind them to \
         vfio-pci too, or move the disk to another slot",
        found.group,
        if others.is_empty() {
            "see vfio-setup.sh status".to_owned()
        } else {
            others.join(", ")
        }
    );
    Error::new(ErrorKind::Busy, detail)
}

fn failed(what: &str, error: io::Error) -> Error {
    Error::system(format!("VFIO: cannot {what}"), error)
}

fn bad() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's answer makes no sense",
    )
}

/// Why memory could not be mapped, and what to do.
fn map_error(mapping: VfioMapping, error: io::Error) -> Error {
    let VfioMapping {
        iova, len_bytes, ..
    } = mapping;
    match error.raw_os_error() {
        Some(libc::ENOMEM) => {
            let limit = uapi::memlock_limit_bytes().map_or_else(
                || "the host is out of memory".to_owned(),
                |limit| {
                    format!(
                        "the limit of locked memory is {} KiB, for all that is pinned and locked together; \
                         raise it (ulimit -l, LimitMEMLOCK=, /etc/security/limits.conf)",
                        limit >> 10
                    )
                },
            );
            let detail = format!("cannot pin {len_bytes} bytes for the device: {limit}");
            Error::new(ErrorKind::OutOfMemory, detail).because(error)
        }
        Some(libc::ENOSPC) => Error::new(
            ErrorKind::OutOfMemory,
            "the IOMMU takes no more mappings (dma_entry_limit of vfio_iommu_type1)",
        )
        .because(error),
        Some(libc::EEXIST) => Error::new(
            ErrorKind::System,
            format!("device addresses from {iova:#x} are mapped already"),
        )
        .because(error),
        _ => Error::system(
            format!("cannot map {len_bytes} bytes at device address {iova:#x}"),
            error,
        ),
    }
}
