//! Which loop device has a file behind it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use zerocopy::FromZeros;

use super::loopmount::LoopInfo64;

// linux/loop.h
const LOOP_GET_STATUS64: libc::c_ulong = 0x4c05;

/// A file, whatever its names: device and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Device number of its filesystem (`st_dev`).
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl FileId {
    /// Of what `stat` said.
    pub fn of(meta: &fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
        }
    }
}

/// A serial number for a file that stands for a disk: `XI` and 16 hexadecimal digits. It is the
/// same by every name of the file, also after its content was overwritten, and another one for a
/// copy.
pub fn file_serial(file: FileId) -> String {
    // FNV-1a, for both numbers have up to 64 bits and a serial number has at most 20 characters.
    let bytes = file.device.to_le_bytes().into_iter();
    let hash = bytes
        .chain(file.inode.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
    format!("XI{hash:016X}")
}

/// The name (`loop3`) of a loop device that is attached to the file, as far as this process may
/// see. The kernel is asked for device and inode number; where the device node cannot be opened,
/// the path that sysfs has is looked up instead.
pub fn loop_device_of(file: FileId) -> Option<String> {
    for entry in fs::read_dir("/sys/block").ok()?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Only an attached one has this directory.
        let attributes = entry.path().join("loop");
        if !name.starts_with("loop") || !attributes.exists() {
            continue;
        }
        let found = match status_of(&Path::new("/dev").join(&name)) {
            Some(status) => status == file,
            None => path_leads_to(&attributes.join("backing_file"), file),
        };
        if found {
            return Some(name);
        }
    }
    None
}

fn status_of(node: &Path) -> Option<FileId> {
    let device = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(node)
        .ok()?;
    let mut info = LoopInfo64::new_zeroed();
    // SAFETY: the request fills a structure of this very layout, which lives through the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    (result == 0).then_some(FileId {
        device: info.device,
        inode: info.inode,
    })
}

/// By the name that the file was attached by, as the kernel sees it from its root.
fn path_leads_to(attribute: &Path, file: FileId) -> bool {
    let Ok(text) = fs::read_to_string(attribute) else {
        return false;
    };
    let backing = Path::new(text.trim_end_matches('\n'));
    fs::metadata(backing).is_ok_and(|meta| FileId::of(&meta) == file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_serial_number_by_every_name() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, copy] = ["a", "b", "copy"].map(|name| dir.path().join(name));
        fs::write(&a, "x").unwrap();
        fs::hard_link(&a, &b).unwrap();
        fs::copy(&a, &copy).unwrap();
        let serial = |path: &Path| file_serial(FileId::of(&fs::metadata(path).unwrap()));
        let first = serial(&a);
        fs::write(&a, "other").unwrap();
        assert_eq!((&first, serial(&b)), (&serial(&a), first.clone()));
        assert_ne!(first, serial(&copy));
        assert!(first.len() <= 20 && first.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }
}
