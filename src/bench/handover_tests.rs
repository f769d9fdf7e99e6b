//! The kernel's answers, where it gives none: what it does answer is tested in the virtual machine.

use super::*;
use crate::bench::nvme_sysfs::tests::Machine;

const OVERRIDE: &str = "bus/pci/devices/0000:01:00.0/driver_override";

#[test]
fn a_driver_that_does_not_appear_is_an_error_and_everything_is_put_back() {
    let machine = Machine::new();
    let mut handover = Handover::claim(machine.controller()).unwrap();
    let error = handover.give_to_vfio().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(
        error.to_string().contains("vfio-pci did not take"),
        "{error}"
    );
    assert_eq!(
        machine.read("bus/pci/drivers/nvme/unbind"),
        "0000:01:00.0\n"
    );
    assert_eq!(machine.read(OVERRIDE).trim(), "");
    assert!(!handover.note_path().exists());
    // The kernel's side: still with nvme, nothing to do.
    handover.give_to_kernel().unwrap();
}

#[test]
fn a_controller_that_does_not_come_back_is_an_error_that_says_what_to_do() {
    let machine = Machine::new();
    let mut handover = Handover::claim(machine.controller()).unwrap();
    // It releases the device, and no driver takes it.
    machine.bind("");
    let error = handover.give_to_vfio().unwrap_err().to_string();
    assert!(
        error.contains("vfio-setup.sh reset 0000:01:00.0"),
        "{error}"
    );
    assert_eq!(machine.read("bus/pci/drivers_probe"), "0000:01:00.0\n");
    let note = fs::read_to_string(handover.note_path()).unwrap();
    assert!(
        note.contains("override=(null)\n") && note.contains("power=auto\n"),
        "{note}"
    );
}

#[test]
fn attributes_that_are_missing_or_refuse_are_errors() {
    let machine = Machine::new();
    let mut handover = Handover::claim(machine.controller()).unwrap();
    machine.remove(OVERRIDE);
    let error = handover.give_to_vfio().unwrap_err();
    assert!(error.to_string().contains("driver_override"), "{error}");
    assert!(
        !machine.places().sysfs.join(OVERRIDE).exists(),
        "no file may be made"
    );
    machine.remove("bus/pci/drivers/vfio-pci");
    let error = load_vfio(&machine.controller()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn what_a_killed_comparison_left_is_mended_by_the_next() {
    let note = |text: &str, machine: &Machine| {
        fs::create_dir_all(machine.places().notes).unwrap();
        fs::write(machine.places().notes.join("0000:01:00.0"), text).unwrap();
    };
    // Killed after the override was written: the driver is the kernel's still.
    let machine = Machine::new();
    note("by=xtent compare\noverride=(null)\npower=on\n", &machine);
    machine.file(OVERRIDE, "vfio-pci");
    let handover = Handover::claim(machine.controller()).unwrap();
    assert_eq!(machine.read(OVERRIDE).trim(), "");
    assert_eq!(
        machine.read("bus/pci/devices/0000:01:00.0/power/control"),
        "on\n"
    );
    assert!(!handover.note_path().exists());
    // vfio-setup.sh's own note is not touched.
    let machine = Machine::new();
    machine.bind("vfio-pci");
    note("description=x\noverride=(null)\n", &machine);
    let error = Handover::claim(machine.controller()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("vfio-setup.sh reset"), "{error}");
    // Another process drives it: the kernel would wait for it forever.
    note("by=xtent compare\n", &machine);
    machine.open("vfio/7", "xtent");
    let error = Handover::claim(machine.controller()).unwrap_err();
    assert!(error.to_string().contains("process 77 (xtent)"), "{error}");
    assert_eq!(machine.read(OVERRIDE).trim(), "(null)");
}

#[test]
fn a_controller_without_a_driver_is_refused() {
    let machine = Machine::new();
    machine.bind("");
    let error = Handover::claim(machine.controller()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("no driver has it"), "{error}");
}
