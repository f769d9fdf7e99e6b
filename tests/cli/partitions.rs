//! Partitions: each is opened by number, name and offset, nothing outside of it is read or written,
//! and content other than a filesystem is named.
use std::os::unix::fs::FileExt;

use super::*;

/// Where the partition begins, as sgdisk and sfdisk place it.
const START_BYTES: u64 = 1 << 20;

/// A disk with the prototype image as its partition `xfs-data`, and noise around it.
fn disk(table: &str) -> Option<(tempfile::TempDir, PathBuf, Vec<u8>)> {
    let tool = if table == "gpt" { "sgdisk" } else { "sfdisk" };
    if !common::has_tool(tool) {
        common::skipped(&format!("{tool} is not installed"));
        return None;
    }
    let (image, data) = prototype_image()?;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let disk = fs::File::create_new(&path).unwrap();
    let part_bytes = fs::metadata(image.path()).unwrap().len();
    disk.set_len(START_BYTES + part_bytes + (8 << 20)).unwrap();
    let name = path.to_str().unwrap();
    if table == "gpt" {
        let end = part_bytes / 512 + 2047;
        let first = format!("1:2048:{end}");
        common::run(
            "sgdisk",
            &[
                "-o",
                "-n",
                &first,
                "-c",
                "1:xfs-data",
                "-n",
                "2:0:0",
                "-c",
                "2:rest",
                name,
            ],
        );
    } else {
        // The second partition is logical.
        let script = format!(
            "start=2048,size={},type=83\ntype=05\ntype=83\n",
            part_bytes / 512
        );
        let script_path = dir.path().join("script");
        fs::write(&script_path, script).unwrap();
        let command = format!("sfdisk -q {name} <{}", script_path.display());
        common::run("sh", &["-c", &command]);
    }
    copy_sparse(image.path().to_str().unwrap(), &disk, START_BYTES);
    Some((dir, path, data))
}

fn copy_sparse(from: &str, to: &fs::File, at: u64) {
    let from = fs::File::open(from).unwrap();
    let len = from.metadata().unwrap().len();
    let mut piece = vec![0; 1 << 20];
    for start in (0..len).step_by(1 << 20) {
        let want = usize::try_from((len - start).min(1 << 20)).unwrap();
        from.read_exact_at(&mut piece[..want], start).unwrap();
        if piece[..want].iter().any(|&byte| byte != 0) {
            to.write_all_at(&piece[..want], at + start).unwrap();
        }
    }
}

#[test]
fn a_partition_is_opened_by_number_name_and_offset() {
    for table in ["gpt", "mbr"] {
        let Some((_dir, path, data)) = disk(table) else {
            continue;
        };
        let path = path.to_str().unwrap();
        let mut ways = vec![format!("{path},part=1"), format!("{path},offset=1M")];
        if table == "gpt" {
            ways.push(format!("{path},part=xfs-data"));
        }
        ways.push(format!("ram:400M,load={path},part=1"));
        let ring = format!("uring:{path},part=1");
        if raw::ring_is_here(&format!("uring:{path}")) {
            ways.push(ring);
        }
        for way in &ways {
            assert!(run(0, &["cat", way, "/data"]).0 == data, "{way}");
        }
        served(path, &data);
        let value = json(&["info", "--json", &ways[0]]);
        assert_eq!(value["target"]["partition"], 1);
        assert_eq!(value["target"]["start_bytes"], START_BYTES);
        assert_eq!(value["partition_table"]["kind"], table);
        assert_eq!(value["partition_table"]["partitions"][0]["content"], "XFS");
        // Without a choice, the error is what `info` shows too.
        for command in ["ls", "info"] {
            let (out, stderr) = run(3, &[command, path]);
            for word in [table.to_uppercase().as_str(), "part=N", "320 MiB, XFS"] {
                assert!(stderr.contains(word), "{command}: {word}: {stderr}");
            }
            let out = String::from_utf8(out).unwrap();
            assert_eq!(command == "info", out.contains("partitions  "), "{out}");
        }
        let (_, stderr) = run(3, &["ls", &format!("{path},part=7")]);
        assert!(stderr.contains("no partition 7"), "{stderr}");
        let second = if table == "gpt" {
            "part=rest"
        } else {
            "part=5"
        };
        let (_, stderr) = run(3, &["ls", &format!("{path},{second}")]);
        assert!(stderr.contains("no XFS"), "{stderr}");
    }
}

/// By a client of a controller that serves the whole disk.
fn served(path: &str, data: &[u8]) {
    use xtent::internals::device::vfio_user::ServerOptions;
    use xtent::internals::target::{TargetSpec, controller_to_serve};
    let spec = TargetSpec::parse(&format!("{path},readonly")).unwrap();
    let config = controller_to_serve(&spec).unwrap();
    let serving = common::served::Serving::start(config, &ServerOptions::default());
    let target = format!("vfio-user:{},part=1", serving.socket().display());
    assert!(run(0, &["cat", &target, "/data"]).0 == data, "{target}");
    serving.end();
}

#[test]
fn nothing_outside_of_a_partition_is_written() {
    let Some((dir, path, data)) = disk("gpt") else {
        return;
    };
    let disk = fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    // The start of the next partition, and what lies before the first.
    let before_at = START_BYTES - 4096;
    let behind_at = START_BYTES + (320 << 20);
    let noise = vec![0xa5; 4096];
    disk.write_all_at(&noise, before_at).unwrap();
    disk.write_all_at(&noise, behind_at).unwrap();
    drop(disk);
    let target = format!("{},part=1", path.display());
    // Through a file, and then all of the partition's blocks.
    let new: Vec<u8> = data.iter().map(|byte| !byte).collect();
    let local = dir.path().join("new");
    fs::write(&local, &new).unwrap();
    run(0, &["put", local.to_str().unwrap(), &target, "/data"]);
    assert!(run(0, &["cat", &target, "/data"]).0 == new);
    let all = dir.path().join("all");
    let serial = json(&["info", "--json", &target])["target"]["serial"].clone();
    let erase = format!("--i-may-erase={}", serial.as_str().unwrap());
    fs::File::create(&all).unwrap().set_len(320 << 20).unwrap();
    run(0, &["put", "--raw", &erase, all.to_str().unwrap(), &target]);
    let at = |start: u64| {
        let disk = fs::File::open(&path).unwrap();
        let mut bytes = vec![0; 4096];
        disk.read_exact_at(&mut bytes, start).unwrap();
        bytes
    };
    assert!(at(before_at) == noise && at(behind_at) == noise);
    assert!(at(START_BYTES) == [0; 4096] && at(behind_at - 4096) == [0; 4096]);
    // One block more than the partition has.
    fs::File::create(&all)
        .unwrap()
        .set_len((320 << 20) + 512)
        .unwrap();
    let (_, stderr) = run(1, &["put", "--raw", &erase, all.to_str().unwrap(), &target]);
    assert!(stderr.contains("335544832"), "{stderr}");
    assert!(at(behind_at) == noise);
}

#[test]
fn wrong_places_are_named() {
    let Some((_dir, path, _)) = disk("mbr") else {
        return;
    };
    let path = path.display();
    for (options, status, words) in [
        ("part=1,offset=1M", 2, "give one of them"),
        ("part=", 2, "a number or a name"),
        ("part", 2, "needs a value"),
        ("offset=x", 2, "not a size"),
        ("offset=100", 3, "logical block of 512 bytes"),
        ("offset=1T", 3, "beyond the end"),
        ("part=0", 3, "no partition 0"),
        ("offset=512", 3, "no XFS"),
        ("lba=4096", 3, "no XFS filesystem, and an MBR"),
        ("lba=4096,part=1", 3, "leave out the option `lba`"),
    ] {
        let (_, stderr) = run(status, &["ls", &format!("{path},{options}")]);
        assert!(stderr.contains(words), "{options}: {stderr}");
    }
    // `info` tells once why it shows no table.
    for options in ["lba=4096", "lba=4096,offset=1M"] {
        let (_, stderr) = run(3, &["info", &format!("{path},{options}")]);
        assert_eq!(stderr.matches("the option `lba`").count(), 1, "{stderr}");
        assert_eq!(stderr.contains("note: "), options.contains("offset"));
    }
    let (_, stderr) = run(
        3,
        &[
            "serve",
            "vfio-user",
            "--media",
            &format!("{path},part=1"),
            "/nowhere/socket",
        ],
    );
    assert!(stderr.contains("whole image"), "{stderr}");
}
