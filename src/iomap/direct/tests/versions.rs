//! Files whose mappings are replaced while operations on them are in flight.

use super::*;

/// The second half of the file lies elsewhere.
fn moved(file: &TestFile) -> TestVersion {
    let mut layout = file.layout.clone();
    let last = layout.mappings.len() - 1;
    layout.mappings[last].addr += 1 << 20;
    (layout, 8192)
}

fn read(bench: &mut Bench, file: &Arc<TestFile>, user_data: u64) {
    let request = DirectRequest {
        what: What::Read,
        source: Some(file),
        offset: 0,
        buf: bench.buf(8192),
        user_data,
    };
    bench.direct.submit(&mut bench.queue, request).unwrap();
}

/// Polls until nothing is in flight; what was read, by user data.
fn finish(bench: &mut Bench) -> Vec<(u64, Vec<u8>)> {
    let mut read = Vec::new();
    while bench.direct.outstanding() > 0 {
        bench.direct.poll(
            &mut bench.queue,
            1,
            &mut Heard(|ended: Ended, _: Option<_>| {
                assert_eq!(ended.result.unwrap(), 8192);
                read.push((ended.user_data, ended.buf[..].to_vec()));
            }),
        );
    }
    read.sort_unstable();
    read
}

fn expected(bench: &Bench, (layout, _): &TestVersion) -> Vec<u8> {
    let mut bytes = Vec::new();
    for mapping in &layout.mappings {
        let at = usize::try_from(mapping.addr).unwrap();
        bytes.extend(&bench.queue.bytes[at..at + usize::try_from(mapping.length).unwrap()]);
    }
    bytes
}

#[test]
fn an_operation_uses_the_mappings_that_were_current_when_it_began() {
    for seed in 0..100 {
        for extents in 1..3 {
            let mut bench = bench(seed, true, true);
            let length = 8192 / extents as u64;
            let file = file(&[(MappingKind::Mapped, length); 2][..extents], 8192);
            let old = (file.layout.clone(), 8192);
            let new = moved(&file);
            read(&mut bench, &file, 1);
            read(&mut bench, &file, 2);
            let number = file.versions.replace(new.clone());
            read(&mut bench, &file, 3);
            // Where the queue was full, the operations before are submitted only now.
            assert!(!file.versions.is_quiet(number), "seed {seed}");
            let (old, new) = (expected(&bench, &old), expected(&bench, &new));
            assert_ne!(old, new);
            let read = finish(&mut bench);
            assert_eq!(read, [(1, old.clone()), (2, old), (3, new)], "seed {seed}");
            assert!(file.versions.is_quiet(number), "seed {seed}");
        }
    }
}

#[test]
fn old_mappings_are_in_use_until_the_last_operation_with_them_has_ended() {
    for seed in 0..100 {
        let mut bench = bench(seed, true, true);
        let file = file(&[(MappingKind::Mapped, 4096); 2], 8192);
        let other = self::file(&[(MappingKind::Mapped, 4096); 2], 8192);
        for user_data in 0..3 {
            read(&mut bench, &file, user_data);
        }
        read(&mut bench, &other, 3);
        let number = file.versions.replace(moved(&file));
        let of_other = other.versions.replace(moved(&other));
        // There is always an operation in flight: those that began after do not count.
        let (mut old, mut old_of_other) = (3, 1);
        let mut next = 4;
        while old > 0 || old_of_other > 0 {
            assert_eq!(file.versions.is_quiet(number), old == 0, "seed {seed}");
            assert_eq!(other.versions.is_quiet(of_other), old_of_other == 0);
            if bench.direct.outstanding() < 6 {
                read(&mut bench, [&file, &other][next % 2], next as u64);
                next += 1;
            }
            bench.direct.poll(
                &mut bench.queue,
                1,
                &mut Heard(|ended: Ended, _: Option<_>| match ended.user_data {
                    0..3 => old -= 1,
                    3 => old_of_other -= 1,
                    _ => {}
                }),
            );
        }
        assert!(bench.direct.outstanding() > 0, "seed {seed}");
        assert!(file.versions.is_quiet(number) && other.versions.is_quiet(of_other));
    }
}

#[test]
fn an_operation_that_has_ended_is_not_in_flight_before_it_is_handed_over() {
    for seed in 0..100 {
        let mut bench = bench(seed, true, true);
        let file = file(&[(MappingKind::Mapped, 4096); 2], 8192);
        read(&mut bench, &file, 7);
        let number = file.versions.replace(moved(&file));
        while !file.versions.is_quiet(number) {
            bench.direct.progress(&mut bench.queue);
        }
        assert_eq!(bench.direct.outstanding(), 1);
        // Its place in the table of files stays until then.
        read(&mut bench, &file, 8);
        let mut heard = Vec::new();
        while bench.direct.outstanding() > 0 {
            bench.direct.poll(
                &mut bench.queue,
                1,
                &mut Heard(|ended: Ended, of: Option<_>| {
                    assert!(of.is_some_and(|of| Arc::ptr_eq(&of, &file)));
                    heard.push(ended.user_data);
                }),
            );
        }
        assert_eq!(heard, [7, 8]);
    }
}

#[test]
fn writes_that_were_rejected_are_not_in_flight() {
    let mut bench = bench(3, true, true);
    let file = file(
        &[(MappingKind::Mapped, 4096), (MappingKind::Hole, 4096)],
        8192,
    );
    for (offset, len) in [(0, 8192), (4096, 4096), (8192, 4096), (1, 512)] {
        let buf = bench.buf(len);
        let rejected = bench.run(&file, PLAIN, offset, buf).unwrap_err();
        assert!(rejected.error.is_some());
    }
    assert!(bench.direct.check_overwrite(&file, 0, 8192).is_err());
    assert!(bench.direct.check_overwrite(&file, 0, 4096).is_ok());
    let number = file.versions.replace(moved(&file));
    assert!(file.versions.is_quiet(number));
}

#[test]
fn what_the_device_may_still_do_keeps_old_mappings_in_use_forever() {
    for seed in 0..40 {
        let (leaks, extents) = (seed % 2 == 0, 1 + usize::from(seed / 2 % 2 == 1));
        let mut bench = bench(seed, true, true);
        let length = 8192 / extents as u64;
        let file = file(&[(MappingKind::Mapped, length); 2][..extents], 8192);
        if !leaks {
            let block = file.layout.mappings[0].addr / BLOCK;
            bench.queue.unfenced.insert(block + 3);
        }
        read(&mut bench, &file, 1);
        if bench.queue.pending.is_empty() {
            continue;
        }
        let first = file.versions.number();
        let number = file.versions.replace(moved(&file));
        if leaks {
            // Not waited for: the queue is dropped with it.
            bench
                .direct
                .take_all(|ended, _| assert!(ended.result.is_err()));
        } else {
            let mut heard = 0;
            while bench.direct.outstanding() > 0 {
                bench.direct.poll(
                    &mut bench.queue,
                    1,
                    &mut Heard(|ended: Ended, _: Option<_>| {
                        assert_eq!(ended.result.unwrap_err().kind(), ErrorKind::DeviceGone);
                        heard += 1;
                    }),
                );
            }
            assert_eq!(heard, 1);
        }
        assert_eq!(bench.direct.outstanding(), 0);
        assert!(!file.versions.is_quiet(number));
        drop(bench);
        assert!(!file.versions.is_quiet(number));
        assert!(file.versions.is_quiet(first), "only those before");
    }
}
