//! The image or disk of a comparison, and access to it from both sides.

use std::path::PathBuf;

use xtent::internals::sys::{LoopDevice, LoopOptions, XfsMount};
use xtent::target::{ControllerMode, TargetOptions};
use xtent::volume::Volume;
use xtent::{Error, ErrorKind, Result};

use super::cache_spec::{CacheSpec, mount_options};
use super::disk::{BenchDisk, DiskSpec};
use super::image;
use super::progress::Progress;

/// The image or disk, as the user named it.
#[derive(Debug, Clone)]
pub(crate) enum MediumSpec {
    Image(ImageSpec),
    Disk(DiskSpec),
}

/// An XFS in a file: the kernel over a loop device, xtent over the embedded controller.
#[derive(Debug, Clone)]
pub(crate) struct ImageSpec {
    pub(crate) path: PathBuf,
    /// Options of the target, each with a comma before it.
    pub(crate) target_options: String,
    pub(crate) loop_options: LoopOptions,
    pub(crate) controller: ControllerMode,
}

/// Properties that were found in preparation.
#[derive(Debug, Clone, Default)]
pub(crate) struct MediumInfo {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// The image was read into the page cache.
    pub(crate) cached: bool,
    /// CRC32C of the file to read, taken while it was filled.
    pub(crate) filled_crc: Option<u32>,
}

/// Ready for both sides, one at a time: what one opened is closed before the other is asked for.
#[derive(Debug)]
pub(crate) enum BenchMedium {
    Image(ImageSpec),
    Disk(Box<BenchDisk>),
}

impl BenchMedium {
    /// Reads an image into the page cache; ERASES a disk and makes a filesystem with two files on
    /// it.
    pub(crate) fn prepare(
        spec: &MediumSpec,
        memory_bytes: u64,
        seed: u64,
        progress: &Progress,
    ) -> Result<(Self, MediumInfo)> {
        match spec {
            MediumSpec::Image(spec) => {
                progress.message("reading the image");
                let (bytes, cached) = image::warm(&spec.path, memory_bytes)?;
                let info = MediumInfo {
                    name: spec.path.display().to_string(),
                    bytes,
                    cached,
                    filled_crc: None,
                };
                Ok((Self::Image(spec.clone()), info))
            }
            MediumSpec::Disk(spec) => {
                let mut disk = BenchDisk::claim(spec)?;
                progress.note(&format!("ERASING {} for the comparison", disk.describe()));
                progress.message("making a filesystem and two files");
                let info = MediumInfo {
                    name: disk.describe(),
                    bytes: disk.capacity_bytes(),
                    cached: false,
                    filled_crc: Some(disk.format_and_fill(seed)?),
                };
                Ok((Self::Disk(Box::new(disk)), info))
            }
        }
    }

    /// The kernel's way.
    pub(crate) fn mount(&mut self) -> Result<XfsMount> {
        match self {
            Self::Image(spec) => {
                let device = LoopDevice::attach(&spec.path, spec.loop_options)?;
                XfsMount::new(device, &std::env::temp_dir())
            }
            Self::Disk(disk) => disk.mount(),
        }
    }

    /// xtent's way.
    pub(crate) fn open(&mut self, cache: Option<CacheSpec>) -> Result<Volume> {
        match self {
            Self::Image(spec) => open_image(spec, cache),
            Self::Disk(disk) => disk.open(cache),
        }
    }

    /// The result of `xfs_repair -n`, as in [`image::check_clean`].
    pub(crate) fn check_clean(&mut self) -> Result<Option<std::result::Result<(), String>>> {
        match self {
            Self::Image(spec) => Ok(image::check_clean(&spec.path)),
            Self::Disk(disk) => disk.check_clean(),
        }
    }

    /// Leaves it as it was found, but for its contents.
    pub(crate) fn finish(self) -> Result<()> {
        match self {
            Self::Image(_) => Ok(()),
            Self::Disk(mut disk) => disk.give_back(),
        }
    }
}

fn open_image(spec: &ImageSpec, cache: Option<CacheSpec>) -> Result<Volume> {
    let path = spec.path.to_str().ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidInput,
            "the image's path is not UTF-8, as a target must be: rename it",
        )
    })?;
    let target = format!("image:{}{}", path.replace(',', ",,"), spec.target_options);
    let controller = TargetOptions::new().controller(spec.controller);
    Volume::open_with(&target, &controller, &mount_options(cache))
}
