//! Loop devices beside other programs that use them.

use super::*;
use std::io::{Seek, SeekFrom, Write};

fn sysfs_entry(file: &str, sequence: &str) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let entry = root.path().join("loop0");
    std::fs::create_dir_all(entry.join("loop")).unwrap();
    std::fs::write(entry.join("loop/backing_file"), file).unwrap();
    std::fs::write(entry.join("diskseq"), sequence).unwrap();
    (root, entry)
}

#[test]
fn a_device_that_another_process_took_over_is_not_waited_for() {
    let (_root, entry) = sysfs_entry("/tmp/ours\n", "7\n");
    let ours = Attachment::read(entry.clone());
    assert!(!ours.is_over());
    // Another file, and the same file attached once more by another process.
    std::fs::write(entry.join("loop/backing_file"), "/tmp/theirs\n").unwrap();
    assert!(ours.is_over());
    std::fs::write(entry.join("loop/backing_file"), "/tmp/ours\n").unwrap();
    assert!(!ours.is_over());
    std::fs::write(entry.join("diskseq"), "8\n").unwrap();
    assert!(ours.is_over());
    std::fs::remove_dir_all(entry.join("loop")).unwrap();
    assert!(ours.is_over());
    assert!(Attachment::read(entry).is_over());
}

#[test]
fn what_others_do_with_a_device_is_no_failure() {
    for errno in [libc::EBUSY, libc::ENXIO, libc::ENOENT, libc::EAGAIN] {
        assert!(is_of_others(&io::Error::from_raw_os_error(errno)));
    }
    for errno in [libc::EACCES, libc::EINVAL, libc::EPERM] {
        assert!(!is_of_others(&io::Error::from_raw_os_error(errno)));
    }
}

/// Many threads attach and detach at once, as other programs do: each has its own image behind its
/// own device.
#[test]
fn devices_are_attached_beside_many_who_do_the_same() {
    if !is_root() || !Path::new("/dev/loop-control").exists() {
        println!("SKIPPED: loop devices need root and a kernel that has them");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..12_u8 {
            let dir = dir.path();
            scope.spawn(move || {
                let image = dir.join(format!("image{thread}"));
                let mut file = File::create(&image).unwrap();
                file.write_all(&[thread; 4096]).unwrap();
                file.seek(SeekFrom::Start(0)).unwrap();
                let options = LoopOptions {
                    sector_bytes: 512,
                    direct_io: false,
                };
                for _ in 0..20 {
                    let device = LoopDevice::attach(&image, options).unwrap();
                    let mut buf = [0xff; 512];
                    let opened = File::open(device.path()).unwrap();
                    std::os::unix::fs::FileExt::read_exact_at(&opened, &mut buf, 0).unwrap();
                    assert_eq!(buf, [thread; 512]);
                }
            });
        }
    });
}
