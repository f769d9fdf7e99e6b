//! What is on a device instead of XFS, by the signatures that blkid and file know.

use super::MetaIo;
use crate::error::{Error, ErrorKind};

/// A signature: bytes at a byte of the device, what they say, and what to do.
struct Signature(u64, &'static [u8], &'static str, Advice);

#[derive(Clone, Copy)]
enum Advice {
    /// Another filesystem or volume: nothing that could be opened.
    None,
    Partitions,
    Unpack,
    Convert,
    Luks,
    Lvm,
    Raid,
    Metadump,
}

use Advice::{Convert, Luks, Lvm, Metadump, Partitions, Raid, Unpack};

/// Containers first: what is in them has signatures of its own.
const SIGNATURES: &[Signature] = &[
    Signature(0, b"QFI\xfb", "a qcow2 disk image", Convert),
    Signature(0, b"conectix", "a VHD (vpc) disk image", Convert),
    Signature(0, b"vhdxfile", "a VHDX disk image", Convert),
    Signature(0, b"KDMV", "a VMDK disk image", Convert),
    Signature(0, b"COWD", "a VMDK disk image", Convert),
    Signature(
        0,
        b"# Disk DescriptorFile",
        "the descriptor of a VMDK disk image",
        Convert,
    ),
    Signature(64, b"\x7f\x10\xda\xbe", "a VDI disk image", Convert),
    Signature(0, b"\x1f\x8b", "compressed with gzip", Unpack),
    Signature(0, b"\xfd7zXZ\0", "compressed with xz", Unpack),
    Signature(0, b"\x28\xb5\x2f\xfd", "compressed with zstd", Unpack),
    Signature(0, b"BZh", "compressed with bzip2", Unpack),
    Signature(0, b"\x04\x22\x4d\x18", "compressed with lz4", Unpack),
    Signature(0, b"PK\x03\x04", "a zip archive", Unpack),
    Signature(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", Unpack),
    Signature(257, b"ustar", "a tar archive", Unpack),
    Signature(0, b"XFSM", "an xfs_metadump", Metadump),
    Signature(0, b"XMD2", "an xfs_metadump", Metadump),
    Signature(0, b"xFSM", "an xfs_metadump", Metadump),
    Signature(0, b"LUKS\xba\xbe", "a LUKS encrypted volume", Luks),
    Signature(512, b"LABELONE", "an LVM physical volume", Lvm),
    Signature(0, b"LABELONE", "an LVM physical volume", Lvm),
    Signature(1024, b"LABELONE", "an LVM physical volume", Lvm),
    Signature(1536, b"LABELONE", "an LVM physical volume", Lvm),
    Signature(
        4096,
        b"\xfc\x4e\x2b\xa9",
        "a member of a Linux RAID (md)",
        Raid,
    ),
    Signature(
        0,
        b"\xfc\x4e\x2b\xa9",
        "a member of a Linux RAID (md)",
        Raid,
    ),
    Signature(512, b"EFI PART", "a GPT partition table", Partitions),
    Signature(4096, b"EFI PART", "a GPT partition table", Partitions),
    Signature(
        1080,
        b"\x53\xef",
        "an ext2, ext3 or ext4 filesystem",
        Advice::None,
    ),
    Signature(65_600, b"_BHRfS_M", "a btrfs filesystem", Advice::None),
    Signature(4086, b"SWAPSPACE2", "swap space", Advice::None),
    Signature(4086, b"SWAP-SPACE", "swap space", Advice::None),
    Signature(
        1024,
        b"\x10\x20\xf5\xf2",
        "an f2fs filesystem",
        Advice::None,
    ),
    Signature(
        1024,
        b"\xe2\xe1\xf5\xe0",
        "an erofs filesystem",
        Advice::None,
    ),
    Signature(0, b"hsqs", "a squashfs filesystem", Advice::None),
    Signature(3, b"NTFS    ", "an NTFS filesystem", Advice::None),
    Signature(3, b"EXFAT   ", "an exFAT filesystem", Advice::None),
    Signature(54, b"FAT", "a FAT filesystem", Advice::None),
    Signature(82, b"FAT32", "a FAT filesystem", Advice::None),
    Signature(32_769, b"CD001", "an ISO 9660 filesystem", Advice::None),
    Signature(
        24,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca",
        "a bcache device",
        Advice::None,
    ),
];

impl Advice {
    fn text(self) -> &'static str {
        match self {
            Self::None => "xtent opens XFS only",
            Self::Partitions => {
                "give the partition that holds XFS: of a disk uring:/dev/sdX1; of an image, attach it \
                 (losetup --find --show --partscan FILE) and give uring:/dev/loopNp1"
            }
            Self::Unpack => "unpack it first",
            Self::Convert => "convert it first (qemu-img convert -O raw FILE raw.img)",
            Self::Luks => "unlock it (cryptsetup open) and give uring:/dev/mapper/NAME",
            Self::Lvm => "activate it (vgchange -ay) and give uring:/dev/VG/LV",
            Self::Raid => "assemble it (mdadm --assemble --scan) and give uring:/dev/mdN",
            Self::Metadump => {
                "it holds metadata only; restore it with xfs_mdrestore to look at that"
            }
        }
    }
}

/// The bytes that are looked at.
const LOOK_BYTES: u64 = 68 << 10;

/// The error of a device without an XFS superblock: names what is there, and what to do.
#[cold]
pub(super) fn no_xfs(io: &mut impl MetaIo) -> Error {
    let detail = match look(io) {
        Ok(text) => text,
        Err(error) => return error,
    };
    Error::new(ErrorKind::NotXfs, detail)
}

fn look(io: &mut impl MetaIo) -> Result<String, Error> {
    let block = u64::from(io.block_bytes().max(1));
    let len = io.capacity_bytes().min(LOOK_BYTES.next_multiple_of(block)) / block * block;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    io.read_at(0, &mut bytes)?;
    Ok(describe(&bytes))
}

fn describe(bytes: &[u8]) -> String {
    let has = |Signature(at, magic, ..): &&Signature| {
        let at = usize::try_from(*at).ok();
        at.and_then(|at| bytes.get(at..at.checked_add(magic.len())?)) == Some(*magic)
    };
    if let Some(Signature(_, _, what, advice)) = SIGNATURES.iter().find(has) {
        return format!(
            "there is no XFS filesystem, it is {what}: {}",
            advice.text()
        );
    }
    if is_mbr(bytes) {
        let advice = Partitions.text();
        return format!("there is no XFS filesystem, it is an MBR partition table: {advice}");
    }
    if bytes.iter().all(|&byte| byte == 0) {
        return "there is no XFS filesystem: the device begins with zeroes (make one with mkfs.xfs)".into();
    }
    "there is no XFS filesystem: no superblock magic".into()
}

/// The boot signature, and four entries of which one is used and all have a plausible boot flag.
fn is_mbr(bytes: &[u8]) -> bool {
    let entry = |n: usize| bytes.get(446 + n * 16..446 + n * 16 + 16);
    let entries: Vec<_> = (0..4).filter_map(entry).collect();
    bytes.get(510..512) == Some(&b"\x55\xaa"[..])
        && entries.iter().all(|e| matches!(e.first(), Some(0 | 0x80)))
        && entries
            .iter()
            .any(|e| e.get(4).is_some_and(|&kind| kind != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signature_is_named_with_what_to_do() {
        for Signature(at, magic, what, advice) in SIGNATURES {
            let mut bytes = vec![0; usize::try_from(LOOK_BYTES).unwrap()];
            let at = usize::try_from(*at).unwrap();
            bytes[at..at + magic.len()].copy_from_slice(magic);
            let text = describe(&bytes);
            assert!(
                text.contains(what) && text.contains(advice.text()),
                "{text}"
            );
            // One that is cut off in the middle is not seen, and no panic.
            describe(&bytes[..at + 1]);
        }
    }

    #[test]
    fn mbr_zeroes_and_the_unknown() {
        let mut bytes = vec![0; 4096];
        assert!(describe(&bytes).contains("zeroes"));
        bytes[510..512].copy_from_slice(b"\x55\xaa");
        assert!(!describe(&bytes).contains("MBR"));
        bytes[450] = 0x83;
        assert!(describe(&bytes).contains("MBR"));
        assert!(describe(b"x").contains("no superblock magic"));
    }
}
