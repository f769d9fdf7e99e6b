//! A machine that is not there, as files; tests of the bench share it.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;

use super::*;

const DEVICE: &str = "bus/pci/devices/0000:01:00.0";

/// One NVMe controller at 0000:01:00.0, serial number S1, with one namespace of 1 GiB and a
/// partition.
pub(crate) struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let machine = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for dir in ["bus/pci/drivers/nvme", "bus/pci/drivers/vfio-pci"] {
            fs::create_dir_all(machine.sysfs().join(dir)).unwrap();
        }
        for (name, text) in [
            ("class", "0x010802"),
            ("driver_override", "(null)"),
            ("power/control", "auto"),
            ("nvme/nvme0/serial", "S1       "),
            ("nvme/nvme0/model", "Model 1"),
        ] {
            machine.device_file(name, text);
        }
        machine.file("bus/pci/drivers_probe", "");
        machine.file("bus/pci/drivers/nvme/unbind", "");
        machine.driver(DEVICE, "nvme");
        machine.group("0000:01:00.0");
        machine.namespace("nvme0n1", 1);
        machine.file("class/block/nvme0n1/nvme0n1p1/partition", "1");
        machine.file("class/block/nvme0n1p1/dev", "259:1");
        fs::create_dir_all(machine.dir.path().join("dev/vfio")).unwrap();
        machine.mounts("25 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
        machine
    }

    fn sysfs(&self) -> PathBuf {
        self.dir.path().join("sys")
    }

    pub(crate) fn places(&self) -> Places {
        Places {
            sysfs: self.sysfs(),
            proc: self.dir.path().join("proc"),
            dev: self.dir.path().join("dev"),
            notes: self.dir.path().join("notes"),
            modprobe: "/nonexistent/modprobe".into(),
            patience: Duration::from_millis(60),
        }
    }

    pub(crate) fn controller(&self) -> SysfsController {
        SysfsController::look_up(self.places(), "0000:01:00.0".parse().unwrap()).unwrap()
    }

    fn write(&self, path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    /// A file of sysfs.
    pub(crate) fn file(&self, name: &str, text: &str) {
        self.write(&self.sysfs().join(name), text);
    }

    /// A file of the controller's directory.
    pub(crate) fn device_file(&self, name: &str, text: &str) {
        self.file(&format!("{DEVICE}/{name}"), text);
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.sysfs().join(name)).unwrap()
    }

    pub(crate) fn remove(&self, name: &str) {
        let path = self.sysfs().join(name);
        fs::remove_file(&path)
            .or_else(|_| fs::remove_dir_all(&path))
            .unwrap();
    }

    fn driver(&self, device: &str, driver: &str) {
        let link = self.sysfs().join(device).join("driver");
        let _ = fs::remove_file(&link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(self.sysfs().join("bus/pci/drivers").join(driver), link).unwrap();
    }

    /// The driver of the controller; none when it is empty.
    pub(crate) fn bind(&self, driver: &str) {
        if driver.is_empty() {
            fs::remove_file(self.sysfs().join(DEVICE).join("driver")).unwrap();
        } else {
            self.driver(DEVICE, driver);
        }
    }

    fn group(&self, address: &str) {
        let group = self.sysfs().join("kernel/iommu_groups/7");
        let device = self.sysfs().join("bus/pci/devices").join(address);
        fs::create_dir_all(group.join("devices").join(address)).unwrap();
        symlink(group, device.join("iommu_group")).unwrap();
    }

    /// A second device in the group.
    pub(crate) fn neighbour(&self, driver: &str) {
        self.file("bus/pci/devices/0000:01:00.1/class", "0x040300");
        self.driver("bus/pci/devices/0000:01:00.1", driver);
        self.group("0000:01:00.1");
    }

    pub(crate) fn namespace(&self, name: &str, nsid: u32) {
        self.device_file(&format!("nvme/nvme0/{name}/uevent"), "");
        self.file(&format!("class/block/{name}/size"), "2097152");
        self.file(&format!("class/block/{name}/nsid"), &nsid.to_string());
        self.file(
            &format!("class/block/{name}/dev"),
            &format!("259:{}0", nsid),
        );
        self.write(&self.dir.path().join("dev").join(name), "");
    }

    /// The mounts of process 1.
    pub(crate) fn mounts(&self, table: &str) {
        self.write(&self.dir.path().join("proc/1/mountinfo"), table);
    }

    fn proc_file(&self, name: &str, text: &str) {
        self.write(&self.dir.path().join("proc").join(name), text);
    }

    /// Process 77 has this open.
    pub(crate) fn open(&self, node: &str, by: &str) {
        let fds = self.dir.path().join("proc/77/fd");
        fs::create_dir_all(&fds).unwrap();
        symlink(self.dir.path().join("dev").join(node), fds.join("3")).unwrap();
        self.proc_file("77/comm", by);
    }

    /// Every attribute that binding writes to, and the notes.
    pub(crate) fn written(&self) -> BTreeMap<String, String> {
        let device = |name: &str| format!("sys/{DEVICE}/{name}");
        [
            device("driver_override"),
            device("power/control"),
            "sys/bus/pci/drivers_probe".into(),
            "sys/bus/pci/drivers/nvme/unbind".into(),
            "notes/0000:01:00.0".into(),
        ]
        .into_iter()
        .map(|name| {
            let text = fs::read_to_string(self.dir.path().join(&name)).unwrap_or_default();
            (name, text)
        })
        .collect()
    }
}

#[test]
fn the_controller_is_described_as_the_kernel_shows_it() {
    let machine = Machine::new();
    let controller = machine.controller();
    assert_eq!(controller.driver().as_deref(), Some("nvme"));
    assert_eq!(controller.iommu_group().as_deref(), Some("7"));
    assert_eq!(controller.shown("serial").as_deref(), Some("S1"));
    assert_eq!(controller.shown("nothing"), None);
    let namespace = controller.namespace(None).unwrap();
    assert_eq!((namespace.nsid, namespace.capacity_bytes), (1, 1 << 30));
    assert!(controller.uses().is_empty(), "{:?}", controller.uses());
    assert!(controller.group_obstacles().is_empty());
    let look = |address: &str| SysfsController::look_up(machine.places(), address.parse().unwrap());
    assert_eq!(look("02:00.0").unwrap_err().kind(), ErrorKind::NotFound);
    machine.device_file("class", "0x020000");
    assert_eq!(look("01:00.0").unwrap_err().kind(), ErrorKind::Unsupported);
    machine.remove(&format!("{DEVICE}/class"));
    assert_eq!(look("01:00.0").unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn every_use_is_found_and_named() {
    let uses = |make: &dyn Fn(&Machine)| {
        let machine = Machine::new();
        make(&machine);
        machine.controller().uses().join("; ")
    };
    for (expected, make) in [
        (
            "nvme0n1 is mounted on /mnt",
            &(|m: &Machine| m.mounts("1 1 259:10 / /mnt rw - xfs /dev/root rw"))
                as &dyn Fn(&Machine),
        ),
        // btrfs has numbers of its own, and a log is an option of another disk's mount.
        ("nvme0n1 is mounted on /b", &|m| {
            m.mounts("1 1 0:50 / /b rw shared:1 - btrfs /dev/nvme0n1 rw");
        }),
        ("nvme0n1p1 is mounted on /x", &|m| {
            m.mounts("1 1 8:2 / /x rw - xfs /dev/sda2 rw,logdev=/dev/nvme0n1p1,noquota");
        }),
        ("nvme0n1p1 is swapped on", &|m| {
            m.proc_file("swaps", "Filename Type\n/dev/nvme0n1p1 partition 1 0 -2");
        }),
        ("nvme0n1p1 is held by vg-data", &|m| {
            m.file("class/block/nvme0n1p1/holders/dm-0/x", "");
            m.file("class/block/dm-0/dm/name", "vg-data");
        }),
        ("nvme0n1 is held by md9", &|m| {
            m.file("class/block/nvme0n1/holders/md9/x", "");
        }),
        ("nvme0n1 is the file behind loop3", &|m| {
            m.file("block/loop3/loop/backing_file", "/dev/nvme0n1");
        }),
        ("nvme0n1 is exported by the kernel as nqn.1", &|m| {
            let path = "kernel/config/nvmet/subsystems/nqn.1/namespaces/1/device_path";
            m.file(path, "/dev/nvme0n1");
        }),
        ("nvme0 is open in process 77 (smartd)", &|m| {
            m.open("nvme0", "smartd")
        }),
        ("nvme0n1p1 is open in process 77 (dd)", &|m| {
            m.open("nvme0n1p1", "dd")
        }),
    ] {
        let found = uses(make);
        assert!(found.contains(expected), "{expected}: {found}");
    }
    assert_eq!(uses(&|m| m.open("nvme0n1", "systemd-udevd")), "");
    assert_eq!(uses(&|m| m.open("nvme1n1", "dd")), "");
    // A neighbour's mount, and lines that are none.
    assert_eq!(
        uses(&|m| m.mounts("\n- - -\n1 1 259:2 / /y rw - xfs /dev/nvme0n10 rw\n1 1")),
        ""
    );
}

#[test]
fn hidden_paths_of_multipath_disks_lead_to_the_disk() {
    for (entry, name) in [
        ("nvme0n1", Some("nvme0n1")),
        ("nvme10c3n12", Some("nvme10n12")),
        ("nvme0", None),
        ("nvme0n", None),
        ("nvmen1", None),
        ("nvme0n1p1", None),
        ("ng0n1", None),
    ] {
        assert_eq!(disk_name(entry).as_deref(), name, "{entry}");
    }
}

#[test]
fn whoever_drives_it_through_vfio_is_found() {
    let machine = Machine::new();
    assert!(machine.controller().vfio_users().is_empty());
    machine.open("vfio/7", "qemu");
    assert_eq!(
        machine.controller().vfio_users(),
        ["7 is open in process 77 (qemu)"]
    );
}
