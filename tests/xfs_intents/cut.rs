//! Recovery that is cut off at any write or flush is done again, by the kernel or by xtent, with
//! the same result.

use std::collections::BTreeMap;
use std::fs;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::internals::xfs::{Fs, MetaIo};
use xtent::{Error, ErrorKind};

use super::common::changed::{ChangedImage, Sector};
use super::common::image::Image;
use super::common::{kernel_is_here, number};
use super::handmade::handmade;
use super::leftovers::deleted_while_open;
use super::{disk_of, findings_of, space_of, writable};

/// A disk in memory that ends with an error after some writes and flushes. Of the runs of sectors
/// that were written since the last flush any may be lost, each as a whole: the kernel needs whole
/// blocks, and those of directories begin anywhere.
pub(crate) struct CutDisk<'a> {
    pub(crate) image: ChangedImage<'a>,
    unflushed: BTreeMap<u64, Option<Sector>>,
    left: u64,
    rng: SmallRng,
}

impl<'a> CutDisk<'a> {
    pub(crate) fn new(base: &'a [u8], left: u64, seed: u64) -> Self {
        Self {
            image: ChangedImage::new(base),
            unflushed: BTreeMap::new(),
            left,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    fn count(&mut self) -> xtent::Result<()> {
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            return Ok(());
        }
        let (mut next, mut is_lost) = (u64::MAX, false);
        for (number, old) in std::mem::take(&mut self.unflushed) {
            if next != number {
                is_lost = self.rng.random();
            }
            next = number + 1;
            if is_lost {
                match old {
                    Some(old) => self.image.changed.insert(number, old),
                    None => self.image.changed.remove(&number),
                };
            }
        }
        Err(Error::new(ErrorKind::Io, "the power is gone"))
    }
}

impl MetaIo for CutDisk<'_> {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        self.image.read(addr, buf)
    }

    fn write_at(&mut self, addr: u64, buf: &[u8]) -> xtent::Result<()> {
        self.image.write(addr, buf, |number, old| {
            self.unflushed.entry(number).or_insert(old);
        });
        self.count()
    }

    fn flush(&mut self) -> xtent::Result<()> {
        self.count()?;
        self.unflushed.clear();
        Ok(())
    }

    fn capacity_bytes(&self) -> u64 {
        self.image.base.len() as u64
    }
}

fn cut_everywhere(dirty: &[u8], step: u64, what: &str) {
    let whole = Image::empty(0, 512);
    fs::write(whole.path(), dirty).unwrap();
    Fs::open_with(&mut disk_of(&whole), &writable()).unwrap();
    let expected = (findings_of(&whole), space_of(&whole));
    let mut cuts = 0;
    loop {
        let left = cuts * step;
        let mut disk = CutDisk::new(dirty, left, left);
        if Fs::open_with(&mut disk, &writable()).is_ok() {
            break;
        }
        let what = format!("{what}, cut after {left} writes and flushes");
        let again = Image::empty(0, 512);
        fs::write(again.path(), disk.image.whole()).unwrap();
        if cuts % 3 == 0 {
            again.mount("").unmount();
        } else {
            let opened = Fs::open_with(&mut disk_of(&again), &writable());
            assert!(opened.is_ok(), "{what}: {opened:?}");
        }
        let found = (findings_of(&again), space_of(&again));
        assert!(found == expected, "{what}");
        cuts += 1;
    }
    assert!(cuts > 2, "{what}: {cuts} cuts");
}

#[test]
fn recovery_that_is_cut_off_is_done_again() {
    if !kernel_is_here() {
        return;
    }
    let seed = number("XTENT_SEED", 1);
    let runs = number("XTENT_RUNS", 6);
    for seed in seed..seed + runs.div_ceil(3) {
        let (disk, what) = handmade(seed, true);
        let dirty = fs::read(disk.image.path()).unwrap();
        cut_everywhere(&dirty, 3, &what);
        let (image, what) = deleted_while_open(seed, true);
        let dirty = fs::read(image.path()).unwrap();
        cut_everywhere(&dirty, 29, &what);
    }
}
