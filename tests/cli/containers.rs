//! Content other than XFS, made by the tools that make it, is named with the remedy.
use std::os::unix::fs::FileExt;

use super::*;

/// A scratch directory with an XFS image `x.img` in it that has a file.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Option<Self> {
        let (image, _) = prototype_image()?;
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("x.img");
        common::run(
            "cp",
            &["--sparse=always", &path_of(&image), to.to_str().unwrap()],
        );
        Some(Self { dir })
    }

    /// Runs a shell script in the directory; false where it fails.
    fn make(&self, script: &str) -> bool {
        let mut shell = Command::new("sh");
        shell.args(["-ec", script]).current_dir(self.dir.path());
        let output = shell.stdin(Stdio::null()).output().unwrap();
        output.status.success()
    }

    /// What `ls` says of a file of the directory, without its name.
    fn said(&self, file: &str) -> (i32, String) {
        let path = self.dir.path().join(file);
        let output = xtent(&[OsStr::new("ls"), path.as_os_str(), OsStr::new("/")]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        let said = stderr.replace(path.to_str().unwrap(), "");
        (output.status.code().unwrap(), said)
    }

    /// Makes a file with a tool, and expects that it is named, and what to do.
    fn check(&self, tool: &str, script: &str, name: &str, advice: &str) {
        if !common::has_tool(tool) {
            common::skipped(&format!("{name}: {tool} is not installed"));
            return;
        }
        let _ = fs::remove_file(self.dir.path().join("f"));
        if !self.make(script) {
            common::skipped(&format!("{name}: {tool} cannot make one here"));
            return;
        }
        let (status, said) = self.said("f");
        assert_eq!(status, 3, "{name}: {said}");
        assert!(
            said.contains(name) && said.contains(advice),
            "{name}: {said}"
        );
    }
}

#[test]
fn images_in_another_form_are_named() {
    let Some(bench) = Bench::new() else { return };
    for (format, name) in [
        ("qcow2", "a qcow2 disk image"),
        ("vpc", "a VHD (vpc) disk image"),
        ("vmdk", "a VMDK disk image"),
        ("vhdx", "a VHDX disk image"),
        ("vdi", "a VDI disk image"),
        (
            "vmdk -o subformat=monolithicFlat",
            "the descriptor of a VMDK",
        ),
    ] {
        let script = format!("qemu-img convert -O {format} x.img f");
        bench.check("qemu-img", &script, name, "qemu-img convert");
    }
    for (tool, script, name, advice) in [
        ("gzip", "gzip -1kc x.img >f", "gzip", "gunzip"),
        ("xz", "xz -0kc x.img >f", "xz", "unxz"),
        ("zstd", "zstd -qkc x.img >f", "zstd", "unzstd"),
        ("bzip2", "head -c 8M x.img | bzip2 >f", "bzip2", "bunzip2"),
        (
            "zip",
            "echo hi >h; zip -q f.zip h; mv f.zip f",
            "a zip archive",
            "extract",
        ),
        ("tar", "echo hi >h; tar cf f h", "a tar archive", "extract"),
        (
            "xfs_metadump",
            "xfs_metadump x.img f",
            "an xfs_metadump",
            "xfs_mdrestore",
        ),
    ] {
        bench.check(tool, script, name, advice);
    }
}

#[test]
fn other_filesystems_and_volumes_are_named() {
    let Some(bench) = Bench::new() else { return };
    let blank = "truncate -s 128M f; ";
    for (tool, script, name) in [
        ("mkfs.ext2", "mkfs.ext2 -q f", "an ext2 filesystem"),
        ("mkfs.ext3", "mkfs.ext3 -q f", "an ext3 filesystem"),
        ("mkfs.ext4", "mkfs.ext4 -q f", "an ext4 filesystem"),
        ("mkfs.btrfs", "mkfs.btrfs -q f", "a btrfs filesystem"),
        ("mkfs.f2fs", "mkfs.f2fs -q f", "an f2fs filesystem"),
        ("mkfs.vfat", "mkfs.vfat f", "a FAT filesystem"),
        ("mkfs.ntfs", "mkfs.ntfs -qF f", "an NTFS filesystem"),
        ("mkswap", "mkswap f", "swap space"),
        (
            "mksquashfs",
            "rm f; mkdir -p d; mksquashfs d f -quiet",
            "a squashfs filesystem",
        ),
        (
            "mkfs.erofs",
            "rm f; mkdir -p d; mkfs.erofs f d",
            "an erofs filesystem",
        ),
        (
            "genisoimage",
            "rm f; mkdir -p d; genisoimage -quiet -o f d",
            "an ISO 9660 filesystem",
        ),
    ] {
        bench.check(
            tool,
            &format!("{blank}{script}"),
            name,
            "mount it with the kernel",
        );
    }
    for (version, name) in [("luks1", "a LUKS1"), ("luks2", "a LUKS2")] {
        let script = format!(
            "{blank}echo key >k; cryptsetup luksFormat -q --type {version} --pbkdf-force-iterations \
             1000 --pbkdf pbkdf2 f k"
        );
        bench.check("cryptsetup", &script, name, "cryptsetup open");
    }
    let script = format!(
        "{blank}d=$(losetup -f --show f); pvcreate -qq --config 'devices {{ use_devicesfile=0 }}' $d || \
         r=1; losetup -d $d; exit $r"
    );
    if common::is_root() {
        bench.check("pvcreate", &script, "an LVM physical volume", "vgchange");
    } else {
        common::skipped("LVM: needs root");
    }
}

/// Superblocks as mdadm writes them: the array itself needs the kernel's md, and two disks.
#[test]
fn members_of_a_raid_are_named_or_only_read() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.dir.path().join("x.img");
    let len = 640 << 10 << 10;
    let magic = 0xa92b_4efc_u32.to_le_bytes();
    let superblock = |format: &str, len: u64| match format {
        "1.0" => ((len / 512 - 16) & !7) * 512,
        "1.1" => 0,
        "1.2" => 4096,
        _ => len / (64 << 10) * (64 << 10) - (64 << 10),
    };
    for format in ["0.90", "1.0", "1.1", "1.2"] {
        let blank = bench.dir.path().join("blank");
        let file = fs::File::create(&blank).unwrap();
        file.set_len(len).unwrap();
        let at = superblock(format, len);
        put_superblock(&file, format, at, magic);
        drop(file);
        let (status, said) = bench.said("blank");
        assert_eq!(status, 3, "{said}");
        for word in ["Linux RAID (md)", "mdadm --assemble"] {
            assert!(said.contains(word), "{format}: {said}");
        }
    }
    // Behind the filesystem: a mirror's member, which may be read.
    for format in ["0.90", "1.0"] {
        let file = fs::File::options().write(true).open(&path).unwrap();
        let len = (320 << 20) + (256 << 10);
        file.set_len(320 << 20).unwrap();
        file.set_len(len).unwrap();
        put_superblock(&file, format, superblock(format, len), magic);
        drop(file);
        let (status, said) = bench.said("x.img");
        assert_eq!(status, 0, "{format}: {said}");
        let local = bench.dir.path().join("local");
        fs::write(&local, "x").unwrap();
        let put = [
            "put",
            "--partial",
            local.to_str().unwrap(),
            path.to_str().unwrap(),
            "/data",
        ];
        let (_, stderr) = run(1, &put);
        assert!(stderr.contains("member of a Linux RAID"), "{stderr}");
    }
    // One of a stripe: the filesystem is longer than the member.
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(160 << 20).unwrap();
    put_superblock(&file, "1.0", superblock("1.0", 160 << 20), magic);
    drop(file);
    let (status, said) = bench.said("x.img");
    assert!(
        status == 3 && said.contains("member of a Linux RAID"),
        "{status} {said}"
    );
}

fn put_superblock(file: &fs::File, format: &str, at: u64, magic: [u8; 4]) {
    let mut bytes = [0; 256];
    bytes[..4].copy_from_slice(&magic);
    if format != "0.90" {
        bytes[4] = 1;
        bytes[144..152].copy_from_slice(&(at / 512).to_le_bytes());
    }
    file.write_all_at(&bytes, at).unwrap();
}

#[test]
fn xfs_of_other_kinds_is_named() {
    let Some(bench) = Bench::new() else { return };
    let script = "truncate -s 320M f; mkfs.xfs -q -m crc=0 f";
    bench.check("mkfs.xfs", script, "XFS version 4", "version 5");
    let script = "truncate -s 320M data; truncate -s 128M f; mkfs.xfs -q -l logdev=f,size=64m data";
    bench.check(
        "mkfs.xfs",
        script,
        "the external log of an XFS",
        "mounted by the kernel",
    );
}

#[test]
fn odd_sizes_open_and_small_ones_are_named() {
    let Some(bench) = Bench::new() else { return };
    assert!(
        bench.make("cp --sparse=always x.img odd; truncate -s +513 odd; truncate -s 100M x.img")
    );
    assert_eq!(bench.said("odd").0, 0);
    assert!(bench.make("truncate -s 64M zero; : >empty; echo x >tiny; head -c 4000 odd >head"));
    for (file, status, word) in [
        ("x.img", 4, "cut off"),
        ("zero", 3, "begins with zeroes"),
        ("empty", 3, "is empty"),
        ("tiny", 3, "too small"),
        ("head", 3, "too small"),
        (".", 3, "directory"),
    ] {
        let (found, said) = bench.said(file);
        assert!(
            found == status && said.contains(word),
            "{file}: {found} {said}"
        );
    }
    let block_device = fs::read_dir("/sys/block").unwrap().flatten().next();
    if let Some(device) = block_device {
        let path = Path::new("/dev").join(device.file_name());
        if path.exists() {
            let (_, stderr) = run(3, &["ls", path.to_str().unwrap()]);
            assert!(
                stderr.contains("uring:") || stderr.contains("ermission"),
                "{stderr}"
            );
        }
    }
}
