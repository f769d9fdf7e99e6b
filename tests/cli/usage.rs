//! Wrong invocations: each says in a line or two what happened and what to do. And a way to every
//! exit status.
use super::*;

/// Arguments (`IMAGE`, `DIR` and `EXT4` stand for files), exit status, and words that must be
/// there.
const WRONG: &[(&[&str], i32, &[&str])] = &[
    (&["frobnicate"], 2, &["unrecognized subcommand", "--help"]),
    (&["list-files", "IMAGE"], 2, &["unrecognized subcommand"]),
    (&["ls"], 2, &["TARGET", "--help"]),
    (&["ls", "IMAGE", "--colour"], 2, &["--colour", "--help"]),
    (&["ls", "-tS", "IMAGE"], 2, &["cannot be used with"]),
    (
        &["ls", "IMAGE", "/nowhere"],
        1,
        &["/nowhere", "no such file"],
    ),
    (
        &["ls", "IMAGE", "/data/x"],
        1,
        &["/data/x", "not a directory"],
    ),
    (&["ls", "missing.img"], 3, &["missing.img", "image:FILE"]),
    (&["ls", "imag:disk.img"], 2, &["imag:", "image:FILE"]),
    (&["ls", "IMAGE,lbs=512"], 2, &["lbs", "lba=512|4096"]),
    (
        &["ls", "IMAGE,part=1"],
        3,
        &["no partition table", "leave out"],
    ),
    (
        &["ls", "IMAGE,offset=300"],
        3,
        &["logical block of 512 bytes"],
    ),
    (&["ls", "DIR"], 3, &["directory", "image is a file"]),
    (&["ls", "EXT4"], 3, &["no XFS", "ext4", "kernel"]),
    (&["ls", "pci:01:00"], 2, &["01:00", "address"]),
    (&["ls", "pci:ffff:ff:1f.7"], 3, &["ffff:ff:1f.7"]),
    (&["ls", "vfio-user:/nowhere/cntrl"], 3, &["/nowhere/cntrl"]),
    (&["ls", "uring:/nowhere/sdz"], 3, &["/nowhere/sdz"]),
    (&["cat", "IMAGE"], 2, &["PATH"]),
    (&["cat", "IMAGE", "/dir"], 1, &["/dir", "directory"]),
    (&["get", "IMAGE", "/dir", "DIR/out"], 1, &["/dir", "-r"]),
    (&["get", "IMAGE", "/data", "/nowhere/out"], 1, &["/nowhere"]),
    (&["put", "missing", "IMAGE", "/data"], 1, &["missing"]),
    (
        &["stat", "IMAGE", "/nowhere"],
        1,
        &["/nowhere", "no such file"],
    ),
    (
        &["find", "IMAGE", "/", "-exec", "ls"],
        2,
        &["-exec", "not supported", "-name"],
    ),
    (
        &["find", "IMAGE", "/", "-size", "1x"],
        2,
        &["-size", "c w b k M G"],
    ),
    (&["du", "-s", "-a", "IMAGE"], 2, &["cannot be used with"]),
    (
        &["xattr", "IMAGE", "/data", "-e", "octal"],
        2,
        &["octal", "base64"],
    ),
    (
        &["xattr", "IMAGE", "/data", "-n", "user.x"],
        1,
        &["no attribute user.x"],
    ),
    (
        &["bench", "IMAGE", "/data", "--rw", "sideways"],
        2,
        &["sideways", "randread"],
    ),
    (
        &["bench", "IMAGE", "/nowhere", "--rw", "read"],
        1,
        &["/nowhere"],
    ),
    (&["serve", "vfio-user", "/tmp/x"], 2, &["--media"]),
    (&["completions", "cmd"], 2, &["cmd", "bash"]),
];

#[test]
fn wrong_invocations_say_what_happened_and_what_to_do() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let ext4 = dir.path().join("ext4.img");
    let has_ext4 = common::has_tool("mkfs.ext4");
    if has_ext4 {
        fs::File::create(&ext4).unwrap().set_len(64 << 20).unwrap();
        common::run("mkfs.ext4", &["-q", ext4.to_str().unwrap()]);
    }
    assert!(WRONG.len() >= 25);
    for (args, status, words) in WRONG {
        if args.contains(&"EXT4") && !has_ext4 {
            common::skipped("mkfs.ext4 is not installed");
            continue;
        }
        let fill = |arg: &&str| {
            arg.replace("IMAGE", &path_of(&image))
                .replace("EXT4", ext4.to_str().unwrap())
                .replace("DIR", dir.path().to_str().unwrap())
        };
        let args: Vec<_> = args.iter().map(fill).collect();
        let (_, stderr) = run(*status, &args);
        for word in *words {
            assert!(
                stderr.to_lowercase().contains(&word.to_lowercase()),
                "{args:?}: `{word}` is missing: {stderr}"
            );
        }
        let most = if *status == 2 { 12 } else { 1 };
        let lines = stderr.lines().filter(|line| !line.contains("warning:"));
        assert!(lines.count() <= most, "{args:?}: {stderr}");
    }
}

/// 0 to 4 here; 5 in `smart.rs` and the tests of failing controllers, 130 in `signals.rs`.
#[test]
fn every_exit_status_is_what_the_help_says() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    run(0, &["ls", &target]);
    run(1, &["cat", &target, "/nowhere"]);
    run(2, &["cat"]);
    run(3, &["ls", "/nowhere/disk.img"]);
    // 141: nothing reads the pipe.
    let script = format!(
        "{} cat {target} /data | true; exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_xtent")
    );
    let mut shell = Command::new("bash");
    let status = shell.args(["-c", &script]).status().unwrap();
    assert_eq!(status.code(), Some(141));
    // 4: the filesystem is longer than its device.
    let dir = tempfile::tempdir().unwrap();
    let cut = dir.path().join("cut.img");
    common::run("cp", &["--sparse=always", &target, cut.to_str().unwrap()]);
    let file = fs::File::options().write(true).open(&cut).unwrap();
    file.set_len(100 << 20).unwrap();
    drop(file);
    run(4, &[OsStr::new("ls"), cut.as_os_str()]);
    let help = text(&["--help"]);
    for status in ["0  ", "1  ", "2  ", "3  ", "4  ", "5  ", "130  ", "141"] {
        assert!(help.contains(status), "{status}");
    }
}

#[test]
fn everything_is_installed_below_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install.sh");
    let install = |prefix: &str| {
        let mut command = Command::new(&script);
        command.env("DESTDIR", dir.path()).env("PREFIX", prefix);
        let output = command
            .env("XTENT", env!("CARGO_BIN_EXE_xtent"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    install("/usr/local");
    // Again, over itself.
    install("/usr/local");
    let root = dir.path().join("usr/local");
    for (path, mode) in [
        ("bin/xtent", 0o755),
        ("sbin/vfio-setup.sh", 0o755),
        ("share/man/man1/xtent.1", 0o644),
        ("share/man/man1/xtent-ls.1", 0o644),
        ("share/man/man1/xtent-find.1", 0o644),
        ("share/bash-completion/completions/xtent", 0o644),
        ("share/zsh/site-functions/_xtent", 0o644),
        ("share/fish/vendor_completions.d/xtent.fish", 0o644),
    ] {
        let meta = fs::metadata(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(meta.len() > 100, "{path}");
        assert_eq!(meta.mode() & 0o777, mode, "{path}");
    }
    let run = Command::new(root.join("bin/xtent"))
        .arg("--version")
        .output()
        .unwrap();
    assert!(run.status.success());
    for page in fs::read_dir(root.join("share/man/man1")).unwrap().flatten() {
        let text = fs::read_to_string(page.path()).unwrap();
        for section in [".SH \"EXIT STATUS\"", ".SH EXAMPLES", ".SH FILES"] {
            assert!(text.contains(section), "{:?}: {section}", page.path());
        }
    }
    let bad = Command::new(&script).arg("--frobnicate").output().unwrap();
    assert_eq!(bad.status.code(), Some(2));
}
