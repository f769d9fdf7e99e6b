//! What README.md and docs/library.md show: every command and every example works as printed.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::image::Image;

/// An image as scripts/demo.sh leaves it, only smaller; `demo.img` in a directory with `bin/xtent`.
fn demo() -> Option<(tempfile::TempDir, Image)> {
    if !common::kernel_is_here() {
        return None;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    for dir in ["bench", "docs"] {
        fs::create_dir(mount.path().join(dir)).unwrap();
    }
    for name in ["read.dat", "write.dat"] {
        let bytes: Vec<u8> = (0..24_u32 << 20).map(|n| (n % 251) as u8).collect();
        fs::write(mount.path().join("bench").join(name), bytes).unwrap();
    }
    for name in ["README.md", "LICENSE-MIT"] {
        fs::copy(name, mount.path().join("docs").join(name)).unwrap();
    }
    mount.unmount();
    let dir = tempfile::tempdir().unwrap();
    symlink(image.path(), dir.path().join("demo.img")).unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    symlink(
        env!("CARGO_BIN_EXE_xtent"),
        dir.path().join("bin").join("xtent"),
    )
    .unwrap();
    Some((dir, image))
}

/// The lines of the fenced blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}");
    let mut found = Vec::new();
    let mut inside = None;
    for line in text.lines() {
        match &mut inside {
            None if line == fence => inside = Some(String::new()),
            None => {}
            Some(_) if line == "```" => found.extend(inside.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    found
}

#[test]
fn every_command_of_the_readme_works() {
    let Some((dir, _image)) = demo() else { return };
    let readme = fs::read_to_string("README.md").unwrap();
    let blocks = blocks(&readme, "sh").concat();
    let (mut commands, mut scripts) = (0, 0);
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}/bin:{path}", dir.path().display());
    for line in blocks.lines() {
        let command = line.split('#').next().unwrap().trim();
        if command.starts_with("scripts/") {
            // Those run for minutes; that they are there and executable is what can be asked.
            let help = Command::new(command).arg("--help").output().unwrap();
            assert!(help.status.success(), "{command}");
            scripts += 1;
            continue;
        }
        let command = command.replace("--runtime 2", "--runtime 200ms");
        let command = command.replace("--runtime 1", "--runtime 100ms");
        let out = Command::new("sh")
            .args(["-c", &command])
            .current_dir(dir.path())
            .env("PATH", &path)
            .output()
            .unwrap();
        let said = [&*out.stdout, &*out.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(out.status.success(), "{command}: {said}");
        commands += 1;
    }
    assert!(commands >= 8 && scripts == 2, "{commands} {scripts}");
    assert!(dir.path().join("report.html").exists());
    let copied = fs::read(dir.path().join("docs-copy/LICENSE-MIT")).unwrap();
    assert_eq!(copied, fs::read("LICENSE-MIT").unwrap());
}

/// Builds the examples, which `cargo test --test readme` alone does not.
fn build_examples() {
    let build = ["build", "--examples", "--locked", "--quiet"];
    let built = Command::new(env!("CARGO")).args(build).status().unwrap();
    assert!(built.success());
}

/// An example's program.
fn example(name: &str) -> PathBuf {
    let bin = Path::new(env!("CARGO_BIN_EXE_xtent"));
    bin.parent().unwrap().join("examples").join(name)
}

#[test]
fn every_example_works_and_the_readmes_is_one_of_them() {
    let code = fs::read_to_string("examples/read.rs").unwrap();
    let (_, code) = code.split_once("\n\n").unwrap();
    let readme = fs::read_to_string("README.md").unwrap();
    assert_eq!(blocks(&readme, "rust,no_run"), [code]);
    let guide = fs::read_to_string("docs/library.md").unwrap();
    let Some((dir, _image)) = demo() else { return };
    build_examples();
    let run = |name: &str, args: &[&str]| {
        assert!(guide.contains(&format!("../examples/{name}.rs")), "{name}");
        let mut command = Command::new(example(name));
        let out = command.arg("demo.img").args(args).current_dir(dir.path());
        let out = out.output().unwrap();
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{name}: {errors}");
        String::from_utf8(out.stdout).unwrap()
    };
    let start = run("read", &["/docs/LICENSE-MIT"]);
    assert_eq!(start, fs::read_to_string("LICENSE-MIT").unwrap());
    assert!(run("depth32", &["/bench/read.dat", "5000"]).contains("5000 reads"));
    run("buffered_write", &["/docs/LICENSE-MIT", "changed"]);
    assert!(run("read", &["/docs/LICENSE-MIT"]).starts_with("changed"));
    for name in ["tokio", "futures"] {
        assert!(run(name, &["/bench/read.dat"]).contains("262144 bytes in 64 reads"));
    }
    let sums = run("sum", &["/"]);
    let crc = crc32c::crc32c(&fs::read("README.md").unwrap());
    assert!(
        sums.contains(&format!("{crc:08x}  /docs/README.md")),
        "{sums}"
    );
    assert_eq!(sums.lines().count(), 4, "{sums}");
    assert!(run("read_tree", &["2"]).starts_with("4 files, "));
    let examples = fs::read_dir("examples").unwrap().count();
    assert_eq!(examples, 7, "one is not run here");
}
