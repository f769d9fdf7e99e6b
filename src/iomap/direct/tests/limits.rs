//! What a device says of its write cache and its protection, and may say differently after a reset.

use super::*;

#[test]
fn durable_writes_use_what_the_device_has() {
    for (cache, fua, expected) in [
        (true, true, vec![(Op::Write, ChainFlags::FUA); 2]),
        (false, true, vec![(Op::Write, ChainFlags::empty()); 2]),
        (
            true,
            false,
            vec![
                (Op::Write, ChainFlags::empty()),
                (Op::Write, ChainFlags::empty()),
                (Op::Flush, ChainFlags::empty()),
            ],
        ),
    ] {
        let mut bench = bench(4, cache, fua);
        let file = file(
            &[(MappingKind::Mapped, 4096), (MappingKind::Mapped, 4096)],
            8192,
        );
        let buf = bench.buf(8192);
        let ended = bench.run(&file, DURABLE, 0, buf).unwrap();
        assert_eq!(ended.result.unwrap(), 8192);
        assert_eq!(bench.queue.log, expected);
    }
}

#[test]
fn durable_writes_to_the_device_use_what_it_has() {
    let plain = (Op::Write, ChainFlags::empty());
    let flush = (Op::Flush, ChainFlags::empty());
    for (cache, fua, dsync, expected) in [
        (true, true, true, vec![(Op::Write, ChainFlags::FUA)]),
        (true, true, false, vec![plain]),
        (false, true, true, vec![plain]),
        (true, false, true, vec![plain, flush]),
        (true, false, false, vec![plain]),
    ] {
        let mut bench = bench(5, cache, fua);
        let buf = bench.buf(8192);
        let file = file(&[], 0);
        let ended = bench.run(&file, What::DeviceWrite { dsync }, 4096, buf);
        assert_eq!(ended.unwrap().result.unwrap(), 8192);
        assert_eq!(bench.queue.log, expected, "{cache} {fua} {dsync}");
    }
}

#[test]
fn durable_writes_follow_a_write_cache_that_comes_and_goes() {
    let plain = (Op::Write, ChainFlags::empty());
    let fua = (Op::Write, ChainFlags::FUA);
    let flush = (Op::Flush, ChainFlags::empty());
    // What the device has when the write is submitted and when it has ended; whether it takes FUA;
    // what it must be sent.
    for (before, after, takes_fua, expected) in [
        (false, true, true, vec![plain, flush]),
        (false, true, false, vec![plain, flush]),
        (true, true, true, vec![fua]),
        (true, false, true, vec![fua]),
        (true, true, false, vec![plain, flush]),
        (true, false, false, vec![plain]),
    ] {
        for extents in 1..3 {
            // Made when it was the other way round.
            let mut bench = bench(9, !before, takes_fua);
            bench.queue.limits.volatile_write_cache = before;
            let file = file(
                &[(MappingKind::Mapped, 4096), (MappingKind::Hole, 4096)][..extents],
                4096,
            );
            let request = DirectRequest {
                what: DURABLE,
                source: Some(&file),
                offset: 0,
                buf: bench.buf(4096),
                user_data: 0,
            };
            bench.direct.submit(&mut bench.queue, request).unwrap();
            while bench.queue.log.is_empty() {
                bench
                    .direct
                    .poll(&mut bench.queue, 0, &mut Heard(|_, _| unreachable!()));
            }
            bench.queue.limits.volatile_write_cache = after;
            let mut ended = 0;
            for _ in 0..1000 {
                bench.direct.poll(
                    &mut bench.queue,
                    1,
                    &mut Heard(|end: Ended, _: Option<_>| {
                        assert_eq!(end.result.unwrap(), 4096);
                        ended += 1;
                    }),
                );
            }
            assert_eq!((ended, bench.direct.outstanding()), (1, 0));
            assert_eq!(bench.queue.log, expected, "{before} {after} {takes_fua}");
        }
    }
}

#[test]
fn write_protection_that_comes_and_goes_is_seen() {
    for extents in 1..3 {
        let mut bench = bench(10, true, true);
        let file = file(
            &[(MappingKind::Mapped, 4096), (MappingKind::Hole, 4096)][..extents],
            4096,
        );
        bench.queue.limits.read_only = true;
        let buf = bench.buf(4096);
        let rejected = bench.run(&file, PLAIN, 0, buf).unwrap_err();
        assert_eq!(rejected.error.unwrap().kind(), ErrorKind::ReadOnly);
        bench.queue.limits.read_only = false;
        let ended = bench.run(&file, PLAIN, 0, rejected.buf).unwrap();
        assert_eq!(ended.result.unwrap(), 4096);
    }
}

#[test]
fn a_device_that_becomes_read_only_says_so_to_a_write_that_waits() {
    let mut waited = 0;
    for seed in 0..20 {
        let mut bench = bench(seed, false, false);
        let file = file(&[(MappingKind::Mapped, 4096); 3], 12_288);
        let buf = bench.buf(12_288);
        let request = DirectRequest {
            what: PLAIN,
            source: Some(&file),
            offset: 0,
            buf,
            user_data: 7,
        };
        let Ok(kept) = bench.direct.submit_kept(&mut bench.queue, request) else {
            continue;
        };
        if !bench.direct.is_waiting() {
            continue;
        }
        waited += 1;
        bench.queue.limits.read_only = true;
        let ended = loop {
            bench.direct.progress(&mut bench.queue);
            if let Some(ended) = bench.direct.take(kept, |_, _| ()) {
                break ended;
            }
        };
        assert_eq!(ended.result.unwrap_err().kind(), ErrorKind::ReadOnly);
    }
    assert!(waited > 0, "no write waited for room");
}
