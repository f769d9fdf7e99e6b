//! The cases that go through a file of an XFS: `File` and `Io`, lookup of the mapping included.

use xtent::target::{HugePages, TargetOptions};
use xtent::volume::{Done, File, Io, MountOptions, OpenOptions, Volume};

use crate::{BLOCK_BYTES, image};

/// Blocks of the file that is read and written.
const FILE_BLOCKS: u64 = 2048;

/// What the operations do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
    /// Past the end of the file, into blocks that are allocated there.
    Append,
}

/// Reads or writes of 4 KiB through `Io`, in batches of `depth`.
pub(crate) fn file(way: Way, depth: usize, operations: usize) -> xtent::Result<()> {
    by_handles(way, depth, 1, operations)
}

/// As [`file`], by so many handles in turn: to the `Io` they are so many files.
pub(crate) fn by_handles(
    way: Way,
    depth: usize,
    handles: usize,
    operations: usize,
) -> xtent::Result<()> {
    let dir = tempfile::tempdir().map_err(|e| xtent::Error::system("a directory", e))?;
    let image = image::make(dir.path(), FILE_BLOCKS * BLOCK_BYTES as u64)?;
    let options = TargetOptions::new().huge_pages(HugePages::Never);
    let target = format!("image:{image},inline,depth={}", depth.max(2));
    let volume = Volume::open_with(&target, &options, &MountOptions::new())?;
    let mut io = volume.io()?;
    let options = OpenOptions::new().read(true).write(true);
    let open = |_| options.open(&volume, &mut io, "/file");
    let files = (0..handles).map(open).collect::<xtent::Result<Vec<_>>>()?;
    let mut files = files.iter().cycle();
    let mut bufs = Vec::new();
    for _ in 0..depth {
        bufs.push(io.alloc(BLOCK_BYTES)?);
    }
    let mut ended = 0;
    for batch in 0..operations / depth {
        let first = (batch * depth) as u64;
        for n in 0..depth as u64 {
            let block = match way {
                Way::Read | Way::Write => (first + n) * 7 % FILE_BLOCKS,
                Way::Append => FILE_BLOCKS + first + n,
            };
            let buf = bufs.pop().unwrap_or_default();
            let offset = block * BLOCK_BYTES as u64;
            let taken = files
                .next()
                .is_some_and(|file| host_side_file(&mut io, file, way, offset, buf));
            assert!(taken);
        }
        host_side_io_poll(&mut io, take_back(&mut bufs, &mut ended));
        while bufs.len() < depth {
            io.relax();
            host_side_io_poll(&mut io, take_back(&mut bufs, &mut ended));
        }
    }
    assert_eq!(ended, operations, "every operation ended well");
    Ok(())
}

/// Cached reads of 64 bytes by a file that was opened buffered.
pub(crate) fn buffered(operations: usize) -> xtent::Result<()> {
    let dir = tempfile::tempdir().map_err(|e| xtent::Error::system("a directory", e))?;
    let image = image::make(dir.path(), FILE_BLOCKS * BLOCK_BYTES as u64)?;
    let options = TargetOptions::new().huge_pages(HugePages::Never);
    let mount = MountOptions::new().cache_bytes(16 << 20);
    let volume = Volume::open_with(&format!("image:{image},inline"), &options, &mount)?;
    let mut io = volume.io()?;
    let file = OpenOptions::new().read(true).buffered(true);
    let file = file.open(&volume, &mut io, "/file")?;
    let mut all = vec![0; BLOCK_BYTES * usize::try_from(FILE_BLOCKS).unwrap_or(0)];
    assert_eq!(file.read_at(&mut io, &mut all, 0)?, all.len());
    let mut buf = [0; 64];
    for n in 0..operations {
        let offset = (n as u64 * 7 % FILE_BLOCKS) * BLOCK_BYTES as u64 + 64;
        assert!(host_side_read_into(&mut io, &file, &mut buf, offset));
    }
    assert_eq!(buf, [1; 64]);
    Ok(())
}

#[inline(never)]
fn host_side_read_into(io: &mut Io, file: &File, buf: &mut [u8], offset: u64) -> bool {
    matches!(file.read_at(io, buf, offset), Ok(64))
}

fn take_back(bufs: &mut Vec<xtent::volume::DmaBuf>, ended: &mut usize) -> impl FnMut(Done) {
    |done| {
        *ended += usize::from(matches!(done.result, Ok(BLOCK_BYTES)));
        bufs.push(done.buf);
    }
}

#[inline(never)]
fn host_side_file(
    io: &mut Io,
    file: &File,
    way: Way,
    offset: u64,
    buf: xtent::volume::DmaBuf,
) -> bool {
    match way {
        Way::Read => io.submit_read(file, offset, buf, offset).is_ok(),
        Way::Write | Way::Append => io.submit_write(file, offset, buf, offset).is_ok(),
    }
}

#[inline(never)]
fn host_side_io_poll(io: &mut Io, done: impl FnMut(Done)) {
    io.poll(usize::MAX, done);
}
