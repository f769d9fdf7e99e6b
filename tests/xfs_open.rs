//! Opening a filesystem: what mkfs.xfs made opens and says what xfs_db says; what cannot be handled is refused
//! by name, also when its checksum is right; a log with changes is told from a clean one.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use common::image::Image;
use common::{has_tool, kernel_is_here, run, skipped};
use xtent::ErrorKind;
use xtent::xfs::format::set_checksum;
use xtent::xfs::{Fs, FsOptions, MetaIo};

#[derive(Clone)]
struct Disk {
    bytes: Vec<u8>,
    block_bytes: u32,
}

impl MetaIo for Disk {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        let start = usize::try_from(addr).unwrap();
        buf.copy_from_slice(&self.bytes[start..start + buf.len()]);
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }
}

fn read(image: &Image) -> Disk {
    Disk {
        bytes: std::fs::read(image.path()).unwrap(),
        block_bytes: 512,
    }
}

fn mkfs_is_here() -> bool {
    let here = has_tool("mkfs.xfs") && has_tool("xfs_db");
    if !here {
        skipped("mkfs.xfs and xfs_db are needed");
    }
    here
}

/// Opens the disk with bytes of its superblock replaced and the checksum made right.
fn open_patched(disk: &Disk, at: usize, bytes: &[u8]) -> Result<Fs, (ErrorKind, String)> {
    let mut disk = disk.clone();
    disk.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    set_checksum(&mut disk.bytes[..512], 224);
    Fs::open(&mut disk).map_err(|error| (error.kind(), error.to_string()))
}

#[test]
fn what_mkfs_made_says_what_xfs_db_says() {
    if !mkfs_is_here() {
        return;
    }
    let image = Image::make(64 << 20, 512, &["-L", "a label", "-d", "agcount=3"]);
    let info = Fs::open(&mut read(&image)).unwrap().info();
    let path = image.path();
    let asked = [
        "icount",
        "ifree",
        "fdblocks",
        "dblocks",
        "agcount",
        "logblocks",
        "rootino",
    ];
    let mut args = vec!["-r", "-c", "sb 0"];
    let prints: Vec<String> = asked.iter().map(|name| format!("print {name}")).collect();
    for print in &prints {
        args.extend(["-c", print]);
    }
    args.extend(["-c", "uuid", path.to_str().unwrap()]);
    let text = run("xfs_db", &args);
    let numbers: Vec<u64> = text
        .lines()
        .filter_map(|line| line.split_once(" = ")?.1.parse().ok())
        .collect();
    let block = u64::from(info.geometry.block_bytes);
    let ours = [
        info.inodes,
        info.free_inodes,
        info.free_bytes / block,
        info.size_bytes / block,
        info.geometry.ag_count.into(),
        info.log_bytes / block,
        info.geometry.root_ino.0,
    ];
    assert_eq!(numbers, ours, "{text}");
    assert!(text.contains(&info.uuid), "{} is not in {text}", info.uuid);
    assert_eq!(info.label, "a label");
    assert_eq!(info.read_only, None);
    assert!(
        info.features.iter().any(|name| name == "bigtime"),
        "{:?}",
        info.features
    );
}

#[test]
fn features_are_refused_by_name() {
    if !mkfs_is_here() {
        return;
    }
    let image = Image::make(64 << 20, 512, &[]);
    let disk = read(&image);
    let incompat = u32::from_be_bytes(disk.bytes[216..220].try_into().unwrap());
    let ro_compat = u32::from_be_bytes(disk.bytes[212..216].try_into().unwrap());
    for (bit, name) in [
        (4, "needsrepair"),
        (8, "metadir"),
        (9, "zoned"),
        (13, "incompat bit 13"),
    ] {
        let word = (incompat | 1 << bit).to_be_bytes();
        let (kind, text) = open_patched(&disk, 216, &word).unwrap_err();
        assert_eq!(kind, ErrorKind::Unsupported, "{text}");
        assert!(text.contains(name), "{text}");
    }
    let (kind, text) = open_patched(&disk, 48, &[0; 8]).unwrap_err();
    assert_eq!(kind, ErrorKind::Unsupported, "{text}");
    assert!(text.contains("external log"), "{text}");
    let (kind, text) = open_patched(&disk, 16, &1_u64.to_be_bytes()).unwrap_err();
    assert_eq!(kind, ErrorKind::Unsupported, "{text}");
    assert!(text.contains("realtime"), "{text}");
    // An unknown read-only compatible feature leaves reading.
    let fs = open_patched(&disk, 212, &(ro_compat | 1 << 20).to_be_bytes()).unwrap();
    let reason = fs.read_only_reason().unwrap();
    assert!(reason.contains("ro_compat bit 20"), "{reason}");
}

#[test]
fn what_does_not_fit_the_device_is_refused() {
    if !mkfs_is_here() {
        return;
    }
    let image = Image::make(64 << 20, 512, &[]);
    let disk = read(&image);
    let mut short = disk.clone();
    short.bytes.truncate(63 << 20);
    let error = Fs::open(&mut short).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("cut off"), "{error}");
    let mut large_blocks = disk.clone();
    large_blocks.block_bytes = 4096;
    let error = Fs::open(&mut large_blocks).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.to_string().contains("sectors of 512 bytes"),
        "{error}"
    );
    let mut flipped = disk;
    flipped.bytes[300] ^= 1;
    let error = Fs::open(&mut flipped).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    let mut empty = Disk {
        bytes: vec![0; 1 << 20],
        block_bytes: 512,
    };
    let error = Fs::open(&mut empty).unwrap_err();
    assert!(error.to_string().contains("no XFS filesystem"), "{error}");
}

#[test]
fn a_log_with_changes_is_refused_until_the_kernel_replayed_it() {
    if !kernel_is_here() {
        return;
    }
    let image = Image::make(64 << 20, 512, &[]);
    let mount = image.mount("");
    for i in 0..200 {
        std::fs::write(mount.path().join(format!("file-{i}")), b"x").unwrap();
    }
    // What a power cut would leave: the log is written, the unmount record is not.
    let root = std::fs::File::open(mount.path()).unwrap();
    root.sync_all().unwrap();
    common::sys::sync_filesystem(&root).unwrap();
    drop(root);
    let mut torn = read(&image);
    mount.unmount();
    let error = Fs::open(&mut torn).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NeedsRecovery, "{error}");
    assert!(
        error.to_string().contains("mount the filesystem once"),
        "{error}"
    );
    let options = FsOptions {
        norecovery: true,
        ..FsOptions::default()
    };
    let fs = Fs::open_with(&mut torn, &options).unwrap();
    assert!(fs.read_only_reason().is_some() && fs.info().log_dirty);
    // The kernel replays what the copy holds; then it opens.
    let copy = Image::empty(64 << 20, 512);
    std::fs::write(copy.path(), &torn.bytes).unwrap();
    copy.mount("nouuid").unmount();
    let fs = Fs::open(&mut read(&copy)).unwrap();
    assert!(!fs.info().log_dirty);
    // So does the original, which was unmounted in order.
    Fs::open(&mut read(&image)).unwrap();
}
