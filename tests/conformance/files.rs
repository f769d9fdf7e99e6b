//! Files beside the kernel: paths, metadata, reads, refusals, operations in flight, and what makes
//! a filesystem one that is opened.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::volume::{File, FileType, Io, OpenOptions, SubmitReason, Volume};

use super::common::disk::Disk;
use super::common::image::Image;
use super::common::{self, random_bytes, run};
use super::stand::{For, Stand};
use super::{Outcome, Reason, list};

list! { "files", For::Files,
    paths_lead_where_the_kernel_leads,
    directories_are_streamed_with_io_free_in_between,
    reads_of_any_kind_give_the_same_bytes,
    holes_read_as_zeroes_and_are_found,
    what_is_shared_is_refused_and_nothing_changes,
    holes_and_preallocated_blocks_are_filled_and_files_grow,
    unaligned_overwrites_keep_their_neighbours,
    operations_in_flight_are_counted_refused_and_given_back,
    handles_of_another_volume_are_refused,
    what_mkfs_made_says_what_xfs_db_says,
    a_log_with_changes_is_replayed,
}

const ODD: usize = 3_000_017;

fn fill(root: &Path) {
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/file"), b"hello").unwrap();
    fs::write(root.join("odd"), random_bytes(1, ODD)).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"a/b/not\xffutf8")), b"x").unwrap();
    for (to, name) in [
        ("file", "a/relative"),
        ("/a/b/../file", "absolute"),
        ("../..", "a/b/up"),
        ("loop", "loop"),
        ("nowhere", "dangling"),
        ("a/", "slash"),
    ] {
        symlink(to, root.join(name)).unwrap();
    }
    symlink("a/file", root.join("l0")).unwrap();
    for i in 1..=40 {
        symlink(format!("l{}", i - 1), root.join(format!("l{i}"))).unwrap();
    }
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(&[7; 8192], 1 << 20).unwrap();
    common::sys::fallocate(&sparse, 0, 2 << 20, 1 << 20).unwrap();
    sparse.sync_all().unwrap();
    fs::write(root.join("shared"), random_bytes(2, 65_536)).unwrap();
    let shared = fs::File::open(root.join("shared")).unwrap();
    let clone = fs::File::create(root.join("clone")).unwrap();
    common::sys::clone_file(&shared, &clone).unwrap();
}

/// A disk with the files above, or why there is none.
pub(super) fn filled(stand: &Stand) -> Result<Disk, Reason> {
    let mut disk = stand.disk()?;
    // Small: an emulated machine takes its time to make it, and to sum it up.
    disk.make(64 << 20, 512, &["-m", "reflink=1"]);
    let mount = disk.mount("");
    fill(mount.path());
    mount.unmount();
    Ok(disk)
}

fn open(disk: &mut Disk, options: &str) -> (Volume, Io) {
    let volume = Volume::open(&disk.target(options)).unwrap();
    let io = volume.io().unwrap();
    (volume, io)
}

fn writable(volume: &Volume, io: &mut Io, path: &str) -> File {
    let options = OpenOptions::new().read(true).write(true);
    options.open(volume, io, path).unwrap()
}

fn paths_lead_where_the_kernel_leads(stand: &Stand) -> Outcome {
    let mut disk = filled(stand)?;
    let mount = disk.mount("ro");
    let root = mount.path().to_owned();
    let deep = "/a/b/c/../../../a/./b//c/../../file";
    let paths = [
        "a",
        "/a/",
        "a/file",
        "a/relative",
        "a/b/up/a/b/c",
        "slash",
        "slash/",
        "slash/file",
        "l39",
        "odd",
        "empty",
        "sparse",
        deep,
    ];
    let kernel = paths.map(|path| fs::metadata(root.join(path.trim_start_matches('/'))).unwrap());
    mount.unmount();
    let (volume, mut io) = open(&mut disk, ",readonly");
    for (path, kernel) in paths.iter().zip(kernel) {
        let ours = volume.metadata(&mut io, path).unwrap();
        assert_eq!(ours.ino, kernel.ino(), "{path}");
        assert_eq!(ours.mode, kernel.mode(), "{path}");
        assert_eq!(ours.len_bytes, kernel.len(), "{path}");
        assert_eq!(ours.blocks_512, kernel.blocks(), "{path}");
        assert_eq!(u64::from(ours.block_bytes), kernel.blksize(), "{path}");
        assert_eq!(ours.mtime.seconds, kernel.mtime(), "{path}");
    }
    let file = volume.metadata(&mut io, "a/file").unwrap();
    assert_eq!(volume.metadata(&mut io, "absolute").unwrap(), file);
    let weird = volume
        .metadata(&mut io, OsStr::from_bytes(b"a/b/not\xffutf8"))
        .unwrap();
    assert_eq!(weird.len_bytes, 1);
    let link = volume.symlink_metadata(&mut io, "absolute").unwrap();
    assert_eq!(link.file_type(), FileType::Symlink);
    let to = volume.read_link(&mut io, "absolute").unwrap();
    assert_eq!(to, Path::new("/a/b/../file"));
    let root = volume.metadata(&mut io, "/").unwrap();
    assert_eq!(volume.metadata(&mut io, "/../..").unwrap(), root);
    for (path, kind) in [
        ("none", ErrorKind::NotFound),
        ("", ErrorKind::NotFound),
        ("dangling", ErrorKind::NotFound),
        ("a/file/x", ErrorKind::NotADirectory),
        ("a/file/", ErrorKind::NotADirectory),
        ("a/file/..", ErrorKind::NotADirectory),
        ("loop", ErrorKind::TooManyLinks),
        ("l40", ErrorKind::TooManyLinks),
        (&"x".repeat(256), ErrorKind::NameTooLong),
        (&"x/".repeat(3000), ErrorKind::NameTooLong),
    ] {
        let error = volume.metadata(&mut io, path).unwrap_err();
        assert_eq!(error.kind(), kind, "{path}: {error}");
        assert_eq!(error.path(), Some(Path::new(path)));
        assert!(error.to_string().contains(stand.scheme()), "{error}");
    }
    Ok(())
}

fn directories_are_streamed_with_io_free_in_between(stand: &Stand) -> Outcome {
    let mut disk = filled(stand)?;
    let (volume, mut io) = open(&mut disk, ",readonly");
    let mut dir = volume.read_dir(&mut io, "/").unwrap();
    let mut names = Vec::new();
    while let Some(entry) = dir.next_entry(&mut io).unwrap() {
        let by_entry = entry.metadata(&mut io).unwrap();
        let by_path = volume.symlink_metadata(&mut io, entry.path()).unwrap();
        assert_eq!(by_entry, by_path);
        assert_eq!(entry.file_type(), Some(by_entry.file_type()));
        names.push(entry.file_name().to_str().unwrap().to_owned());
    }
    assert_eq!(names.len(), 10 + 41, "{names:?}");
    let mut dir = volume.read_dir(&mut io, "slash").unwrap();
    assert_eq!(dir.entries(&mut io).map(Result::unwrap).count(), 3);
    let error = volume.read_dir(&mut io, "odd").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotADirectory);
    Ok(())
}

fn reads_of_any_kind_give_the_same_bytes(stand: &Stand) -> Outcome {
    let mut disk = filled(stand)?;
    let model = random_bytes(1, ODD);
    let block = stand.lba_bytes() as usize;
    for options in [",readonly", ",readonly,depth=2"] {
        let (volume, mut io) = open(&mut disk, options);
        let file = volume.open_file(&mut io, "odd").unwrap();
        let mut bytes = Vec::new();
        file.reader(&mut io)
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        assert!(bytes == model, "{options}");
        let mut rng = SmallRng::seed_from_u64(9);
        for _ in 0..50 {
            let offset = rng.random_range(0..ODD + 10);
            let mut to = vec![0xee; rng.random_range(0..200_000)];
            let n = file.read_at(&mut io, &mut to, offset as u64).unwrap();
            assert_eq!(n, to.len().min(ODD.saturating_sub(offset)));
            assert!(to[..n] == model[offset.min(ODD)..][..n], "at {offset}");
            assert!(to[n..].iter().all(|&byte| byte == 0xee));
        }
        // More than all bounce buffers hold at once.
        let mut to = vec![0; ODD];
        assert_eq!(file.read_at(&mut io, &mut to, 1).unwrap(), ODD - 1);
        assert!(to[..ODD - 1] == model[1..]);
        let mut reader = file.reader(&mut io).unwrap();
        for position in [2_999_000, 5, 1_000_000, 1_000_001, 700_000] {
            reader.seek(SeekFrom::Start(position)).unwrap();
            let mut piece = [0; 1000];
            reader.read_exact(&mut piece).unwrap();
            let at = usize::try_from(position).unwrap();
            assert!(piece[..] == model[at..at + 1000], "at {position}");
        }
        reader.seek(SeekFrom::End(10)).unwrap();
        assert!(reader.fill_buf().unwrap().is_empty());
        drop(reader);
        let mut buf = io.alloc(4096).unwrap();
        let last = (ODD - ODD % block) as u64;
        buf.fill(0xee);
        let n = file.read_dma_at(&mut io, &mut buf, last).unwrap();
        assert_eq!(n as u64, ODD as u64 - last);
        assert!(buf[n..block].iter().all(|&byte| byte == 0));
        assert_eq!(file.read_dma_at(&mut io, &mut buf, 1 << 40).unwrap(), 0);
        let error = file.read_dma_at(&mut io, &mut buf, 7).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misaligned);
        let multiples = format!("multiples of {block}");
        assert!(error.to_string().contains(&multiples), "{error}");
        assert_eq!(buf.len(), 4096, "given back");
    }
    Ok(())
}

fn holes_read_as_zeroes_and_are_found(stand: &Stand) -> Outcome {
    let mut disk = filled(stand)?;
    let (volume, mut io) = open(&mut disk, ",readonly");
    let file = volume.open_file(&mut io, "sparse").unwrap();
    assert_eq!(file.len(), 3 << 20);
    let mut bytes = vec![1; 3 << 20];
    file.read_at(&mut io, &mut bytes, 0).unwrap();
    let data = 1 << 20..(1 << 20) + 8192;
    for (at, byte) in bytes.iter().enumerate() {
        assert_eq!(*byte, if data.contains(&at) { 7 } else { 0 }, "at {at}");
    }
    let mib = 1 << 20;
    assert_eq!(file.seek_data(&mut io, 0).unwrap(), Some(mib));
    assert_eq!(file.seek_hole(&mut io, mib).unwrap(), Some(mib + 8192));
    assert_eq!(file.seek_data(&mut io, mib + 8192).unwrap(), None);
    assert_eq!(file.seek_hole(&mut io, 3 << 20).unwrap(), None);
    let extents = file.fiemap(&mut io, 0, u64::MAX).unwrap();
    assert!(extents.last().unwrap().flags.bits() == 0x801, "{extents:?}");
    Ok(())
}

fn holes_and_preallocated_blocks_are_filled_and_files_grow(stand: &Stand) -> Outcome {
    let mut disk = filled(stand)?;
    let block = stand.lba_bytes() as usize;
    let (volume, mut io) = open(&mut disk, "");
    let mut models = std::collections::BTreeMap::new();
    let mut put = |path: &'static str, old: Vec<u8>, offset: usize, bytes: &[u8]| {
        let model = models.entry(path).or_insert(old);
        model.resize(model.len().max(offset + bytes.len()), 0);
        model[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    let mib = 1 << 20;
    for (seed, (path, offset, len)) in [
        ("sparse", 0, 4096),
        ("sparse", mib + 4096, 8192),
        ("sparse", 2 * mib, 4096),
        ("sparse", 2 * mib + 8192, block),
        ("odd", ODD - ODD % block, block),
        ("empty", 0, block),
        ("empty", 9 * block, 3 * block),
        ("empty", mib, mib),
    ]
    .into_iter()
    .enumerate()
    {
        let file = writable(&volume, &mut io, path);
        let mut old = vec![0; usize::try_from(file.len()).unwrap()];
        file.read_at(&mut io, &mut old, 0).unwrap();
        let mut buf = io.alloc(len).unwrap();
        buf.copy_from_slice(&random_bytes(seed as u64, len));
        put(path, old, offset, &buf);
        let offset = offset as u64;
        match seed % 3 {
            0 => assert_eq!(file.write_dma_at(&mut io, &mut buf, offset).unwrap(), len),
            1 => assert_eq!(file.write_at(&mut io, &buf, offset).unwrap(), len),
            _ => {
                io.submit_write(&file, offset, buf, 0).unwrap();
                while io.outstanding() > 0 {
                    io.poll(1, |done| assert_eq!(done.result.unwrap(), len));
                    io.relax();
                }
            }
        }
    }
    let odd = writable(&volume, &mut io, "odd");
    let end = odd.len();
    odd.write_all_at(&mut io, b"across the end", end - 3)
        .unwrap();
    put(
        "odd",
        Vec::new(),
        usize::try_from(end).unwrap() - 3,
        b"across the end",
    );
    drop((odd, io));
    volume.close().unwrap();
    disk.assert_clean();
    let mount = disk.mount("");
    for (path, model) in &models {
        assert!(
            fs::read(mount.path().join(path)).unwrap() == *model,
            "{path}"
        );
        fs::remove_file(mount.path().join(path)).unwrap();
    }
    drop(mount);
    disk.assert_clean();
    Ok(())
}

fn what_is_shared_is_refused_and_nothing_changes(stand: &Stand) -> Outcome {
    let mut disk = filled(stand)?;
    let block = stand.lba_bytes() as usize;
    let before = disk.checksum();
    let (volume, mut io) = open(&mut disk, "");
    let clone = writable(&volume, &mut io, "clone");
    let mut buf = io.alloc(65_536).unwrap();
    buf.fill(0xbb);
    let error = clone.write_dma_at(&mut io, &mut buf, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotOverwrite, "{error}");
    assert!(error.to_string().contains("shared"), "{error}");
    let error = clone.write_at(&mut io, &buf, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotOverwrite, "{error}");
    let submitted = io.submit_write(&clone, 0, buf, 0).unwrap_err();
    assert_eq!(submitted.buf.len(), 65_536);
    assert_eq!(io.outstanding(), 0);
    let file = volume.open_file(&mut io, "odd").unwrap();
    let mut buf = io.alloc(block).unwrap();
    let error = file.write_dma_at(&mut io, &mut buf, 0).unwrap_err();
    assert!(error.to_string().contains("not opened for writing"));
    let error = writable(&volume, &mut io, "odd").write_at(&mut io, &[0; 100], 0);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Misaligned);
    let error = volume.open_file(&mut io, "/a").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::IsADirectory);
    drop((file, clone, buf, io, volume));
    assert_eq!(disk.checksum(), before);
    let (volume, mut io) = open(&mut disk, ",readonly");
    let error = OpenOptions::new().write(true).open(&volume, &mut io, "odd");
    assert_eq!(error.unwrap_err().kind(), ErrorKind::ReadOnly);
    Ok(())
}

fn unaligned_overwrites_keep_their_neighbours(stand: &Stand) -> Outcome {
    let mut disk = filled(stand)?;
    let block = stand.lba_bytes() as usize;
    let mut model = random_bytes(1, ODD);
    let (volume, mut io) = open(&mut disk, "");
    let file = writable(&volume, &mut io, "odd");
    let mut rng = SmallRng::seed_from_u64(3);
    for round in 0..60 {
        let most = if round % 10 == 0 { ODD } else { 3000 };
        let len = rng.random_range(0..=most);
        let offset = match round % 3 {
            0 => ODD - len,
            1 => rng.random_range(0..=ODD - len),
            _ => (ODD - len) / block * block,
        };
        let bytes = random_bytes(round, len);
        model[offset..offset + len].copy_from_slice(&bytes);
        file.write_all_at(&mut io, &bytes, offset as u64).unwrap();
    }
    file.sync_all(&mut io).unwrap();
    drop((file, io, volume));
    disk.assert_clean();
    let mount = disk.mount("ro");
    assert!(fs::read(mount.path().join("odd")).unwrap() == model);
    drop(mount);
    Ok(())
}

fn operations_in_flight_are_counted_refused_and_given_back(stand: &Stand) -> Outcome {
    let mut disk = filled(stand)?;
    let (volume, mut io) = open(&mut disk, ",depth=4");
    let model = random_bytes(1, ODD);
    let file = writable(&volume, &mut io, "odd");
    for i in 0..4 {
        let buf = io.alloc(4096).unwrap();
        io.submit_read(&file, i * 4096, buf, i).unwrap();
    }
    let buf = io.alloc(8192).unwrap();
    let full = io.submit_read(&file, 0, buf, 9).unwrap_err();
    assert!(matches!(full.reason, SubmitReason::Full));
    assert_eq!((full.buf.len(), io.outstanding()), (8192, 4));
    // Blocking calls go on beside it, and do not swallow what belongs to poll.
    let mut buf = full.buf;
    assert_eq!(file.read_dma_at(&mut io, &mut buf, 0).unwrap(), 8192);
    assert!(buf[..] == model[..8192]);
    file.sync_data(&mut io).unwrap();
    assert_eq!(volume.metadata(&mut io, "a/file").unwrap().len_bytes, 5);
    let mut seen = Vec::new();
    while io.outstanding() > 0 {
        let n = io.poll(3, |done| {
            let at = usize::try_from(done.user_data).unwrap() * 4096;
            assert_eq!(done.result.unwrap(), 4096);
            assert!(done.buf[..] == model[at..at + 4096]);
            seen.push(done.user_data);
        });
        assert!(n <= 3);
        if n == 0 {
            io.relax();
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 3]);
    io.submit_sync(&file, 77).unwrap();
    let mut synced = false;
    while io.outstanding() > 0 {
        let n = io.poll(1, |done| {
            synced = done.user_data == 77 && done.result.is_ok()
        });
        if n == 0 {
            io.relax();
        }
    }
    assert!(synced);
    // Dropped with work in flight: it waits for it.
    let buf = io.alloc(1 << 20).unwrap();
    io.submit_read(&file, 0, buf, 0).unwrap();
    drop(io);
    Ok(())
}

fn handles_of_another_volume_are_refused(stand: &Stand) -> Outcome {
    let mut disk = filled(stand)?;
    let (volume, mut io) = open(&mut disk, ",readonly");
    let other = Image::make(64 << 20, 512, &[]);
    let other = format!("image:{},readonly,inline", other.path().display());
    let other = Volume::open(&other).unwrap();
    let mut other_io = other.io().unwrap();
    let file = volume.open_file(&mut io, "odd").unwrap();
    let mut buf = io.alloc(4096).unwrap();
    let mut foreign = other_io.alloc(4096).unwrap();
    let kind = |result: xtent::Result<usize>| result.unwrap_err().kind();
    let refused = ErrorKind::InvalidInput;
    assert_eq!(kind(file.read_dma_at(&mut other_io, &mut buf, 0)), refused);
    assert_eq!(kind(file.read_dma_at(&mut io, &mut foreign, 0)), refused);
    assert_eq!(foreign.len(), 4096, "given back");
    let error = volume.metadata(&mut other_io, "odd").unwrap_err();
    assert_eq!(error.kind(), refused);
    Ok(())
}

fn what_mkfs_made_says_what_xfs_db_says(stand: &Stand) -> Outcome {
    let mut disk = stand.disk()?;
    disk.make(64 << 20, 512, &["-L", "a label", "-d", "agcount=3"]);
    let asked = [
        "icount",
        "ifree",
        "fdblocks",
        "dblocks",
        "agcount",
        "logblocks",
        "rootino",
    ];
    let prints = asked.map(|name| format!("print {name}"));
    let mut args = vec!["-r", "-c", "sb 0"];
    for print in &prints {
        args.extend(["-c", print]);
    }
    let path = disk.for_tools();
    args.extend(["-c", "uuid", path.to_str().unwrap()]);
    let text = run("xfs_db", &args);
    let numbers: Vec<u64> = text
        .lines()
        .filter_map(|line| line.split_once(" = ")?.1.parse().ok())
        .collect();
    let (volume, mut io) = open(&mut disk, "");
    let info = volume.info().filesystem;
    let ours = [
        info.inodes,
        info.free_inodes,
        info.free_blocks,
        info.blocks,
        info.ag_count.into(),
        info.log_blocks.into(),
        volume.metadata(&mut io, "/").unwrap().ino,
    ];
    assert_eq!(numbers, ours, "{text}");
    assert!(text.contains(&info.uuid), "{} is not in {text}", info.uuid);
    assert_eq!(info.label, "a label");
    assert_eq!(info.sector_bytes, stand.lba_bytes());
    assert_eq!(info.read_only_reason, None);
    let bigtime = info.features.iter().any(|name| name == "bigtime");
    assert!(bigtime, "{:?}", info.features);
    Ok(())
}

fn a_log_with_changes_is_replayed(stand: &Stand) -> Outcome {
    let mut disk = stand.disk()?;
    disk.make(64 << 20, 512, &[]);
    let mount = disk.mount("");
    for i in 0..200 {
        fs::write(mount.path().join(format!("file-{i}")), b"x").unwrap();
    }
    // What a power cut would leave: the log is written, what it says is not.
    let root = fs::File::open(mount.path()).unwrap();
    common::sys::shut_down(&root).unwrap();
    drop(root);
    mount.unmount();
    let error = Volume::open(&disk.target(",noreplay")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NeedsRecovery, "{error}");
    let advice = "mount the filesystem once";
    assert!(error.to_string().contains(advice), "{error}");
    let volume = Volume::open(&disk.target(",norecovery")).unwrap();
    let info = volume.info().filesystem;
    assert!(info.read_only_reason.is_some() && info.log_dirty);
    drop(volume);
    // For reading it is replayed into memory, and everything is there, any number of times.
    for _ in 0..2 {
        let (volume, mut io) = open(&mut disk, ",readonly");
        let info = volume.info().filesystem;
        assert!(info.read_only_reason.is_some() && info.log_dirty);
        assert!(volume.metadata(&mut io, "file-199").is_ok());
    }
    // For writing it is replayed on the device, once.
    let (volume, mut io) = open(&mut disk, "");
    let info = volume.info().filesystem;
    assert!(info.read_only_reason.is_none() && !info.log_dirty);
    assert!(volume.metadata(&mut io, "file-199").is_ok());
    drop((volume, io));
    let (volume, mut io) = open(&mut disk, ",noreplay");
    assert!(volume.metadata(&mut io, "file-199").is_ok());
    drop((volume, io));
    let mount = disk.mount("");
    assert!(mount.path().join("file-199").exists());
    mount.unmount();
    Ok(())
}
