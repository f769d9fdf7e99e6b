//! Stamps the build (commit, compiler) into the binary, so that a report can say which xtent made
//! it.
use std::process::Command;

fn output(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    (out.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Only what exists: Cargo takes a missing file for a changed one, and in a linked worktree
    // `.git` is a file.
    let branch = output("git", &["symbolic-ref", "-q", "HEAD"]);
    for name in ["HEAD".to_owned()].into_iter().chain(branch) {
        if let Some(path) = output("git", &["rev-parse", "--git-path", &name])
            && std::path::Path::new(&path).exists()
        {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let commit = output("git", &["rev-parse", "--short=12", "HEAD"]).unwrap_or("unknown".into());
    let rustc = std::env::var("RUSTC").unwrap_or("rustc".into());
    let compiler = output(&rustc, &["--version"]).unwrap_or("unknown".into());
    let profile = std::env::var("PROFILE").unwrap_or("unknown".into());
    println!("cargo:rustc-env=XTENT_COMMIT={commit}");
    println!("cargo:rustc-env=XTENT_RUSTC={compiler}");
    println!("cargo:rustc-env=XTENT_PROFILE={profile}");
}
