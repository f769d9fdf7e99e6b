//! Reading through xtent equals reading through the kernel: on filesystems of many geometries,
//! filled by the kernel with one of everything, the listing with all metadata, the content of every
//! file, FIEMAP and SEEK_HOLE/SEEK_DATA.
//!
//! `XTENT_SEED` changes the content of the files; it is printed when a geometry fails.

use super::common::disk::Disk;
use super::common::fill::{self, Plan};
use super::common::oracle::{self, Content, Tree};
use super::common::{forms, number, reader, scaled, sys};
use super::stand::{For, Stand};
use super::{Outcome, Reason, Test};

/// A filesystem to make, and how much to put into it.
struct Row {
    name: &'static str,
    size_mib: u64,
    block: u64,
    sector: u32,
    inode: u64,
    dir_block: usize,
    ag_count: u32,
    /// Further options of mkfs.xfs.
    options: &'static [&'static str],
    /// A sixteenth of them is removed again.
    big_dir_entries: usize,
    extents: u64,
}

impl Row {
    const DEFAULT: Self = Self {
        name: "",
        size_mib: 1024,
        block: 4096,
        sector: 512,
        inode: 512,
        dir_block: 4096,
        ag_count: 4,
        options: &[],
        big_dir_entries: 5000,
        extents: 2000,
    };

    fn make(&self, disk: &mut Disk) {
        let mut args = vec![
            format!("-bsize={}", self.block),
            format!("-isize={}", self.inode),
            format!("-nsize={}", self.dir_block),
            format!("-dagcount={}", self.ag_count),
        ];
        args.extend(self.options.iter().map(|&option| option.to_owned()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        disk.make(self.size_mib << 20, self.sector, &args);
    }

    fn big_dir_entries(&self) -> usize {
        scaled(self.big_dir_entries, 2000)
    }

    fn extents(&self) -> u64 {
        scaled(self.extents, 1000)
    }

    fn plan(&self, seed: u64) -> Plan {
        Plan {
            seed,
            block_bytes: self.block,
            dir_block_bytes: self.dir_block,
            inode_bytes: self.inode,
            big_dir_entries: self.big_dir_entries(),
            extents: self.extents(),
            reflink: !self
                .options
                .iter()
                .any(|option| option.contains("reflink=0")),
            // Several leaf blocks of one hash, where a directory block is small.
            names_of_one_hash: (self.dir_block / 5).min(2500),
        }
    }
}

/// The disk must hold what it was filled for, or the comparison says little.
fn assert_variety(row: &Row, disk: &mut Disk, kernel: &Tree) {
    let largest = kernel.values().map(|(_, content)| match &**content {
        Content::Directory(entries) => entries.len(),
        _ => 0,
    });
    let largest = largest.max().unwrap_or(0);
    assert!(largest > row.big_dir_entries() / 16 * 15, "{largest} names");
    let most_extents = kernel.values().map(|(_, content)| match &**content {
        Content::File { fiemap, .. } => fiemap.len() as u64,
        _ => 0,
    });
    let most_extents = most_extents.max().unwrap_or(0);
    assert!(most_extents >= row.extents(), "{most_extents} extents");
    let forms = forms::forms(&disk.for_tools());
    let mut wanted = vec!["short", "block", "leaf", "node", "inline", "file btree"];
    // An inode of 2 KiB holds every target that there can be.
    if row.inode < 2048 {
        wanted.push("remote");
    }
    if row.dir_block == 4096 && row.inode == 512 {
        wanted.push("btree");
    }
    if row.dir_block == 65536 && row.block == 1024 {
        wanted.push("scattered");
    }
    for form in wanted {
        assert!(
            forms.contains(form),
            "{}: nothing of the form {form} among {forms:?}",
            row.name
        );
    }
}

fn compare(row: &Row, stand: &Stand) -> Outcome {
    if row.block < stand.lba_bytes().into() {
        let why = format!(
            "its blocks of {} bytes want a device of smaller ones",
            row.block
        );
        return Err(Reason::NotFor(why));
    }
    let mut disk = stand.disk()?;
    let seed = number("XTENT_SEED", 20_261_121);
    row.make(&mut disk);
    let mount = disk.mount("");
    fill::fill(mount.path(), &row.plan(seed));
    mount.unmount();
    // Anew and read-only: without a page cache, and without access times that move.
    let mount = disk.mount("ro,noatime");
    let kernel = oracle::kernel_tree(mount.path());
    mount.unmount();
    assert_variety(row, &mut disk, &kernel);
    let ours = reader::xtent_tree(&disk.target(""));
    let differences = oracle::differences(&kernel, &ours);
    assert!(
        differences.is_empty(),
        "{} (XTENT_SEED={seed}): {} differences, the first of them:\n{}",
        row.name,
        differences.len(),
        differences[..differences.len().min(20)].join("\n")
    );
    Ok(())
}

/// The geometries by name.
macro_rules! geometries {
    ($($name:ident { $($field:ident: $value:expr),* $(,)? })*) => {
        const ROWS: &[Row] = &[$(
            Row { name: stringify!($name), $($field: $value,)* ..Row::DEFAULT },
        )*];
    };
}

geometries! {
    block_4k_of_everything_much { big_dir_entries: 107_000, extents: 50_000 }
    block_4k_rmapbt_sector_4k { sector: 4096, options: &["-mrmapbt=1"] }
    block_4k_nrext64 { options: &["-inrext64=1"] }
    block_4k_without_features {
        options: &["-mfinobt=0,reflink=0,bigtime=0,inobtcount=0,rmapbt=0", "-isparse=0"],
    }
    block_4k_inode_2k_dir_64k_ag_33_sector_4k {
        size_mib: 1200, sector: 4096, inode: 2048, dir_block: 65536, ag_count: 33,
    }
    block_4k_dir_16k_ag_1_striped_without_bigtime {
        dir_block: 16384, ag_count: 1, options: &["-dsu=64k,sw=2", "-lsu=32k", "-mbigtime=0"],
    }
    block_4k_inode_1k_dir_64k_of_100000 {
        inode: 1024, dir_block: 65536, big_dir_entries: 107_000,
    }
    block_4k_inode_2k_rmapbt_nrext64_without_finobt_reflink {
        inode: 2048, options: &["-mrmapbt=1,reflink=0,finobt=0,inobtcount=0", "-inrext64=1"],
    }
    block_4k_ag_1_rmapbt_nrext64_of_100000 {
        ag_count: 1, sector: 4096, options: &["-mrmapbt=1", "-inrext64=1"],
        big_dir_entries: 107_000, extents: 20_000,
    }
    block_1k_of_50000_extents { size_mib: 600, block: 1024, ag_count: 1, extents: 50_000 }
    block_1k_dir_16k_ag_33_rmapbt_nrext64 {
        size_mib: 800, block: 1024, dir_block: 16384, ag_count: 33,
        options: &["-mrmapbt=1", "-inrext64=1"],
    }
    block_1k_dir_64k_without_sparse_reflink {
        size_mib: 600, block: 1024, dir_block: 65536,
        options: &["-isparse=0", "-mreflink=0,rmapbt=0,finobt=0"], extents: 10_000,
    }
    block_1k_dir_4k_of_100000_rmapbt {
        size_mib: 800, block: 1024, options: &["-mrmapbt=1"], big_dir_entries: 107_000,
    }
    block_2k_inode_1k { size_mib: 600, block: 2048, inode: 1024, extents: 50_000 }
    block_2k_dir_16k_without_reflink {
        size_mib: 600, block: 2048, dir_block: 16384, options: &["-mreflink=0"],
    }
    block_2k_inode_1k_dir_64k_ag_33_without_inobtcount {
        size_mib: 800, block: 2048, inode: 1024, dir_block: 65536, ag_count: 33,
        options: &["-minobtcount=0"],
    }
}

/// A test for each geometry, and one of the comparison itself.
pub(crate) fn tests() -> Vec<Test> {
    let rows = ROWS.iter().map(|row| {
        let name = format!("read_equality::{}", row.name);
        Test::each(&name, For::Files, |stand| compare(row, stand)).dealt()
    });
    rows.collect()
}

pub(crate) fn every_kind_of_difference_is_told() {
    let stat = oracle::Stat {
        ino: 128,
        mode: 0o100_644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 4096,
        blocks_512: 8,
        atime: (0, 0),
        mtime: (0, 0),
        ctime: (0, 0),
        btime: (0, 0),
    };
    let extent = sys::FiemapExtent {
        logical: 0,
        physical: 4096,
        length: 4096,
        flags: 1,
    };
    let file = |digest, flags, data: &[(u64, u64)]| Content::File {
        digest: [digest; 32],
        fiemap: vec![sys::FiemapExtent { flags, ..extent }],
        data: data.to_vec(),
    };
    let tree = |stat, content| Tree::from([(b"/f".to_vec(), (stat, std::rc::Rc::new(content)))]);
    let data = [(0, 4096)];
    let kernel = tree(stat, file(1, 1, &data));
    assert!(oracle::differences(&kernel, &tree(stat, file(1, 1, &data))).is_empty());
    let older = oracle::Stat {
        btime: (0, 1),
        ..stat
    };
    for (what, ours) in [
        ("btime", tree(older, file(1, 1, &data))),
        ("SHA-256", tree(stat, file(2, 1, &data))),
        ("FIEMAP extent 0", tree(stat, file(1, 0x801, &data))),
        ("data range 0", tree(stat, file(1, 1, &[]))),
        ("Symlink", tree(stat, Content::Symlink(b"x".to_vec()))),
        ("xtent has not", Tree::new()),
    ] {
        let told = oracle::differences(&kernel, &ours);
        assert!(
            told.len() == 1 && told[0].contains(what),
            "{what}: {told:?}"
        );
        assert!(told[0].starts_with("/f: "), "{told:?}");
    }
    let told = oracle::differences(&Tree::new(), &kernel);
    assert!(told[0].contains("the kernel has not"), "{told:?}");
}
