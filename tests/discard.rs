//! `discard=on`: blocks that files give back are deallocated on the device, when that is durable
//! and before others get them.
//!
//! `XTENT_RUNS` (3) disks from `XTENT_SEED`; a failure prints the seed of its disk.

#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use common::crash::RecordedDisk;
use common::image::Image;
use common::judge::{ImageDisk, open_to_change};
use common::space::FileContent;
use common::space_disk::{Shape, SpaceDisk};
use common::space_op::{SpaceOp, SpaceOpKind};
use common::{kernel_is_here, number, random_bytes};
use rand::rngs::SmallRng;
use rand::seq::{IndexedMutRandom, IndexedRandom};
use rand::{Rng, SeedableRng};
use xtent::internals::device::emu::{DatasetOffer, EmuConfig, EmuDevice, Medium, Mode};
use xtent::internals::nvme::ControllerOptions;
use xtent::internals::target_on_device;
use xtent::internals::xfs::check::check;
use xtent::internals::xfs::format::inode::InodeTimestamp;
use xtent::target::TargetOptions;
use xtent::volume::{MountOptions, OpenOptions, Volume};

use SpaceOpKind::{Allocate, Append, Collapse, Insert, Punch, SetLen, Write, Zero};

/// Length of a file.
const LEN: u64 = 16 << 20;
const KINDS: &[SpaceOpKind] = &[
    SetLen, SetLen, Allocate, Punch, Punch, Zero, Collapse, Insert, Write, Write, Append, Append,
];

/// Bytes that an image takes on its disk.
fn used_bytes(image: &Path) -> u64 {
    let file = fs::File::open(image).unwrap();
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * 512
}

fn content(seed: u64) -> Vec<u8> {
    random_bytes(seed, usize::try_from(LEN).unwrap())
}

/// An image with the files `a` to `d`, of random bytes.
fn image_with_files() -> Image {
    let image = Image::make(320 << 20, 512, &[]);
    let mount = image.mount("");
    for (seed, name) in ["a", "b", "c", "d"].iter().enumerate() {
        fs::write(mount.path().join(name), content(seed as u64)).unwrap();
    }
    mount.unmount();
    image
}

fn assert_clean(image: &Image) {
    image.assert_clean();
    let report = check(&mut ImageDisk::open(image.path(), 512)).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}

/// Truncates, punches and rewrites files. Returns the bytes that the image takes before and after.
fn give_back(target: &str, image: &Image, options: &MountOptions) -> (u64, u64) {
    let before = used_bytes(&image.path());
    let volume = Volume::open_with(target, &TargetOptions::default(), options).unwrap();
    let mut io = volume.io().unwrap();
    let write = OpenOptions::new().read(true).write(true);
    let a = write.open(&volume, &mut io, "/a").unwrap();
    a.set_len(&mut io, 0).unwrap();
    let b = write.open(&volume, &mut io, "/b").unwrap();
    b.punch_hole(&mut io, LEN / 4..LEN / 2).unwrap();
    drop((a, b, io));
    volume.close().unwrap();
    let after = used_bytes(&image.path());
    assert_clean(image);
    let mount = image.mount("ro");
    assert_eq!(fs::metadata(mount.path().join("a")).unwrap().len(), 0);
    let mut expected = content(1);
    let hole = usize::try_from(LEN / 4).unwrap()..usize::try_from(LEN / 2).unwrap();
    expected[hole].fill(0);
    assert!(fs::read(mount.path().join("b")).unwrap() == expected);
    for (seed, name) in [(2, "c"), (3, "d")] {
        assert!(fs::read(mount.path().join(name)).unwrap() == content(seed));
    }
    (before, after)
}

#[test]
fn what_files_give_back_is_given_back_by_the_image() {
    if !kernel_is_here() {
        return;
    }
    let given = LEN + LEN / 4;
    let yes = MountOptions::default().discard(true);
    for (scheme, suffix, options, discards) in [
        ("image", "", &yes, true),
        (
            "image",
            ",discard=on,vwc=off",
            &MountOptions::default(),
            true,
        ),
        ("image", "", &MountOptions::default(), false),
        ("image", ",discard=off", &yes, false),
        ("uring", ",discard=on", &MountOptions::default(), true),
    ] {
        let image = image_with_files();
        let target = format!("{scheme}:{}{suffix}", image.path().display());
        let (before, after) = give_back(&target, &image, options);
        println!("{target}: {before} bytes before, {after} after");
        let freed = before.saturating_sub(after);
        // The log and others are written meanwhile.
        match discards {
            true => assert!(freed > given - (2 << 20), "{target}: {freed} of {given}"),
            false => assert!(freed < 1 << 20, "{target}: {freed}"),
        }
    }
}

/// Bytes that the image gives back on a device with these limits.
fn given_back(dataset: DatasetOffer) -> u64 {
    let image = image_with_files();
    let before = used_bytes(&image.path());
    let device = EmuDevice::start(EmuConfig {
        medium: Medium::open(image.path(), false).unwrap(),
        mode: Mode::Inline,
        dataset,
        ..EmuConfig::default()
    });
    let controller = ControllerOptions::default();
    let options = TargetOptions::default();
    let target = target_on_device(device.unwrap(), &options, controller).unwrap();
    let options = MountOptions::new().discard(true);
    let volume = Volume::on(target, &options).unwrap();
    let mut io = volume.io().unwrap();
    let write = OpenOptions::new().read(true).write(true);
    let a = write.open(&volume, &mut io, "/a").unwrap();
    a.set_len(&mut io, 0).unwrap();
    // So short that it is given back only by the block.
    let b = write.open(&volume, &mut io, "/b").unwrap();
    b.punch_hole(&mut io, 8192..12_288).unwrap();
    drop((a, b, io));
    volume.close().unwrap();
    assert_clean(&image);
    before.saturating_sub(used_bytes(&image.path()))
}

#[test]
fn discards_keep_to_the_limits_of_the_device() {
    if !kernel_is_here() {
        return;
    }
    let none = DatasetOffer::default();
    let limits = DatasetOffer {
        ranges: 2,
        range_blocks: 100,
        blocks: 150,
        ..none
    };
    for (dataset, least, most) in [
        (limits, LEN - (2 << 20), LEN + (1 << 20)),
        // At both ends less than 1 MiB stays.
        (
            DatasetOffer {
                granularity_blocks: 2048,
                alignment_blocks: 2048,
                ..limits
            },
            LEN - (4 << 20),
            LEN,
        ),
        (
            DatasetOffer {
                granularity_blocks: 65_536,
                ..none
            },
            0,
            1 << 20,
        ),
    ] {
        let given = given_back(dataset);
        println!("{dataset:?}: {given} bytes");
        assert!((least..=most).contains(&given), "{dataset:?}: {given}");
    }
}

/// The disk overwrites discarded blocks, so that none may be discarded that has an owner.
#[test]
fn nothing_that_has_an_owner_is_discarded() {
    if !kernel_is_here() {
        return;
    }
    let now = InodeTimestamp {
        seconds: 1_700_000_000,
        nanoseconds: 7,
    };
    let first = number("XTENT_SEED", 1);
    for seed in first..first + number("XTENT_RUNS", 3) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let shape = *[Shape::Plain, Shape::Full, Shape::Fragmented]
            .choose(&mut rng)
            .unwrap();
        let source = SpaceDisk::random(&mut rng, 3, shape);
        let what = format!("XTENT_RUNS=1 XTENT_SEED={seed}: {}", source.what);
        println!("{what}");
        let sector_bytes = source.image.sector_bytes();
        let bytes = Arc::new(fs::read(source.image.path()).unwrap());
        let disk = RecordedDisk::<()>::unrecorded(&bytes, sector_bytes);
        let mut io = disk.clone();
        let fs = open_to_change(&mut io);
        fs.discard_freed();
        let mut files = source.files.clone();
        for turn in 1..=200 {
            let file = files.choose_mut(&mut rng).unwrap();
            let kind = *KINDS.choose(&mut rng).unwrap();
            let sizes = (file.size(), 500 * source.block);
            let op = SpaceOp::random(kind, sizes, source.block, &mut rng);
            file.begin(turn, &op);
            let result = op.run(&fs, &mut io, file.id, now);
            let found = FileContent::read(&fs, &mut io, file.id.ino)
                .unwrap_or_else(|error| panic!("{error} after {op:?}; {what}"));
            let is_right = match result {
                Ok(()) => file.is_newest(&found),
                Err(_) => file.note_failed(&found),
            };
            assert!(is_right, "content after {op:?} in turn {turn}; {what}");
            match rng.random_range(0..12) {
                0 => fs.clean_log(&mut io).unwrap(),
                1..=4 => fs.sync(&mut io).unwrap(),
                _ => {}
            }
        }
        fs.clean_log(&mut io).unwrap();
        let report = check(&mut io).unwrap();
        assert!(report.is_clean(), "{:?}; {what}", report.findings);
        let copy = Image::empty(0, sector_bytes);
        copy.put_content(&disk.content());
        copy.mount("").unmount();
        copy.assert_clean();
        let garbage = disk.content();
        let discarded = garbage
            .chunks_exact(512)
            .filter(|sector| sector.iter().all(|byte| *byte == 0xd5));
        assert!(discarded.count() > 0, "nothing was discarded; {what}");
    }
}
