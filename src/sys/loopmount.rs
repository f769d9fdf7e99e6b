//! Loop devices and mounts, so that the kernel's filesystem can be compared with on the same image.
//!
//! Both clean up after themselves even when the process is killed: the loop device detaches with
//! its last user (autoclear), and a mount made after [`private_mounts`] vanishes with the process.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::error::{Error, ErrorKind, Result};

// linux/loop.h
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct LoopInfo64 {
    pub(super) device: u64,
    pub(super) inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}
const _: () = assert!(size_of::<LoopInfo64>() == 232);

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}
const _: () = assert!(size_of::<LoopConfig>() == 304);

/// For how long a free loop device is looked for while other processes take each one first.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);

/// For how long a detached device is waited for while other processes have it open.
const DETACH_TIMEOUT: Duration = Duration::from_secs(5);

/// A loop device over an image file.
#[derive(Debug)]
pub struct LoopDevice {
    device: Option<File>,
    path: PathBuf,
    attachment: Attachment,
}

/// What identifies one use of a loop device: another process may attach another file to the same
/// device right after.
#[derive(Debug, PartialEq, Eq)]
struct Attachment {
    /// `/sys/block/loop*`.
    sysfs: PathBuf,
    /// The file's path; `None` while nothing is attached.
    backing_file: Option<String>,
    /// Another number for each file that is attached (Linux 5.15 and newer).
    sequence: Option<String>,
}

impl Attachment {
    fn read(sysfs: PathBuf) -> Self {
        let line = |name| std::fs::read_to_string(sysfs.join(name)).ok();
        Self {
            backing_file: line("loop/backing_file"),
            sequence: line("diskseq"),
            sysfs,
        }
    }

    fn is_over(&self) -> bool {
        self.backing_file.is_none() || Self::read(self.sysfs.clone()) != *self
    }
}

/// How a loop device is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopOptions {
    /// Logical sector size in bytes.
    pub sector_bytes: u32,
    /// The kernel reads and writes the image past its page cache.
    pub direct_io: bool,
}

impl LoopDevice {
    /// Attaches `image` to a free loop device. Needs root.
    ///
    /// # Errors
    /// The system call that failed, with its errno.
    pub fn attach(image: &Path, options: LoopOptions) -> Result<Self> {
        let backing = OpenOptions::new()
            .read(true)
            .write(true)
            .open(image)
            .map_err(|e| Error::system("cannot open the image", e).at_path(bytes(image)))?;
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
            .map_err(|e| Error::system("cannot open /dev/loop-control", e))?;
        // As losetup does: another process may take the free device first, or have it open
        // exclusively while it attaches its own file; or the kernel has just made the device, and
        // its node is not there yet.
        let give_up = Instant::now() + ATTACH_TIMEOUT;
        loop {
            if let Some(attached) = Self::attach_free(&control, &backing, options)? {
                return Ok(attached);
            }
            if Instant::now() >= give_up {
                return Err(Error::new(
                    ErrorKind::Busy,
                    "every free loop device is taken by other processes first",
                ));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// One try; `None` when another process was faster.
    fn attach_free(control: &File, backing: &File, options: LoopOptions) -> Result<Option<Self>> {
        // SAFETY: this ioctl takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            let errno = io::Error::last_os_error();
            if errno.kind() == io::ErrorKind::Interrupted {
                return Ok(None);
            }
            return Err(Error::system("no free loop device", errno));
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let device = match opened {
            Ok(device) => device,
            Err(e) if is_of_others(&e) => return Ok(None),
            Err(e) => {
                return Err(Error::system("cannot open the loop device", e).at_path(bytes(&path)));
            }
        };
        match configure(&device, backing, options) {
            Ok(()) => {}
            Err(e) if is_of_others(&e) => return Ok(None),
            Err(e) => {
                return Err(Error::system("cannot attach the loop device", e).at_path(bytes(&path)));
            }
        }
        let attachment = Attachment::read(PathBuf::from(format!("/sys/block/loop{number}")));
        Ok(Some(Self {
            device: Some(device),
            path,
            attachment,
        }))
    }

    /// The device's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether the error comes from what other processes do with the same device: attach, detach or
/// remove it.
fn is_of_others(error: &io::Error) -> bool {
    let passing = [libc::EBUSY, libc::EAGAIN, libc::ENXIO, libc::ENOENT];
    error
        .raw_os_error()
        .is_some_and(|errno| passing.contains(&errno))
}

fn configure(device: &File, backing: &File, options: LoopOptions) -> io::Result<()> {
    let mut config = LoopConfig::new_zeroed();
    config.fd = u32::try_from(backing.as_raw_fd())
        .map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    config.block_size = options.sector_bytes;
    config.info.flags = LO_FLAGS_AUTOCLEAR;
    if options.direct_io {
        config.info.flags |= LO_FLAGS_DIRECT_IO;
    }
    // SAFETY: the kernel reads one `loop_config`, which lives until the call returns.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // The last close detaches it (autoclear), and udev or another losetup may have it open for
        // a moment. A file that another process attaches to the same device afterwards is none of
        // ours.
        drop(self.device.take());
        let give_up = Instant::now() + DETACH_TIMEOUT;
        while !self.attachment.is_over() && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A mounted XFS, unmounted on drop; then its loop device goes, then the directory made for it.
#[derive(Debug)]
pub struct XfsMount {
    dir: PathBuf,
    mounted: bool,
    _device: Option<LoopDevice>,
}

impl XfsMount {
    /// Mounts the XFS on `device` in a new private directory under `parent`. Needs root.
    ///
    /// # Errors
    /// The system call that failed, with its errno.
    pub fn new(device: LoopDevice, parent: &Path) -> Result<Self> {
        let mut mount = Self::of_disk(device.path(), parent)?;
        mount._device = Some(device);
        Ok(mount)
    }

    /// Mounts the XFS on a block device (`/dev/nvme0n1`) in a new private directory under `parent`.
    /// Needs root.
    ///
    /// # Errors
    /// The system call that failed, with its errno.
    pub fn of_disk(device: &Path, parent: &Path) -> Result<Self> {
        let dir = private_dir(parent)?;
        let (source, target) = (c_path(device)?, c_path(&dir)?);
        let flags = libc::MS_NODEV | libc::MS_NOSUID | libc::MS_NOEXEC;
        // SAFETY: four C strings that outlive the call.
        let result = unsafe {
            libc::mount(
                source.as_ptr(),
                target.as_ptr(),
                c"xfs".as_ptr(),
                flags,
                c"nouuid".as_ptr().cast(),
            )
        };
        if result < 0 {
            let errno = io::Error::last_os_error();
            let _ = std::fs::remove_dir(&dir);
            return Err(
                Error::system("the kernel cannot mount it as xfs", errno).at_path(bytes(device))
            );
        }
        Ok(Self {
            dir,
            mounted: true,
            _device: None,
        })
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Unmounts, detaches the loop device and removes the directory.
    ///
    /// # Errors
    /// The errno of `umount2`; the mount is then taken out of sight, to end with its last user.
    pub fn unmount(mut self) -> Result<()> {
        self.release()
            .map_err(|e| Error::system("cannot unmount", e).at_path(bytes(&self.dir)))
    }

    fn release(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.mounted) {
            return Ok(());
        }
        let target = CString::new(self.dir.as_os_str().as_bytes())?;
        // What the kernel releases on its own time (a ring just closed) keeps it busy for a moment.
        let give_up = Instant::now() + Duration::from_secs(5);
        let mut result = loop {
            // SAFETY: a C string that outlives the call.
            if unsafe { libc::umount2(target.as_ptr(), 0) } == 0 {
                break Ok(());
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() >= give_up {
                break Err(error);
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        if result.is_err() {
            // SAFETY: a C string that outlives the call.
            if unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) } < 0 {
                result = Err(io::Error::last_os_error());
            }
        }
        let _ = std::fs::remove_dir(&self.dir);
        result
    }
}

impl Drop for XfsMount {
    fn drop(&mut self) {
        let _ = self.release();
    }
}

/// Gives this thread, and those it starts from now on, a mount namespace of their own: no other
/// process sees its mounts, and they end with the process. Needs root.
///
/// # Errors
/// The errno of `unshare` or `mount`.
pub fn private_mounts() -> io::Result<()> {
    // SAFETY: a plain call; it changes this thread's view of mounts (and unshares its working
    // directory).
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: C strings that outlive the call, null where mount(2) ignores the argument.
    let result = unsafe {
        libc::mount(
            c"none".as_ptr(),
            c"/".as_ptr(),
            std::ptr::null(),
            flags,
            std::ptr::null(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the process is root.
pub fn is_root() -> bool {
    // SAFETY: a plain call that cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn private_dir(parent: &Path) -> Result<PathBuf> {
    let mut template = parent
        .join("xtent-XXXXXX")
        .into_os_string()
        .into_encoded_bytes();
    template.push(0);
    // SAFETY: a C string of ours, whose last six bytes mkdtemp overwrites in place.
    let made = unsafe { libc::mkdtemp(template.as_mut_ptr().cast()) };
    if made.is_null() {
        let errno = io::Error::last_os_error();
        return Err(Error::system("cannot make a directory", errno).at_path(bytes(parent)));
    }
    template.pop();
    Ok(PathBuf::from(std::ffi::OsStr::from_bytes(&template)))
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::new(ErrorKind::InvalidInput, "a NUL in the path"))
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

#[cfg(test)]
#[path = "loopmount_tests.rs"]
mod tests;
