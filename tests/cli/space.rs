//! `truncate` and `fallocate`, beside coreutils and util-linux on the kernel's mount of the same
//! image.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use super::common::image::Image;
use super::common::{kernel_is_here, random_bytes};
use super::{path_of, run, xtent};

/// Content, and blocks in units of 512 bytes, of the files of an image.
fn files(image: &Image) -> Vec<(Vec<u8>, u64)> {
    image.assert_clean();
    let mount = image.mount("ro");
    let found = ["a", "b"].map(|name| {
        let path = mount.path().join(name);
        (
            fs::read(&path).unwrap(),
            fs::metadata(&path).unwrap().blocks(),
        )
    });
    mount.unmount();
    found.into()
}

#[test]
fn truncate_and_fallocate_do_what_the_tools_do() {
    if !kernel_is_here() {
        return;
    }
    let image = Image::make(300 << 20, 512, &[]);
    let mount = image.mount("");
    fs::write(mount.path().join("a"), random_bytes(1, 300_000)).unwrap();
    fs::write(mount.path().join("b"), random_bytes(2, 70_000)).unwrap();
    mount.unmount();
    let copy = Image::empty(0, 512);
    fs::copy(image.path(), copy.path()).unwrap();
    let target = path_of(&copy);
    let mount = image.mount("");
    let both = |name: &str, options: &[&str], paths: &[&str], expected: bool| {
        let host = Command::new(name)
            .args(options)
            .args(paths)
            .current_dir(mount.path())
            .output()
            .unwrap();
        assert_eq!(host.status.success(), expected, "{name} {options:?}");
        let mut args = [&[name][..], options, &[&target]].concat();
        let paths: Vec<String> = paths.iter().map(|path| format!("/{path}")).collect();
        args.extend(paths.iter().map(String::as_str));
        let ours = xtent(&args);
        let why = String::from_utf8_lossy(&ours.stderr).into_owned();
        assert_eq!(ours.status.success(), expected, "{args:?}: {why}");
    };
    both("truncate", &["-s", "+5K"], &["a", "b"], true);
    both("truncate", &["-s", "%4KB"], &["b"], true);
    both("truncate", &["-s", "<200KiB"], &["a", "b"], true);
    both("truncate", &["-o", "-s", "30"], &["a"], true);
    both("truncate", &["-r", "b", "-s", "-1"], &["a"], true);
    both("truncate", &["-c", "-s", "5"], &["missing"], true);
    both("truncate", &["-s", "x"], &["a"], false);
    both("fallocate", &["-l", "1M"], &["b"], true);
    both("fallocate", &["-n", "-o", "1M", "-l", "64K"], &["b"], true);
    both(
        "fallocate",
        &["-p", "-n", "-o", "5000", "-l", "20000"],
        &["a"],
        true,
    );
    both(
        "fallocate",
        &["-z", "-o", "30000", "-l", "5000"],
        &["a"],
        true,
    );
    both("fallocate", &["-c", "-o", "8K", "-l", "4KiB"], &["a"], true);
    both("fallocate", &["-i", "-o", "4K", "-l", "16K"], &["a"], true);
    both("fallocate", &["-c", "-o", "1", "-l", "4K"], &["a"], false);
    both("fallocate", &["-l", "0"], &["a"], false);
    both("fallocate", &["-l", "100G"], &["b"], false);
    mount.unmount();
    let (expected, found) = (files(&image), files(&copy));
    for (index, (expected, found)) in expected.iter().zip(&found).enumerate() {
        assert!(expected.0 == found.0, "content of file {index}");
    }
    let (_, error) = run(1, &["truncate", "-s", "1", &target, "/missing"]);
    assert!(error.contains("creating files"), "{error}");
    run(2, &["truncate", &target, "/a"]);
    run(2, &["fallocate", "-p", "-z", "-l", "1", &target, "/a"]);
    let target = format!("{target},readonly");
    run(1, &["truncate", "-s", "1", &target, "/a"]);
}
