//! `xattr`, `ls -l`, `df`, `du`, `find` and `tree` beside the tools of the host on a mount by the
//! kernel.
use super::*;

/// A tree with everything that the commands look at; the image, unmounted. `look` is called while
/// it is mounted.
fn image(look: impl FnOnce(&Path)) -> Option<Image> {
    if !common::kernel_is_here() {
        return None;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    let script = "
        mkdir -p a/b/c .hidden 'with space'; echo hello >a/f; head -c 100000 /dev/zero >a/b/big
        truncate -s 5M sparse; ln a/f a/b/second; ln -s a/f link; : >empty; echo x >.dot
        touch -d '2001-02-03 04:05:06 UTC' a/old; touch -d '10 days ago' a/b/older
        chmod 4755 a/old; chmod 600 a/b/big; chown 12:34 a/b/older; mkfifo fifo; mkdir void
        for i in $(seq 300); do : >a/b/c/$i.txt; done";
    assert_ok(
        Command::new("sh")
            .args(["-ec", script])
            .current_dir(mount.path()),
    );
    look(mount.path());
    mount.unmount();
    Some(image)
}

fn assert_ok(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

const FINDS: &[&[&str]] = &[
    &[],
    &["-name", "*.txt", "-name", "1*"],
    &["-iname", "A*"],
    &["-path", "*/b/*", "-type", "f", "-size", "+1"],
    &["-type", "d,l"],
    &["!", "-type", "f"],
    &["-size", "-2"],
    &["-size", "+40k"],
    &["-size", "6c"],
    &["-mtime", "+5"],
    &["-mtime", "-5", "-type", "f"],
    &["-mmin", "-100", "-maxdepth", "1"],
    &["-maxdepth", "2"],
    &["-mindepth", "2", "-maxdepth", "2"],
    &["-maxdepth", "0"],
    &["-links", "2"],
    &["-links", "+1", "-type", "f"],
    &["-perm", "4755"],
    &["-perm", "-600", "-type", "f", "-not", "-perm", "/044"],
    &["-empty", "-not", "-name", "*.txt"],
    &["-uid", "12"],
    &["-gid", "+30"],
    &["-name", "[ab]"],
];

#[test]
fn find_finds_what_find_finds() {
    let mut wanted = Vec::new();
    let Some(image) = image(|root| {
        for test in FINDS {
            let mut find = Command::new("find");
            find.arg(".").args(*test).current_dir(root);
            let found = assert_ok(&mut find);
            let found: Vec<_> = sorted(&found);
            wanted.push(found);
        }
    }) else {
        return;
    };
    let target = path_of(&image);
    for (test, wanted) in FINDS.iter().zip(&wanted) {
        let mut args = vec!["find", &target, "."];
        args.extend(*test);
        assert_eq!(sorted(&text(&args)), *wanted, "{test:?}");
    }
    let newer = text(&[
        "find",
        &target,
        "/a",
        "-newer",
        "/a/old",
        "-maxdepth",
        "1",
        "-type",
        "f",
    ]);
    assert_eq!(newer, "/a/f\n");
    let zeroes = text(&["find", &target, "/a", "-name", "old", "-print0"]);
    assert_eq!(zeroes, "/a/old\0");
    let ino = json(&["stat", "--json", &target, "/a/old"])[0]["ino"].to_string();
    assert_eq!(text(&["find", &target, "-inum", &ino]), "/a/old\n");
    let list = json(&["find", "--json", &target, "/", "-name", "old"]);
    assert_eq!(list[0]["path"], "/a/old");
    assert_eq!(list[0]["schema_version"], 1);
    let (_, stderr) = run(2, &["find", &target, "/", "-exec", "rm", "{}", ";"]);
    assert!(stderr.contains("-exec is not supported"), "{stderr}");
    let (_, stderr) = run(1, &["find", &target, "/nowhere", "/a", "-maxdepth", "0"]);
    assert!(stderr.contains("/nowhere"), "{stderr}");
}

#[test]
fn du_and_df_count_what_the_host_counts() {
    let ways = [
        &[][..],
        &["-s"],
        &["-a"],
        &["-h"],
        &["-d", "1"],
        &["-c", "-s"],
        &["--apparent-size"],
        &["-s", "--apparent-size", "-h"],
    ];
    let mut wanted = Vec::new();
    let mut df = Vec::new();
    let Some(image) = image(|root| {
        for way in ways {
            let mut du = Command::new("du");
            wanted.push(sorted(&assert_ok(du.args(way).arg(".").current_dir(root))));
        }
        for way in ["--output=size", "--output=itotal,iused"] {
            let mut command = Command::new("df");
            let text = assert_ok(command.args([way, "-B4096"]).arg(root));
            let last = text.lines().last().unwrap().to_owned();
            df.extend(last.split_whitespace().map(|n| n.parse::<u64>().unwrap()));
        }
    }) else {
        return;
    };
    let target = path_of(&image);
    for (way, wanted) in ways.iter().zip(&wanted) {
        let mut args = vec!["du"];
        args.extend(*way);
        args.extend([target.as_str(), "."]);
        assert_eq!(sorted(&text(&args)), *wanted, "{way:?}");
    }
    let total = json(&["du", "--json", "-s", &target]);
    assert!(total[0]["bytes"].as_u64().unwrap() > 100_000);
    let found = json(&["df", "--json", &target]);
    let [size, inodes, used_inodes] = df[..] else {
        panic!("{df:?}")
    };
    assert_eq!(found["size_bytes"].as_u64().unwrap() / 4096, size);
    assert_eq!(found["inodes_used"], used_inodes);
    // The kernel counts reservations of the mounted filesystem as used: fewer inodes have room.
    let all = found["inodes"].as_u64().unwrap();
    assert!(all >= inodes && all < inodes + inodes / 5, "{all} {inodes}");
    let table = text(&["df", "-h", &target]);
    assert!(
        table.starts_with("Filesystem") && table.contains('%'),
        "{table}"
    );
    let table = text(&["df", "-i", &target]);
    assert!(
        table.contains("IFree") && table.contains(&used_inodes.to_string()),
        "{table}"
    );
}

#[test]
fn tree_and_ls_have_the_options_of_the_host() {
    let orders = [
        &["-t"][..],
        &["-S"],
        &["-r"],
        &["-tr"],
        &["-Sr"],
        &["-1"],
        &["-a"],
    ];
    let mut wanted = Vec::new();
    let mut inodes = String::new();
    let Some(image) = image(|root| {
        for order in orders {
            let mut ls = Command::new("ls");
            wanted.push(assert_ok(ls.args(order).arg("a/b").current_dir(root)));
        }
        let mut ls = Command::new("ls");
        inodes = assert_ok(ls.arg("-i").arg("a/b").current_dir(root));
    }) else {
        return;
    };
    let target = path_of(&image);
    for (order, wanted) in orders.iter().zip(&wanted) {
        let mut args = vec!["ls"];
        args.extend(*order);
        args.extend([target.as_str(), "/a/b"]);
        let wanted: Vec<_> = wanted
            .lines()
            .filter(|l| !matches!(*l, "." | ".."))
            .collect();
        assert_eq!(text(&args).lines().collect::<Vec<_>>(), wanted, "{order:?}");
    }
    let words = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(words(&text(&["ls", "-i", &target, "/a/b"])), words(&inodes));
    assert!(text(&["ls", "-lh", &target, "/a/b/big"]).contains(" 98K "));
    let tree = text(&["tree", "-L", "2", &target, "/"]);
    for line in [
        "├── a\n",
        "│   ├── b\n",
        "├── link -> a/f\n",
        "└── with space\n",
    ] {
        assert!(tree.contains(line), "{tree}");
    }
    assert!(!tree.contains(".dot") && !tree.contains("1.txt"), "{tree}");
    assert!(tree.ends_with("directories, 6 files\n"), "{tree}");
    assert!(text(&["tree", "-d", &target, "/a"]).ends_with("\n2 directories\n"));
}

#[test]
fn attributes_and_lists_are_those_of_getfattr_and_getfacl() {
    for tool in ["setfattr", "getfattr", "setfacl", "getfacl"] {
        if !common::has_tool(tool) {
            common::skipped(&format!("{tool} is not installed"));
            return;
        }
    }
    let files = ["a/f", "a/b", "a/old", "empty"];
    let (mut dumps, mut lists) = (Vec::new(), Vec::new());
    let Some(image) = image(|root| {
        let script = "
            setfattr -n user.comment -v 'a \"quoted\" text' a/f; setfattr -n user.bin -v 0x00ff0a a/f
            setfattr -n user.none a/f; setfattr -n trusted.t -v t a/f; setfattr -n user.x -v 1 a/b
            setfacl -m u:1000:rwx,g:7:r,m::r a/f; setfacl -m d:u:5:rw,d:g::rx a/b; chmod 1777 a/b";
        assert_ok(Command::new("sh").args(["-ec", script]).current_dir(root));
        for file in files {
            let mut getfattr = Command::new("getfattr");
            getfattr
                .args(["-d", "-m", "-", "-e", "hex", file])
                .current_dir(root);
            dumps.push(sorted(&assert_ok(&mut getfattr)));
            let mut getfacl = Command::new("getfacl");
            lists.push(assert_ok(getfacl.args(["-n", file]).current_dir(root)));
        }
    }) else {
        return;
    };
    let target = path_of(&image);
    for ((file, dump), list) in files.iter().zip(&dumps).zip(&lists) {
        let found = text(&["xattr", "-d", "-e", "hex", &target, file]);
        assert_eq!(sorted(&found), *dump, "{file}");
        assert_eq!(text(&["xattr", "--acl", &target, file]), *list, "{file}");
    }
    let found = text(&["xattr", "-n", "user.comment", &target, "/a/f"]);
    assert_eq!(
        found,
        "# file: /a/f\nuser.comment=\"a \\\"quoted\\\" text\"\n\n"
    );
    let found = text(&["xattr", "-n", "user.bin", &target, "/a/f"]);
    assert!(found.contains("user.bin=0sAP8K"), "{found}");
    let names = text(&["xattr", &target, "/a/f"]);
    assert!(
        names.contains("\nuser.none\n") && !names.contains('='),
        "{names}"
    );
    let (_, stderr) = run(1, &["xattr", "-n", "user.missing", &target, "/a/f"]);
    assert!(stderr.contains("no attribute user.missing"), "{stderr}");
    let value = json(&["xattr", "--json", &target, "/a/f"]);
    let attributes = value[0]["attributes"].as_array().unwrap();
    let bin = attributes.iter().find(|a| a["name"] == "user.bin").unwrap();
    assert_eq!(bin["value_hex"], "00ff0a");
    let long = text(&["ls", "-l", &target, "/a"]);
    let line = |name: &str| long.lines().find(|l| l.ends_with(name)).unwrap().to_owned();
    assert!(line(" f").starts_with("-rw-r--r--+"), "{long}");
    assert!(line(" old").starts_with("-rwsr-xr-x "), "{long}");
}

#[test]
fn every_result_in_json_has_a_schema_version() {
    let Some((image, _)) = prototype_image() else {
        return;
    };
    let target = path_of(&image);
    for args in [
        &["info", "--json", &target][..],
        &["ls", "--json", &target],
        &["stat", "--json", &target, "/data"],
        &["fiemap", "--json", &target, "/data"],
        &["xattr", "--json", &target, "/data"],
        &["df", "--json", &target],
        &["du", "--json", &target],
        &["find", "--json", &target],
        &["smart", "--json", &target],
        &["list", "--json"],
        &[
            "bench",
            "--json",
            "--rw=read",
            "--runtime=1",
            &target,
            "/data",
        ],
    ] {
        let value = json(args);
        let objects = match value.as_array() {
            Some(list) => list.clone(),
            None => vec![value],
        };
        assert!(!objects.is_empty(), "{args:?}");
        for object in objects {
            assert_eq!(object["schema_version"], 1, "{args:?}");
        }
    }
}
