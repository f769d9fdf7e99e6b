//! A disk to compare on: checks before anything is erased, an XFS with two files, and the way
//! between the kernel's driver and VFIO.

use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use xtent::internals::device::vfio::PciAddress;
use xtent::internals::sys::XfsMount;
use xtent::target::{Target, TargetOptions};
use xtent::volume::Volume;
use xtent::{Error, ErrorKind, Result};

use super::cache_spec::{CacheSpec, mount_options};
use super::check_interrupted;
use super::handover::{self, Handover};
use super::image::{self, GROW_FILE, READ_FILE, WRITE_FILE};
use super::mix::mix;
use super::nvme_sysfs::{Places, SysfsController, SysfsNamespace};
use super::pattern;

/// mkfs.xfs makes nothing smaller.
const LEAST_DISK_BYTES: u64 = 320 << 20;
/// The size of each of the two files, where the disk has room for it.
const FILE_BYTES: u64 = 1 << 30;
const CHUNK_BYTES: u64 = 1 << 20;

/// The disk, as the user named it.
#[derive(Debug, Clone)]
pub(crate) struct DiskSpec {
    pub(crate) address: PciAddress,
    /// The namespace; `None` for the only one there is.
    pub(crate) nsid: Option<u32>,
    /// The controller's serial number, as the user gave it with the leave to erase.
    pub(crate) serial: String,
    /// Bytes of each of the two files; `None` for what the disk has room for.
    pub(crate) file_bytes: Option<u64>,
    /// Options of the target, each with a comma before it.
    pub(crate) target_options: String,
}

/// A disk that this process may erase, with the kernel or with VFIO. Dropped, it goes back to the
/// kernel.
#[derive(Debug)]
pub(crate) struct BenchDisk {
    handover: Handover,
    /// As the kernel names it, when it has it.
    namespace: SysfsNamespace,
    target: String,
    model: String,
    serial: String,
    file_bytes: u64,
}

impl BenchDisk {
    /// Checks everything that can be checked before the disk is touched, and changes nothing.
    ///
    /// # Errors
    /// The obstacle, and what to do about it.
    pub(crate) fn claim(spec: &DiskSpec) -> Result<Self> {
        Self::claim_at(Places::default(), spec)
    }

    fn claim_at(places: Places, spec: &DiskSpec) -> Result<Self> {
        let handover = Handover::claim(SysfsController::look_up(places, spec.address)?)?;
        let controller = &handover.controller;
        let refuse = |kind, text: String| controller.error(kind, text + "; nothing was changed");
        let serial = controller.shown("serial").unwrap_or_default();
        if serial != spec.serial.trim() || serial.is_empty() {
            let text = format!(
                "its serial number is `{serial}`, and --i-may-erase names `{}`",
                spec.serial
            );
            return Err(refuse(ErrorKind::InvalidInput, text));
        }
        let namespace = controller.namespace(spec.nsid)?;
        let uses = controller.uses();
        if !uses.is_empty() {
            let text = format!("in use: {}", uses.join("; "));
            return Err(refuse(ErrorKind::Busy, text));
        }
        if controller.iommu_group().is_none() {
            let text = "there is no IOMMU for it; switch on VT-d or AMD-Vi in the firmware, and boot with \
                        intel_iommu=on on Intel";
            return Err(refuse(ErrorKind::Unsupported, text.into()));
        }
        let obstacles = controller.group_obstacles();
        if !obstacles.is_empty() {
            let text = format!(
                "its IOMMU group has other devices that the kernel drives: {}",
                obstacles.join(", ")
            );
            return Err(refuse(ErrorKind::Busy, text));
        }
        let file_bytes = file_bytes(spec.file_bytes, namespace.capacity_bytes)
            .map_err(|text| refuse(ErrorKind::InvalidInput, text))?;
        handover::load_vfio(controller)?;
        Ok(Self {
            target: format!(
                "pci:{}/{}{}",
                spec.address, namespace.nsid, spec.target_options
            ),
            model: controller.shown("model").unwrap_or_default(),
            serial,
            namespace,
            file_bytes,
            handover,
        })
    }

    /// Model, serial number and node, for messages.
    pub(crate) fn describe(&self) -> String {
        let name = &self.namespace.name;
        let (model, serial) = (&self.model, &self.serial);
        format!("{model}, serial {serial}, /dev/{name}")
    }

    /// Bytes of the namespace.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.namespace.capacity_bytes
    }

    /// The node, by the name that the kernel gives the namespace this time.
    fn node(&self) -> Result<PathBuf> {
        let controller = &self.handover.controller;
        let namespace = controller.namespace(Some(self.namespace.nsid))?;
        let serial = controller.shown("serial").unwrap_or_default();
        if serial != self.serial || namespace.capacity_bytes != self.namespace.capacity_bytes {
            let text = format!("another disk is at its address now: serial `{serial}`");
            return Err(controller.error(ErrorKind::DeviceGone, text));
        }
        Ok(controller.node(&namespace))
    }

    /// ERASES it: a new XFS with the two files; the CRC32C of the one to read, taken before it was
    /// written.
    pub(crate) fn format_and_fill(&mut self, seed: u64) -> Result<u32> {
        let node = self.node()?;
        let output = image::run(Command::new("mkfs.xfs").args(["-q", "-f"]).arg(&node))
            .map_err(|e| Error::system("cannot run mkfs.xfs: install xfsprogs", e))?;
        check_interrupted()?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::new(ErrorKind::System, "mkfs.xfs made no filesystem")
                .on_device(node.display().to_string())
                .because(text));
        }
        let mount = self.mount()?;
        let inside = |path: &str| mount.dir().join(path.trim_start_matches('/'));
        let read_file = inside(READ_FILE);
        let dir = read_file.parent().unwrap_or(mount.dir());
        std::fs::create_dir(dir)
            .map_err(|e| Error::system("cannot make a directory", e).at_path(bytes(dir)))?;
        let crc = fill(&read_file, self.file_bytes, mix(seed))?;
        fill(&inside(WRITE_FILE), self.file_bytes, mix(!seed))?;
        fill(&inside(GROW_FILE), 0, 0)?;
        mount.unmount()?;
        Ok(crc)
    }

    /// The kernel's way: its driver, its xfs.
    pub(crate) fn mount(&mut self) -> Result<XfsMount> {
        self.handover.give_to_kernel()?;
        XfsMount::of_disk(&self.node()?, &std::env::temp_dir())
    }

    /// xtent's way: over VFIO. What it opens must be dropped before the disk goes back.
    pub(crate) fn open(&mut self, cache: Option<CacheSpec>) -> Result<Volume> {
        // The first time, and after each round of the kernel; while vfio has it, no one else can.
        if self.handover.controller.driver().as_deref() == Some(handover::KERNEL_DRIVER) {
            self.check_free()?;
            self.handover.give_to_vfio()?;
        }
        let target = Target::open(&self.target, &TargetOptions::new())?;
        let serial = target.info().serial.clone();
        if serial.trim() == self.serial {
            // Only now: a mount writes where the log holds changes.
            return Volume::on(target, &mount_options(cache));
        }
        let text = format!("another disk is at its address now: serial `{serial}`");
        Err(self.handover.controller.error(ErrorKind::DeviceGone, text))
    }

    /// Another program may have opened the disk since the comparison began. One that just closed it
    /// may take a moment.
    fn check_free(&self) -> Result<()> {
        let give_up = Instant::now() + Duration::from_secs(5);
        loop {
            let uses = self.handover.controller.uses();
            if uses.is_empty() {
                return Ok(());
            }
            if Instant::now() >= give_up {
                let text = format!("in use by others now: {}", uses.join("; "));
                return Err(self.handover.controller.error(ErrorKind::Busy, text));
            }
            check_interrupted()?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The result of `xfs_repair -n`, as in [`image::check_clean`].
    pub(crate) fn check_clean(&mut self) -> Result<Option<std::result::Result<(), String>>> {
        self.handover.give_to_kernel()?;
        Ok(image::check_clean(&self.node()?))
    }

    /// Back to the kernel, with an error where dropping could only complain.
    pub(crate) fn give_back(&mut self) -> Result<()> {
        self.handover.give_to_kernel()
    }
}

/// Two files, the log and the rest of XFS's metadata have to fit.
fn file_bytes(asked: Option<u64>, capacity_bytes: u64) -> std::result::Result<u64, String> {
    if capacity_bytes < LEAST_DISK_BYTES {
        return Err(format!("{capacity_bytes} bytes are too small for an XFS"));
    }
    let most = capacity_bytes / 10 * 3 / CHUNK_BYTES * CHUNK_BYTES;
    match asked {
        None => Ok(most.min(FILE_BYTES)),
        Some(bytes) if bytes < CHUNK_BYTES || !bytes.is_multiple_of(CHUNK_BYTES) => {
            Err(format!("--file-size {bytes}: give whole MiB"))
        }
        Some(bytes) if bytes > most => Err(format!(
            "--file-size {bytes}: two such files do not fit; at most {most}"
        )),
        Some(bytes) => Ok(bytes),
    }
}

/// Fills a new file with bytes that follow from the seed and makes it durable; their CRC32C.
fn fill(path: &Path, len_bytes: u64, seed: u64) -> Result<u32> {
    let failed = |e| Error::system("cannot fill a file", e).at_path(bytes(path));
    let mut file = File::create_new(path).map_err(failed)?;
    let mut chunk = vec![0; 1 << 20];
    let mut crc = 0;
    for index in 0..len_bytes / CHUNK_BYTES {
        pattern::fill_random(&mut chunk, mix(seed ^ index));
        crc = crc32c::crc32c_append(crc, &chunk);
        file.write_all(&chunk).map_err(failed)?;
        check_interrupted()?;
    }
    file.sync_all().map_err(failed)?;
    Ok(crc)
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::nvme_sysfs::tests::Machine;

    fn spec(serial: &str) -> DiskSpec {
        DiskSpec {
            address: "0000:01:00.0".parse().unwrap(),
            nsid: None,
            serial: serial.into(),
            file_bytes: None,
            target_options: String::new(),
        }
    }

    /// The error of the system; nothing may have been written.
    fn refused(machine: &Machine, spec: &DiskSpec) -> (ErrorKind, String) {
        let before = machine.written();
        let error = BenchDisk::claim_at(machine.places(), spec).unwrap_err();
        assert_eq!(machine.written(), before, "{error}");
        (error.kind(), error.to_string())
    }

    #[test]
    fn the_disk_named_by_its_serial_number_is_claimed_without_a_change() {
        let machine = Machine::new();
        let before = machine.written();
        let disk = BenchDisk::claim_at(machine.places(), &spec("S1")).unwrap();
        assert_eq!(disk.target, "pci:0000:01:00.0/1");
        assert_eq!(disk.capacity_bytes(), 1 << 30);
        assert_eq!(
            disk.file_bytes,
            (1 << 30) / 10 * 3 / CHUNK_BYTES * CHUNK_BYTES
        );
        assert!(disk.describe().contains("serial S1, /dev/nvme0n1"));
        // A second one at the same time is not.
        let error = BenchDisk::claim_at(machine.places(), &spec("S1")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        drop(disk);
        assert_eq!(machine.written(), before);
        BenchDisk::claim_at(machine.places(), &spec("S1")).unwrap();
    }

    #[test]
    fn another_serial_number_is_refused_and_both_are_named() {
        let (kind, text) = refused(&Machine::new(), &spec("S2"));
        assert_eq!(kind, ErrorKind::InvalidInput);
        assert!(text.contains("`S1`") && text.contains("`S2`"), "{text}");
        let machine = Machine::new();
        machine.device_file("nvme/nvme0/serial", "");
        let (kind, _) = refused(&machine, &spec(""));
        assert_eq!(kind, ErrorKind::InvalidInput);
        machine.remove("bus/pci/devices/0000:01:00.0/nvme/nvme0/serial");
        refused(&machine, &spec("S1"));
    }

    #[test]
    fn a_disk_in_use_without_an_iommu_or_too_small_is_refused() {
        let machine = Machine::new();
        machine.mounts("36 1 259:1 / /a\\040b rw - xfs /dev/nvme0n1p1 rw\n");
        let (kind, text) = refused(&machine, &spec("S1"));
        assert_eq!(kind, ErrorKind::Busy);
        assert!(text.contains("nvme0n1p1 is mounted on /a b"), "{text}");
        let machine = Machine::new();
        machine.remove("bus/pci/devices/0000:01:00.0/iommu_group");
        assert_eq!(refused(&machine, &spec("S1")).0, ErrorKind::Unsupported);
        let machine = Machine::new();
        machine.neighbour("snd_hda_intel");
        let (kind, text) = refused(&machine, &spec("S1"));
        assert_eq!(kind, ErrorKind::Busy);
        assert!(
            text.contains("0000:01:00.1 (driver snd_hda_intel)"),
            "{text}"
        );
        let machine = Machine::new();
        machine.file("class/block/nvme0n1/size", "2048");
        assert!(refused(&machine, &spec("S1")).1.contains("too small"));
        let machine = Machine::new();
        machine.remove("bus/pci/drivers/vfio-pci");
        assert_eq!(refused(&machine, &spec("S1")).0, ErrorKind::Unsupported);
    }

    #[test]
    fn namespaces_are_named_where_there_are_several() {
        let machine = Machine::new();
        machine.namespace("nvme0n2", 2);
        let (kind, text) = refused(&machine, &spec("S1"));
        assert_eq!(kind, ErrorKind::InvalidInput);
        assert!(text.contains("1, 2"), "{text}");
        let mut second = spec("S1");
        second.nsid = Some(2);
        let disk = BenchDisk::claim_at(machine.places(), &second).unwrap();
        assert_eq!(disk.target, "pci:0000:01:00.0/2");
        drop(disk);
        second.nsid = Some(3);
        assert_eq!(refused(&machine, &second).0, ErrorKind::NotFound);
    }

    #[test]
    fn files_have_to_fit() {
        let gib = 1_u64 << 30;
        assert_eq!(file_bytes(None, 1 << 40), Ok(FILE_BYTES));
        assert_eq!(file_bytes(Some(64 << 20), gib), Ok(64 << 20));
        for (asked, capacity) in [
            (Some(0), gib),
            (Some(1 << 19), gib),
            (Some(gib / 2), gib),
            (Some(u64::MAX), gib),
            (None, 0),
            (None, LEAST_DISK_BYTES - 1),
        ] {
            assert!(
                file_bytes(asked, capacity).is_err(),
                "{asked:?} of {capacity}"
            );
        }
        assert!(file_bytes(None, u64::MAX / 512 * 512).is_ok());
    }
}
