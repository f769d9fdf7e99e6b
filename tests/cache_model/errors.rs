//! Writeback errors: recorded, reported once to each handle that syncs, and the data stays dirty.

use xtent::ErrorKind;
use xtent::internals::cache::{Cache, CacheConfig, FileCache};
use xtent::internals::device::emu::{Fault, FaultRule, Medium, Scope};
use xtent::internals::iomap::buffered::{Buffered, ReadAhead};
use xtent::internals::nvme::spec::{OPC_READ, OPC_WRITE, StatusField};

use crate::Machine;
use crate::fs::{Fs, Inode, Metadata};

#[test]
#[expect(clippy::too_many_lines, reason = "one story")]
fn a_failed_write_is_told_once_to_each_and_its_data_is_kept() {
    let machine = Machine::start(Medium::memory(4 << 20), 4096, false);
    let metadata = Metadata {
        inodes: vec![Inode::default()],
        ..Metadata::default()
    };
    let fs = Fs::new(4096, 1024, metadata, 1);
    let cache = Cache::new(
        &machine.memory.heap,
        CacheConfig {
            limit_bytes: 1 << 20,
            ..CacheConfig::default()
        },
    )
    .unwrap();
    let file = FileCache::new(&cache, 0, 4096).unwrap();
    let mut buffered = Buffered::new(machine.queue(), &cache);
    let mut ops = fs.ops(0);
    let (mut first, mut second) = (file.error_cursor(), file.error_cursor());
    buffered.write(&file, &mut ops, 0, &[7; 10_000]).unwrap();
    // Write fault (media error, 0x80), not to be tried again.
    let fault = Fault::Status(StatusField::of(2, 0x80).do_not_retry());
    machine.device.inject(
        FaultRule::new(fault)
            .on(Scope::Io)
            .opcode(OPC_WRITE)
            .times(1),
    );
    let error = buffered
        .sync(&file, &mut ops, 0..u64::MAX, &mut first)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    buffered
        .sync(&file, &mut ops, 0..u64::MAX, &mut first)
        .unwrap();
    let error = buffered
        .sync(&file, &mut ops, 0..u64::MAX, &mut second)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    buffered
        .sync(&file, &mut ops, 0..u64::MAX, &mut second)
        .unwrap();
    let mut late = file.error_cursor();
    buffered
        .sync(&file, &mut ops, 0..u64::MAX, &mut late)
        .unwrap();
    assert_eq!(cache.stats().dirty_pages, 0);
    // It is on the device now.
    file.drop_clean(0..u64::MAX);
    let mut buf = [0; 10_000];
    let mut ahead = ReadAhead::default();
    assert_eq!(
        buffered
            .read(&file, &mut ops, &mut ahead, 0, &mut buf)
            .unwrap(),
        10_000
    );
    assert_eq!(buf, [7; 10_000]);
    // A read that fails leaves nothing behind.
    file.drop_clean(0..u64::MAX);
    machine.device.inject(
        FaultRule::new(fault)
            .on(Scope::Io)
            .opcode(OPC_READ)
            .times(1),
    );
    let error = buffered
        .read(&file, &mut ops, &mut ahead, 0, &mut buf)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(
        buffered
            .read(&file, &mut ops, &mut ahead, 0, &mut buf)
            .unwrap(),
        10_000
    );
    buffered.settle();
}
