//! `chmod`, `chown` and `touch`, beside coreutils on the kernel's mount of the same image.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::common::image::{Image, Mount};
use super::common::{self, kernel_is_here};
use super::{path_of, run, text};

/// Files, directories and links, some with set-ID bits; the same image twice.
fn two_images() -> (Image, Image) {
    let image = Image::make(300 << 20, 512, &[]);
    let mount = image.mount("");
    let at = |name: &str| mount.path().join(name);
    for (name, mode) in [
        ("plain", 0o644),
        ("none", 0),
        ("runs", 0o755),
        ("set-uid", 0o4750),
        ("it's", 0o2710),
        ("new\nline $HOME", 0o1606),
    ] {
        fs::write(at(name), "text").unwrap();
        fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    for (name, mode) in [
        ("dir", 0o755),
        ("dir/set-gid", 0o2770),
        ("dir/set-gid/sticky", 0o7000),
        ("elsewhere", 0o700),
    ] {
        fs::create_dir(at(name)).unwrap();
        fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    fs::write(at("dir/set-gid/file"), "").unwrap();
    fs::write(at("elsewhere/file"), "").unwrap();
    lchown(at("elsewhere/file"), Some(3), Some(4)).unwrap();
    for (name, to) in [
        ("link", "plain"),
        ("link-to-dir", "dir"),
        ("dir/up", ".."),
        ("dir/to-elsewhere", "../elsewhere"),
        ("dir/to-none", "../none"),
        ("dir/dangling", "nowhere"),
    ] {
        symlink(to, at(name)).unwrap();
    }
    mount.unmount();
    let copy = Image::empty(0, 512);
    fs::copy(image.path(), copy.path()).unwrap();
    (image, copy)
}

/// Modes, owners and times of all files, as the kernel shows them.
fn states(image: &Image, with_times: bool) -> BTreeMap<PathBuf, [i64; 7]> {
    image.assert_clean();
    let mount = image.mount("ro");
    let mut found = BTreeMap::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(mount.path().join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name());
            let about = entry.metadata().unwrap();
            let mut state = [
                i64::from(about.mode()),
                about.uid().into(),
                about.gid().into(),
                about.atime(),
                about.atime_nsec(),
                about.mtime(),
                about.mtime_nsec(),
            ];
            if !with_times {
                state[3..].fill(0);
            }
            found.insert(path.clone(), state);
            if about.is_dir() {
                dirs.push(path);
            }
        }
    }
    mount.unmount();
    found
}

/// Runs a program with this umask in this directory.
fn with_umask(umask: &str, dir: &Path, program: &OsStr, args: &[&str]) -> Output {
    let mut sh = Command::new("sh");
    let sh = sh
        .args(["-c", "umask \"$0\"; exec \"$@\"", umask])
        .arg(program);
    let sh = sh.args(args).current_dir(dir);
    sh.env("LC_ALL", "C")
        .env("TZ", "Europe/Berlin")
        .output()
        .unwrap()
}

/// The same change by coreutils and by xtent: the options and the change, then the paths. Lines of
/// standard output in any order, and success or not.
struct Both<'a> {
    mount: &'a Mount,
    target: String,
}

impl Both<'_> {
    fn run(&self, umask: &str, name: &str, change: &[&str], paths: &[&str]) -> (Output, Output) {
        let expected = [change, paths].concat();
        let expected = with_umask(umask, self.mount.path(), OsStr::new(name), &expected);
        let args = [&[name][..], change, &[&self.target], paths].concat();
        let xtent = OsStr::new(env!("CARGO_BIN_EXE_xtent"));
        let got = with_umask(umask, Path::new("/"), xtent, &args);
        let why = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
        let success = |output: &Output| output.status.success();
        assert_eq!(
            success(&got),
            success(&expected),
            "{name} {change:?} {paths:?}: {}{}",
            why(&got),
            why(&expected)
        );
        (expected, got)
    }

    fn same_lines(&self, umask: &str, name: &str, change: &[&str], paths: &[&str]) {
        let (expected, got) = self.run(umask, name, change, paths);
        let lines = |output: &Output| {
            let text = String::from_utf8(output.stdout.clone()).unwrap();
            // Of a link that leads nowhere chown names the owner of the file before it.
            let known = |line: &str| match line.split_once(" from ") {
                Some((failed, _)) if failed.starts_with("failed ") => failed.to_owned(),
                _ => line.to_owned(),
            };
            let mut lines: Vec<_> = text.lines().map(known).collect();
            lines.sort();
            lines
        };
        let (expected, got) = (lines(&expected), lines(&got));
        assert_eq!(got, expected, "{name} {change:?} {paths:?}");
    }
}

/// A mode of random clauses; few of them are none.
fn random_mode(random: &mut SmallRng) -> String {
    let pick =
        |random: &mut SmallRng, from: &[&str]| from[random.random_range(0..from.len())].to_owned();
    match random.random_range(0..8) {
        0 => return format!("{:o}", random.random_range(0..=0o7777)),
        1 => return format!("{:05o}", random.random_range(0..=0o7777)),
        2 => {
            let operator = pick(random, &["=", "+", "-"]);
            return format!("{operator}{:o}", random.random_range(0..=0o7777));
        }
        _ => {}
    }
    let mut clauses = Vec::new();
    for _ in 0..random.random_range(1..4) {
        let mut clause = pick(random, &["", "u", "g", "o", "a", "ug", "uo", "go", "ugo"]);
        for _ in 0..random.random_range(1..3) {
            clause += &pick(random, &["=", "+", "-"]);
            if random.random_ratio(1, 4) {
                clause += &pick(random, &["u", "g", "o"]);
            } else {
                for _ in 0..random.random_range(0..4) {
                    clause += &pick(random, &["r", "w", "x", "X", "s", "t"]);
                }
            }
        }
        clauses.push(clause);
    }
    clauses.join(",")
}

#[test]
fn chmod_does_what_coreutils_do() {
    if !kernel_is_here() {
        return;
    }
    let (image, copy) = two_images();
    let mount = image.mount("");
    let both = Both {
        mount: &mount,
        target: path_of(&copy),
    };
    let seed = common::number("XTENT_SEED", 1);
    println!("XTENT_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let files = [
        "plain",
        "none",
        "runs",
        "set-uid",
        "it's",
        "new\nline $HOME",
        "dir",
        "dir/set-gid",
        "dir/set-gid/sticky",
        "link",
        "link-to-dir",
    ];
    for _ in 0..common::number("XTENT_RUNS", common::scaled(60, 10)) {
        let mode = random_mode(&mut random);
        let umask = ["022", "077", "002", "0"][random.random_range(0..4)];
        both.same_lines(umask, "chmod", &["-v", "--", &mode], &files);
    }
    for change in [
        &["-w"][..],
        &["-x", "-v"],
        &["-c", "+rw"],
        &["-Rv", "u=rwX,go=rX"],
        &["-Rc", "g+s"],
        &["-Rv", "--reference=set-uid"],
        &["-fv", "600"],
        &["-v", "644,u+x"],
        &["-v", "u+"],
        &["-v", "8"],
        &["-v", ""],
    ] {
        let paths = ["dir", "plain", "no-such-file", "link-to-dir"];
        both.same_lines("022", "chmod", change, &paths);
    }
    mount.unmount();
    assert_eq!(
        states(&copy, false),
        states(&image, false),
        "XTENT_SEED={seed}"
    );
}

/// Options of chown, and an owner.
fn random_owner(random: &mut SmallRng) -> Vec<String> {
    let mut number = || random.random_range(0..4).to_string();
    let (uid, gid, from) = (number(), number(), number());
    let owner = match random.random_range(0..6) {
        0 => uid,
        1 => format!(":{gid}"),
        2 => format!("+{uid}:+{gid}"),
        3 => "root:".to_owned(),
        4 => format!("root:{gid}"),
        _ => format!("{uid}:{gid}"),
    };
    let mut change = vec!["-v".to_owned()];
    for (option, often) in [
        ("-R", 2),
        ("-h", 4),
        ("-c", 4),
        ("-P", 8),
        ("-H", 4),
        ("-L", 4),
    ] {
        // With -h and links that are entered, chown compares the owners of their targets.
        let compares_targets = ["-H", "-L"].contains(&option) && change.contains(&"-h".into());
        if random.random_ratio(1, often) && !compares_targets {
            change.push(option.to_owned());
        }
    }
    match random.random_range(0..6) {
        0 => change.push(format!("--from={from}")),
        1 => change.push(format!("--from=:{from}")),
        _ => {}
    }
    change.push(owner);
    change
}

#[test]
fn chown_does_what_coreutils_do() {
    if !kernel_is_here() {
        return;
    }
    let (image, copy) = two_images();
    let mount = image.mount("");
    let both = Both {
        mount: &mount,
        target: path_of(&copy),
    };
    let seed = common::number("XTENT_SEED", 1);
    println!("XTENT_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let paths = [
        "plain",
        "set-uid",
        "dir",
        "link",
        "link-to-dir",
        "dir/dangling",
        "no-such-file",
    ];
    for _ in 0..common::number("XTENT_RUNS", common::scaled(60, 10)) {
        let change = random_owner(&mut random);
        let change: Vec<_> = change.iter().map(String::as_str).collect();
        // With -L coreutils enter a directory as often as links lead to it.
        if change.contains(&"-L") {
            both.run("022", "chown", &change, &paths);
        } else {
            both.same_lines("022", "chown", &change, &paths);
        }
    }
    for change in [
        &["-Rv", "--reference=elsewhere/file"][..],
        &["-v", ""],
        &["-v", ":"],
        &["-R", "--dereference", "3"],
        &["no-such-user"],
        &["1:no-such-group"],
        &["+1000:"],
    ] {
        both.same_lines("022", "chown", change, &paths[..3]);
    }
    mount.unmount();
    assert_eq!(
        states(&copy, false),
        states(&image, false),
        "XTENT_SEED={seed}"
    );
}

#[test]
fn touch_does_what_coreutils_do() {
    if !kernel_is_here() {
        return;
    }
    let (image, copy) = two_images();
    let mount = image.mount("noatime");
    let both = Both {
        mount: &mount,
        target: path_of(&copy),
    };
    let touch = |change: &[&str], path: &str| {
        both.run("022", "touch", change, &[path]);
    };
    // Every file gets all its times from here.
    for path in [
        "plain",
        "none",
        "runs",
        "set-uid",
        "link",
        "link-to-dir",
        "dir/to-none",
    ] {
        touch(&["-h", "-d", "2001-09-09 01:46:40.123456789 UTC"], path);
    }
    touch(&["-d", "2026-11-28 12:00"], "plain");
    touch(&["-a", "-d", "@1234567890.5"], "plain");
    touch(&["-m", "-t", "202607150102.03"], "none");
    touch(&["-t", "7001010000"], "runs");
    touch(&["-d", "1950-01-01T00:00:00Z"], "set-uid");
    touch(&["-r", "plain"], "elsewhere");
    touch(&["-r", "plain", "-d", "+1 day"], "elsewhere/file");
    touch(&["-r", "link", "-d", "1 hour ago"], "dir");
    touch(&["-h", "-r", "set-uid"], "link");
    touch(&["--time=atime", "-d", "Nov 5 2020 3pm"], "dir/set-gid");
    touch(&["--time=modify", "-d", "20200229"], "dir/set-gid");
    touch(&["-c"], "no-such-file");
    for change in [
        &["-d", "no date"][..],
        &["-t", "20261301"],
        &["-r", "no-such-file"],
    ] {
        touch(change, "plain");
    }
    mount.unmount();
    assert_eq!(states(&copy, true), states(&image, true));
    // Now is now.
    let before = std::time::SystemTime::now();
    run(0, &["touch", &path_of(&copy), "/none"]);
    let mount = copy.mount("ro");
    let touched = fs::metadata(mount.path().join("none")).unwrap();
    assert!(touched.modified().unwrap() >= before);
    assert!(touched.accessed().unwrap() >= before);
    mount.unmount();
}

#[test]
fn files_that_cannot_be_changed_are_reported_and_the_others_changed() {
    if !kernel_is_here() {
        return;
    }
    let (image, _) = two_images();
    let mount = image.mount("");
    let runs = mount.path().join("runs");
    common::run("chattr", &["+i", runs.to_str().unwrap()]);
    mount.unmount();
    let target = path_of(&image);
    let mode = |path: &str| {
        let shown = super::json(&["stat", "--json", &target, path]);
        shown[0]["permissions"].as_str().unwrap().to_owned()
    };
    let (_, stderr) = run(1, &["chmod", "600", &target, "/runs", "/no", "/plain"]);
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
    assert!(
        stderr.contains("/runs ") && stderr.contains("immutable"),
        "{stderr}"
    );
    assert_eq!(
        (mode("/runs"), mode("/plain")),
        ("0755".into(), "0600".into())
    );
    let (_, stderr) = run(
        1,
        &["chmod", "-f", "640", &target, "/runs", "/no", "/plain"],
    );
    assert_eq!((stderr.as_str(), &*mode("/plain")), ("", "0640"));
    run(1, &["chown", "5", &target, "/runs", "/plain"]);
    run(1, &["touch", "-d", "yesterday", &target, "/runs"]);
    let (_, stderr) = run(1, &["touch", &target, "/no"]);
    assert!(
        stderr.contains("creating files is not possible yet"),
        "{stderr}"
    );
    run(0, &["touch", "-c", &target, "/no"]);
    let read_only = format!("{target},readonly");
    for args in [&["chmod", "600"][..], &["chown", "5"], &["touch"]] {
        let args = [args, &[&*read_only, "/plain"]].concat();
        let (_, stderr) = run(1, &args);
        assert!(stderr.contains("read-only"), "{stderr}");
    }
    run(1, &["chmod", "-R", "--preserve-root", "700", &target, "/"]);
    run(
        1,
        &["chown", "-R", "--preserve-root", "5", &target, "/dir/up/"],
    );
    assert_eq!(mode("/"), "0755");
    for usage in [
        &["chmod", "u+z", &target, "/plain"][..],
        &["chmod", "600", &target],
        &["chown", "no:such", &target, "/plain"],
        &["chown", "-R", "--dereference", "5", &target, "/plain"],
        &["touch", "-d", "no date", &target, "/plain"],
        &["touch", "-t", "1", &target, "/plain"],
        &["touch", "-d", "now", "-t", "11281200", &target, "/plain"],
    ] {
        run(2, usage);
    }
    run(3, &["chmod", "600", "no-such.img", "/plain"]);
    image.assert_clean();
}

#[test]
fn changes_are_told_as_json() {
    if !kernel_is_here() {
        return;
    }
    let (image, _) = two_images();
    let target = path_of(&image);
    let changed = super::json(&["chmod", "--json", "-R", "711", &target, "/dir/set-gid"]);
    let changed = changed.as_array().unwrap();
    assert_eq!(changed.len(), 3);
    assert_eq!(changed[0]["path"], "/dir/set-gid");
    assert_eq!(changed[0]["permissions_before"], "2770");
    assert_eq!(changed[0]["permissions"], "2711");
    assert_eq!(changed[0]["changed"], true);
    let changed = super::json(&["chown", "--json", "-c", "7", &target, "/plain", "/none"]);
    assert_eq!(changed[1]["uid_before"], 0);
    assert_eq!(changed[1]["uid"], 7);
    assert_eq!(text(&["chown", "-c", "7", &target, "/plain"]), "");
    image.assert_clean();
}

/// Paths longer than PATH_MAX, and more files than one record of the log has room for.
#[test]
fn deep_and_large_trees_are_changed() {
    if !kernel_is_here() {
        return;
    }
    let image = Image::make(300 << 20, 512, &[]);
    let mount = image.mount("");
    let script = "i=0; while [ $i -lt 400 ]; do mkdir directory-$i; cd -P directory-$i || exit 1; \
                  i=$((i + 1)); done; : > file";
    let output = with_umask("022", mount.path(), OsStr::new("sh"), &["-c", script]);
    assert!(output.status.success(), "{output:?}");
    fs::create_dir(mount.path().join("many")).unwrap();
    let count = common::scaled(20_000, 2000);
    for index in 0..count {
        fs::write(mount.path().join(format!("many/{index}")), "").unwrap();
    }
    mount.unmount();
    let target = path_of(&image);
    let lines = text(&["chmod", "-R", "-c", "g+w,o=", &target, "/"]);
    assert_eq!(lines.lines().count(), 1 + 401 + 1 + count);
    let lines = text(&["chown", "-R", "-c", "5:6", &target, "/"]);
    assert_eq!(lines.lines().count(), 1 + 401 + 1 + count);
    image.assert_clean();
    let mount = image.mount("ro");
    let find = [
        "-mindepth",
        "1",
        "(",
        "-uid",
        "5",
        "-gid",
        "6",
        "-perm",
        "660",
        "-o",
        "-type",
        "d",
    ];
    let find = [
        &[mount.path().to_str().unwrap()],
        &find[..],
        &["-perm", "770", ")"],
    ]
    .concat();
    let found = common::run("find", &find);
    assert_eq!(found.lines().count(), 401 + 1 + count);
    mount.unmount();
}
