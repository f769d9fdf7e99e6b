//! An NVMe controller as the kernel shows it: driver, serial number, namespaces, and who uses them.
//!
//! Everything is read below [`Places`], so that tests can show it a machine that is not there.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use xtent::internals::device::vfio::PciAddress;
use xtent::{Error, ErrorKind, Result};

/// Class code of an NVMe I/O controller.
const CLASS_NVME: &str = "0x010802";

/// Directories of the system, and how long to wait for the kernel.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) sysfs: PathBuf,
    pub(crate) proc: PathBuf,
    pub(crate) dev: PathBuf,
    /// The directory of the notes of vfio-setup.sh, from which it restores.
    pub(crate) notes: PathBuf,
    /// The program that loads a module.
    pub(crate) modprobe: PathBuf,
    /// The time that a driver may take to appear, and its namespaces after it.
    pub(crate) patience: Duration,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            sysfs: "/sys".into(),
            proc: "/proc".into(),
            dev: "/dev".into(),
            notes: "/run/vfio-setup".into(),
            modprobe: "modprobe".into(),
            patience: Duration::from_secs(60),
        }
    }
}

/// A namespace, as the block device that the kernel makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SysfsNamespace {
    /// `nvme0n1`
    pub(crate) name: String,
    pub(crate) nsid: u32,
    pub(crate) capacity_bytes: u64,
}

/// A controller on the PCI bus.
#[derive(Debug, Clone)]
pub(crate) struct SysfsController {
    pub(crate) places: Places,
    pub(crate) address: PciAddress,
}

/// The first line of a file without blanks around it; nothing when it cannot be read or is empty.
pub(super) fn line_of(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.lines().next()?.trim().to_owned()).filter(|line| !line.is_empty())
}

/// The names in a directory in order; none when it is not there.
fn names_in(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

fn last_part(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

impl SysfsController {
    /// Finds the controller at an address.
    ///
    /// # Errors
    /// There is none, or it is no NVMe controller.
    pub(crate) fn look_up(places: Places, address: PciAddress) -> Result<Self> {
        let controller = Self { places, address };
        if !controller.dir().is_dir() {
            return Err(controller.error(
                ErrorKind::NotFound,
                "there is no PCI device at this address; vfio-setup.sh status lists the NVMe controllers",
            ));
        }
        match line_of(&controller.dir().join("class")).as_deref() {
            Some(CLASS_NVME) => Ok(controller),
            class => {
                let class = class.unwrap_or("not readable");
                let text = format!("this is not an NVMe controller: its PCI class is {class}");
                Err(controller.error(ErrorKind::Unsupported, text))
            }
        }
    }

    pub(crate) fn error(&self, kind: ErrorKind, text: impl Into<String>) -> Error {
        Error::new(kind, text).on_device(self.address.to_string())
    }

    /// Its directory in sysfs.
    pub(super) fn dir(&self) -> PathBuf {
        let devices = self.places.sysfs.join("bus/pci/devices");
        devices.join(self.address.to_string())
    }

    /// The driver that has it.
    pub(crate) fn driver(&self) -> Option<String> {
        last_part(&fs::read_link(self.dir().join("driver")).ok()?)
    }

    /// The number of its IOMMU group.
    pub(crate) fn iommu_group(&self) -> Option<String> {
        last_part(&fs::read_link(self.dir().join("iommu_group")).ok()?)
    }

    /// Others of its IOMMU group that keep vfio from it: drivers of the kernel have them. Bridges
    /// do not.
    pub(crate) fn group_obstacles(&self) -> Vec<String> {
        let members = names_in(&self.dir().join("iommu_group/devices"));
        let others = members
            .into_iter()
            .filter(|name| *name != self.address.to_string());
        others
            .filter_map(|name| {
                let dir = self.places.sysfs.join("bus/pci/devices").join(&name);
                let bridge = line_of(&dir.join("class")).is_some_and(|c| c.starts_with("0x0604"));
                let driver = last_part(&fs::read_link(dir.join("driver")).ok()?)?;
                let vfio = driver.ends_with("vfio-pci") || driver.ends_with("vfio_pci");
                let harmless = bridge || vfio || driver == "pci-stub";
                (!harmless).then(|| format!("{name} (driver {driver})"))
            })
            .collect()
    }

    /// The name (`nvme0`) that the kernel's nvme driver gives it while bound.
    fn kernel_name(&self) -> Option<String> {
        names_in(&self.dir().join("nvme")).into_iter().next()
    }

    /// A text that the kernel's driver shows of it: `serial`, `model`.
    pub(crate) fn shown(&self, what: &str) -> Option<String> {
        line_of(&self.dir().join("nvme").join(self.kernel_name()?).join(what))
    }

    /// Its namespaces, while the kernel's driver has it.
    pub(crate) fn namespaces(&self) -> Vec<SysfsNamespace> {
        let Some(controller) = self.kernel_name() else {
            return Vec::new();
        };
        let entries = names_in(&self.dir().join("nvme").join(&controller));
        entries
            .iter()
            .filter_map(|entry| {
                let name = disk_name(entry)?;
                let block = self.places.sysfs.join("class/block").join(&name);
                let sectors: u64 = line_of(&block.join("size"))?.parse().ok()?;
                Some(SysfsNamespace {
                    nsid: line_of(&block.join("nsid"))?.parse().ok()?,
                    capacity_bytes: sectors.checked_mul(512)?,
                    name,
                })
            })
            .collect()
    }

    /// The namespace with this number, or the only one.
    ///
    /// # Errors
    /// There is no such, or one has to be named.
    pub(crate) fn namespace(&self, nsid: Option<u32>) -> Result<SysfsNamespace> {
        let all = self.namespaces();
        let list = || {
            let numbers: Vec<_> = all.iter().map(|ns| ns.nsid.to_string()).collect();
            numbers.join(", ")
        };
        match nsid {
            Some(nsid) => all
                .iter()
                .find(|ns| ns.nsid == nsid)
                .cloned()
                .ok_or_else(|| {
                    let text = format!("it has no namespace {nsid} in use; there are: {}", list());
                    self.error(ErrorKind::NotFound, text)
                }),
            None if all.len() == 1 => Ok(all[0].clone()),
            None if all.is_empty() => {
                Err(self.error(ErrorKind::NotFound, "it has no namespace in use"))
            }
            None => Err(self.error(
                ErrorKind::InvalidInput,
                format!(
                    "it has several namespaces: say which with /NSID ({})",
                    list()
                ),
            )),
        }
    }

    /// The node of a namespace.
    pub(crate) fn node(&self, namespace: &SysfsNamespace) -> PathBuf {
        self.places.dev.join(&namespace.name)
    }

    /// Uses of its namespaces or their partitions, one sentence each; not in use when it is
    /// empty.
    pub(crate) fn uses(&self) -> Vec<String> {
        let disks: Vec<String> = self.namespaces().into_iter().map(|ns| ns.name).collect();
        let mut blocks = disks.clone();
        for disk in &disks {
            let parts = names_in(&self.places.sysfs.join("class/block").join(disk));
            let prefix = format!("{disk}p");
            blocks.extend(parts.into_iter().filter(|part| part.starts_with(&prefix)));
        }
        let mut uses = BTreeSet::new();
        self.mounts(&blocks, &mut uses);
        self.swaps(&blocks, &mut uses);
        self.stacked(&blocks, &mut uses);
        let mut nodes: Vec<PathBuf> = blocks.iter().map(|b| self.places.dev.join(b)).collect();
        if let Some(name) = self.kernel_name() {
            let entries = names_in(&self.dir().join("nvme").join(&name));
            let generic = entries.into_iter().filter(|entry| entry.starts_with("ng"));
            nodes.extend(generic.map(|entry| self.places.dev.join(entry)));
            nodes.push(self.places.dev.join(name));
        }
        self.open_by(&nodes, &mut uses);
        if uses.is_empty() {
            self.claimed(&disks, &mut uses);
        }
        uses.into_iter().collect()
    }

    /// Processes that drive it through vfio.
    pub(crate) fn vfio_users(&self) -> Vec<String> {
        let vfio = self.places.dev.join("vfio");
        let mut nodes: Vec<PathBuf> = self
            .iommu_group()
            .into_iter()
            .map(|g| vfio.join(g))
            .collect();
        let cdevs = names_in(&self.dir().join("vfio-dev"));
        nodes.extend(
            cdevs
                .into_iter()
                .map(|name| vfio.join("devices").join(name)),
        );
        let mut uses = BTreeSet::new();
        self.open_by(&nodes, &mut uses);
        uses.into_iter().collect()
    }

    fn processes(&self) -> Vec<PathBuf> {
        names_in(&self.places.proc)
            .into_iter()
            .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
            .map(|name| self.places.proc.join(name))
            .collect()
    }

    /// In any mount namespace: containers have their own.
    fn mounts(&self, blocks: &[String], uses: &mut BTreeSet<String>) {
        let numbers: Vec<_> = blocks
            .iter()
            .map(|b| line_of(&self.places.sysfs.join("class/block").join(b).join("dev")))
            .collect();
        let mut seen = BTreeSet::new();
        for process in self.processes() {
            let mounts = fs::read_link(process.join("ns/mnt")).unwrap_or_else(|_| process.clone());
            if !seen.insert(mounts) {
                continue;
            }
            let table = fs::read(process.join("mountinfo")).unwrap_or_default();
            for line in String::from_utf8_lossy(&table).lines() {
                let Some(mount) = Mount::parse(line) else {
                    continue;
                };
                for (block, number) in blocks.iter().zip(&numbers) {
                    let node = format!("/dev/{block}");
                    if number.as_deref() == Some(mount.device) || mount.names(&node) {
                        let at = mount.at.replace("\\040", " ");
                        uses.insert(format!("{block} is mounted on {at}"));
                    }
                }
            }
        }
    }

    fn swaps(&self, blocks: &[String], uses: &mut BTreeSet<String>) {
        let table = fs::read_to_string(self.places.proc.join("swaps")).unwrap_or_default();
        for line in table.lines() {
            let file = line.split_ascii_whitespace().next().unwrap_or_default();
            let block = blocks.iter().find(|block| file == format!("/dev/{block}"));
            uses.extend(block.map(|block| format!("{block} is swapped on")));
        }
    }

    /// Devices that the kernel put on top: device mapper, RAID, loop devices, exported targets.
    fn stacked(&self, blocks: &[String], uses: &mut BTreeSet<String>) {
        let sysfs = &self.places.sysfs;
        for block in blocks {
            for holder in names_in(&sysfs.join("class/block").join(block).join("holders")) {
                let dm = sysfs.join("class/block").join(&holder).join("dm/name");
                let name = line_of(&dm).unwrap_or(holder);
                uses.insert(format!(
                    "{block} is held by {name} (LVM, RAID or device mapper)"
                ));
            }
        }
        let is_node = |path: &str| blocks.iter().find(|b| path == format!("/dev/{b}"));
        for name in names_in(&sysfs.join("block")) {
            let backing = line_of(&sysfs.join("block").join(&name).join("loop/backing_file"));
            if let Some(block) = backing.as_deref().and_then(is_node) {
                uses.insert(format!("{block} is the file behind {name}"));
            }
        }
        let subsystems = sysfs.join("kernel/config/nvmet/subsystems");
        for subsystem in names_in(&subsystems) {
            let spaces = subsystems.join(&subsystem).join("namespaces");
            for space in names_in(&spaces) {
                let path = line_of(&spaces.join(space).join("device_path"));
                if let Some(block) = path.as_deref().and_then(is_node) {
                    uses.insert(format!("{block} is exported by the kernel as {subsystem}"));
                }
            }
        }
    }

    /// Other processes that have one of the nodes open. udev looks at disks all the time and lets
    /// go.
    fn open_by(&self, nodes: &[PathBuf], uses: &mut BTreeSet<String>) {
        let me = std::process::id().to_string();
        for process in self.processes() {
            let pid = last_part(&process).unwrap_or_default();
            let fds = process.join("fd");
            for fd in names_in(&fds) {
                let Ok(to) = fs::read_link(fds.join(fd)) else {
                    continue;
                };
                if pid == me || !nodes.contains(&to) {
                    continue;
                }
                let name = line_of(&process.join("comm")).unwrap_or_default();
                if !name.ends_with("udevd") {
                    let node = last_part(&to).unwrap_or_default();
                    uses.insert(format!("{node} is open in process {pid} ({name})"));
                }
            }
        }
    }

    /// The kernel's own state: a user of a disk (a mount, swap, RAID, ZFS) claims it for
    /// itself alone, and an exclusive open fails.
    fn claimed(&self, disks: &[String], uses: &mut BTreeSet<String>) {
        for disk in disks {
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(libc::O_EXCL);
            match options.open(self.places.dev.join(disk)) {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                    uses.insert(format!("{disk} is claimed by something in the kernel"));
                }
                _ => {}
            }
        }
    }
}

/// With native multipathing the controller's own entry is hidden (`nvme0c1n1`); the disk is
/// `nvme0n1`.
fn disk_name(entry: &str) -> Option<String> {
    let rest = entry.strip_prefix("nvme")?;
    let (subsystem, nsid) = rest.split_once('n')?;
    let subsystem = subsystem.split('c').next()?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(subsystem) && digits(nsid)).then(|| format!("nvme{subsystem}n{nsid}"))
}

/// One line of `/proc/PID/mountinfo`.
struct Mount<'a> {
    /// `259:0`
    device: &'a str,
    at: &'a str,
    source: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(2);
        let mut back = back.split(' ').skip(1);
        Some(Self {
            device: front.next()?,
            at: front.nth(1)?,
            source: back.next()?,
            options: back.next().unwrap_or_default(),
        })
    }

    /// As its source (btrfs has device numbers of its own), or as a log or realtime device.
    fn names(&self, node: &str) -> bool {
        let values = self.options.split(',').filter_map(|o| o.split_once('='));
        self.source == node || values.into_iter().any(|(_, value)| value == node)
    }
}

#[cfg(test)]
#[path = "nvme_sysfs_tests.rs"]
pub(crate) mod tests;
