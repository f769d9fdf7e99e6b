//! What users can allocate, where extents begin, and damaged structures.

use std::process::Command;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::super::super::buf::BufKind;
use super::super::super::geometry::{FsBlock, Ino};
use super::super::super::trans::is_only_busy;
use super::super::super::tree::ForkKind;
use super::super::rmap::RmapOwner;
use super::super::{Alignment, AllocRequest, Reserve, allocate, count_space, free};
use super::image::Volume;
use crate::error::{ErrorKind, Result};

fn owner(offset: u64) -> RmapOwner {
    RmapOwner::fork(Ino(128), ForkKind::Data, offset, false)
}

#[test]
fn free_blocks_are_those_that_the_kernel_shows() {
    for arguments in [
        "-b size=1024 -d agcount=4 -m rmapbt=1,reflink=1",
        "-b size=4096 -d agcount=4 -m rmapbt=1,reflink=1",
        "-b size=4096 -d agcount=3 -m rmapbt=0,reflink=1",
        "-b size=4096 -d agcount=1 -m rmapbt=0,reflink=0",
        "-b size=1024 -d agcount=2 -m finobt=0,reflink=0,rmapbt=0",
    ] {
        let Some(mut volume) = Volume::make(200, arguments) else {
            return;
        };
        let count = count_space(&mut volume.begin()).unwrap();
        let Some(shown) = volume.kernel_statfs() else {
            println!("SKIPPED: the image cannot be mounted here");
            return;
        };
        assert_eq!((count.blocks, count.free), shown, "{arguments}");
    }
}

#[test]
fn extents_begin_at_stripe_units_or_go_on() {
    let arguments = "-b size=4096 -d agcount=2,su=64k,sw=4";
    let Some(mut volume) = Volume::make(200, arguments) else {
        return;
    };
    let ag_block = |volume: &Volume, start| volume.state.superblock.geometry.split(start).1;
    let mut t = volume.begin();
    let first = allocate(&mut t, &AllocRequest::new(owner(0), 1, 21)).unwrap();
    let next = AllocRequest {
        near: Some(FsBlock(first.start.0 + 21)),
        ..AllocRequest::new(owner(21), 1, 5)
    };
    let next = allocate(&mut t, &next).unwrap();
    let other = allocate(&mut t, &AllocRequest::new(owner(1000), 1, 40)).unwrap();
    let aligned = AllocRequest {
        alignment: Alignment::Blocks(8),
        ..AllocRequest::new(owner(2000), 8, 8)
    };
    let aligned = allocate(&mut t, &aligned).unwrap();
    t.commit();
    assert_eq!(ag_block(&volume, first.start) % 16, 0);
    assert_eq!(next.start.0, first.start.0 + 21);
    assert_eq!(ag_block(&volume, other.start) % 16, 0);
    assert_eq!(ag_block(&volume, aligned.start) % 8, 0);
}

#[test]
fn freed_blocks_wait_for_the_log() {
    let arguments = "-b size=4096 -d agcount=1 -m rmapbt=0,reflink=0";
    let Some(mut volume) = Volume::make(64, arguments) else {
        return;
    };
    let mut extents = Vec::new();
    let full = loop {
        let mut t = volume.begin();
        match allocate(&mut t, &AllocRequest::new(owner(0), 1, 1 << 20)) {
            Ok(found) => extents.push(found),
            Err(error) => break error,
        }
        t.commit();
    };
    assert_eq!(full.kind(), ErrorKind::NoSpace);
    let pool = AllocRequest {
        reserve: Reserve::Pool,
        ..AllocRequest::new(owner(0), 1, 1 << 20)
    };
    loop {
        let mut t = volume.begin();
        match allocate(&mut t, &pool) {
            Ok(found) => extents.push(found),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace);
                break;
            }
        }
        t.commit();
    }
    let gone = extents.remove(0);
    // Not by the transaction that frees them, and not after it.
    let mut t = volume.begin();
    free(&mut t, gone.start, gone.blocks, owner(0)).unwrap();
    let error = allocate(&mut t, &AllocRequest::new(owner(0), 100, 100)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    drop(t);
    let mut t = volume.begin();
    free(&mut t, gone.start, gone.blocks, owner(0)).unwrap();
    t.commit();
    let request = AllocRequest::new(owner(0), 100, 100);
    let error = allocate(&mut volume.begin(), &request).unwrap_err();
    assert!(is_only_busy(&error), "{error:?}");
    let logged = AllocRequest {
        is_logged: true,
        ..request
    };
    assert_eq!(allocate(&mut volume.begin(), &logged).unwrap().blocks, 100);
    volume.force();
    assert_eq!(allocate(&mut volume.begin(), &request).unwrap().blocks, 100);
}

#[test]
fn damaged_structures_are_errors() {
    let seed = std::env::var("XTENT_SEED").ok();
    let seed = seed.map_or(1, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let arguments = "-b size=1024 -d agcount=1 -m rmapbt=1,reflink=1";
    let Some(mut volume) = Volume::make(32, arguments) else {
        return;
    };
    let mut rng = SmallRng::seed_from_u64(seed);
    // Many free extents, so that the btrees have several blocks.
    let mut extents = Vec::new();
    for offset in 0..1500 {
        let mut t = volume.begin();
        let found = allocate(&mut t, &AllocRequest::new(owner(offset * 10), 1, 1)).unwrap();
        extents.push((found.start, offset * 10));
        if let Some((start, offset)) = extents.pop_if(|_| offset % 2 == 1) {
            free(&mut t, start, 1, owner(offset)).unwrap();
        }
        t.commit();
    }
    volume.force();
    let end = u64::MAX;
    let kinds = [
        BufKind::Agf,
        BufKind::Agfl,
        BufKind::Bnobt,
        BufKind::Cntbt,
        BufKind::Rmapbt,
        BufKind::Refcountbt,
    ];
    let buffers = volume.state.buffers.overlapping(0, end);
    let buffers = buffers.filter(|(_, buffer)| kinds.contains(&buffer.kind));
    let buffers: Vec<u64> = buffers.map(|(addr, _)| addr).collect();
    for _ in 0..600 {
        let addr = buffers[rng.random_range(0..buffers.len())];
        let before = volume.state.buffers.get(addr).unwrap().bytes.clone();
        let bytes = &mut volume.state.buffers.get_mut(addr).unwrap().bytes;
        // Not the magic number and the checks of the buffer, which the reader has done.
        for _ in 0..rng.random_range(1..4) {
            let word = rng.random_range(1..bytes.len() / 4) * 4;
            let value: u32 = match rng.random_range(0..3) {
                0 => rng.random(),
                1 => rng.random_range(0..20),
                _ => u32::MAX - rng.random_range(0..3),
            };
            bytes[word..word + 4].copy_from_slice(&value.to_be_bytes());
        }
        let mut t = volume.begin();
        for _ in 0..8 {
            let (start, offset) = extents[rng.random_range(0..extents.len())];
            let done: Result<()> = match rng.random() {
                true => allocate(&mut t, &AllocRequest::new(owner(77), 1, 50)).map(|_| ()),
                false => free(&mut t, start, 1, owner(offset)),
            };
            if let Err(error) = done {
                let kind = error.kind();
                let expected = [
                    ErrorKind::Corrupt,
                    ErrorKind::NoSpace,
                    ErrorKind::WouldBlock,
                ];
                assert!(expected.contains(&kind), "{error:?}");
                break;
            }
        }
        drop(t);
        volume.state.withheld_blocks = None;
        volume.state.buffers.get_mut(addr).unwrap().bytes = before;
    }
    // The transactions left nothing behind.
    super::audit::Group::read(&mut volume, 0);
}

impl Volume {
    /// Blocks and free blocks as the kernel shows them; `None` when it cannot mount the image.
    fn kernel_statfs(&self) -> Option<(u64, u64)> {
        let mount = self.path().with_extension("mount");
        std::fs::create_dir(&mount).unwrap();
        let run = |name: &str, arguments: &[&str]| {
            let output = Command::new(name).args(arguments).output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success().then_some(text)
        };
        let (image, point) = (self.path(), mount.to_str()?.to_owned());
        run(
            "mount",
            &["-t", "xfs", "-o", "loop", image.to_str()?, &point],
        )?;
        let text = run("stat", &["-f", "-c", "%b %f", &point]);
        run("umount", &[&point]).unwrap();
        let text = text?;
        let (blocks, free) = text.trim().split_once(' ')?;
        Some((blocks.parse().ok()?, free.parse().ok()?))
    }
}
