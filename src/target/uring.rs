//! `uring:` targets: a disk or a file through the kernel's block layer.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::image::{self, ImageAccess};
use super::{TargetInfo, TargetSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::mem::Heap;
use crate::sys::HeldFile;
use crate::uring::{DiskInfo, UringDisk};

/// Opens it exclusively, with `heap` for its memory.
pub(crate) fn open(
    spec: &TargetSpec,
    path: &Path,
    access: ImageAccess,
    heap: &Heap,
) -> Result<(UringDisk, Arc<HeldFile>)> {
    let is_device = fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
    let held = if is_device {
        let file = open_device(path, access)?;
        HeldFile::unwatched(file).map_err(|e| Error::system("cannot look at the device", e))
    } else {
        image::open(path, access)
    }?;
    let held = Arc::new(held);
    let disk = UringDisk::held(Arc::clone(&held), path, spec.lba_bytes, heap)?;
    Ok((disk, held))
}

fn open_device(path: &Path, access: ImageAccess) -> Result<File> {
    // The kernel refuses a device that is mounted or held by others, and mounting it meanwhile.
    let exclusive = if access.in_use { 0 } else { libc::O_EXCL };
    File::options()
        .read(true)
        .write(!access.read_only)
        .custom_flags(exclusive)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => Error::new(
                ErrorKind::Busy,
                "the device is mounted or in use (swap, LVM, md, another program): free it, or read \
                 it with the options readonly,inuse",
            )
            .because(error),
            _ => Error::system("cannot open the device", error),
        })
}

/// What stands behind it.
pub(crate) fn info(disk: &DiskInfo) -> TargetInfo {
    let what = if disk.is_device {
        "a block device"
    } else {
        "a file"
    };
    TargetInfo {
        target: String::new(),
        engine: format!("the kernel's io_uring, with direct I/O and registered memory, on {what}"),
        model: disk.model.clone(),
        serial: disk.serial.clone(),
        firmware: disk.firmware.clone(),
        nvme_version: String::new(),
        nsid: 0,
        lba_bytes: disk.block_bytes,
        capacity_bytes: disk.capacity_blocks.saturating_mul(disk.block_bytes.into()),
        start_bytes: 0,
        partition: None,
        max_transfer_bytes: None,
        boundary_blocks: 0,
        volatile_write_cache: disk.volatile_write_cache,
        read_only: false,
        max_queue_pairs: u32::MAX,
        queue_depth: 0,
        wait: String::new(),
        controller: String::new(),
        memory: String::new(),
    }
}
