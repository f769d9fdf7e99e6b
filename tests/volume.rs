//! What only targets of images have: an image in use is refused; and what is no target at all.
#![allow(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use common::image::Image;
use xtent::ErrorKind;
use xtent::volume::{Target, Volume, VolumeOptions};

#[test]
fn an_image_in_use_is_refused_by_name() {
    if !common::kernel_is_here() {
        return;
    }
    let image = Image::make(320 << 20, 512, &[]);
    let target = format!("image:{}", image.path().display());
    let options = VolumeOptions::default();
    let mount = image.mount("");
    std::fs::write(mount.path().join("file"), [7; 5000]).unwrap();
    let error = Volume::open(&target, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("/dev/loop"), "{error}");
    let error = Volume::open(&format!("{target},readonly"), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    // Asked for, it is read; the log of a mounted filesystem is dirty, which is to be asked for too.
    let volume = Volume::open(&format!("{target},inuse,norecovery"), &options).unwrap();
    assert!(volume.info().filesystem.read_only_reason.is_some());
    mount.unmount();
    drop(volume);
    let held = Volume::open(&target, &options).unwrap();
    let error = Target::open(&target, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("another process"), "{error}");
    drop(held);
    let copy = format!("ram:320M,load={}", image.path().display());
    let volume = Volume::open(&copy, &options).unwrap();
    let mut io = volume.io().unwrap();
    assert_eq!(volume.metadata(&mut io, "file").unwrap().len_bytes, 5000);
}

#[test]
fn what_cannot_be_had_and_no_filesystems_are_refused_by_name() {
    let options = VolumeOptions::default();
    let error = Volume::open("spdk:trtype=TCP", &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("`traddr` is missing"), "{error}");
    #[cfg(not(feature = "spdk"))]
    {
        let target = "spdk:trtype=VFIOUSER traddr=/nowhere";
        let error = Volume::open(target, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("--features spdk"), "{error}");
    }
    let error = Volume::open("uring:/nowhere/nvme0n1", &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = Volume::open("ram:64M,inline", &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let error = Volume::open("/", &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::IsADirectory, "{error}");
}
