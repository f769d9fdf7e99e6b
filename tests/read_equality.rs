//! Reading through xtent equals reading through the kernel, on images that the kernel filled.

mod common;

use common::fill::{self, Plan};
use common::image::Image;
use common::oracle;

#[test]
fn two_looks_of_the_kernel_are_equal() {
    if !common::kernel_is_here() {
        return;
    }
    let image = Image::make(400 << 20, 512, &["-b", "size=4096"]);
    let mount = image.mount("");
    let plan = Plan {
        seed: 1,
        block_bytes: 4096,
        dir_block_bytes: 4096,
        inode_bytes: 512,
        big_dir_entries: 1000,
        extents: 100,
        reflink: true,
        names_of_one_hash: 60,
    };
    fill::fill(mount.path(), &plan);
    mount.unmount();
    let look = || {
        let mount = image.mount("ro,noatime");
        let tree = oracle::kernel_tree(mount.path());
        mount.unmount();
        tree
    };
    let first = look();
    assert!(first.len() > 3000, "{} paths", first.len());
    let differences = oracle::differences(&first, &look());
    assert!(differences.is_empty(), "{differences:#?}");
    image.assert_clean();
}
