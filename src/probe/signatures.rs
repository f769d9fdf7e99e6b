//! Signatures of filesystems, volume managers, image formats and archives, as blkid(8) and file(1)
//! know them, with what to do about each.

use super::partitions::read_table;
use super::raid::raid_at_end;
use super::source::{ProbeSource, read};
use super::table::PartitionTable;
use crate::error::Result;

/// What a device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// An XFS filesystem of whatever version.
    Xfs,
    /// Something else that is known.
    Known {
        /// What it is, such as `a btrfs filesystem`.
        name: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A partition table.
    Partitions,
    /// The bytes that were looked at are all zero.
    Zeroes,
    /// None of these.
    Unknown,
}

/// A signature: bytes at a byte of the device, and what they say.
struct Signature(u64, &'static [u8], &'static str, &'static str);

const OTHER: &str = "xtent opens XFS only (mount it with the kernel)";
const CONVERT: &str = "convert it first (qemu-img convert -O raw FILE raw.img)";
const EXTRACT: &str = "extract the disk image from it first";
const RAID: &str = "assemble the array (mdadm --assemble --scan) and give uring:/dev/mdN";
const MD: &str = "a member of a Linux RAID (md)";
const LVM: &str = "an LVM physical volume";
const LVM_ADVICE: &str = "activate its volumes (vgchange -ay) and give uring:/dev/VG/LV";
const LUKS: &str = "unlock it (cryptsetup open) and give uring:/dev/mapper/NAME";
const METADUMP: &str = "it holds metadata only: restore it with xfs_mdrestore to look at that";
const SWAP: &str = "swap space";
const EXTERNAL_LOG: &str = "the external log of an XFS filesystem";
const EXTERNAL_LOG_ADVICE: &str = "give the device with the data; a filesystem with an external log is mounted by the kernel only";
const VMDK: &str = "a VMDK disk image";

/// Files that contain a disk image in another form: the rest of their bytes may look like anything.
const CONTAINERS: &[Signature] = &[
    Signature(0, b"QFI\xfb\0\0\0\x01", "a qcow disk image", CONVERT),
    Signature(0, b"QFI\xfb", "a qcow2 disk image", CONVERT),
    Signature(0, b"QED\0", "a QED disk image", CONVERT),
    Signature(0, b"conectix", "a VHD (vpc) disk image", CONVERT),
    Signature(0, b"vhdxfile", "a VHDX disk image", CONVERT),
    Signature(0, b"KDMV", VMDK, CONVERT),
    Signature(0, b"COWD", VMDK, CONVERT),
    Signature(
        0,
        b"# Disk DescriptorFile",
        "the descriptor of a VMDK disk image",
        CONVERT,
    ),
    Signature(64, b"\x7f\x10\xda\xbe", "a VDI disk image", CONVERT),
    Signature(0, b"WithoutFreeSpace", "a Parallels disk image", CONVERT),
    Signature(0, b"WithouFreSpacExt", "a Parallels disk image", CONVERT),
    Signature(
        0,
        b"\x1f\x8b",
        "compressed with gzip",
        "decompress it first (gunzip FILE)",
    ),
    Signature(
        0,
        b"\xfd7zXZ\0",
        "compressed with xz",
        "decompress it first (unxz FILE)",
    ),
    Signature(
        0,
        b"\x28\xb5\x2f\xfd",
        "compressed with zstd",
        "decompress it first (unzstd FILE)",
    ),
    Signature(
        0,
        b"BZh",
        "compressed with bzip2",
        "decompress it first (bunzip2 FILE)",
    ),
    Signature(
        0,
        b"\x04\x22\x4d\x18",
        "compressed with lz4",
        "decompress it first (unlz4 FILE)",
    ),
    Signature(
        0,
        b"\x89LZO",
        "compressed with lzop",
        "decompress it first (lzop -d FILE)",
    ),
    Signature(0, b"PK\x03\x04", "a zip archive", EXTRACT),
    Signature(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", EXTRACT),
    Signature(0, b"Rar!\x1a\x07", "a rar archive", EXTRACT),
    Signature(257, b"ustar", "a tar archive", EXTRACT),
    Signature(0, b"070701", "a cpio archive", EXTRACT),
    Signature(0, b"!<arch>\n", "an ar archive", EXTRACT),
    Signature(0, b"XFSM", "an xfs_metadump", METADUMP),
    Signature(0, b"XMD2", "an xfs_metadump", METADUMP),
    Signature(0, b"XFSD", "an xfsdump", "restore it with xfsrestore"),
    Signature(0, b"xFSdump0", "an xfsdump", "restore it with xfsrestore"),
    Signature(32_769, b"CD001", "an ISO 9660 filesystem", OTHER),
    Signature(3, b"-FVE-FS-", "a BitLocker volume", OTHER),
    Signature(3, b"NTFS    ", "an NTFS filesystem", OTHER),
    Signature(3, b"EXFAT   ", "an exFAT filesystem", OTHER),
    Signature(54, b"FAT", "a FAT filesystem", OTHER),
    Signature(82, b"FAT32", "a FAT filesystem", OTHER),
];

/// What lies on a device; looked at after the partition table, before which an old one may be left.
const FILESYSTEMS: &[Signature] = &[
    Signature(0, b"LUKS\xba\xbe\0\x01", "a LUKS1 encrypted volume", LUKS),
    Signature(0, b"LUKS\xba\xbe\0\x02", "a LUKS2 encrypted volume", LUKS),
    Signature(0, b"LUKS\xba\xbe", "a LUKS encrypted volume", LUKS),
    Signature(512, b"LABELONE", LVM, LVM_ADVICE),
    Signature(0, b"LABELONE", LVM, LVM_ADVICE),
    Signature(1024, b"LABELONE", LVM, LVM_ADVICE),
    Signature(1536, b"LABELONE", LVM, LVM_ADVICE),
    Signature(4096, b"\xfc\x4e\x2b\xa9", MD, RAID),
    Signature(0, b"\xfc\x4e\x2b\xa9", MD, RAID),
    Signature(0, b"\xfe\xed\xba\xbe", EXTERNAL_LOG, EXTERNAL_LOG_ADVICE),
    Signature(0, b"verity\0\0", "a dm-verity hash device", OTHER),
    Signature(0, b"integrt\0", "a dm-integrity device", OTHER),
    Signature(65_600, b"_BHRfS_M", "a btrfs filesystem", OTHER),
    Signature(4086, b"SWAPSPACE2", SWAP, OTHER),
    Signature(4086, b"SWAP-SPACE", SWAP, OTHER),
    Signature(8182, b"SWAPSPACE2", SWAP, OTHER),
    Signature(16_374, b"SWAPSPACE2", SWAP, OTHER),
    Signature(32_758, b"SWAPSPACE2", SWAP, OTHER),
    Signature(65_526, b"SWAPSPACE2", SWAP, OTHER),
    Signature(
        4086,
        b"S1SUSPEND",
        "swap space with a suspended system",
        OTHER,
    ),
    Signature(1024, b"\x10\x20\xf5\xf2", "an f2fs filesystem", OTHER),
    Signature(1024, b"\xe2\xe1\xf5\xe0", "an erofs filesystem", OTHER),
    Signature(1024, b"H+", "an HFS+ filesystem", OTHER),
    Signature(0, b"hsqs", "a squashfs filesystem", OTHER),
    Signature(0, b"\x45\x3d\xcd\x28", "a cramfs filesystem", OTHER),
    Signature(32, b"NXSB", "an APFS container", OTHER),
    Signature(32_768, b"JFS1", "a JFS filesystem", OTHER),
    Signature(65_588, b"ReIsEr", "a ReiserFS filesystem", OTHER),
    Signature(32_769, b"BEA01", "a UDF filesystem", OTHER),
    Signature(
        4120,
        b"\xc6\x85\x73\xf6\x66\xce\x90\xa9",
        "a bcachefs filesystem",
        OTHER,
    ),
    Signature(
        4120,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca",
        "a bcache device",
        "give uring:/dev/bcacheN",
    ),
    Signature(
        0,
        b"bluestore block device",
        "a Ceph BlueStore device",
        OTHER,
    ),
];

/// The bytes at the start that are looked at.
const LOOK_BYTES: u64 = 68 << 10;

/// Finds what a device holds.
///
/// # Errors
/// The device's.
pub fn identify(source: &mut impl ProbeSource) -> Result<Content> {
    let bytes = read(source, 0, LOOK_BYTES)?;
    if bytes.starts_with(b"XFSB") {
        return Ok(Content::Xfs);
    }
    if let Some(found) = find(CONTAINERS, &bytes) {
        return Ok(found);
    }
    // A damaged table is one, too.
    let has_table = |table: Option<PartitionTable>| table.is_some();
    if read_table(source).map_or(true, has_table) {
        return Ok(Content::Partitions);
    }
    if let Some(found) = find(FILESYSTEMS, &bytes).or_else(|| ext(&bytes)) {
        return Ok(found);
    }
    let raid = raid_at_end(source)?;
    Ok(match raid {
        Some(_) => Content::Known {
            name: MD,
            advice: RAID,
        },
        None if bytes.iter().all(|&byte| byte == 0) => Content::Zeroes,
        None if has_log_record(&bytes) => Content::Known {
            name: EXTERNAL_LOG,
            advice: EXTERNAL_LOG_ADVICE,
        },
        None => Content::Unknown,
    })
}

/// What a file that is too small for a filesystem holds.
pub fn identify_bytes(bytes: &[u8]) -> Content {
    find(CONTAINERS, bytes).unwrap_or(Content::Unknown)
}

fn find(list: &[Signature], bytes: &[u8]) -> Option<Content> {
    let Signature(_, _, name, advice) = list.iter().find(|signature| signature.is_in(bytes))?;
    Some(Content::Known { name, advice })
}

impl Signature {
    fn is_in(&self, bytes: &[u8]) -> bool {
        let Signature(at, magic, ..) = self;
        let at = usize::try_from(*at).ok();
        at.and_then(|at| bytes.get(at..at.checked_add(magic.len())?)) == Some(*magic)
    }
}

/// The three that share a superblock, told apart as libblkid does: ext3 has a journal, ext4
/// features that ext3 does not know.
fn ext(bytes: &[u8]) -> Option<Content> {
    const HAS_JOURNAL: u32 = 0x4;
    const EXT3_INCOMPAT: u32 = 0x2 | 0x4 | 0x10;
    const EXT3_RO_COMPAT: u32 = 0x1 | 0x2 | 0x4;
    let word = |at: usize| {
        let bytes = bytes.get(1024..)?.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    if bytes.get(1080..1082) != Some(&[0x53, 0xef]) {
        return None;
    }
    let (compat, incompat, ro_compat) = (word(0x5c)?, word(0x60)?, word(0x64)?);
    let name = if incompat & !EXT3_INCOMPAT != 0 || ro_compat & !EXT3_RO_COMPAT != 0 {
        "an ext4 filesystem"
    } else if compat & HAS_JOURNAL != 0 {
        "an ext3 filesystem"
    } else {
        "an ext2 filesystem"
    };
    let advice = OTHER;
    Some(Content::Known { name, advice })
}

/// Whether a sector begins with a record of an XFS log (`xlog_rec_header`): the head of a log need
/// not be at its start.
fn has_log_record(bytes: &[u8]) -> bool {
    const MAGIC: &[u8] = b"\xfe\xed\xba\xbe";
    bytes.chunks_exact(512).any(|sector| {
        let version = sector.get(8..12).and_then(|word| word.first_chunk());
        let version = version.map(|word| u32::from_be_bytes(*word));
        sector.starts_with(MAGIC) && matches!(version, Some(1 | 2))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::Bytes;
    use super::*;

    fn of(bytes: Vec<u8>) -> Content {
        identify(&mut Bytes(bytes, 512)).unwrap()
    }

    #[test]
    fn every_signature_is_named_with_what_to_do() {
        for Signature(at, magic, name, advice) in CONTAINERS.iter().chain(FILESYSTEMS) {
            let mut bytes = vec![0; 72 << 10];
            let at = usize::try_from(*at).unwrap();
            bytes[at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(of(bytes.clone()), Content::Known { name, advice });
            // One that is cut off in the middle is not seen, and no panic.
            bytes.truncate(at + 1);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
            of(bytes);
        }
    }

    #[test]
    fn ext_filesystems_are_told_apart() {
        for (compat, incompat, name) in [
            (0, 2, "an ext2 filesystem"),
            (4, 2, "an ext3 filesystem"),
            (4, 0x40, "an ext4 filesystem"),
        ] {
            let mut bytes = vec![0; 8192];
            bytes[1080..1082].copy_from_slice(b"\x53\xef");
            bytes[1024 + 0x5c] = compat;
            bytes[1024 + 0x60] = incompat;
            let advice = OTHER;
            assert_eq!(of(bytes), Content::Known { name, advice });
        }
    }

    #[test]
    fn tables_zeroes_logs_and_the_unknown() {
        let mut bytes = vec![0; 8192];
        assert_eq!(of(bytes.clone()), Content::Zeroes);
        bytes[4096..4100].copy_from_slice(b"\xfe\xed\xba\xbe");
        bytes[4107] = 2;
        assert!(matches!(of(bytes.clone()), Content::Known { name, .. } if name == EXTERNAL_LOG));
        bytes[510..512].copy_from_slice(b"\x55\xaa");
        bytes[450] = 0x83;
        assert_eq!(of(bytes.clone()), Content::Partitions);
        bytes[..4].copy_from_slice(b"XFSB");
        assert_eq!(of(bytes), Content::Xfs);
        assert_eq!(of(vec![7; 512]), Content::Unknown);
        assert_eq!(of(Vec::new()), Content::Zeroes);
    }
}
