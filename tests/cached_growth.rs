//! Files that grow through the page cache: operations that are refused give nothing up, and a
//! durable write is durable with all that it relies on.
#![expect(clippy::unwrap_used, reason = "test code: a failure panics")]

mod common;

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use common::image::Image;
use common::{kernel_is_here, large_blocks_are_here};
use xtent::ErrorKind;
use xtent::volume::{File, Io, OpenOptions, Volume};

fn buffered() -> OpenOptions {
    OpenOptions::new().read(true).write(true).buffered(true)
}

/// An image with files of so many bytes, all `0x55`.
fn image_with(args: &[&str], files: &[(&str, usize)]) -> Image {
    let image = Image::make(320 << 20, 512, args);
    let mount = image.mount("");
    for (name, len) in files {
        fs::write(mount.path().join(name), vec![0x55; *len]).unwrap();
    }
    mount.unmount();
    image
}

fn open(image: &Image) -> (Volume, Io) {
    let volume = Volume::open(&format!("image:{}", image.path().display())).unwrap();
    let io = volume.io().unwrap();
    (volume, io)
}

/// As [`open`], and its file through the page cache.
fn open_file(image: &Image) -> (Volume, Io, File) {
    let (volume, mut io) = open(image);
    let file = buffered().open(&volume, &mut io, "/file").unwrap();
    (volume, io, file)
}

/// Blocks of a file, `0x55` before, that have no data: bytes that no write reached must not show
/// that.
fn with_stale_blocks(block: u32) -> (Image, Volume, Io, File) {
    let size = format!("size={block}");
    let image = image_with(&["-b", &size], &[("file", 40 << 20), ("empty", 0)]);
    let (volume, mut io) = open(&image);
    let old = buffered().open(&volume, &mut io, "/file").unwrap();
    old.set_len(&mut io, 0).unwrap();
    old.sync_all(&mut io).unwrap();
    let file = buffered().open(&volume, &mut io, "/empty").unwrap();
    (image, volume, io, file)
}

fn content_after_replay(image: &Image, name: &str) -> Vec<u8> {
    let copy = Image::empty(0, 512);
    fs::copy(image.path(), copy.path()).unwrap();
    let mount = copy.mount("");
    let found = fs::read(mount.path().join(name)).unwrap();
    mount.unmount();
    copy.assert_clean();
    found
}

/// Pages are written back one by one; each time the kernel sees what was written, and zeroes.
#[test]
fn parts_of_blocks_that_are_larger_than_pages_show_nothing_old() {
    if !large_blocks_are_here() {
        return;
    }
    for block in [8192, 16_384, 32_768, 65_536_u32] {
        let (image, volume, mut io, file) = with_stale_blocks(block);
        let block = usize::try_from(block).unwrap();
        let at = |bytes: usize| bytes as u64;
        let mut model = vec![0; 40 * block];
        file.allocate(&mut io, 0..at(30 * block), false).unwrap();
        file.set_len(&mut io, at(40 * block)).unwrap();
        // In blocks without data, in holes, and whole blocks of which a part is written back.
        for (from, len) in [
            (5, 10),
            (3 * block + 4096, 4096),
            (5 * block, block),
            (7 * block - 100, 200),
            (9 * block + 1, 3 * block),
            (33 * block + 4096, 100),
            (35 * block, 2 * block),
        ] {
            file.write_all_at(&mut io, &vec![7; len], at(from)).unwrap();
            model[from..from + len].fill(7);
            let page = at(from / 4096 * 4096);
            file.sync_range(&mut io, page..page + 4096).unwrap();
            volume.sync(&mut io).unwrap();
            let found = content_after_replay(&image, "empty");
            let wrong = found.iter().zip(&model).position(|(a, b)| a != b);
            assert_eq!((found.len(), wrong), (model.len(), None), "{block}: {from}");
        }
        // Past the end, with a gap, and a page of it alone.
        let from = 41 * block + 5000 % block;
        file.write_all_at(&mut io, &vec![8; 2 * block], at(from))
            .unwrap();
        model.resize(from, 0);
        model.resize(from + 2 * block, 8);
        file.sync_range(&mut io, at(from)..at(from + 1)).unwrap();
        volume.sync(&mut io).unwrap();
        assert!(content_after_replay(&image, "empty") == model, "{block}");
        file.set_len(&mut io, at(from + 10)).unwrap();
        file.set_len(&mut io, at(from + block)).unwrap();
        model.truncate(from + 10);
        model.resize(from + block, 0);
        file.sync_all(&mut io).unwrap();
        assert!(content_after_replay(&image, "empty") == model, "{block}");
        drop((file, io));
        volume.close().unwrap();
        image.assert_clean();
    }
}

/// Each byte of a block is of a thread of its own, and all write back all the time.
#[test]
fn threads_write_parts_of_one_block_that_is_larger_than_a_page() {
    if !large_blocks_are_here() {
        return;
    }
    const BLOCK: u64 = 16_384;
    let (image, volume, mut io, file) = with_stale_blocks(16_384);
    let blocks = 300;
    file.allocate(&mut io, 0..blocks / 2 * BLOCK, true).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let (volume, file) = (&volume, file.clone());
            scope.spawn(move || {
                let mut io = volume.io().unwrap();
                for block in 0..blocks {
                    let from = block * BLOCK + u64::from(thread) * 4096 + 10;
                    file.write_all_at(&mut io, &[thread + 1; 4000], from)
                        .unwrap();
                    file.sync_range(&mut io, from..from + 4000).unwrap();
                }
            });
        }
    });
    volume.sync(&mut io).unwrap();
    let found = content_after_replay(&image, "empty");
    assert_eq!(found.len() as u64, (blocks - 1) * BLOCK + 3 * 4096 + 4010);
    for (page, bytes) in found.chunks(4096).enumerate() {
        let want = u8::try_from(page % 4).unwrap() + 1;
        let is_right = |(index, byte): (usize, &u8)| {
            let is_data = (10..4010).contains(&index);
            *byte == if is_data { want } else { 0 }
        };
        assert!(bytes.iter().enumerate().all(is_right), "page {page}");
    }
    drop((file, io));
    volume.close().unwrap();
    image.assert_clean();
}

/// A filesystem with quotas: its metadata may not be changed.
/// Direct writes whose data is on the device, but not in the file yet, and cached ones beside them
/// in the same block: before the end of the file, in preallocated blocks, and behind it.
#[test]
fn direct_writes_in_flight_stay_beside_cached_ones() {
    let blocks: &[u32] = match large_blocks_are_here() {
        true => &[65_536, 4096],
        false => &[4096],
    };
    for block in blocks {
        let (image, volume, mut io, file) = with_stale_blocks(*block);
        let unit = u64::from(io.block_bytes());
        let direct = OpenOptions::new().read(true).write(true);
        let direct = direct.open(&volume, &mut io, "/empty").unwrap();
        let block = u64::from(*block);
        file.allocate(&mut io, 0..8 * block, false).unwrap();
        let mut model = vec![0; usize::try_from(8 * block).unwrap()];
        // Where the direct write begins, and the cached one.
        for (from, len, cached) in [
            (block, unit, 2 * block - unit),
            (3 * block, block, 3 * block + unit),
            (8 * block, unit, 8 * block + 3 * unit),
            (9 * block + 5 * unit, unit, 9 * block + 7 * unit),
        ] {
            let bytes = usize::try_from(len).unwrap();
            let (start, other) = (
                usize::try_from(from).unwrap(),
                usize::try_from(cached).unwrap(),
            );
            let mut buf = io.alloc(bytes).unwrap();
            buf.fill(7);
            io.submit_write(&direct, from, buf, 1).unwrap();
            // Of bytes that both write either may come last.
            let is_in_both = cached < from + len;
            let byte = if is_in_both { 7 } else { 8 };
            file.write_all_at(&mut io, &[byte; 100], cached).unwrap();
            file.sync_data(&mut io).unwrap();
            while io.outstanding() > 0 {
                io.poll(4, |done| assert!(done.result.is_ok()));
                io.relax();
            }
            model.resize(model.len().max(start + bytes).max(other + 100), 0);
            model[start..start + bytes].fill(7);
            model[other..other + 100].fill(byte);
            let mut found = vec![1; model.len()];
            let n = direct.read_at(&mut io, &mut found, 0).unwrap();
            assert_eq!(n, model.len(), "{block}: {from}");
            let wrong = found.iter().zip(&model).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "{block}: {from}");
        }
        file.sync_all(&mut io).unwrap();
        assert!(content_after_replay(&image, "empty") == model, "{block}");
        drop((file, direct, io));
        volume.close().unwrap();
        image.assert_clean();
    }
}

fn with_quotas() -> Image {
    let image = image_with(&[], &[("file", 100_000)]);
    let commands = ["-x", "-c", "sb 0", "-c", "write -d qflags 0x7"];
    let mut command = Command::new("xfs_db");
    let output = command.args(commands).arg(image.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    image
}

#[test]
fn where_metadata_may_not_be_changed_nothing_is_given_up() {
    if !kernel_is_here() {
        return;
    }
    let image = with_quotas();
    let (volume, mut io, file) = open_file(&image);
    let error = file.write_at(&mut io, &[1; 100], 100_000).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotOverwrite, "{error}");
    file.write_all_at(&mut io, &[1; 8192], 4096).unwrap();
    file.set_len(&mut io, 5000).unwrap_err();
    file.punch_hole(&mut io, 0..100_000).unwrap_err();
    let mut found = vec![7; 8192];
    file.read_exact_at(&mut io, &mut found, 4096).unwrap();
    assert!(found.iter().all(|byte| *byte == 1), "written before");
    assert_eq!(file.len(), 100_000);
    file.sync_all(&mut io).unwrap();
    drop((file, io));
    volume.close().unwrap();
}

#[test]
fn an_impossible_range_is_refused_beside_a_view() {
    if !kernel_is_here() {
        return;
    }
    let image = image_with(&[], &[("file", 65_536)]);
    let (_volume, mut io, file) = open_file(&image);
    let view = file.view_mut(&mut io, 32_768..36_864).unwrap().unwrap();
    #[expect(clippy::reversed_empty_ranges, reason = "it is to be refused")]
    let inverted = 20_000..100;
    let error = file.punch_hole(&mut io, inverted).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    drop(view);
    let error = file.set_len(&mut io, u64::MAX).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let error = file.write_at(&mut io, &[1; 10], u64::MAX - 3).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert_eq!(file.len(), 65_536);
}

/// The handle that made the file longer is gone, and nothing was synced.
#[test]
fn a_durable_write_makes_what_it_overwrites_durable() {
    if !kernel_is_here() {
        return;
    }
    for is_buffered in [true, false] {
        let image = image_with(&[], &[("file", 0)]);
        let (volume, mut io) = open(&image);
        let mut buf = io.alloc(8192).unwrap();
        let options = OpenOptions::new().read(true).write(true);
        let file = options.open(&volume, &mut io, "/file").unwrap();
        file.write_dma_at(&mut io, &mut buf, 0).unwrap();
        drop((file, io));

        let mut io = volume.io().unwrap();
        let options = options.buffered(is_buffered).dsync(true);
        let file = options.open(&volume, &mut io, "/file").unwrap();
        buf.fill(2);
        file.write_dma_at(&mut io, &mut buf, 0).unwrap();
        let copy = Image::empty(0, 512);
        fs::copy(image.path(), copy.path()).unwrap();
        let mount = copy.mount("");
        let found = fs::read(mount.path().join("file")).unwrap();
        mount.unmount();
        assert!(found == [2; 8192], "{} bytes; {is_buffered}", found.len());
    }
}

#[test]
fn threads_that_overwrite_all_the_time_do_not_keep_changes_from_coming() {
    if !kernel_is_here() {
        return;
    }
    let image = image_with(&[], &[("file", 65_536)]);
    let (volume, mut io, file) = open_file(&image);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (is_over, file, volume) = (&is_over, file.clone(), &volume);
            scope.spawn(move || {
                let mut io = volume.io().unwrap();
                while !is_over.load(Relaxed) {
                    file.write_all_at(&mut io, &[9; 64], thread * 64).unwrap();
                }
            });
        }
        let changed = (0..20).try_for_each(|_| {
            file.punch_hole(&mut io, 0..4096)?;
            file.set_len(&mut io, 1000)?;
            file.set_len(&mut io, 65_536)
        });
        is_over.store(true, Relaxed);
        changed.unwrap();
    });
    file.sync_all(&mut io).unwrap();
    drop((file, io));
    volume.close().unwrap();
    image.assert_clean();
}
