//! What a controller reports, truly or not: events, log pages, and namespaces that change under a
//! queue.

use super::*;
use crate::device::Device;
use crate::nvme::Event;
use crate::nvme::spec::{CriticalWarning, EventWord, StatusField};

const SMART_EVENT: u32 = 0x0002_0101;
const NAMESPACE_EVENT: u32 = 0x0004_0002;

/// Raises an event and polls an idle queue until the program hears of it, bounded.
fn hear(rig: &Rig, controller: &Controller, pair: &mut QueuePair, word: u32) -> Vec<Event> {
    assert!(rig.fake.raise(word), "no event request is outstanding");
    for _ in 0..20_000 {
        pair.poll(1, &mut |_| {});
        pair.relax();
    }
    // The queue's owner has heard it: nothing is left to look for.
    let heard = controller.stats().events;
    let events = controller.events();
    assert_eq!(controller.stats().events, heard);
    events
}

fn read_at(pair: &mut QueuePair, memory: &Lent, lba: u64) -> Result<Status, Refused> {
    let segment = [memory.segment(0..BLOCK).unwrap()];
    pair.submit(&chain(Op::Read, lba, &segment, lba))?;
    Ok(drain(pair)[&lba])
}

/// The event that an unknown word is passed on as.
fn other(word: u32) -> Event {
    let word = EventWord(word);
    Event::Other {
        kind: word.kind(),
        information: word.information(),
        log_page: word.log_page(),
    }
}

#[test]
fn requests_wait_from_bring_up_on_and_a_warning_is_heard_and_asked_for_again() {
    let rig = Rig::new();
    rig.fake.state().controller.aerl = 7;
    let (controller, mut pair) = rig.pair(2);
    assert_eq!(controller.events(), []);
    assert_eq!(rig.fake.state().requests.len(), 4);
    {
        let mut state = rig.fake.state();
        state.smart.critical_warning = 2;
        state.smart.temperature_k.set(350);
        state.smart.available_spare = 97;
    }
    for _ in 0..3 {
        let events = hear(&rig, &controller, &mut pair, SMART_EVENT);
        let want = Event::Health {
            critical_warning: CriticalWarning::TEMPERATURE.bits(),
            temperature_k: Some(350),
            available_spare: Some(97),
        };
        assert_eq!(events, [want]);
        assert_eq!(
            events[0].to_string(),
            "health: critical warning temperature, 77 C, 97 % spare left"
        );
        assert_eq!(rig.fake.state().requests.len(), 4);
    }
    assert_eq!(rig.fake.state().log_reads, [spec::LOG_SMART; 3]);
    let stats = controller.stats();
    assert_eq!(
        (stats.events, stats.resets, stats.stale_completions),
        (3, 0, 0)
    );
}

#[test]
fn an_event_that_ends_while_a_command_waits_is_not_taken_for_its_answer() {
    let rig = Rig::new();
    let (controller, pair) = rig.pair(2);
    drop(pair);
    for word in [SMART_EVENT, NAMESPACE_EVENT, u32::MAX] {
        assert!(rig.fake.raise(word));
        // An admin command meets the event in front of its own answer.
        let second = controller.queue(1, options(2)).unwrap();
        assert_eq!(second.limits().capacity_blocks, BLOCKS);
        drop(second);
        controller.events();
        rig.fake.relax(0, 0);
    }
    let stats = controller.stats();
    assert_eq!(
        (stats.events, stats.stale_completions, stats.resets),
        (3, 0, 0)
    );
}

#[test]
fn a_device_that_raises_events_without_end_is_heard_now_and_then() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(4);
    let memory = rig.lend(4096);
    rig.fake.state().eager_event = Some(SMART_EVENT);
    assert!(rig.fake.raise(SMART_EVENT));
    let start = rig.fake.now_ns();
    for _ in 0..500 {
        assert!(
            read_many(&mut pair, &memory, 4)
                .values()
                .all(|s| s.is_success())
        );
        for _ in 0..200 {
            pair.poll(1, &mut |_| {});
            pair.relax();
        }
    }
    let seconds = (rig.fake.now_ns() - start) / 1_000_000_000;
    assert!(seconds >= 1, "the clock went {seconds} s");
    let seen = rig.fake.state().requests_seen;
    assert!(
        seen > 2 && seen <= 8 * (seconds + 2),
        "{seen} in {seconds} s"
    );
    assert_eq!(controller.stats().resets, 0);
    // Not requested: they are stored, up to the limit.
    assert_eq!(controller.events().len() as u64, controller.stats().events);
}

#[test]
fn events_that_nobody_asks_for_are_counted_as_lost() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(2);
    rig.fake.state().eager_event = Some(7);
    assert!(rig.fake.raise(7));
    for _ in 0..60_000 {
        pair.poll(1, &mut |_| {});
        pair.relax();
        rig.fake.advance(20_000_000);
        if controller.stats().events > 300 {
            break;
        }
    }
    let stats = controller.stats();
    assert!(stats.lost_events > 0, "{stats:?}");
    let events = controller.events();
    assert_eq!(events.len() as u64, stats.events - stats.lost_events);
    assert_eq!(events[0], other(7));
}

#[test]
fn events_of_unknown_types_are_passed_on_and_their_log_pages_left_alone() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(2);
    for word in [u32::MAX, 0x00c0_0007, 0x0070_0602, 0x00ff_ff03] {
        let events = hear(&rig, &controller, &mut pair, word);
        assert_eq!(events, [other(word)]);
    }
    assert!(rig.fake.state().log_reads.is_empty());
    let error = hear(&rig, &controller, &mut pair, 0x0001_0300);
    assert!(
        matches!(
            error[..],
            [Event::Error {
                information: 3,
                status: None,
                queue: None
            }]
        ),
        "{error:?}"
    );
    assert_eq!(rig.fake.state().log_reads, [spec::LOG_ERRORS]);
}

#[test]
fn forged_ends_of_requests_are_stale_and_those_of_other_queues_lead_to_a_reset() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(2);
    let memory = rig.lend(4096);
    let forged = FakeCompletion {
        dw0: NAMESPACE_EVENT,
        sq_head: 0,
        sq_id: 0,
        cid: 0xfff0,
        status: StatusField::SUCCESS,
        wrong_phase: false,
    };
    rig.fake.answer(0, forged);
    assert_eq!(controller.events(), []);
    let stats = controller.stats();
    assert_eq!(
        (stats.stale_completions, stats.events, stats.resets),
        (1, 0, 0)
    );
    rig.fake.answer(0, FakeCompletion { sq_id: 5, ..forged });
    assert_eq!(controller.events(), []);
    assert_eq!(controller.stats().resets, 1);
    assert_eq!(read_at(&mut pair, &memory, 3), Ok(Status::Success));
    // Asked for again after the reset.
    assert!(!rig.fake.state().requests.is_empty());
}

#[test]
fn a_namespace_that_grows_or_shrinks_is_known_to_its_queues() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(2);
    let memory = rig.lend(4096);
    let outside = Err(Refused::Invalid("the range is not on the device"));
    assert_eq!(read_at(&mut pair, &memory, BLOCKS - 1), Ok(Status::Success));
    rig.fake.state().log[0] = 1;
    for blocks in [BLOCKS / 2, BLOCKS] {
        rig.fake.state().namespace.nsze.set(blocks);
        let events = hear(&rig, &controller, &mut pair, NAMESPACE_EVENT);
        assert!(
            matches!(events[..], [Event::NamespaceResized { nsid: 1, to_bytes, .. }]
                if to_bytes == blocks * 512),
            "{events:?}"
        );
        assert_eq!(pair.limits().capacity_blocks, blocks);
        assert_eq!(read_at(&mut pair, &memory, blocks), outside);
        assert_eq!(read_at(&mut pair, &memory, blocks - 1), Ok(Status::Success));
    }
    // Named, and nothing is new.
    assert_eq!(hear(&rig, &controller, &mut pair, NAMESPACE_EVENT), []);
    assert_eq!(controller.stats().resets, 0);
}

#[test]
fn a_namespace_that_is_formatted_or_taken_away_ends_what_is_open_on_it() {
    type Change = fn(&Fake);
    type Expected = fn(&Event) -> bool;
    let changes: [(Change, Expected); 4] = [
        (
            |f| f.state().namespace.lbaf[0].data_shift = 12,
            |e| {
                matches!(
                    e,
                    Event::NamespaceReplaced {
                        block_bytes: 4096,
                        ..
                    }
                )
            },
        ),
        (
            |f| f.state().namespace.dps = 1,
            |e| matches!(e, Event::NamespaceReplaced { .. }),
        ),
        (
            |f| f.state().namespace.nguid[0] = 1,
            |e| matches!(e, Event::NamespaceReplaced { .. }),
        ),
        (
            |f| f.state().namespaces = vec![],
            |e| matches!(e, Event::NamespaceRemoved { nsid: 1 }),
        ),
    ];
    for (change, expected) in changes {
        let rig = Rig::new();
        let (controller, mut pair) = rig.pair(4);
        let memory = rig.lend(4096);
        // Under way when it happens, and never answered.
        rig.fake.state().script =
            Box::new(|id, _, answer| if id == 0 { vec![answer] } else { vec![] });
        let segment = [memory.segment(0..BLOCK).unwrap()];
        pair.submit(&chain(Op::Write, 5, &segment, 5)).unwrap();
        pair.poll(1, &mut |_| {});
        change(&rig.fake);
        assert!(rig.fake.raise(NAMESPACE_EVENT));
        let events = controller.events();
        assert!(events.len() == 1 && expected(&events[0]), "{events:?}");
        let commands = rig.fake.state().disk.clone();
        assert_eq!(drain(&mut pair)[&5], Status::Changed);
        assert!(rig.fake.state().disk == commands, "nothing was sent again");
        let refused = pair.submit(&chain(Op::Read, 0, &segment, 0));
        assert!(matches!(refused, Err(Refused::Changed)), "{refused:?}");
        let stats = controller.stats();
        assert_eq!((stats.resets, stats.retries), (1, 0));
        drop(pair);
        assert_eq!(controller.stats().resets, 1);
    }
}

#[test]
fn after_a_reset_nothing_is_sent_to_a_namespace_that_is_another() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(8);
    let memory = rig.lend(8192);
    // The controller loses what it got; when it comes up again its namespace has another format.
    rig.fake.state().script = Box::new(|id, _, answer| if id == 0 { vec![answer] } else { vec![] });
    for token in 0..4 {
        let segment = [memory.segment(0..BLOCK).unwrap()];
        pair.submit(&chain(Op::Write, token, &segment, token))
            .unwrap();
    }
    rig.fake.state().namespace.lbaf[0].data_shift = 12;
    let ended = drain(&mut pair);
    assert_eq!(ended.len(), 4);
    assert!(ended.values().all(|&s| s == Status::Changed), "{ended:?}");
    assert_eq!(controller.stats().retries, 0);
    assert_eq!(controller.info().namespaces[0].block_bytes, 4096);
    rig.fake.state().script = crate::nvme::fake::honest();
    let fresh = controller.queue(1, options(2)).unwrap();
    assert_eq!(fresh.limits().block_bytes, 4096);
}

#[test]
fn another_controller_in_the_place_of_ours_is_not_used() {
    let rig = Rig::new();
    let (_controller, mut pair) = rig.pair(8);
    let memory = rig.lend(4096);
    rig.fake.state().controller.sn[0] = b'x';
    rig.fake.state().fatal = true;
    rig.fake.state().script = Box::new(|id, _, answer| if id == 0 { vec![answer] } else { vec![] });
    let ended = read_many(&mut pair, &memory, 4);
    assert!(ended.values().all(|&s| s == Status::Gone), "{ended:?}");
}

#[test]
fn a_moment_of_nonsense_about_a_namespace_is_not_believed() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(2);
    let mut identifies = 0;
    let space = rig.fake.space();
    rig.fake.state().script = Box::new(move |id, command, answer| {
        let namespace = command.opcode == spec::ADM_IDENTIFY
            && command.cdw10_15[0].get() == spec::CNS_NAMESPACE;
        if id == 0 && namespace {
            identifies += 1;
            if identifies == 1 {
                let at = crate::units::Iova(command.prp1.get());
                space.translate(at, 64).unwrap().copy_from(&[0x55; 64]);
            }
        }
        vec![answer]
    });
    rig.fake.state().log[0] = 1;
    assert_eq!(hear(&rig, &controller, &mut pair, NAMESPACE_EVENT), []);
    assert_eq!(read_at(&mut pair, &rig.lend(4096), 0), Ok(Status::Success));
    assert_eq!(controller.stats().resets, 0);
}

#[test]
fn thousands_of_namespaces_are_listed_page_by_page() {
    let rig = Rig::new();
    for count in [1023, 1024, 1025, 3000, 5000u32] {
        {
            let mut state = rig.fake.state();
            state.controller.nn.set(20_000);
            state.namespaces = (1..=count).map(|n| n * 3).collect();
        }
        let controller = rig.open().unwrap();
        let info = controller.info();
        assert_eq!(info.namespaces.len(), count.min(4096) as usize);
        assert_eq!(info.more_namespaces, count > 4096);
        assert_eq!(info.namespace(1023 * 3).unwrap().nsid, 1023 * 3);
        assert!(info.namespace(1023 * 3 + 1).is_none());
        let error = controller.queue(4, options(2)).unwrap_err();
        assert!(error.to_string().contains("93, 96, ..."), "{error}");
        let last = count.min(4096) * 3;
        drop(controller.queue(last, options(2)).unwrap());
    }
    // A list that goes round in circles.
    rig.fake.state().namespaces = (1..=1024).chain(1..=1024).collect();
    rig.fake.state().controller.nn.set(1024);
    rig.open().unwrap();
    rig.fake.state().namespaces[5] = 3;
    let error = rig.open().unwrap_err();
    assert!(error.to_string().contains("makes no sense"), "{error}");
}

#[test]
fn log_pages_are_what_the_device_says_and_no_more() {
    let rig = Rig::new();
    let controller = rig.open().unwrap();
    rig.fake.state().smart.critical_warning = 0xff;
    rig.fake.state().smart.available_spare = 255;
    let smart = controller.smart().unwrap();
    assert_eq!(smart.critical_warning.bits(), 0xff);
    assert_eq!(smart.implausible(), ["more than 100 % of the spare"]);
    // As many entries as it says it has: one.
    rig.fake.state().log = vec![0xff; 4096];
    let entries = controller.error_log(usize::MAX).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].command_id, None);
    let slots = controller.firmware_slots().unwrap();
    assert_eq!((slots.active, slots.next), (7, Some(7)));
    assert_eq!(slots.revisions[0], (1, "????????".into()));
    drop(controller);
    // 256 entries by offsets, all alike: the second is not older than the first.
    rig.fake.state().controller.elpe = 255;
    rig.fake.state().controller.lpa = spec::LPA_EXTENDED;
    let controller = rig.open().unwrap();
    assert_eq!(controller.error_log(usize::MAX).unwrap().len(), 1);
    let pages = rig.fake.state().log_reads.clone();
    assert_eq!(pages.iter().filter(|&&p| p == spec::LOG_ERRORS).count(), 5);
}

#[test]
fn a_controller_that_does_not_answer_a_log_page_is_reset() {
    let rig = Rig::new();
    let (controller, mut pair) = rig.pair(2);
    rig.fake.state().script = Box::new(|id, command, answer| {
        let silent = id == 0 && command.opcode == spec::ADM_GET_LOG_PAGE;
        if silent { vec![] } else { vec![answer] }
    });
    let error = controller.smart().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(controller.stats().resets, 1);
    assert_eq!(read_at(&mut pair, &rig.lend(4096), 0), Ok(Status::Success));
    rig.fake.state().script = Box::new(|_, _, answer| {
        vec![FakeCompletion {
            status: spec::SC_INVALID_LOG_PAGE.do_not_retry(),
            ..answer
        }]
    });
    let error = controller.smart().unwrap_err();
    assert!(error.to_string().contains("an invalid log page"), "{error}");
    assert_eq!(controller.stats().resets, 1);
}
