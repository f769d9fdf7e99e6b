//! Appends to an empty file and to one of very many extents.
//!
//! The filesystem with the file is made before, not under callgrind: each extent is allocated by a
//! call of its own.

use std::path::Path;

use xtent::target::{HugePages, TargetOptions};
use xtent::volume::{Done, File, Io, MountOptions, OpenOptions, Volume};

use crate::{BLOCK_BYTES, image};

/// Extents of the file of many.
const EXTENTS: u64 = 1_000_000;
/// Names the image to the case.
const IMAGE: &str = "XTENT_COST_IMAGE";
const IMAGE_BYTES: u64 = 8 << 30;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// The image for a case, and the variable that names it.
pub(crate) fn prepare(name: &str, dir: &Path) -> xtent::Result<(&'static str, String)> {
    let image = image::make_of(dir, 0, IMAGE_BYTES)?;
    if name.ends_with("_many_extents") {
        let volume = open(&image)?;
        let mut io = volume.io()?;
        let options = OpenOptions::new().write(true);
        let file = options.open(&volume, &mut io, "/file")?;
        for n in 0..EXTENTS {
            file.allocate(&mut io, 2 * n * BLOCK..(2 * n + 1) * BLOCK, false)?;
        }
        drop((file, io));
        volume.close()?;
    }
    Ok((IMAGE, image))
}

fn open(image: &str) -> xtent::Result<Volume> {
    let options = TargetOptions::new().huge_pages(HugePages::Never);
    Volume::open_with(
        &format!("image:{image},inline"),
        &options,
        &MountOptions::new(),
    )
}

/// Direct appends of 4 KiB, one after the other.
pub(crate) fn append(operations: usize) -> xtent::Result<()> {
    let image = std::env::var(IMAGE).unwrap_or_default();
    let volume = open(&image)?;
    let mut io = volume.io()?;
    let options = OpenOptions::new().read(true).write(true);
    let file = options.open(&volume, &mut io, "/file")?;
    let mut end = file.len();
    let mut bufs = vec![io.alloc(BLOCK_BYTES)?];
    let mut ended = 0;
    for _ in 0..operations {
        let buf = bufs.pop().unwrap_or_default();
        assert!(host_side_append(&mut io, &file, end, buf));
        end += BLOCK;
        while bufs.is_empty() {
            io.relax();
            host_side_append_poll(&mut io, take_back(&mut bufs, &mut ended));
        }
    }
    assert_eq!(ended, operations, "every operation ended well");
    assert_eq!(file.len(), end);
    drop((file, io));
    volume.close()
}

fn take_back(bufs: &mut Vec<xtent::volume::DmaBuf>, ended: &mut usize) -> impl FnMut(Done) {
    |done| {
        *ended += usize::from(matches!(done.result, Ok(BLOCK_BYTES)));
        bufs.push(done.buf);
    }
}

#[inline(never)]
fn host_side_append(io: &mut Io, file: &File, end: u64, buf: xtent::volume::DmaBuf) -> bool {
    io.submit_write(file, end, buf, end).is_ok()
}

#[inline(never)]
fn host_side_append_poll(io: &mut Io, done: impl FnMut(Done)) {
    io.poll(usize::MAX, done);
}
