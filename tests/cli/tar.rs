//! `get --tar`: GNU tar makes the same files of the archive, and it is an archive whatever happens.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use xtent::internals::device::emu::{Fault, FaultPlan, FaultRule, Scope};
use xtent::internals::device::vfio_user::ServerOptions;
use xtent::internals::nvme::spec::{OPC_READ, StatusField};
use xtent::internals::target::{TargetSpec, controller_to_serve};

use super::common::{self, image::Image, sys};
use super::{path_of, prototype_image, run, xtent};

/// Content with a piece of data every other block.
fn fragmented(path: &Path, pieces: u64) {
    let file = fs::File::create(path).unwrap();
    for i in 0..pieces {
        let piece = common::random_bytes(i, 4096);
        file.write_all_at(&piece, i * 8192 + 4096).unwrap();
    }
    file.set_len(pieces * 8192 + 5).unwrap();
}

/// Names, attributes and lengths that a header of tar has no place for.
fn fill(root: &Path) {
    super::archive::fill(root);
    let at = |name: &[u8]| root.join(std::ffi::OsStr::from_bytes(name));
    let long = [b'n'; 255];
    let deep = [&long[..], &long, &long, &long, b"file"].join(&b'/');
    fs::create_dir_all(at(&deep).parent().unwrap()).unwrap();
    fs::write(at(&deep), "deep").unwrap();
    fs::hard_link(at(&deep), at(&[&long[..], b"linked"].join(&b'/'))).unwrap();
    symlink("t".repeat(1000), at(&[&long[..], b"far"].join(&b'/'))).unwrap();
    for name in [
        &b"\xff\xfe=\n%"[..],
        " \u{e4}\u{2028} ".as_bytes(),
        b"-x",
        &[b'm'; 100],
    ] {
        fs::write(at(name), name).unwrap();
        sys::set_xattr(&at(name), "user.a=b%c d", b"=\n\0").unwrap();
    }
    fragmented(&at(b"fragments"), 300);
    fragmented(&at(b"few"), 10);
    let file = fs::File::create(at(b"hole")).unwrap();
    file.set_len((90 << 20) + 1).unwrap();
    let file = fs::File::create(at(b"ends")).unwrap();
    file.write_all_at(&[1; 300_000], 1 << 20).unwrap();
    file.set_len(3 << 20).unwrap();
}

#[test]
fn gnu_tar_makes_the_same_files() {
    if !common::kernel_is_here() {
        return;
    }
    for tool in ["rsync", "tar"] {
        if !common::has_tool(tool) {
            return common::skipped(&format!("{tool} is not installed"));
        }
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    fill(mount.path());
    mount.unmount();
    let other = Image::make(320 << 20, 512, &[]);
    let to = other.mount("");
    let archive = image.path().with_file_name("archive.tar");
    let archive = archive.to_str().unwrap();
    // Sockets are all that is missing.
    let (_, stderr) = run(1, &["get", "--tar", archive, &path_of(&image), "/"]);
    let missing = "xtent: not kept: sockets, which an archive cannot have: 1; first /socket\n";
    assert_eq!(stderr, missing);
    let piped = xtent(&["get", "--tar", "-", &path_of(&image), "/"]);
    assert!(piped.stdout == fs::read(archive).unwrap());
    assert_eq!(piped.stdout.len() % 10_240, 0);
    let out = to.path().to_str().unwrap();
    let tar = tool("tar");
    let extracted = Command::new(&tar)
        .args([
            "-x",
            "-p",
            "--xattrs",
            "--xattrs-include=*",
            "--acls",
            "-f",
            archive,
        ])
        .args(["-C", out])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&extracted.stderr);
    let said: Vec<_> = stderr.lines().filter(|line| !is_about_time(line)).collect();
    assert!(extracted.status.success() && said.is_empty(), "{stderr}");
    let mount = image.mount("ro");
    let from = format!("{}/", mount.path().display());
    let compared = [
        "-aHAXnc",
        "--delete",
        "--exclude=/socket",
        "--itemize-changes",
        &from,
        out,
    ];
    assert_eq!(common::run("rsync", &compared), "");
    for name in ["sparse", "hole"] {
        let of = |root: &Path| fs::symlink_metadata(root.join(name)).unwrap();
        let after = of(to.path());
        // XFS allocates more than is written, for a while.
        let most = after.len() / 4 * 3;
        assert!(after.blocks() * 512 < most, "{name}: {}", after.blocks());
    }
    mount.unmount();
    to.unmount();
}

fn tool(name: &str) -> std::path::PathBuf {
    common::tool(name).unwrap()
}

/// GNU tar wonders at files from the future and from before 1970.
fn is_about_time(line: &str) -> bool {
    line.contains("in the future") || line.contains("implausibly old time stamp")
}

/// Names in an archive, by another reader, with content and link.
fn members(archive: &[u8]) -> BTreeMap<Vec<u8>, (Vec<u8>, Vec<u8>)> {
    let mut members = BTreeMap::new();
    let mut reader = tar::Archive::new(archive);
    for entry in reader.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path_bytes().into_owned();
        let link = entry.link_name_bytes().unwrap_or_default().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        assert!(members.insert(name, (content, link)).is_none());
    }
    members
}

#[test]
fn a_subtree_a_file_and_a_link_are_archives() {
    let Some((image, data)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let archive = |path| members(&run(0, &["get", "--tar=-", &target, path]).0);
    let names = |members: &BTreeMap<Vec<u8>, _>| members.keys().cloned().collect::<Vec<_>>();
    let all = archive("/");
    let wanted: [&[u8]; 6] = [
        b"./",
        b"./dangling",
        b"./data",
        b"./dir/",
        b"./dir/copy",
        b"./link",
    ];
    assert_eq!(names(&all), wanted);
    assert!(all[&b"./data"[..]].0 == data && all[&b"./dir/copy"[..]].0 == data);
    assert_eq!(all[&b"./link"[..]].1, b"dir/copy");
    assert_eq!(names(&archive("/dir")), [&b"dir/"[..], b"dir/copy"]);
    assert_eq!(names(&archive("/dir/.")), [&b"./"[..], b"./copy"]);
    assert!(archive("dir/copy")[&b"copy"[..]].0 == data);
    assert_eq!(archive("link")[&b"link"[..]].1, b"dir/copy");
}

#[test]
fn an_archive_has_its_name_when_it_is_whole() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let count = || fs::read_dir(dir.path()).unwrap().count();
    let get = |place: &str, path: &str| xtent(&["get", "--tar", place, &target, path]);
    // Nothing is made where there is nothing to write, or no place.
    for (place, path) in [(at("a.tar"), "/none"), (at("none/a"), "/"), (at("a/"), "/")] {
        assert_eq!(get(&place, path).status.code(), Some(1), "{place}");
        assert_eq!(count(), 0);
    }
    run(0, &["get", "--tar", &at("a.tar"), &target, "/"]);
    let before = fs::read(at("a.tar")).unwrap();
    let (_, stderr) = run(1, &["get", "--tar", &at("a.tar"), &target, "/dir"]);
    assert!(stderr.contains("--force"), "{stderr}");
    assert!(fs::read(at("a.tar")).unwrap() == before && count() == 1);
    run(0, &["get", "-f", "--tar", &at("a.tar"), &target, "/dir"]);
    assert!(fs::read(at("a.tar")).unwrap().len() < before.len() && count() == 1);
    let before = fs::read(at("a.tar")).unwrap();
    // A full disk, by the limit of the process.
    let limited = format!(
        "ulimit -f 64; exec {} get -f --tar {} {target} /",
        env!("CARGO_BIN_EXE_xtent"),
        at("a.tar")
    );
    let output = Command::new("bash")
        .args(["-c", &limited])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("a.tar") && stderr.contains("ulimit -f"),
        "{stderr}"
    );
    assert!(fs::read(at("a.tar")).unwrap() == before && count() == 1);
    for args in [
        &["get", &target, "/"][..],
        &["get", "--tar=-", &target, "/", "out"],
    ] {
        run(2, args);
    }
}

#[test]
fn a_reader_that_goes_away_and_a_signal_end_it() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_xtent"))
            .args(["get", "--tar", "-", &path_of(&image), "/"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut child = start();
    let mut pipe = child.stdout.take().unwrap();
    pipe.read_exact(&mut [0; 512]).unwrap();
    drop(pipe);
    assert_eq!(child.wait().unwrap().code(), Some(141));
    let mut child = start();
    let mut pipe = child.stdout.take().unwrap();
    pipe.read_exact(&mut [0; 512]).unwrap();
    common::run("kill", &["-INT", &child.id().to_string()]);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    // What came is not an archive: its end is missing.
    let mut rest = Vec::new();
    pipe.read_to_end(&mut rest).unwrap();
    assert!(rest.len() < 6_000_000);
}

/// A long file ends with zeroes where the device has none of its data; a short one is skipped.
#[test]
fn an_archive_goes_on_after_data_that_cannot_be_read() {
    let Some((image, data)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    let extents: serde_json::Value = super::json(&["fiemap", "--json", &target, "/data"]);
    let first = extents["extents"][0]["physical"].as_u64().unwrap();
    let bad_at = 2_000_000_u64.next_multiple_of(4096);
    let bad = (first + bad_at) / 512;
    let spec = TargetSpec::parse(&format!("image:{target}")).unwrap();
    let mut config = controller_to_serve(&spec).unwrap();
    // Unrecovered read error.
    let fault = Fault::Status(StatusField::of(2, 0x81).do_not_retry());
    let rule = FaultRule::new(fault).on(Scope::Io).opcode(OPC_READ);
    config.faults = FaultPlan::default().rule(rule.lbas(bad..bad + 8));
    let serving = common::served::Serving::start(config, &ServerOptions::default());
    let served = format!("vfio-user:{}", serving.socket().display());
    let (archive, stderr) = run(5, &["get", "--tar", "-", &served, "/"]);
    assert!(stderr.contains("the archive has zeroes"), "{stderr}");
    let members = members(&archive);
    assert_eq!(members.len(), 6);
    let (got, _) = &members[&b"./data"[..]];
    assert_eq!(got.len(), data.len());
    let zeroes = got.iter().rev().take_while(|&&byte| byte == 0).count();
    let good = got.len() - zeroes;
    assert!(good as u64 <= bad_at && good > 0, "{good}");
    assert!(got[..good] == data[..good]);
    assert!(members[&b"./dir/copy"[..]].0 == data);
    drop(serving);
}
