//! Bindings to SPDK's NVMe driver and environment, as they are installed on the machine that
//! builds.
//!
//! `build.rs` finds SPDK through pkg-config, makes the bindings from its headers, and compiles
//! `shim.c`, which holds what headers alone cannot give (macros, bit fields, structures that differ
//! between versions). The layouts that bindgen saw are asserted when this is compiled. Nothing of
//! SPDK is in this package.
#![no_std]
#![allow(
    dead_code,
    missing_debug_implementations,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    clippy::ptr_as_ptr,
    reason = "generated from C headers"
)]

#[cfg(feature = "installed")]
include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

#[cfg(all(test, feature = "installed"))]
mod tests {
    use core::mem::{offset_of, size_of};

    /// The structures that go over the wire or through a callback, against the specification: what
    /// bindgen asserts is only that Rust and its reading of C agree.
    #[test]
    fn layouts_are_those_of_the_specification() {
        assert_eq!(size_of::<super::spdk_nvme_cmd>(), 64);
        assert_eq!(size_of::<super::spdk_nvme_cpl>(), 16);
        assert_eq!(offset_of!(super::spdk_nvme_cpl, sqhd), 8);
        assert_eq!(size_of::<super::spdk_nvme_dsm_range>(), 16);
    }

    #[test]
    fn the_transports_are_linked() {
        for name in [c"PCIE", c"TCP"] {
            // SAFETY: a string that ends, which is only read; the list of transports is made by
            // constructors.
            let there = unsafe { super::spdk_nvme_transport_available_by_name(name.as_ptr()) };
            assert!(there, "{name:?} was lost in linking");
        }
    }

    #[test]
    fn the_shim_and_the_headers_are_of_one_version() {
        // SAFETY: returns a constant.
        let version = unsafe { super::xtent_spdk_version() };
        assert!(version >= 2409, "{version}");
    }
}
