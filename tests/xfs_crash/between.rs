//! Metadata that is freed while another thread marks the log as clean.

use std::fs;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use xtent::internals::xfs::check::check;
use xtent::internals::xfs::format::inode::InodeTimestamp;
use xtent::internals::xfs::{Fs, MetaIo};

use super::common::crash::RecordedDisk;
use super::common::judge::open_to_change;
use super::common::kernel_is_here;
use super::common::space::{FileContent, FileModel};
use super::common::space_disk::{Shape, SpaceDisk};
use super::common::space_op::SpaceOp;

/// A disk that does something else before its write of this number.
struct Interrupted<'a> {
    disk: RecordedDisk<()>,
    writes: u32,
    at: u32,
    act: Option<&'a mut dyn FnMut()>,
}

impl Interrupted<'_> {
    fn count(&mut self) {
        if self.writes == self.at
            && let Some(act) = self.act.take()
        {
            act();
        }
        self.writes += 1;
    }
}

impl MetaIo for Interrupted<'_> {
    fn read_at(&mut self, addr: u64, buf: &mut [u8]) -> xtent::Result<()> {
        self.disk.read_at(addr, buf)
    }

    fn write_at(&mut self, addr: u64, buf: &[u8]) -> xtent::Result<()> {
        // The superblock is written under the lock of transactions.
        if addr != 0 {
            self.count();
        }
        self.disk.write_at(addr, buf)
    }

    fn flush(&mut self) -> xtent::Result<()> {
        self.disk.flush()
    }

    fn capacity_bytes(&self) -> u64 {
        self.disk.capacity_bytes()
    }

    fn block_bytes(&self) -> u32 {
        self.disk.block_bytes()
    }
}

const NOW: InodeTimestamp = InodeTimestamp {
    seconds: 1_700_000_000,
    nanoseconds: 7,
};

fn change(fs: &Fs, disk: &RecordedDisk<()>, file: &mut FileModel, number: u64, op: &SpaceOp) {
    file.begin(number, op);
    op.run(fs, &mut disk.clone(), file.id, NOW).unwrap();
}

#[test]
fn a_clean_log_needs_nothing_that_was_freed_meanwhile() {
    if !kernel_is_here() {
        return;
    }
    let mut rng = SmallRng::seed_from_u64(7);
    let source = SpaceDisk::random(&mut rng, 1, Shape::Fragmented);
    let content = Arc::new(fs::read(source.image.path()).unwrap());
    for at in 0..1000 {
        let disk = RecordedDisk::unrecorded(&content, source.image.sector_bytes());
        let fs = open_to_change(&mut disk.clone());
        let mut file = source.files[0].clone();
        let block = source.block;
        // Changes in blocks of all of its btrees.
        change(&fs, &disk, &mut file, 1, &SpaceOp::Punch(0..40 * block));
        let end = file.size() / block * block;
        let punched = SpaceOp::Punch(end - 40 * block..end);
        change(&fs, &disk, &mut file, 2, &punched);
        let before = file.clone();
        let mut act = || {
            // Frees the blocks of its btree.
            change(&fs, &disk, &mut file, 3, &SpaceOp::SetLen(block));
        };
        let mut io = Interrupted {
            disk: disk.clone(),
            writes: 0,
            at,
            act: Some(&mut act),
        };
        fs.clean_log(&mut io).unwrap();
        let writes = io.writes;
        // Power is lost.
        let content = Arc::new(disk.content());
        let mut lost = RecordedDisk::<()>::unrecorded(&content, source.image.sector_bytes());
        let report = check(&mut lost).unwrap();
        assert!(report.is_clean(), "write {at}: {:?}", report.findings);
        let read = open_to_change(&mut lost);
        let found = FileContent::read(&read, &mut lost, before.id.ino).unwrap();
        assert!(
            before.is_newest(&found) || file.is_newest(&found),
            "write {at}"
        );
        // Nothing was lost on the way.
        fs.clean_log(&mut disk.clone()).unwrap();
        let found = FileContent::read(&fs, &mut disk.clone(), before.id.ino).unwrap();
        assert!(at >= writes || file.is_newest(&found), "write {at}");
        if at >= writes {
            return;
        }
    }
    panic!("the log is never clean");
}
