//! What `smart` and `info` say of a controller.

use super::{json, run, text};

#[test]
fn smart_shows_the_logs_of_any_target_that_has_a_controller() {
    let out = text(&["smart", "ram:8M"]);
    for line in [
        "critical warning            none",
        "temperature                 27 C (300 K, warns from 70 C, critical from 80 C)",
        "available spare             100 % (warns below 10 %)",
        "power cycles                1",
        "firmware slot 1             1.0 (active)",
        "no entries in the error log",
    ] {
        assert!(out.contains(line), "{line:?} in {out}");
    }
    run(0, &["smart", "ram:8M", "--check"]);
    let value = json(&["smart", "ram:8M", "--json"]);
    assert_eq!(value["smart"]["temperature"], 300);
    assert_eq!(value["smart"]["num_err_log_entries"], 0);
    assert_eq!(value["smart"]["data_units_read"], 0);
    assert_eq!(value["errors"], serde_json::json!([]));
    assert_eq!(value["firmware_slots"]["active"], 1);
    assert_eq!(value["firmware_slots"]["revisions"][0]["revision"], "1.0");
    assert_eq!(value["serial"], "XTENT0001");
    let value = json(&["smart", "ram:8M", "--json", "--errors", "0"]);
    assert_eq!(value["errors"], serde_json::Value::Null);
    // No controller of ours, no such target, no such option.
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let file = file.into_temp_path();
    let target = format!("uring:{}", file.display());
    let (_, stderr) = run(3, &["smart", &target]);
    assert!(stderr.contains("the kernel has the controller"), "{stderr}");
    run(3, &["smart", "pci:ffff:ff:1f.7"]);
    run(2, &["smart", "ram:8M", "--errors", "x"]);
}

#[test]
fn info_shows_a_controller_without_a_filesystem() {
    let (stdout, stderr) = run(3, &["info", "ram:8M,lba=4096"]);
    let stdout = String::from_utf8(stdout).unwrap();
    for line in [
        "  NVMe      1.4.0, controller 0, no subsystem name",
        "  NVM commands    dataset-management write-zeroes",
        "  temperature     27 C; warns from 70 C, critical from 80 C",
        "  formats   4096+0* (bytes of data + metadata; * in use)",
        "  atomic    writes of 1 blocks, of 1 when the power fails",
    ] {
        assert!(stdout.contains(line), "{line:?} in {stdout}");
    }
    assert!(stderr.starts_with("xtent: "), "{stderr}");
    let (stdout, _) = run(3, &["info", "ram:8M,lba=4096", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&stdout).unwrap();
    let controller = &value["controller"];
    assert_eq!(controller["error_log_entries"], 64);
    assert_eq!(controller["namespaces"][0]["lba_bytes"], 4096);
    assert_eq!(controller["namespaces"][0]["blocks"], 2048);
    assert_eq!(
        controller["namespaces"][0]["unusable"],
        serde_json::Value::Null
    );
    assert_eq!(controller["pci_address"], serde_json::Value::Null);
    assert_eq!(value["target"]["nsid"], 1);
    assert_eq!(value["filesystem"], serde_json::Value::Null);
    assert!(value["filesystem_error"].is_string());
}
