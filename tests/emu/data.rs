//! Data commands: PRPs of every form, bounds, zeroes, files.

use std::os::unix::fs::FileExt;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtent::internals::device::emu::{DatasetOffer, EmuConfig, Medium, Mode};
use xtent::internals::mem::{DmaBuf, SharedWords};
use xtent::internals::nvme::spec::*;
use zerocopy::IntoBytes;

use crate::host::*;

const OK: StatusField = StatusField::SUCCESS;
const MEDIUM_BYTES: usize = 6 << 20;

fn dnr(status: StatusField) -> StatusField {
    status.do_not_retry()
}

/// PRP fields for `len` bytes that start `skip` bytes into `buf`, with the list at `list_at` of
/// `list`. The list continues, page after page, where it does not fit.
fn prps(buf: &DmaBuf, skip: u64, len: u64, list: &SharedWords, list_at: usize) -> (u64, u64) {
    let start = buf.iova().0 + skip;
    let mut pages = Vec::new();
    let mut at = start - start % 4096 + 4096;
    while at < start + len {
        pages.push(at);
        at += 4096;
    }
    if pages.len() <= 1 {
        return (start, pages.first().copied().unwrap_or(0));
    }
    let mut slot = list_at;
    for (n, page) in pages.iter().enumerate() {
        let last_of_page = slot % 4096 == 4088;
        if last_of_page && n + 1 < pages.len() {
            list.store_u64(slot, list.iova().0 + slot as u64 + 8);
            slot += 8;
        }
        list.store_u64(slot, *page);
        slot += 8;
    }
    (start, list.iova().0 + list_at as u64)
}

/// A deallocation of one range, which is put at the buffer's start.
fn deallocate(buf: &mut DmaBuf, lba: u64, blocks: u32) -> Command {
    let range = DatasetRange {
        attributes: 0.into(),
        blocks: blocks.into(),
        lba: lba.into(),
    };
    buf[..16].copy_from_slice(range.as_bytes());
    let at = buf.iova().0;
    command(OPC_DATASET_MANAGEMENT, 1, at, 0, &[0, DSM_DEALLOCATE])
}

fn random_io_equals_a_model(config: EmuConfig, seed: u64, rounds: usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let lba_bytes = config.lba_bytes as usize;
    let most = if config.mdts == 0 {
        3 << 20
    } else {
        4096 << config.mdts
    };
    let mut host = Host::new(config);
    let mut pair = host.pair(1, 16);
    let mut model = vec![0_u8; MEDIUM_BYTES];
    let mut buf = host.buf(most + 8192);
    let list = SharedWords::new(host.buf(16 << 10));
    for round in 0..rounds {
        let blocks = match rng.random_range(0..4) {
            0 => rng.random_range(1..=most / lba_bytes),
            _ => rng.random_range(1..=16.min(most / lba_bytes)),
        };
        let lba = rng.random_range(0..=MEDIUM_BYTES / lba_bytes - blocks);
        let len = blocks * lba_bytes;
        let range = lba * lba_bytes..lba * lba_bytes + len;
        let skip = rng.random_range(0..1024) * 4;
        let list_at = rng.random_range(0..512) * 8;
        let (prp1, prp2) = prps(&buf, skip, len as u64, &list, list_at);
        let skip = usize::try_from(skip).unwrap();
        let count = u32::try_from(blocks).unwrap();
        let mut io = |host: &mut Host, opcode, dw12: u32| {
            let mut command = rw(opcode, lba as u64, count, prp1, prp2);
            command.cdw10_15[2] = ((count - 1) | dw12).into();
            let cqe = host.io(&mut pair, command);
            assert_eq!(cqe.status, OK, "seed {seed} round {round}");
        };
        match rng.random_range(0..10) {
            0..4 => {
                buf.fill(0xee);
                io(&mut host, OPC_READ, 0);
                assert!(
                    buf[skip..skip + len] == model[range],
                    "seed {seed} round {round}: {blocks} blocks at {lba}"
                );
                assert!(buf[..skip].iter().all(|&b| b == 0xee));
                assert!(buf[skip + len..].iter().all(|&b| b == 0xee));
            }
            4..8 => {
                rng.fill(&mut buf[skip..skip + len]);
                let fua = if rng.random_bool(0.2) { CDW12_FUA } else { 0 };
                io(&mut host, OPC_WRITE, fua);
                model[range].copy_from_slice(&buf[skip..skip + len]);
            }
            8 => {
                let free = if rng.random_bool(0.5) { CDW12_DEAC } else { 0 };
                io(&mut host, OPC_WRITE_ZEROES, free);
                model[range].fill(0);
            }
            _ => {
                let dsm = deallocate(&mut buf, lba as u64, count);
                assert_eq!(host.io(&mut pair, dsm).status, OK);
                model[range].fill(0);
                let flush = command(OPC_FLUSH, u32::MAX, 0, 0, &[]);
                assert_eq!(host.io(&mut pair, flush).status, OK);
            }
        }
    }
    let medium = host.device.power_off().unwrap();
    let mut all = vec![1; MEDIUM_BYTES];
    medium.read_at(0, &mut all).unwrap();
    assert!(all == model, "seed {seed}: the medium differs");
}

#[test]
fn memory_with_blocks_of_512() {
    let config = EmuConfig {
        mode: Mode::Stepped,
        medium: Medium::memory(MEDIUM_BYTES as u64),
        mdts: 0,
        ..EmuConfig::default()
    };
    random_io_equals_a_model(config, 1, 600);
}

#[test]
fn memory_with_blocks_of_4096_and_mdts() {
    let config = EmuConfig {
        medium: Medium::memory(MEDIUM_BYTES as u64),
        ..stepped()
    };
    random_io_equals_a_model(config, 2, 600);
}

#[test]
fn a_file_with_blocks_of_512() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MEDIUM_BYTES as u64).unwrap();
    let config = EmuConfig {
        mode: Mode::Inline,
        medium: Medium::file(file, false).unwrap(),
        mdts: 0,
        ..EmuConfig::default()
    };
    random_io_equals_a_model(config, 3, 400);
}

#[test]
fn the_cache_model_with_blocks_of_512() {
    let config = EmuConfig {
        mode: Mode::Stepped,
        medium: Medium::memory(MEDIUM_BYTES as u64),
        cache_model: true,
        ..EmuConfig::default()
    };
    random_io_equals_a_model(config, 4, 600);
}

#[test]
fn no_write_cache_at_all() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MEDIUM_BYTES as u64).unwrap();
    let config = EmuConfig {
        medium: Medium::file(file, false).unwrap(),
        volatile_write_cache: false,
        cache_model: true,
        ..stepped()
    };
    random_io_equals_a_model(config, 5, 100);
}

#[test]
fn bad_commands_get_the_status_of_the_specification() {
    let mut host = Host::new(EmuConfig {
        mdts: 1,
        ..stepped()
    });
    let mut pair = host.pair(1, 16);
    let buf = host.buf(4 * 4096);
    let at = buf.iova().0;
    let last = 4096 - 1;
    let with = |mut command: Command, change: fn(&mut Command)| {
        change(&mut command);
        command
    };
    let plain = read(0, &buf);
    let out_of_range = dnr(SC_LBA_OUT_OF_RANGE);
    let bad_offset = dnr(SC_INVALID_PRP_OFFSET);
    for (n, (command, want)) in [
        (read(last, &buf), OK),
        (read(last + 1, &buf), out_of_range),
        (rw(OPC_READ, last, 2, at, at + 4096), out_of_range),
        (rw(OPC_WRITE, u64::MAX, 1, at, 0), out_of_range),
        (rw(OPC_WRITE_ZEROES, last, 2, 0, 0), out_of_range),
        (rw(OPC_READ, 0, 2, at, at + 4096), OK),
        (rw(OPC_READ, 0, 3, at, at + 4096), dnr(SC_INVALID_FIELD)),
        (rw(OPC_READ, 0, 2, at, at + 4100), bad_offset),
        (rw(OPC_READ, 0, 1, at + 2, 0), bad_offset),
        (rw(OPC_READ, 0, 2, at + 8, at + 4), bad_offset),
        (rw(OPC_READ, 0, 1, 0x1000, 0), SC_DATA_TRANSFER),
        (rw(OPC_WRITE, 0, 1, u64::MAX - 3, 0), SC_DATA_TRANSFER),
        (rw(OPC_READ, 0, 2, at + 8, 0x8000), SC_DATA_TRANSFER),
        (
            with(plain, |c| c.nsid = 0.into()),
            dnr(SC_INVALID_NAMESPACE),
        ),
        (
            with(plain, |c| c.nsid = 2.into()),
            dnr(SC_INVALID_NAMESPACE),
        ),
        (with(plain, |c| c.flags = 1), dnr(SC_INVALID_FIELD)),
        (with(plain, |c| c.flags = 0x80), dnr(SC_INVALID_FIELD)),
        (with(plain, |c| c.flags = 0x40), dnr(SC_DATA_SGL_LENGTH)),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(host.io(&mut pair, command).status, want, "command {n}");
    }
    assert_eq!(host.device.stats().dma_faults, 3);
}

#[test]
fn what_is_not_offered_is_an_invalid_opcode() {
    let mut host = Host::new(EmuConfig {
        write_zeroes: false,
        dataset_management: false,
        ..stepped()
    });
    let mut pair = host.pair(1, 16);
    for opcode in [OPC_WRITE_ZEROES, OPC_DATASET_MANAGEMENT] {
        let command = rw(opcode, 0, 1, 0, 0);
        assert_eq!(host.io(&mut pair, command).status, dnr(SC_INVALID_OPCODE));
    }
}

#[test]
fn deallocation_beyond_the_limits_is_rejected() {
    let mut host = Host::new(EmuConfig {
        dataset: DatasetOffer {
            ranges: 2,
            range_blocks: 10,
            blocks: 15,
            ..DatasetOffer::default()
        },
        ..stepped()
    });
    let mut pair = host.pair(1, 16);
    let mut buf = host.buf(4096);
    let too_large = dnr(SC_COMMAND_SIZE_LIMIT);
    for (ranges, want) in [
        (&[10][..], OK),
        (&[11], too_large),
        (&[10, 5], OK),
        (&[10, 6], too_large),
        (&[1, 1], OK),
        (&[1, 1, 1], too_large),
        (&[u32::MAX, u32::MAX], too_large),
    ] {
        for (to, blocks) in buf.chunks_exact_mut(16).zip(ranges) {
            let range = DatasetRange {
                attributes: 0.into(),
                blocks: (*blocks).into(),
                lba: 3.into(),
            };
            to.copy_from_slice(range.as_bytes());
        }
        let count = u32::try_from(ranges.len()).unwrap() - 1;
        let at = buf.iova().0;
        let command = command(OPC_DATASET_MANAGEMENT, 1, at, 0, &[count, DSM_DEALLOCATE]);
        assert_eq!(host.io(&mut pair, command).status, want, "{ranges:?}");
    }
}

#[test]
fn a_write_protected_namespace_is_only_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, vec![5; 64 << 10]).unwrap();
    let mut host = Host::new(EmuConfig {
        medium: Medium::open(&path, true).unwrap(),
        ..stepped()
    });
    let mut pair = host.pair(1, 16);
    let buf = host.buf(4096);
    assert_eq!(host.io(&mut pair, read(3, &buf)).status, OK);
    assert_eq!(buf[..], [5; 4096]);
    let protected = dnr(SC_NAMESPACE_WRITE_PROTECTED);
    for command in [
        write(3, &buf),
        rw(OPC_WRITE_ZEROES, 0, 1, 0, 0),
        command(OPC_DATASET_MANAGEMENT, 1, buf.iova().0, 0, &[0, 4]),
    ] {
        assert_eq!(host.io(&mut pair, command).status, protected);
    }
    let flush = command(OPC_FLUSH, 1, 0, 0, &[]);
    assert_eq!(host.io(&mut pair, flush).status, OK);
}

#[test]
fn deallocation_takes_many_ranges_and_checks_them_first() {
    let mut host = Host::new(stepped());
    let mut pair = host.pair(1, 16);
    let mut buf = host.buf(8192);
    for lba in 0..8 {
        buf.fill(7);
        assert_eq!(host.io(&mut pair, write(lba, &buf)).status, OK);
    }
    let put = |buf: &mut DmaBuf, ranges: &[(u64, u32)]| {
        for (to, &(lba, blocks)) in buf[2048..].chunks_exact_mut(16).zip(ranges) {
            let range = DatasetRange {
                attributes: 0.into(),
                blocks: blocks.into(),
                lba: lba.into(),
            };
            to.copy_from_slice(range.as_bytes());
        }
    };
    let at = buf.iova().0;
    let dsm = |count: u32, dw11| {
        let prp2 = at + 4096;
        command(
            OPC_DATASET_MANAGEMENT,
            1,
            at + 2048,
            prp2,
            &[count - 1, dw11],
        )
    };
    put(&mut buf, &[(0, 2), (u64::MAX, 2)]);
    let out_of_range = dnr(SC_LBA_OUT_OF_RANGE);
    let cqe = host.io(&mut pair, dsm(2, DSM_DEALLOCATE));
    assert_eq!(cqe.status, out_of_range);
    put(&mut buf, &[(0, 2), (5, 1)]);
    assert_eq!(host.io(&mut pair, dsm(2, 1)).status, OK, "a hint");
    let zeroes = |host: &mut Host, pair: &mut Pair| -> Vec<bool> {
        let page = host.buf(4096);
        (0..8)
            .map(|lba| {
                assert_eq!(host.io(pair, read(lba, &page)).status, OK);
                page[..] == [0; 4096]
            })
            .collect()
    };
    assert_eq!(zeroes(&mut host, &mut pair), [false; 8]);
    // 256 ranges cross a page.
    let mut many = vec![(0, 0); 256];
    many[0] = (0, 2);
    many[255] = (5, 1);
    put(&mut buf, &many);
    assert_eq!(host.io(&mut pair, dsm(256, DSM_DEALLOCATE)).status, OK);
    let want = [true, true, false, false, false, true, false, false];
    assert_eq!(zeroes(&mut host, &mut pair), want);
}

#[test]
fn a_file_that_shrank_is_a_media_error() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[9; 65536], 0).unwrap();
    let other = file.try_clone().unwrap();
    let mut host = Host::new(EmuConfig {
        medium: Medium::file(file, false).unwrap(),
        ..stepped()
    });
    let mut pair = host.pair(1, 16);
    let buf = host.buf(4096);
    other.set_len(8192).unwrap();
    assert_eq!(host.io(&mut pair, read(1, &buf)).status, OK);
    assert_eq!(
        host.io(&mut pair, read(2, &buf)).status,
        SC_UNRECOVERED_READ
    );
    assert_eq!(host.io(&mut pair, write(2, &buf)).status, OK);
}

#[test]
fn a_full_filesystem_is_capacity_exceeded() {
    let dir = tempfile::tempdir().unwrap();
    let limited = dir.path().join("limited");
    std::fs::create_dir(&limited).unwrap();
    let Some(_mount) = mount_tmpfs(&limited) else {
        println!("SKIPPED: cannot mount a tmpfs");
        return;
    };
    let file = std::fs::File::create_new(limited.join("image")).unwrap();
    file.set_len(1 << 20).unwrap();
    drop(file);
    let mut host = Host::new(EmuConfig {
        medium: Medium::open(limited.join("image"), false).unwrap(),
        ..stepped()
    });
    let mut pair = host.pair(1, 16);
    let buf = host.buf(4096);
    let statuses: Vec<_> = (0..64)
        .map(|lba| host.io(&mut pair, write(lba, &buf)).status)
        .collect();
    assert_eq!(statuses[0], OK);
    assert_eq!(statuses[63], SC_CAPACITY_EXCEEDED);
    assert_eq!(host.io(&mut pair, read(63, &buf)).status, OK);
}

struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = std::process::Command::new("umount").arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()));
    }
}

/// A filesystem of 64 KiB; `None` without the permission.
fn mount_tmpfs(at: &std::path::Path) -> Option<Mounted> {
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(at)
        .output()
        .ok()?;
    mount.status.success().then(|| Mounted(at.to_owned()))
}
