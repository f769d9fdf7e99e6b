//! Names and labels with control characters: none reaches a terminal, none is lost in JSON.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use super::common;
use super::common::image::Image;
use super::{json, path_of, rename_on_disk, run};

/// As long as `hostile-name`, 12 bytes: ESC, BEL, CR, C1 in UTF-8, DEL, newline.
const HOSTILE: &[u8] = b"a\x1b]0;\x07\r\xc2\x9b\x7f\nz";

/// An image with a file of a hostile name, and with a hostile label.
fn hostile_image() -> Option<Image> {
    if !common::has_tool("mkfs.xfs") {
        common::skipped("mkfs.xfs is not installed");
        return None;
    }
    let image = Image::empty(320 << 20, 512);
    let dir = image.path().parent().unwrap().to_owned();
    fs::write(dir.join("data"), "x").unwrap();
    let data = dir.join("data").display().to_string();
    let proto = format!("/dev/null\n0 0\nd--755 0 0\nhostile-name ---644 0 0 {data}\n$\n");
    fs::write(dir.join("proto"), proto).unwrap();
    let (proto, path) = (dir.join("proto"), image.path());
    let args = [
        "-q",
        "-f",
        "-p",
        proto.to_str().unwrap(),
        path.to_str().unwrap(),
    ];
    common::run("mkfs.xfs", &args);
    rename_on_disk(&path, b"hostile-name", HOSTILE);
    label_on_disk(&path, b"la\x1b[5mb\x07\xc2\x9bl");
    Some(image)
}

/// Sets the label of the primary superblock, and its checksum.
fn label_on_disk(image: &std::path::Path, label: &[u8]) {
    let mut disk = fs::read(image).unwrap();
    let block = &mut disk[..512];
    block[108..120].fill(0);
    block[108..108 + label.len()].copy_from_slice(label);
    block[224..228].fill(0);
    let crc = crc32c::crc32c(block);
    block[224..228].copy_from_slice(&crc.to_le_bytes());
    fs::write(image, &disk).unwrap();
}

fn has_controls(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
    text.chars().any(|c| c.is_control() && c != '\n') || text.contains("\nz")
}

#[test]
fn labels_and_messages_are_escaped_everywhere() {
    let Some(image) = hostile_image() else { return };
    let target = path_of(&image);
    let (stdout, _) = run(0, &["info", &target]);
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert!(text.contains("label la\\x1b[5mb\\x07\\u{9b}l"), "{text}");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    run(0, &["get", "-r", &target, "/", out]);
    let (_, stderr) = run(1, &["get", "-r", &target, "/", out]);
    assert!(
        !has_controls(stderr.as_bytes()) && stderr.contains("\\x1b]0;"),
        "{stderr:?}"
    );
    let args = [
        OsStr::new("cat"),
        OsStr::new(&target),
        OsStr::from_bytes(b"/no\x1b[2Jsuch\r"),
    ];
    let (_, stderr) = run(1, &args);
    assert!(!has_controls(stderr.as_bytes()), "{stderr:?}");
}

#[test]
fn json_keeps_names_without_controls() {
    let Some(image) = hostile_image() else { return };
    let target = path_of(&image);
    let (stdout, _) = run(0, &["ls", "--json", &target]);
    assert!(
        !has_controls(&stdout),
        "{:?}",
        String::from_utf8_lossy(&stdout)
    );
    let list = json(&["ls", "--json", &target]);
    assert_eq!(list[0]["name"].as_str().unwrap().as_bytes(), HOSTILE);
    let info = json(&["info", "--json", &target]);
    assert_eq!(info["filesystem"]["label"], "la\u{1b}[5mb\u{7}\u{9b}l");
}

#[test]
fn a_terminal_gets_no_controls() {
    if !common::has_tool("script") {
        common::skipped("script (util-linux) is not installed");
        return;
    }
    let Some(image) = hostile_image() else { return };
    let target = path_of(&image);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().display();
    for command in [
        format!("ls {target}"),
        format!("ls -lR {target}"),
        format!("ls --json {target}"),
        format!("info {target}"),
        format!("get -r {target} / {out}"),
        format!("get -r {target} / {out}"),
    ] {
        let command = format!("{} {command}", env!("CARGO_BIN_EXE_xtent"));
        let shown = Command::new("script")
            .args(["-qec", &command, "/dev/null"])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        assert!(
            !has_controls(&shown.stdout),
            "{command}: {:?}",
            String::from_utf8_lossy(&shown.stdout)
        );
    }
}
