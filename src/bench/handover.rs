//! One controller between two drivers: the kernel's nvme and vfio-pci, and back whatever happens.
//!
//! A [`Handover`] gives the controller back when it is dropped: at the end, after an error, when
//! unwinding. A process that is killed outright leaves a note where vfio-setup.sh keeps its own, so
//! that the next comparison, or `vfio-setup.sh reset`, restores what was.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use xtent::{Error, ErrorKind, Result};

use super::nvme_sysfs::{SysfsController, line_of};

/// The line of a note that says whose it is.
const OURS: &str = "by=xtent compare";

/// The kernel's driver of NVMe controllers.
pub(crate) const KERNEL_DRIVER: &str = "nvme";
/// The driver that hands a device to a program.
pub(crate) const VFIO_DRIVER: &str = "vfio-pci";

/// The settings of the device that are restored: those that vfio-pci needs otherwise, or changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct SettingsBefore {
    driver_override: String,
    power_control: String,
}

/// A controller that this process may move between the drivers, and no other comparison.
#[derive(Debug)]
pub(crate) struct Handover {
    pub(crate) controller: SysfsController,
    before: Option<SettingsBefore>,
    _lock: Lock,
}

impl Handover {
    /// Takes charge of the controller, which stays where it is: with the kernel's driver. What a
    /// comparison that was killed left with vfio-pci goes back first.
    ///
    /// # Errors
    /// Another comparison has it, it is not with the kernel's driver, or it cannot be given back to
    /// it.
    pub(crate) fn claim(controller: SysfsController) -> Result<Self> {
        let lock = lock(&controller)?;
        let mut handover = Self {
            controller,
            before: None,
            _lock: lock,
        };
        handover.mend()?;
        let driver = handover.controller.driver();
        if driver.as_deref() == Some(KERNEL_DRIVER) {
            return Ok(handover);
        }
        let driver = driver.map_or("no driver has it".into(), |d| {
            format!("the driver {d} has it")
        });
        let address = handover.controller.address;
        Err(handover.controller.error(
            ErrorKind::Busy,
            format!(
                "{driver}, and the comparison begins with the kernel's nvme driver; to give it back: \
                 sudo ./vfio-setup.sh reset {address}"
            ),
        ))
    }

    /// Gives back what a killed comparison left.
    fn mend(&mut self) -> Result<()> {
        let Ok(note) = fs::read_to_string(self.note_path()) else {
            return Ok(());
        };
        if !note.lines().any(|line| line == OURS) {
            return Ok(());
        }
        let users = self.controller.vfio_users();
        if !users.is_empty() {
            let text = format!("in use through vfio: {}", users.join("; "));
            return Err(self.controller.error(ErrorKind::Busy, text));
        }
        let value = |key: &str| {
            let found = note.lines().find_map(|line| line.strip_prefix(key));
            found.unwrap_or_default().to_owned()
        };
        self.before = Some(SettingsBefore {
            driver_override: value("override="),
            power_control: value("power="),
        });
        self.give_to_kernel()
    }

    fn note_path(&self) -> PathBuf {
        let notes = &self.controller.places.notes;
        notes.join(self.controller.address.to_string())
    }

    /// Gives the controller to vfio-pci; nothing happens when it has it. Its disks are not in use.
    ///
    /// # Errors
    /// The failure; the controller is back with the kernel's driver then, or the error says
    /// that it is not.
    pub(crate) fn give_to_vfio(&mut self) -> Result<()> {
        if self.before.is_some() {
            return Ok(());
        }
        load_vfio(&self.controller)?;
        let dir = self.controller.dir();
        let before = SettingsBefore {
            driver_override: line_of(&dir.join("driver_override")).unwrap_or_default(),
            power_control: line_of(&dir.join("power/control")).unwrap_or_default(),
        };
        self.write_note(&before)?;
        self.before = Some(before);
        self.move_to_vfio()
            .map_err(|error| match self.give_to_kernel() {
                Ok(()) => error,
                Err(back) => back.because(error),
            })
    }

    fn move_to_vfio(&self) -> Result<()> {
        self.put("driver_override", VFIO_DRIVER)?;
        self.unbind()?;
        self.probe()?;
        self.wait_for("vfio-pci did not take the controller (see dmesg)", || {
            self.controller.driver().as_deref() == Some(VFIO_DRIVER)
        })?;
        // udev makes the node, or the kernel; both in their own time.
        let group = self.controller.iommu_group().unwrap_or_default();
        let node = self.controller.places.dev.join("vfio").join(group);
        self.wait_for("the node of its IOMMU group did not appear", || {
            node.exists()
        })
    }

    /// Gives the controller back to the kernel's driver and waits for its disks; nothing happens
    /// when it has it.
    ///
    /// # Errors
    /// It could not be given back; the message says how it can be done by hand.
    pub(crate) fn give_to_kernel(&mut self) -> Result<()> {
        let Some(before) = self.before.take() else {
            return Ok(());
        };
        let result = self.move_to_kernel(&before);
        if let Err(error) = result {
            let address = self.controller.address;
            let text = format!(
                "the disk is not back with the kernel's driver ({}); to try again: sudo ./vfio-setup.sh reset \
                 {address}",
                error.detail()
            );
            return Err(self.controller.error(error.kind(), text).because(error));
        }
        let _ = fs::remove_file(self.note_path());
        Ok(())
    }

    fn move_to_kernel(&self, before: &SettingsBefore) -> Result<()> {
        let override_before = match before.driver_override.as_str() {
            // vfio-pci would mean that a process died between two steps.
            "(null)" | VFIO_DRIVER => "",
            name => name,
        };
        self.put("driver_override", override_before)?;
        if self.controller.driver().as_deref() != Some(KERNEL_DRIVER) {
            self.unbind()?;
            modprobe(&self.controller, KERNEL_DRIVER);
        }
        if !before.power_control.is_empty() {
            // Not every device has it.
            let _ = self.put("power/control", &before.power_control);
        }
        if self.controller.driver().is_none() {
            self.probe()?;
        }
        self.wait_for("no driver of the kernel took it (see dmesg)", || {
            self.controller.driver().as_deref() == Some(KERNEL_DRIVER)
        })?;
        self.wait_for("the kernel's driver has it, but no disk appeared", || {
            let namespaces = self.controller.namespaces();
            let ready = |ns| self.controller.node(ns).exists();
            !namespaces.is_empty() && namespaces.iter().all(ready)
        })
    }

    fn unbind(&self) -> Result<()> {
        if self.controller.driver().is_none() {
            return Ok(());
        }
        self.put("driver/unbind", &self.controller.address.to_string())
    }

    fn probe(&self) -> Result<()> {
        let path = self.controller.places.sysfs.join("bus/pci/drivers_probe");
        self.write(path, &self.controller.address.to_string())
    }

    fn put(&self, attribute: &str, text: &str) -> Result<()> {
        self.write(self.controller.dir().join(attribute), text)
    }

    /// One attribute of the kernel, in one write; never a new file.
    fn write(&self, path: PathBuf, text: &str) -> Result<()> {
        let written = OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .and_then(|mut file| file.write_all(format!("{text}\n").as_bytes()));
        written.map_err(|e| {
            Error::system(format!("cannot write `{text}` to {}", path.display()), e)
                .on_device(self.controller.address.to_string())
        })
    }

    fn write_note(&self, before: &SettingsBefore) -> Result<()> {
        let shown = |what| self.controller.shown(what).unwrap_or_default();
        let text = format!(
            "{OURS}\ndescription={}, serial {}\noverride={}\npower={}\n",
            shown("model"),
            shown("serial"),
            before.driver_override,
            before.power_control
        );
        let path = self.note_path();
        let failed = |e| Error::system(format!("cannot write {}", path.display()), e);
        fs::create_dir_all(&self.controller.places.notes).map_err(failed)?;
        // All or nothing: half a note would restore half.
        let fresh = path.with_extension("new");
        fs::write(&fresh, text).map_err(failed)?;
        fs::rename(&fresh, &path).map_err(failed)
    }

    fn wait_for(&self, otherwise: &str, done: impl Fn() -> bool) -> Result<()> {
        let give_up = Instant::now() + self.controller.places.patience;
        while !done() {
            if Instant::now() >= give_up {
                return Err(self.controller.error(ErrorKind::Timeout, otherwise));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        if let Err(error) = self.give_to_kernel() {
            let text = error.to_string().replace('\n', "; ");
            eprintln!("xtent: {}", super::terminal::escape(&text));
        }
    }
}

/// A file that is locked. Unlocked by name: closing it is not enough while a process that is just
/// being started from another thread has it open, too.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// One comparison at a time on a controller; ends with the process, however that ends.
fn lock(controller: &SysfsController) -> Result<Lock> {
    let notes = &controller.places.notes;
    let path = notes.join(format!(".{}.lock", controller.address));
    let failed = |e| Error::system(format!("cannot lock {}", path.display()), e);
    fs::create_dir_all(notes).map_err(failed)?;
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(fs::TryLockError::WouldBlock) => {
            Err(controller.error(ErrorKind::Busy, "another comparison runs on it"))
        }
        Err(fs::TryLockError::Error(e)) => Err(failed(e)),
    }
}

/// Whether it worked, quietly.
fn modprobe(controller: &SysfsController, module: &str) -> bool {
    let mut command = Command::new(&controller.places.modprobe);
    super::image::run(command.arg(module)).is_ok_and(|output| output.status.success())
}

/// Makes sure that the kernel has vfio-pci.
///
/// # Errors
/// It has not.
pub(crate) fn load_vfio(controller: &SysfsController) -> Result<()> {
    let driver = controller
        .places
        .sysfs
        .join("bus/pci/drivers")
        .join(VFIO_DRIVER);
    // The type1 backend may be built in, or come from iommufd: no failure of its own.
    modprobe(controller, "vfio_iommu_type1");
    if driver.is_dir() || (modprobe(controller, VFIO_DRIVER) && driver.is_dir()) {
        return Ok(());
    }
    Err(controller.error(
        ErrorKind::Unsupported,
        "this kernel has no vfio-pci: install the kernel's full set of modules",
    ))
}

#[cfg(test)]
#[path = "handover_tests.rs"]
mod tests;
