//! The content of a target without XFS is named, with the remedy.

use std::fs;
use std::process::Command;

use super::common;
use super::{path_of, prototype_image, run};

#[test]
fn other_contents_are_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    let target = image.to_str().unwrap();
    for (at, magic, words) in [
        (0, &b"QFI\xfb\0\0\0\x03"[..], ["qcow2", "qemu-img convert"]),
        (0, b"\x1f\x8b\x08", ["gzip", "gunzip"]),
        (0, b"PK\x03\x04", ["zip", "extract"]),
        (0, b"LUKS\xba\xbe\0\x02", ["LUKS", "cryptsetup"]),
        (512, b"LABELONE", ["LVM", "vgchange"]),
        (512, b"EFI PART", ["GPT", "sgdisk"]),
        (4096, b"\xfc\x4e\x2b\xa9", ["RAID", "mdadm"]),
        (1080, b"\x53\xef", ["ext2", "XFS only"]),
        (65_600, b"_BHRfS_M", ["btrfs", "XFS only"]),
        (4086, b"SWAPSPACE2", ["swap", "XFS only"]),
        (0, b"XFSM", ["xfs_metadump", "xfs_mdrestore"]),
    ] {
        let mut bytes = vec![0; 1 << 20];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        fs::write(&image, &bytes).unwrap();
        let (_, stderr) = run(3, &["ls", target]);
        assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
    }
    for (tool, args, word) in [
        ("mkfs.ext4", &["-q", target][..], "ext4"),
        ("mkswap", &[target], "swap"),
        ("sgdisk", &["-o", "-n", "1:2048:+8M", target], "GPT"),
    ] {
        if !common::has_tool(tool) {
            common::skipped(&format!("{tool} is not installed"));
            continue;
        }
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        common::run(tool, args);
        let (_, stderr) = run(3, &["ls", target]);
        assert!(stderr.contains(word), "{tool}: {stderr}");
    }
}

#[test]
fn a_compressed_image_says_so() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let packed = image.path().with_file_name("packed.gz");
    let out = fs::File::create(&packed).unwrap();
    let gzip = Command::new("gzip")
        .args(["-1c", &path_of(&image)])
        .stdout(out)
        .status();
    if !gzip.is_ok_and(|status| status.success()) {
        common::skipped("gzip is not installed");
        return;
    }
    let (_, stderr) = run(3, &["info", packed.to_str().unwrap()]);
    assert!(stderr.contains("gzip"), "{stderr}");
}

#[test]
fn a_target_without_permission_is_not_called_missing() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !common::is_root() {
        common::skipped("another user needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let image = dir.path().join("disk.img");
    fs::write(&image, [0; 4096]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtent"));
    let output = command
        .args(["ls", image.to_str().unwrap()])
        .uid(65_534)
        .gid(65_534)
        .output();
    let Ok(output) = output else {
        common::skipped("another user cannot run the command");
        return;
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("ermission denied"), "{stderr}");
}
