//! A device that lies, stops or goes away: every operation ends exactly once, and in bounded time.

use std::sync::atomic::Ordering;

use rand::Rng;

use super::*;
use crate::nvme::fake::{FakeCompletion, honest};
use crate::nvme::spec::StatusField;

/// A spoiler for I/O answers: gets the number of the answer.
fn spoil(
    rig: &Rig,
    mut change: impl FnMut(u64, FakeCompletion) -> Vec<FakeCompletion> + Send + 'static,
) {
    let mut count = 0;
    rig.fake.state().script = Box::new(move |id, _, answer| {
        if id == 0 {
            return vec![answer];
        }
        count += 1;
        change(count, answer)
    });
}

#[test]
fn a_doubled_completion_ends_nothing_twice() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(8);
    spoil(&rig, |n, answer| vec![answer; if n == 3 { 2 } else { 1 }]);
    let ended = read_many(&mut pair, &rig.lend(4096), 6);
    assert_eq!(ended.len(), 6);
    assert!(ended.values().all(|s| s.is_success()));
    let stats = controller.stats();
    assert_eq!((stats.stale_completions, stats.resets), (1, 0));
}

#[test]
fn lies_lead_to_a_reset_and_every_operation_ends() {
    type Lie = fn(FakeCompletion) -> Vec<FakeCompletion>;
    let lies: [(&str, Lie); 6] = [
        ("id out of range", |a| {
            vec![FakeCompletion {
                cid: a.cid | 0xf,
                ..a
            }]
        }),
        ("another queue", |a| vec![FakeCompletion { sq_id: 9, ..a }]),
        ("SQ head", |a| vec![FakeCompletion { sq_head: 999, ..a }]),
        ("wrong phase", |a| {
            vec![FakeCompletion {
                wrong_phase: true,
                ..a
            }]
        }),
        ("sequence", |a| {
            vec![FakeCompletion {
                cid: a.cid ^ 0x8000,
                ..a
            }]
        }),
        ("lost", |_| vec![]),
    ];
    for (name, lie) in lies {
        let rig = Rig::new();
        let (controller, mut pair) = rig.pair(12);
        spoil(
            &rig,
            move |n, answer| if n == 4 { lie(answer) } else { vec![answer] },
        );
        let ended = read_many(&mut pair, &rig.lend(8192), 12);
        assert_eq!(ended.len(), 12, "{name}");
        assert!(ended.values().all(|s| s.is_success()), "{name}: {ended:?}");
        let stats = controller.stats();
        assert_eq!(stats.resets, 1, "{name}: {stats:?}");
        assert!(stats.retries > 0, "{name}: {stats:?}");
        assert_eq!(rig.fake.state().enables, 2, "{name}");
    }
}

#[test]
fn a_device_that_never_answers_is_given_up_after_the_retries() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(4);
    spoil(&rig, |_, _| vec![]);
    let ended = read_many(&mut pair, &rig.lend(4096), 3);
    assert_eq!(ended.len(), 3);
    assert!(
        ended
            .values()
            .all(|s| matches!(s, Status::TimedOut | Status::Reset)),
        "{ended:?}"
    );
    assert_eq!(ended[&0], Status::TimedOut);
    let stats = controller.stats();
    assert_eq!((stats.resets, stats.retries), (5, 12));
    rig.fake.state().script = honest();
    assert!(
        read_many(&mut pair, &rig.lend(4096), 3)
            .values()
            .all(|s| s.is_success())
    );
}

#[test]
fn an_abort_that_works_avoids_the_reset() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(4);
    let lost = Arc::new(std::sync::Mutex::new(None));
    let keep = Arc::clone(&lost);
    let mut armed = true;
    rig.fake.state().script = Box::new(move |id, command, answer| {
        if id == 1 && std::mem::take(&mut armed) {
            *keep.lock().unwrap() = Some(answer);
            return vec![];
        }
        let aborted = id == 0 && command.opcode == spec::ADM_ABORT;
        vec![FakeCompletion {
            dw0: if aborted { 0 } else { answer.dw0 },
            ..answer
        }]
    });
    let memory = rig.lend(4096);
    let segment = [memory.segment(0..BLOCK).unwrap()];
    pair.submit(&chain(Op::Read, 0, &segment, 7)).unwrap();
    let mut ended = Vec::new();
    for _ in 0..100_000 {
        pair.poll(usize::MAX, &mut |c| ended.push(c));
        pair.relax();
        if controller.stats().aborts == 1
            && let Some(answer) = lost.lock().unwrap().take()
        {
            let status = spec::SC_ABORT_REQUESTED;
            rig.fake.answer(1, FakeCompletion { status, ..answer });
        }
        if pair.outstanding() == 0 {
            break;
        }
    }
    assert_eq!(
        ended,
        [Completion {
            token: 7,
            status: Status::Success
        }]
    );
    let stats = controller.stats();
    assert_eq!(
        (stats.aborts, stats.timeouts, stats.retries, stats.resets),
        (1, 1, 1, 0)
    );
}

#[test]
fn statuses_are_retried_only_when_they_may_pass() {
    let cases = [
        (spec::SC_INTERNAL, 1, Status::Success),
        (spec::SC_INTERNAL, 9, Status::Device { sct: 0, sc: 6 }),
        (
            spec::SC_INTERNAL.do_not_retry(),
            1,
            Status::Device { sct: 0, sc: 6 },
        ),
        (
            spec::SC_LBA_OUT_OF_RANGE,
            1,
            Status::Device { sct: 0, sc: 0x80 },
        ),
        (spec::SC_UNRECOVERED_READ, 2, Status::Success),
        (StatusField(0x7fff), 1, Status::Device { sct: 7, sc: 0xff }),
    ];
    for (status, times, want) in cases {
        let rig = Rig::new();
        let (_controller, mut pair) = rig.pair(2);
        spoil(&rig, move |n, answer| {
            vec![if n <= times {
                FakeCompletion { status, ..answer }
            } else {
                answer
            }]
        });
        let ended = read_many(&mut pair, &rig.lend(4096), 1);
        assert_eq!(ended[&0], want, "{status:?} {times} times");
    }
}

#[test]
fn fatal_status_is_recovered_from_and_a_gone_device_ends_everything() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(8);
    let memory = rig.lend(4096);
    spoil(&rig, |n, answer| if n <= 3 { vec![] } else { vec![answer] });
    rig.fake.state().fatal = true;
    assert!(
        read_many(&mut pair, &memory, 8)
            .values()
            .all(|s| s.is_success())
    );
    assert_eq!(controller.stats().resets, 1);
    rig.fake.gone.store(true, Ordering::Relaxed);
    let ended = read_many(&mut pair, &memory, 8);
    assert_eq!(ended.len(), 8);
    assert!(ended.values().all(|&s| s == Status::Gone));
    let segment = [memory.segment(0..BLOCK).unwrap()];
    assert_eq!(
        pair.submit(&chain(Op::Read, 0, &segment, 0)),
        Err(Refused::Gone)
    );
    assert_eq!(
        controller.queue(1, options(2)).unwrap_err().kind(),
        ErrorKind::DeviceGone
    );
    drop((pair, controller));
    drop(memory.take_back());
    assert_eq!(rig.heap.used_bytes(), 0);
}

#[test]
fn a_reset_by_one_queue_is_survived_by_another() {
    let rig = Rig::new();
    let (controller, mut first) = rig.pair(8);
    let mut second = controller.queue(1, options(8)).unwrap();
    let memory = rig.lend(8192);
    for token in 0..8u64 {
        let segment = [memory.segment(4096..4096 + BLOCK).unwrap()];
        second
            .submit(&chain(Op::Read, token, &segment, token))
            .unwrap();
    }
    spoil(&rig, |n, answer| if n == 2 { vec![] } else { vec![answer] });
    assert!(
        read_many(&mut first, &memory, 8)
            .values()
            .all(|s| s.is_success())
    );
    assert_eq!(controller.stats().resets, 1);
    let ended = drain(&mut second);
    assert_eq!(ended.len(), 8);
    assert!(ended.values().all(|s| s.is_success()));
    assert_eq!(controller.stats().resets, 1);
}

#[test]
fn a_failed_reset_ends_everything() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(8);
    spoil(&rig, |_, _| vec![]);
    rig.fake.state().never_ready = true;
    let ended = read_many(&mut pair, &rig.lend(4096), 8);
    assert!(
        ended.len() == 8 && ended.values().all(|&s| s == Status::Gone),
        "{ended:?}"
    );
    assert_eq!(controller.stats().leaked_bytes, 0);
}

#[test]
fn a_reset_that_something_else_interrupts_is_tried_again() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(8);
    spoil(&rig, |n, answer| if n == 2 { vec![] } else { vec![answer] });
    rig.fake.state().disabled_meanwhile = true;
    let ended = read_many(&mut pair, &rig.lend(4096), 8);
    assert_eq!(ended.len(), 8);
    assert!(ended.values().all(|s| s.is_success()), "{ended:?}");
    assert!(!rig.fake.state().disabled_meanwhile);
    assert_eq!(controller.stats().resets, 1);
}

#[test]
fn memory_of_a_device_that_cannot_be_stopped_is_not_given_back() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(8);
    // The third answer is an error, all others are lost: one chain has failed in part when the end
    // comes.
    spoil(&rig, |n, answer| {
        let status = spec::SC_LBA_OUT_OF_RANGE;
        if n == 3 {
            vec![FakeCompletion { status, ..answer }]
        } else {
            vec![]
        }
    });
    let memory = rig.lend(32 * BLOCK);
    let seams = |from: usize, count: usize| -> Vec<_> {
        (from..from + count)
            .map(|n| memory.segment(2 * n * BLOCK..(2 * n + 1) * BLOCK).unwrap())
            .collect()
    };
    let lists = [seams(0, 1), seams(1, 3), seams(4, 11)];
    for (token, list) in lists.iter().enumerate() {
        pair.submit(&chain(Op::Read, 0, list, token as u64))
            .unwrap();
    }
    rig.fake.break_loose();
    let ended = drain(&mut pair);
    assert_eq!(ended.len(), 3);
    assert!(ended.values().all(|&s| s == Status::Unfenced), "{ended:?}");
    let used = rig.heap.used_bytes();
    drop(pair);
    assert!(controller.stats().leaked_bytes > 0);
    drop(controller);
    assert_eq!(rig.heap.used_bytes(), used, "rings and pages stay as well");
}

#[test]
fn a_device_that_is_known_to_be_gone_ends_everything_at_once() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(8);
    spoil(&rig, |_, _| vec![]);
    let memory = rig.lend(4096);
    let segment = [memory.segment(0..BLOCK).unwrap()];
    pair.submit(&chain(Op::Read, 0, &segment, 0)).unwrap();
    for _ in 0..100 {
        pair.poll(1, &mut |_| {});
        pair.relax();
    }
    rig.fake.gone.store(true, Ordering::Relaxed);
    let mut rounds = 0;
    while pair.outstanding() > 0 && rounds < 10 {
        pair.relax();
        pair.poll(1, &mut |c| assert_eq!(c.status, Status::Gone));
        rounds += 1;
    }
    assert!(rounds < 3, "{rounds}");
    assert_eq!(controller.stats().timeouts, 0);
}

#[test]
fn dropping_a_queue_with_operations_outstanding_is_bounded() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(8);
    spoil(&rig, |_, _| vec![]);
    let memory = rig.lend(4096);
    let segment = [memory.segment(0..BLOCK).unwrap()];
    pair.submit(&chain(Op::Read, 0, &segment, 0)).unwrap();
    pair.poll(1, &mut |_| {});
    drop(pair);
    drop(controller);
    drop(memory.take_back());
    assert_eq!(rig.heap.used_bytes(), 0);
}

#[test]
fn seeded_nonsense_ends_every_operation_once() {
    for seed in 0..300 {
        let rig = Rig::new();
        let (_controller, mut pair) = rig.pair(16);
        let memory = rig.lend(8192);
        let mut rng = StdRng::seed_from_u64(seed);
        let rate = rng.random_range(0.02..0.6);
        spoil(&rig, move |_, answer| {
            if !rng.random_bool(rate) {
                return vec![answer];
            }
            let nonsense = FakeCompletion {
                dw0: rng.random(),
                sq_head: if rng.random() {
                    rng.random()
                } else {
                    answer.sq_head
                },
                sq_id: if rng.random_bool(0.2) {
                    rng.random()
                } else {
                    1
                },
                cid: if rng.random() {
                    rng.random()
                } else {
                    rng.random_range(0..32)
                },
                status: StatusField(rng.random::<u16>() >> 1),
                wrong_phase: rng.random_bool(0.2),
            };
            match rng.random_range(0..4) {
                0 => vec![],
                1 => vec![answer, answer],
                2 => vec![nonsense, answer],
                _ => vec![nonsense; rng.random_range(1..40)],
            }
        });
        for _ in 0..3 {
            let ended = read_many(&mut pair, &memory, 16);
            assert_eq!(ended.len(), 16, "seed {seed}");
        }
    }
}
