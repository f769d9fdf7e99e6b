//! PCI addresses, and what sysfs says of the device at one.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// Where the kernel shows its devices.
pub(super) const SYSFS: &str = "/sys";

/// Class code of an NVMe I/O controller: mass storage, non-volatile memory, NVMe.
const CLASS_NVME: u32 = 0x01_08_02;

/// A PCI function's address: `DOMAIN:BUS:DEVICE.FUNCTION`, in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// The domain (segment); VMD numbers its own from 0x10000.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device, at most 31.
    pub device: u8,
    /// The function, at most 7.
    pub function: u8,
}

impl PciAddress {
    /// The NUMA node that the device is near to; `None` where there is one node only, or it is not
    /// known.
    pub fn numa_node(self) -> Option<u32> {
        let text = fs::read_to_string(self.sysfs().join("numa_node")).ok()?;
        text.trim().parse().ok()
    }

    /// The IOMMU group of the device; `None` without an IOMMU.
    pub fn iommu_group(self) -> Option<u32> {
        let link = fs::read_link(self.sysfs().join("iommu_group")).ok()?;
        file_name(&link)?.parse().ok()
    }

    fn sysfs(self) -> PathBuf {
        Path::new(SYSFS).join(format!("bus/pci/devices/{self}"))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl FromStr for PciAddress {
    type Err = Error;

    /// Reads `0000:01:00.0`, or `01:00.0` in domain 0.
    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("{text:?} is not a PCI address; it looks like 0000:01:00.0 (lspci -D shows them)"),
            )
        })
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.split_once(':').unwrap_or(("0", rest));
    let number = |digits: &str, most_digits: usize, most: u32| {
        let fine = (1..=most_digits).contains(&digits.len())
            && digits.bytes().all(|b| b.is_ascii_hexdigit());
        u32::from_str_radix(digits, 16)
            .ok()
            .filter(|n| fine && *n <= most)
    };
    let byte = |digits, most| number(digits, 2, most).and_then(|n| u8::try_from(n).ok());
    Some(PciAddress {
        domain: number(domain, 8, u32::MAX)?,
        bus: byte(bus, 0xff)?,
        device: byte(device, 0x1f)?,
        function: byte(function, 7)?,
    })
}

/// A device as sysfs shows it, checked to be an NVMe controller that a VFIO driver has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundDevice {
    pub(super) address: PciAddress,
    /// The number of its IOMMU group.
    pub(super) group: u32,
    /// The name of its VFIO character device (`vfio0`), where the kernel has those.
    pub(super) cdev: Option<String>,
    /// All devices of its IOMMU group, with their drivers.
    pub(super) members: Vec<(String, Option<String>)>,
}

impl FoundDevice {
    /// Members of the group that keep it from being used: a driver that is not of VFIO has them.
    pub(super) fn in_the_way(&self) -> Vec<String> {
        self.members
            .iter()
            .filter_map(|(member, driver)| Some((member, driver.as_deref()?)))
            .filter(|(_, driver)| !(is_vfio(driver) || ["pcieport", "pci-stub"].contains(driver)))
            .map(|(member, driver)| format!("{member} ({driver})"))
            .collect()
    }

    /// Finds the device below `sysfs` and makes all checks that are possible before it is opened.
    ///
    /// # Errors
    /// The obstacle, and the remedy.
    pub(super) fn look_up(sysfs: &Path, address: PciAddress) -> Result<Self> {
        let dir = sysfs.join(format!("bus/pci/devices/{address}"));
        if !dir.is_dir() {
            return Err(Error::new(
                ErrorKind::NotFound,
                "there is no PCI device at this address; vfio-setup.sh status lists the NVMe controllers",
            ));
        }
        check_class(&dir)?;
        check_driver(&dir, address)?;
        let link = fs::read_link(dir.join("iommu_group")).ok();
        let group = link.as_deref().and_then(file_name);
        let group = group
            .and_then(|name| name.parse().ok())
            .ok_or_else(no_iommu)?;
        let group_dir = sysfs.join(format!("kernel/iommu_groups/{group}"));
        if fs::read_to_string(group_dir.join("name"))
            .is_ok_and(|name| name.trim() == "vfio-noiommu")
        {
            return Err(no_iommu());
        }
        let mut members: Vec<_> = names_in(&group_dir.join("devices"))
            .map(|member| {
                let driver = driver_of(&sysfs.join("bus/pci/devices").join(&member));
                (member, driver)
            })
            .collect();
        members.sort();
        let cdev = names_in(&dir.join("vfio-dev")).find(|name| name.starts_with("vfio"));
        Ok(Self {
            address,
            group,
            cdev,
            members,
        })
    }
}

fn check_class(dir: &Path) -> Result<()> {
    let text = fs::read_to_string(dir.join("class")).unwrap_or_default();
    let class = u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok();
    if class == Some(CLASS_NVME) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "this PCI device is not an NVMe controller: its class is {}, not 0x{CLASS_NVME:06x}",
            text.trim()
        ),
    ))
}

fn check_driver(dir: &Path, address: PciAddress) -> Result<()> {
    let hint = format!("run: sudo ./vfio-setup.sh bind {address}");
    match driver_of(dir).as_deref() {
        Some(driver) if is_vfio(driver) => Ok(()),
        Some("nvme") => Err(Error::new(
            ErrorKind::Busy,
            format!("the kernel's nvme driver has this disk; unmount its filesystems, then {hint}"),
        )),
        Some(driver) => Err(Error::new(
            ErrorKind::Busy,
            format!("the driver {driver} has this device; {hint}"),
        )),
        None => Err(Error::new(
            ErrorKind::Unsupported,
            format!("no driver has this device; {hint}"),
        )),
    }
}

/// `vfio-pci` and the variants of it that know more of one vendor's devices.
fn is_vfio(driver: &str) -> bool {
    driver == "vfio-pci" || driver.ends_with("-vfio-pci") || driver.ends_with("_vfio_pci")
}

fn no_iommu() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "no IOMMU guards this device, and without one it could write anywhere; switch on VT-d or AMD-Vi \
         in the firmware, and boot with intel_iommu=on on Intel",
    )
}

fn driver_of(dir: &Path) -> Option<String> {
    file_name(&fs::read_link(dir.join("driver")).ok()?)
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

/// The names in a directory; none when it is not there.
fn names_in(dir: &Path) -> impl Iterator<Item = String> + use<> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

/// The processes that have `path` open, as `name (pid)`, as far as this user may look.
pub(super) fn holders(path: &Path) -> Vec<String> {
    let proc = PathBuf::from("/proc");
    names_in(&proc)
        .filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
        .filter(|pid| {
            let fds = proc.join(pid).join("fd");
            names_in(&fds).any(|fd| fs::read_link(fds.join(fd)).is_ok_and(|to| to == path))
        })
        .map(|pid| {
            let name = fs::read_to_string(proc.join(&pid).join("comm")).unwrap_or_default();
            format!("{} ({pid})", name.trim())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn addresses_are_read_in_both_forms_and_printed_in_the_long_one() {
        for (text, printed) in [
            ("0000:01:00.0", "0000:01:00.0"),
            ("01:00.0", "0000:01:00.0"),
            ("10000:e1:1f.7", "10000:e1:1f.7"),
            ("1:2:3.4", "0001:02:03.4"),
        ] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), printed);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "0000:01:00",
            "0000:01:20.0",
            "0000:01:00.8",
            "0:0:0:0.0",
            "+1:00.0",
            "001:00.0",
            "0000:01:00.0/1",
            "nvme0",
            "-:-.-",
            "100000000:01:00.0",
            "01:00.0 ",
        ] {
            let error = text.parse::<PciAddress>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
        }
    }

    /// A sysfs with one device at 0000:01:00.0 in group 7, together with a second one.
    fn sysfs(class: &str, driver: Option<&str>, other_driver: Option<&str>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("kernel/iommu_groups/7");
        fs::create_dir_all(group.join("devices")).unwrap();
        for (name, driver) in [("0000:01:00.0", driver), ("0000:01:00.1", other_driver)] {
            let device = dir.path().join("bus/pci/devices").join(name);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("class"), format!("{class}\n")).unwrap();
            symlink(
                "../../../../kernel/iommu_groups/7",
                device.join("iommu_group"),
            )
            .unwrap();
            if let Some(driver) = driver {
                symlink(format!("../../drivers/{driver}"), device.join("driver")).unwrap();
            }
            fs::write(group.join("devices").join(name), "").unwrap();
        }
        dir
    }

    fn address() -> PciAddress {
        "0000:01:00.0".parse().unwrap()
    }

    #[test]
    fn a_controller_that_vfio_has_is_found_with_its_group() {
        let dir = sysfs("0x010802", Some("vfio-pci"), Some("pcieport"));
        let found = FoundDevice::look_up(dir.path(), address()).unwrap();
        assert_eq!((found.group, found.cdev.as_deref()), (7, None));
        assert_eq!(found.members.len(), 2);
        assert!(found.in_the_way().is_empty());
    }

    #[test]
    fn members_of_the_group_with_other_drivers_are_named() {
        let dir = sysfs("0x010802", Some("vfio-pci"), Some("snd_hda_intel"));
        let found = FoundDevice::look_up(dir.path(), address()).unwrap();
        assert_eq!(found.in_the_way(), ["0000:01:00.1 (snd_hda_intel)"]);
    }

    #[test]
    fn what_is_in_the_way_is_said_with_what_to_do() {
        let fails =
            |dir: &tempfile::TempDir| FoundDevice::look_up(dir.path(), address()).unwrap_err();
        let error = fails(&sysfs("0x010802", Some("nvme"), None));
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(
            error
                .to_string()
                .contains("vfio-setup.sh bind 0000:01:00.0")
        );
        let error = fails(&sysfs("0x010802", None, None));
        assert!(error.to_string().contains("no driver"), "{error}");
        let error = fails(&sysfs("0x020000", Some("vfio-pci"), None));
        assert!(error.to_string().contains("not an NVMe"), "{error}");
        let dir = sysfs("0x010802", Some("vfio-pci"), None);
        fs::remove_file(dir.path().join("bus/pci/devices/0000:01:00.0/iommu_group")).unwrap();
        assert!(fails(&dir).to_string().contains("intel_iommu=on"));
        let dir = sysfs("0x010802", Some("vfio-pci"), None);
        fs::write(
            dir.path().join("kernel/iommu_groups/7/name"),
            "vfio-noiommu\n",
        )
        .unwrap();
        assert!(fails(&dir).to_string().contains("no IOMMU"));
        let missing = FoundDevice::look_up(dir.path(), "02:00.0".parse().unwrap()).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_vfio_character_device_is_found() {
        let dir = sysfs("0x010802", Some("vfio-pci"), None);
        let device = dir.path().join("bus/pci/devices/0000:01:00.0");
        fs::create_dir_all(device.join("vfio-dev/vfio3")).unwrap();
        let found = FoundDevice::look_up(dir.path(), address()).unwrap();
        assert_eq!(found.cdev.as_deref(), Some("vfio3"));
    }

    #[test]
    fn whoever_holds_a_file_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let me = format!("({})", std::process::id());
        assert!(holders(file.path()).iter().any(|name| name.ends_with(&me)));
    }
}
