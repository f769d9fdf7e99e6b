//! Finds SPDK, makes the bindings, compiles the shim, and says how all of it is linked.
//!
//! SPDK's libraries are static, and its transports and DPDK's drivers enter themselves into lists
//! by constructors that nothing refers to; so they are linked whole.
//! `static:+whole-archive,-bundle` is kept in the metadata of this crate and reaches whatever is
//! linked in the end: binaries, tests, and crates that depend on a crate that depends on this one.
use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::exit;

/// Year and month of the oldest release that is supported.
const OLDEST: (u32, u32) = (24, 9);
/// Releases that were tried.
const TESTED: &str = "v26.05";

const MODULES: [&str; 3] = ["spdk_nvme", "spdk_env_dpdk", "spdk_syslibs"];

fn fail(what: &str) -> ! {
    eprintln!("\nspdk-sys: {what}");
    eprintln!(
        "xtent's feature `spdk` needs an installed SPDK, v{}.{:02} or newer (tested: {TESTED}). No system \
         packages it: build and install it by its own guide, https://spdk.io/doc/getting_started.html \
         (./configure --prefix=DIR; make; make install). Then let pkg-config find it: \
         export PKG_CONFIG_PATH=DIR/lib/pkgconfig. Without the feature xtent needs none of this.\n",
        OLDEST.0, OLDEST.1
    );
    exit(1);
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/shim.c");
    println!("cargo:rerun-if-changed=src/shim.h");
    if env::var_os("CARGO_FEATURE_INSTALLED").is_none() {
        return;
    }
    let mut found = Found::default();
    for module in MODULES {
        match pkg_config::Config::new()
            .statik(true)
            .cargo_metadata(false)
            .env_metadata(true)
            .probe(module)
        {
            Ok(library) => found.add(library),
            Err(error) => fail(&format!("pkg-config does not know `{module}`:\n{error}")),
        }
    }
    let version = version(&found.includes);
    if version < OLDEST {
        fail(&format!(
            "SPDK v{}.{:02} was found, which is too old",
            version.0, version.1
        ));
    }
    println!("cargo:version={}.{:02}", version.0, version.1);
    found.link();
    compile_shim(&found.includes);
    bind(&found.includes);
}

/// What pkg-config said, in its order and without doubles.
#[derive(Default)]
struct Found {
    includes: Vec<PathBuf>,
    paths: Vec<PathBuf>,
    files: Vec<PathBuf>,
    libs: Vec<String>,
}

fn add<T: PartialEq>(to: &mut Vec<T>, from: impl IntoIterator<Item = T>) {
    for item in from {
        if !to.contains(&item) {
            to.push(item);
        }
    }
}

impl Found {
    fn add(&mut self, library: pkg_config::Library) {
        add(&mut self.includes, library.include_paths);
        add(&mut self.paths, library.link_paths);
        add(&mut self.files, library.link_files);
        // `-l:libx.a` names the file.
        let name = |lib: String| match lib.strip_prefix(":lib") {
            Some(file) => file.trim_end_matches(".a").to_owned(),
            None => lib,
        };
        add(&mut self.libs, library.libs.into_iter().map(name));
    }

    fn link(&mut self) {
        // Named by path, in the directory where SPDK was built, which may be gone; they are
        // installed as well.
        for file in std::mem::take(&mut self.files) {
            let stem = file.file_stem().and_then(|stem| stem.to_str());
            let Some(name) = stem.and_then(|stem| stem.strip_prefix("lib")) else {
                fail(&format!("cannot link `{}`", file.display()));
            };
            add(&mut self.libs, [name.to_owned()]);
            if let Some(dir) = file.parent().filter(|_| file.exists()) {
                add(&mut self.paths, [dir.to_owned()]);
            }
        }
        for path in &self.paths {
            println!("cargo:rustc-link-search=native={}", path.display());
        }
        let mut done = BTreeSet::new();
        for name in &self.libs {
            if !done.insert(name) {
                continue;
            }
            let has = |end: &str| {
                let file = format!("lib{name}.{end}");
                self.paths.iter().any(|path| path.join(&file).exists())
            };
            if name.starts_with("spdk_") || name.starts_with("rte_") {
                println!("cargo:rustc-link-lib=static:+whole-archive,-bundle={name}");
            } else if has("a") && !has("so") {
                println!("cargo:rustc-link-lib=static:-bundle={name}");
            } else if name != "vfio-user" {
                // libvfio-user is the target's side, and not installed.
                println!("cargo:rustc-link-lib=dylib={name}");
            }
        }
    }
}

/// The release, from its own header: pkg-config has the version of each library instead.
fn version(includes: &[PathBuf]) -> (u32, u32) {
    let header = includes
        .iter()
        .map(|path| path.join("spdk/version.h"))
        .find(|path| path.exists())
        .unwrap_or_else(|| fail("pkg-config knows SPDK, but spdk/version.h is not where it says"));
    println!("cargo:rerun-if-changed={}", header.display());
    let text = std::fs::read_to_string(&header)
        .unwrap_or_else(|e| fail(&format!("cannot read {}: {e}", header.display())));
    let number = |name: &str| -> Option<u32> {
        text.lines().find_map(|line| {
            let rest = line.strip_prefix("#define")?.trim_start();
            rest.strip_prefix(name)?.trim().parse().ok()
        })
    };
    match (number("SPDK_VERSION_MAJOR"), number("SPDK_VERSION_MINOR")) {
        (Some(major), Some(minor)) => (major, minor),
        _ => fail(&format!("{} names no version", header.display())),
    }
}

fn compile_shim(includes: &[PathBuf]) {
    cc::Build::new()
        .file("src/shim.c")
        .includes(includes)
        .flag_if_supported("-std=gnu11")
        .warnings(true)
        .extra_warnings(true)
        .compile("xtent_spdk_shim");
}

/// Structures that bindgen reads wrongly (packed bit fields inside of unions) or that are not
/// needed inside: opaque, so that those around them have the right size.
const OPAQUE: [&str; 5] = [
    "spdk_nvme_feat_async_event_configuration.*",
    "spdk_nvme_tcp_cmd",
    "spdk_nvme_tcp_rsp",
    "spdk_nvme_ctrlr_data",
    "spdk_nvme_ns_data",
];

const FUNCTIONS: [&str; 28] = [
    "xtent_spdk_.*",
    "spdk_zmalloc",
    "spdk_free",
    "spdk_mem_register",
    "spdk_mem_unregister",
    "spdk_nvme_transport_id_parse",
    "spdk_nvme_transport_available_by_name",
    "spdk_nvme_ctrlr_get_first_active_ns",
    "spdk_nvme_ctrlr_get_next_active_ns",
    "spdk_nvme_ctrlr_get_ns",
    "spdk_nvme_ctrlr_free_io_qpair",
    "spdk_nvme_ctrlr_process_admin_completions",
    "spdk_nvme_ctrlr_disconnect",
    "spdk_nvme_ctrlr_reconnect_async",
    "spdk_nvme_ctrlr_reconnect_poll_async",
    "spdk_nvme_ctrlr_fail",
    "spdk_nvme_ctrlr_is_failed",
    "spdk_nvme_ctrlr_cmd_abort_ext",
    "spdk_nvme_detach",
    "spdk_nvme_qpair_process_completions",
    "spdk_nvme_ns_cmd_read",
    "spdk_nvme_ns_cmd_readv",
    "spdk_nvme_ns_cmd_write",
    "spdk_nvme_ns_cmd_writev",
    "spdk_nvme_ns_cmd_write_zeroes",
    "spdk_nvme_ns_cmd_dataset_management",
    "spdk_nvme_ns_cmd_flush",
    "spdk_nvme_ns_is_active",
];

fn bind(includes: &[PathBuf]) {
    let mut builder = bindgen::Builder::default()
        .header("src/shim.h")
        .clang_args(includes.iter().map(|path| format!("-I{}", path.display())))
        .allowlist_type("spdk_nvme_cmd|spdk_nvme_cpl|spdk_nvme_dsm_range|xtent_spdk_.*")
        .rust_edition(bindgen::RustEdition::Edition2024)
        .rust_target(
            bindgen::RustTarget::stable(90, 0).unwrap_or_else(|_| fail("bindgen is too old")),
        )
        .use_core()
        .layout_tests(true)
        .derive_default(true)
        .prepend_enum_name(false)
        .generate_comments(false);
    for function in FUNCTIONS {
        builder = builder.allowlist_function(function);
    }
    for opaque in OPAQUE {
        builder = builder.opaque_type(opaque);
    }
    let bindings = builder
        .generate()
        .unwrap_or_else(|error| fail(&format!("bindgen cannot read SPDK's headers: {error}")));
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    write(&bindings, &out.join("bindings.rs"));
}

fn write(bindings: &bindgen::Bindings, path: &Path) {
    if let Err(error) = bindings.write_to_file(path) {
        fail(&format!("cannot write {}: {error}", path.display()));
    }
}
