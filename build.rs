//! Stamps the build (commit, compiler) into the binary, so that a report can say which xtent made it.
use std::process::Command;

fn output(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    (out.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/refs/heads");
    let commit = output("git", &["rev-parse", "--short=12", "HEAD"]).unwrap_or("unknown".into());
    let rustc = std::env::var("RUSTC").unwrap_or("rustc".into());
    let compiler = output(&rustc, &["--version"]).unwrap_or("unknown".into());
    let profile = std::env::var("PROFILE").unwrap_or("unknown".into());
    println!("cargo:rustc-env=XTENT_COMMIT={commit}");
    println!("cargo:rustc-env=XTENT_RUSTC={compiler}");
    println!("cargo:rustc-env=XTENT_PROFILE={profile}");
}
