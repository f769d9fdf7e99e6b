//! Handles that go with operations in flight, callbacks that panic, and handles of other volumes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use xtent::ErrorKind;
use xtent::internals::device::emu::{Fault, FaultPlan, FaultRule, Scope};
use xtent::internals::nvme::spec::OPC_WRITE;
use xtent::volume::{Advice, Io, OpenOptions, RwFlags};

use super::stand::{alone, beside_others, buffered, device, direct, open, options, plain, status};

/// An `Io` that goes completes the writes that it did not hand over: pages that were read meanwhile
/// are stale.
#[test]
fn a_dropped_io_leaves_no_stale_page() {
    let Some(_beside) = beside_others() else {
        return;
    };
    for polled in [false, true] {
        let (volume, mut io) = plain();
        let cached = buffered(&volume, &mut io, "first").unwrap();
        let file = direct(&volume, &mut io, "first").unwrap();
        let mut other = volume.io().unwrap();
        let mut buf = other.alloc(8192).unwrap();
        buf.fill(7);
        other.submit_write(&file, 4096, buf, 1).unwrap();
        // After the write began: into the cache, with what was there before.
        let mut found = [0; 16384];
        cached.read_at(&mut io, &mut found, 0).unwrap();
        if polled {
            // The write ends, and is never handed over.
            for _ in 0..1000 {
                assert_eq!(other.poll(0, |_| {}), 0);
                other.relax();
            }
        }
        drop(other);
        cached.read_at(&mut io, &mut found, 0).unwrap();
        assert!(found[..4096] == [0; 4096] && found[12288..] == [0; 4096]);
        assert!(found[4096..12288] == [7; 8192], "stale (polled: {polled})");
    }
}

/// What was read or written and never handed over gives its memory back, with the heap that it is
/// of.
#[test]
fn volumes_with_operations_that_were_not_handed_over_leave_no_memory() {
    let Some(_alone) = alone() else {
        return;
    };
    let round = |round: u64| {
        let (volume, mut io) = plain();
        let file = direct(&volume, &mut io, "first").unwrap();
        for at in 0..16 {
            let buf = io.alloc(4096).unwrap();
            io.submit_read(&file, at * 4096, buf, at).unwrap();
        }
        if round.is_multiple_of(2) {
            io.poll(3, |_| {});
        }
        // An early end: nothing of it is on the device.
        let past_the_end = io.alloc(4096).unwrap();
        io.submit_read(&file, 1 << 30, past_the_end, 99).unwrap();
    };
    round(0);
    let before = status("VmSize:");
    (1..=20).for_each(round);
    let grown = status("VmSize:").saturating_sub(before);
    // Each of them would leave its arena, 10 MiB.
    assert!(grown < 100 << 10, "{grown} KiB more after 20 volumes");
}

/// A device that takes writes and never ends them does not keep a handle from going: recovery ends
/// them.
#[test]
fn a_device_that_hangs_does_not_hang_drop() {
    let Some(_beside) = beside_others() else {
        return;
    };
    let rule = FaultRule::new(Fault::Lost).on(Scope::Io).opcode(OPC_WRITE);
    let device = device(FaultPlan::default().rule(rule.times(u64::MAX)));
    let volume = open(&device, &options()).unwrap();
    let mut io = volume.io().unwrap();
    let file = direct(&volume, &mut io, "first").unwrap();
    for at in 0..8 {
        let buf = io.alloc(4096).unwrap();
        io.submit_write(&file, at * 4096, buf, at).unwrap();
    }
    drop(io);
    let mut io = volume.io().unwrap();
    assert!(file.read_at(&mut io, &mut [1; 4096], 0).is_ok());
}

/// As deep as the rings are: entries that are not given back would stop the device.
#[test]
fn a_callback_that_panics_loses_no_operation_and_no_depth() {
    let Some(_beside) = beside_others() else {
        return;
    };
    let (target, mount) = options();
    let options = (target.queue_depth(15), mount);
    let device = device(FaultPlan::default());
    let volume = open(&device, &options).unwrap();
    let mut io = volume.io().unwrap();
    let file = direct(&volume, &mut io, "first").unwrap();
    let depth = io.depth() as u64;
    for round in 0..40 {
        let mut left = vec![true; depth as usize];
        for at in 0..depth {
            let buf = io.alloc(4096).unwrap();
            io.submit_read(&file, at * 4096, buf, at).unwrap();
        }
        let full = io.alloc(4096).unwrap();
        io.submit_read(&file, 0, full, 99).unwrap_err();
        while io.outstanding() > 0 {
            let before = io.outstanding();
            let polled = catch_unwind(AssertUnwindSafe(|| {
                io.poll(64, |done| {
                    done.result.unwrap();
                    assert!(std::mem::take(&mut left[done.user_data as usize]), "once");
                    // At last in each poll, so that none of them comes to its end.
                    let unlucky = round >= 20 || (done.user_data + round) % 3 == 0;
                    assert!(!unlucky, "the callback panics");
                })
            }));
            match polled {
                Ok(0) => io.relax(),
                Ok(count) => assert_eq!(io.outstanding(), before - count),
                Err(_) => assert!(io.outstanding() < before),
            }
        }
        assert!(!left.contains(&true), "round {round}: {left:?}");
    }
    let mut buf = io.alloc(4096).unwrap();
    file.read_dma_at(&mut io, &mut buf, 0).unwrap();
    drop((io, file, volume));
}

/// A reader that is leaked gives up its slots and buffers to the next call that needs several.
#[test]
fn leaked_readers_do_not_use_up_the_slots() {
    let Some(_beside) = beside_others() else {
        return;
    };
    let (volume, mut io) = plain();
    let file = direct(&volume, &mut io, "first").unwrap();
    let bytes = vec![3; 200_000];
    file.write_all_at(&mut io, &bytes, 1000).unwrap();
    for _ in 0..5 {
        let mut reader = file.reader(&mut io).unwrap();
        let mut first = [9; 1000];
        std::io::Read::read_exact(&mut reader, &mut first).unwrap();
        std::mem::forget(reader);
        assert_eq!(io.outstanding(), 0);
        let mut found = vec![0; 200_000];
        file.read_at(&mut io, &mut found, 1000).unwrap();
        assert!(found == bytes);
    }
}

/// Every call that takes an `Io` refuses one of another volume.
#[test]
fn an_io_of_another_volume_is_refused() {
    let Some(_beside) = beside_others() else {
        return;
    };
    let (volume, mut io) = plain();
    let (_other_volume, mut other) = plain();
    let mut dir = volume.read_dir(&mut io, "/").unwrap();
    let entry = dir.next_entry(&mut io).unwrap().unwrap();
    entry.metadata(&mut io).unwrap();
    let refused = |what: &str, result: xtent::Result<()>| {
        let error = result.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{what}: {error}");
        assert!(
            error.to_string().contains("another volume"),
            "{what}: {error}"
        );
    };
    let io = &mut other;
    refused("entry", entry.metadata(io).map(drop));
    refused("next entry", dir.next_entry(io).map(drop));
    refused("metadata", volume.metadata(io, "first").map(drop));
    refused("lstat", volume.symlink_metadata(io, "first").map(drop));
    refused("read_dir", volume.read_dir(io, "/").map(drop));
    refused("read_link", volume.read_link(io, "first").map(drop));
    refused("sync", volume.sync(io));
    let open_options = OpenOptions::new().read(true);
    refused("open", open_options.open(&volume, io, "first").map(drop));
    refused_by_files(&refused, &volume, io);
}

fn refused_by_files(
    refused: &dyn Fn(&str, xtent::Result<()>),
    volume: &xtent::volume::Volume,
    io: &mut Io,
) {
    let mut own = volume.io().unwrap();
    for file in [
        buffered(volume, &mut own, "first").unwrap(),
        direct(volume, &mut own, "first").unwrap(),
    ] {
        let (mut bytes, flags) = ([0; 4096], RwFlags::DONTCACHE);
        let mut buf = io.alloc(4096).unwrap();
        refused("read_at", file.read_dma_at(io, &mut buf, 0).map(drop));
        refused("write_at", file.write_dma_at(io, &mut buf, 0).map(drop));
        refused("read_at", file.read_at(io, &mut bytes, 0).map(drop));
        refused("write_at", file.write_at(io, &bytes, 0).map(drop));
        refused("unaligned", file.write_all_at(io, &bytes, 0));
        refused(
            "read_with",
            file.read_with(io, &mut bytes, 0, flags).map(drop),
        );
        refused(
            "write_with",
            file.write_with(io, &bytes, 0, flags).map(drop),
        );
        refused("sync_data", file.sync_data(io));
        refused("sync_all", file.sync_all(io));
        refused("sync_range", file.sync_range(io, 0..1));
        refused("advise", file.advise(io, 0..1, Advice::DontNeed));
        refused("view", file.view(io, 0..1).map(drop));
        refused("view_mut", file.view_mut(io, 0..1).map(drop));
        refused("seek_hole", file.seek_hole(io, 0).map(drop));
        refused("seek_data", file.seek_data(io, 0).map(drop));
        refused("fiemap", file.fiemap(io, 0, 1).map(drop));
        refused("reader", file.reader(io).map(drop));
        let submitted = io.submit_read(&file, 0, buf, 0).map_err(Into::into);
        refused("submit_read", submitted);
        let buf = io.alloc(4096).unwrap();
        let submitted = io.submit_write(&file, 0, buf, 0).map_err(Into::into);
        refused("submit_write", submitted);
        refused("submit_sync", io.submit_sync(&file, 0).map_err(Into::into));
        // Memory of another volume's heap, with the right handle.
        let mut foreign = io.alloc(4096).unwrap();
        if let Err(error) = file.read_dma_at(&mut own, &mut foreign, 0) {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        }
        let error = own.submit_read(&file, 0, foreign, 0).unwrap_err();
        let error = xtent::Error::from(error);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
}
