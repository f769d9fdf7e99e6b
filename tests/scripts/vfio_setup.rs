//! vfio-setup.sh on a fake sysfs, in which a thread plays the kernel. The disk is a loop device, so
//! that the kernel's own rules for exclusive openers hold. `scripts/vm/jobs/setup*.sh` run it with
//! real disks.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use xtent::internals::sys::is_root;

use crate::{path_with, program};

const BDF: &str = "0000:01:00.0";

/// A machine with one NVMe disk that carries an XFS.
struct Machine {
    dir: tempfile::TempDir,
    /// Opening the image's loop device exclusively is what a mount does.
    device: Loop,
    stop: Arc<AtomicBool>,
    kernel: Option<JoinHandle<()>>,
}

/// A loop device, detached when it is dropped.
struct Loop(PathBuf);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

/// Says why and returns nothing where loop devices cannot be had.
fn machine() -> Option<Machine> {
    if !is_root() || !Path::new("/dev/loop-control").exists() {
        println!("SKIPPED: loop devices need root and a kernel that has them");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let image = root.join("disk.img");
    let mut bytes = vec![0; 1 << 20];
    bytes[..4].copy_from_slice(b"XFSB");
    fs::write(&image, bytes).unwrap();
    // One at a time: several would be told the same free device.
    static ATTACHING: Mutex<()> = Mutex::new(());
    let attaching = ATTACHING.lock().unwrap_or_else(PoisonError::into_inner);
    // Not one that this process has open: the script would find it.
    let losetup = Command::new("losetup")
        .args(["--find", "--show"])
        .arg(&image)
        .output();
    let losetup = losetup.unwrap();
    drop(attaching);
    if !losetup.status.success() {
        println!(
            "SKIPPED: losetup: {}",
            String::from_utf8_lossy(&losetup.stderr)
        );
        return None;
    }
    let device = String::from_utf8(losetup.stdout).unwrap();
    let device = Loop(device.trim().into());
    fake_sysfs(root);
    fs::write(root.join("vfio-setup-test-root"), "").unwrap();
    fs::write(root.join("dev/vfio/1"), "").unwrap();
    fs::write(root.join("serial"), "SERIAL-A\n").unwrap();
    program(&root.join("bin"), "modprobe", "exit 0");
    // As where no udev runs: rules are read when it starts.
    program(&root.join("bin"), "udevadm", "exit 2");
    node(&root.join("dev/nvme0n1"), &device.0);
    let stop = Arc::new(AtomicBool::new(false));
    let player = Player {
        root: root.to_owned(),
        number: numbers(&device.0),
        until_node: Cell::default(),
    };
    player.bind("nvme");
    let stopped = Arc::clone(&stop);
    let kernel = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            player.look();
            thread::sleep(Duration::from_millis(5));
        }
    });
    Some(Machine {
        dir,
        device,
        stop,
        kernel: Some(kernel),
    })
}

/// The directories and files of a PCI device that no driver has, alone in its IOMMU group.
fn fake_sysfs(root: &Path) {
    for name in [
        "dev/vfio",
        "bin",
        "etc/udev/rules.d",
        "run",
        "sys/bus/pci/drivers/nvme",
        "sys/bus/pci/drivers/vfio-pci",
        "sys/class/block",
    ] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let fake = root.join("sys/bus/pci/devices").join(BDF);
    fs::create_dir_all(fake.join("power")).unwrap();
    let group = format!("sys/kernel/iommu_groups/1/devices/{BDF}");
    fs::create_dir_all(root.join(group)).unwrap();
    for (name, text) in [
        ("class", "0x010802"),
        ("vendor", "0x1234"),
        ("device", "0x5678"),
        ("driver_override", "(null)"),
        ("power/control", "on"),
        ("numa_node", "-1"),
        ("../../drivers_probe", ""),
        ("../../drivers/nvme/unbind", ""),
        ("../../drivers/vfio-pci/unbind", ""),
    ] {
        fs::write(fake.join(name), format!("{text}\n")).unwrap();
    }
}

/// `(major, minor)` of a device node.
fn numbers(path: &Path) -> (u32, u32) {
    let number = fs::metadata(path).unwrap().rdev();
    (libc::major(number), libc::minor(number))
}

/// Another node of the same block device.
fn node(path: &Path, of: &Path) {
    let (major, minor) = numbers(of);
    let status = Command::new("mknod")
        .arg(path)
        .args(["b", &major.to_string(), &minor.to_string()])
        .status();
    assert!(status.unwrap().success());
}

/// What the kernel does when the script writes to its files.
struct Player {
    root: PathBuf,
    number: (u32, u32),
    /// Looks until the node of the disk appears: after its entries in sysfs.
    until_node: Cell<u32>,
}

impl Player {
    fn device(&self) -> PathBuf {
        self.root.join("sys/bus/pci/devices").join(BDF)
    }

    /// What was written to a file, which is then empty.
    fn take(&self, name: &str) -> bool {
        let path = self.root.join("sys/bus/pci").join(name);
        let written = fs::read_to_string(&path).unwrap_or_default();
        if written.trim().is_empty() {
            return false;
        }
        fs::write(path, "").unwrap();
        true
    }

    fn look(&self) {
        if let Some(left) = self.until_node.get().checked_sub(1) {
            self.until_node.set(left);
            if left == 0 {
                fs::rename(self.root.join("dev/later"), self.root.join("dev/nvme0n1")).unwrap();
            }
        }
        for driver in ["nvme", "vfio-pci"] {
            if self.take(&format!("drivers/{driver}/unbind")) {
                self.unbind(driver);
            }
        }
        if self.take("drivers_probe") && !self.device().join("driver").exists() {
            let wanted = fs::read_to_string(self.device().join("driver_override")).unwrap();
            match wanted.trim() {
                "" | "(null)" => self.bind("nvme"),
                driver => self.bind(driver),
            }
        }
    }

    fn bind(&self, driver: &str) {
        let drivers = self.root.join("sys/bus/pci/drivers");
        if driver == "nvme" {
            let controller = self.device().join("nvme/nvme0");
            fs::create_dir_all(controller.join("nvme0n1")).unwrap();
            fs::write(controller.join("model"), "Model A 1\"$%\n").unwrap();
            fs::copy(self.root.join("serial"), controller.join("serial")).unwrap();
            let block = self.root.join("sys/class/block/nvme0n1");
            fs::create_dir_all(block.join("holders")).unwrap();
            fs::write(block.join("size"), "2048\n").unwrap();
            let (major, minor) = self.number;
            fs::write(block.join("dev"), format!("{major}:{minor}\n")).unwrap();
            if self.root.join("dev/later").exists() {
                self.until_node.set(40);
            }
        }
        symlink(self.device(), drivers.join(driver).join(BDF)).unwrap();
        symlink(drivers.join(driver), self.device().join("driver")).unwrap();
    }

    fn unbind(&self, driver: &str) {
        fs::remove_file(self.device().join("driver")).unwrap();
        fs::remove_file(self.root.join("sys/bus/pci/drivers").join(driver).join(BDF)).unwrap();
        if driver == "nvme" {
            fs::remove_dir_all(self.device().join("nvme")).unwrap();
            fs::remove_dir_all(self.root.join("sys/class/block/nvme0n1")).unwrap();
            if self.until_node.take() == 0 {
                fs::rename(self.root.join("dev/nvme0n1"), self.root.join("dev/later")).unwrap();
            }
        }
    }
}

impl Machine {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, script: &Path, args: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command
            .arg(script)
            .args(args)
            .env("VFIO_SETUP_TEST_ROOT", self.dir.path())
            .env("PATH", path_with(&self.path("bin")))
            .stdin(Stdio::null());
        command
    }

    /// Runs vfio-setup.sh; all that it says, and its exit status.
    fn run(&self, args: &[&str]) -> (i32, String) {
        self.settled(|| self.command(&script(), args))
    }

    /// Runs a command; again while it finds the disk open in a losetup: one that was told the same
    /// free loop device opens it late, and lets go of it.
    fn settled(&self, command: impl Fn() -> Command) -> (i32, String) {
        let mut result = said(&command().output().unwrap());
        for _ in 0..100 {
            if !(result.1.contains("refused") && result.1.contains("(losetup)")) {
                break;
            }
            thread::sleep(Duration::from_millis(20));
            result = said(&command().output().unwrap());
        }
        result
    }

    fn start(&self, args: &[&str]) -> Child {
        let mut command = self.command(&script(), args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    fn driver(&self) -> String {
        let link = fs::read_link(self.path(&format!("sys/bus/pci/devices/{BDF}/driver")));
        let link = link.unwrap_or_default();
        link.file_name()
            .map_or(String::new(), |name| name.to_str().unwrap().to_owned())
    }

    fn driver_override(&self) -> String {
        let path = self.path(&format!("sys/bus/pci/devices/{BDF}/driver_override"));
        fs::read_to_string(path).unwrap().trim().to_owned()
    }

    /// Waits until something has happened; panics when it never does.
    fn until(&self, what: &str, happened: impl Fn(&Self) -> bool) {
        for _ in 0..6000 {
            if happened(self) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("it never happened: {what}");
    }

    /// The disk is with the kernel, as it was before anything was done, and nothing is noted.
    fn assert_untouched(&self) {
        assert_eq!(self.driver(), "nvme");
        let left = self.driver_override();
        assert!(left.is_empty() || left == "(null)", "{left}");
        let notes = fs::read_dir(self.path("run/vfio-setup"));
        assert_eq!(notes.map_or(0, Iterator::count), 0);
        assert_eq!(
            fs::read_dir(self.path("etc/udev/rules.d")).unwrap().count(),
            0
        );
        assert!(!self.path("etc/vfio-setup").exists());
    }

    fn holder(&self) -> std::io::Result<File> {
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_EXCL);
        options.open(&self.device.0)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(kernel) = self.kernel.take() {
            let _ = kernel.join();
        }
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vfio-setup.sh")
}

fn said(output: &Output) -> (i32, String) {
    let text = [&*output.stdout, &*output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    (output.status.code().unwrap_or(-1), text)
}

#[test]
fn only_tests_may_name_a_root() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.arg(script()).arg("status");
    let output = command.env("VFIO_SETUP_TEST_ROOT", dir.path()).output();
    let (status, text) = said(&output.unwrap());
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("is for the tests"), "{text}");
}

#[test]
fn openers_are_found_by_number_whatever_the_node_is_called() {
    let Some(machine) = machine() else { return };
    let other = machine.path("xvdb");
    node(&other, &machine.device.0);
    let opened = File::open(&other).unwrap();
    let (status, text) = machine.run(&["bind", "--force", BDF, BDF]);
    assert_eq!(status, 3, "{text}");
    let process = format!("nvme0n1 is open in process {}", std::process::id());
    assert!(text.contains(&process), "{text}");
    machine.assert_untouched();
    drop(opened);
    let (status, text) = machine.run(&["bind", BDF]);
    assert_eq!(status, 4, "{text}");
    assert!(text.contains("carries xfs"), "{text}");
    let (status, text) = machine.run(&["bind", "--force", BDF, BDF]);
    assert_eq!(status, 0, "{text}");
    assert_eq!(machine.driver(), "vfio-pci");
    let (status, text) = machine.run(&["reset"]);
    assert_eq!(status, 0, "{text}");
    // The disk is back when its node is.
    assert!(machine.path("dev/nvme0n1").exists(), "{text}");
    machine.assert_untouched();
}

#[test]
fn use_is_looked_at_again_when_the_disk_is_taken() {
    let Some(machine) = machine() else { return };
    // modprobe runs between the first look and the taking.
    let (asked, go) = (machine.path("asked"), machine.path("go"));
    let script = format!(
        "touch '{}'\nuntil [ -e '{}' ]; do sleep 0.02; done",
        asked.display(),
        go.display()
    );
    program(&machine.path("bin"), "modprobe", &script);
    for exclusively in [true, false] {
        let child = machine.start(&["bind", "--force", BDF, BDF]);
        machine.until("modprobe", |_| asked.exists());
        let opened = if exclusively {
            machine.holder()
        } else {
            File::open(&machine.device.0)
        };
        fs::write(&go, "").unwrap();
        let (status, text) = said(&child.wait_with_output().unwrap());
        assert_eq!(status, 3, "{text}");
        assert!(text.contains("refused"), "{text}");
        assert!(text.contains("in use"), "{text}");
        machine.assert_untouched();
        drop(opened);
        fs::remove_file(&asked).unwrap();
        fs::remove_file(&go).unwrap();
    }
}

#[test]
fn the_disk_is_held_until_its_driver_has_let_go() {
    let Some(machine) = machine() else { return };
    // udevadm, blkid and wipefs are what the script runs last before it lets go of the disk; a
    // stand-in of wipefs, which the second look calls with the disk held, tries to claim it as a
    // mount does.
    let claims = machine.path("claims");
    let script = format!(
        "for node; do :; done\nif perl -e 'sysopen(F, $ARGV[0], 128) or exit 1' \"$node\"; \
         then echo free; else echo held; fi >>'{}'",
        claims.display()
    );
    program(&machine.path("bin"), "wipefs", &script);
    if Command::new("perl").arg("-v").output().is_err() {
        println!("SKIPPED: perl is not installed");
        return;
    }
    // Without a sign of data on it, so that it is looked at without --force.
    let image = File::options().write(true).open(&machine.device.0).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&image, &[0; 512], 0).unwrap();
    drop(image);
    let (status, text) = machine.run(&["bind", BDF]);
    assert_eq!(status, 0, "{text}");
    assert_eq!(fs::read_to_string(claims).unwrap(), "free\nheld\n");
    machine.holder().expect("let go of in the end");
    machine.run(&["reset"]);
}

#[test]
fn a_failure_or_a_signal_undoes_what_was_done() {
    let Some(machine) = machine() else { return };
    let node = machine.path("dev/vfio/1");
    fs::remove_file(&node).unwrap();
    let args = ["bind", "--force", BDF, "--user", "daemon", BDF];
    let (status, text) = machine.run(&args);
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("did not appear"), "{text}");
    assert!(text.contains("what was done is undone"), "{text}");
    machine.assert_untouched();
    // Interrupted while it waits for that node.
    let child = machine.start(&args);
    machine.until("vfio-pci has it", |machine| machine.driver() == "vfio-pci");
    let pid = child.id().to_string();
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    let (status, text) = said(&child.wait_with_output().unwrap());
    assert_eq!(status, 143, "{text}");
    machine.assert_untouched();
    // A rule that cannot be written.
    fs::write(&node, "").unwrap();
    let copy = machine.path("etc/vfio-setup");
    fs::write(&copy, "in the way").unwrap();
    let (status, text) = machine.run(&["persist", "--force", BDF, BDF]);
    assert_eq!(status, 1, "{text}");
    assert_eq!(machine.driver(), "nvme");
    fs::remove_file(&copy).unwrap_or_default();
    machine.assert_untouched();
}

#[test]
fn what_a_killed_run_left_is_cleared_by_reset() {
    let Some(machine) = machine() else { return };
    let path = machine.path(&format!("sys/bus/pci/devices/{BDF}/driver_override"));
    for args in [&["reset", BDF][..], &["reset"]] {
        fs::write(&path, "vfio-pci\n").unwrap();
        let (status, text) = machine.run(args);
        assert_eq!(status, 0, "{text}");
        assert!(text.contains("is cleared"), "{text}");
        machine.assert_untouched();
    }
}

#[test]
fn a_persisted_rule_takes_its_own_disk_only() {
    let Some(machine) = machine() else { return };
    let (status, text) = machine.run(&["persist", "--force", BDF, BDF]);
    assert_eq!(status, 0, "{text}");
    let rule = machine.path(&format!("etc/udev/rules.d/60-vfio-setup-{BDF}.rules"));
    let rule = fs::read_to_string(rule).unwrap();
    let (_, command) = rule.split_once("RUN+=\"").unwrap();
    let command = command.trim_end().strip_suffix('"').unwrap();
    // One word that udev and a shell leave alone, whatever the disk calls itself.
    let identity = format!("--identity {BDF}=SERIAL-A,Model=20A=201=22=24=25 ");
    assert!(command.contains(&identity), "{command}");
    let words: Vec<_> = command.split(' ').collect();
    let boot =
        |machine: &Machine| machine.settled(|| machine.command(Path::new(words[0]), &words[1..]));
    let (status, text) = machine.run(&["reset"]);
    assert_eq!(status, 0, "{text}");
    assert_eq!(boot(&machine).0, 0);
    assert_eq!(machine.driver(), "vfio-pci");
    // Another disk is in the slot at the next boot.
    machine.run(&["reset"]);
    let unbind = machine.path("sys/bus/pci/drivers/nvme/unbind");
    fs::write(unbind, format!("{BDF}\n")).unwrap();
    machine.until("unbound", |machine| machine.driver().is_empty());
    fs::write(machine.path("serial"), "SERIAL-B\n").unwrap();
    let (status, text) = boot(&machine);
    assert_eq!(status, 9, "{text}");
    assert!(text.contains("SERIAL-B,Model"), "{text}");
    assert!(text.contains("not SERIAL-A,Model"), "{text}");
    // It had no driver before, and has none now.
    machine.until("unbound", |machine| machine.driver().is_empty());
    let (status, text) = machine.run(&["unpersist"]);
    assert_eq!(status, 0, "{text}");
    machine.assert_untouched();
}
