//! Faults: each kind does what it says, and nothing else.

use xtent::internals::device::Device;
use xtent::internals::device::emu::{EmuConfig, Fault, FaultPlan, FaultRule, Scope};
use xtent::internals::nvme::spec::*;

use crate::host::*;

const OK: StatusField = StatusField::SUCCESS;

fn flush() -> Command {
    command(OPC_FLUSH, 1, 0, 0, &[])
}

fn abort(cid: u16) -> Command {
    command(ADM_ABORT, 0, 0, 0, &[1 | u32::from(cid) << 16])
}

#[test]
fn an_error_status_does_nothing_and_hits_only_what_the_rule_names() {
    let mut host = Host::new(stepped());
    let mut pair = host.pair(1, 16);
    let mut buf = host.buf(4096);
    let status = SC_WRITE_FAULT.do_not_retry();
    let rule = FaultRule::new(Fault::Status(status))
        .opcode(OPC_WRITE)
        .lbas(5..6)
        .after(1);
    host.device.inject(rule);
    let mut statuses = Vec::new();
    for (byte, lba) in [(1, 4), (2, 5), (3, 5), (4, 5)] {
        buf.fill(byte);
        statuses.push(host.io(&mut pair, write(lba, &buf)).status);
        let cqe = host.io(&mut pair, read(lba, &buf));
        assert_eq!(cqe.status, OK);
        let want = if byte == 3 { 2 } else { byte };
        assert_eq!(buf[..], [want; 4096]);
    }
    assert_eq!(statuses, [OK, OK, status, OK]);
}

#[test]
fn a_lost_completion_is_done_and_a_lost_command_is_not() {
    for (fault, want) in [(Fault::Lost, 0), (Fault::LostCompletion, 9)] {
        let mut host = Host::new(stepped());
        let mut pair = host.pair(1, 16);
        let mut buf = host.buf(4096);
        buf.fill(9);
        host.device.inject(FaultRule::new(fault).on(Scope::Io));
        let cid = host.submit(&mut pair, write(0, &buf));
        assert_eq!(host.end(&mut pair), None);
        // The id is still in use.
        let mut again = flush();
        again.cid = cid.into();
        pair.sq.push(again);
        pair.sq.ring();
        let conflict = host.end(&mut pair).unwrap();
        assert_eq!(conflict.status, SC_CID_CONFLICT.do_not_retry());
        assert_eq!(host.admin(abort(cid)).result, 0);
        assert_eq!(host.end(&mut pair).unwrap().status, SC_ABORT_REQUESTED);
        assert_eq!(host.io(&mut pair, read(0, &buf)).status, OK);
        assert_eq!(buf[0], want);
    }
}

#[test]
fn a_late_command_ends_when_its_time_comes() {
    let mut host = Host::new(stepped());
    let mut pair = host.pair(1, 16);
    let late = Fault::Late { delay_ns: 50_000 };
    host.device.inject(FaultRule::new(late).on(Scope::Io));
    let start = host.device.now_ns();
    let cid = host.submit(&mut pair, flush());
    let other = host.submit(&mut pair, flush());
    assert_eq!(host.end(&mut pair).unwrap().cid, other);
    assert!(host.device.now_ns() < start + 50_000);
    let ended = host.end(&mut pair).unwrap();
    assert_eq!((ended.cid, ended.status), (cid, OK));
    assert!(host.device.now_ns() >= start + 50_000);
}

#[test]
fn a_reordered_command_is_overtaken_but_ends() {
    let mut host = Host::new(stepped());
    let mut pair = host.pair(1, 16);
    let rule = FaultRule::new(Fault::Reorder { completions: 2 }).on(Scope::Io);
    host.device.inject(rule.clone());
    let cids: Vec<_> = (0..4).map(|_| host.submit(&mut pair, flush())).collect();
    let ends: Vec<_> = (0..4).map(|_| host.end(&mut pair).unwrap().cid).collect();
    assert_eq!(ends, [cids[1], cids[2], cids[0], cids[3]]);
    // Alone, it ends by time.
    host.device.inject(rule);
    assert_eq!(host.io(&mut pair, flush()).status, OK);
}

#[test]
fn a_torn_write_is_old_or_new_block_by_block() {
    let mut host = Host::new(EmuConfig {
        faults: FaultPlan::none(3),
        ..stepped()
    });
    let mut pair = host.pair(1, 16);
    let mut buf = host.buf(8192);
    let (at, next) = (buf.iova().0, buf.iova().0 + 4096);
    let mut seen = [0; 4];
    for _ in 0..40 {
        buf.fill(1);
        let whole = rw(OPC_WRITE, 0, 2, at, next);
        assert_eq!(host.io(&mut pair, whole).status, OK);
        host.device.inject(FaultRule::new(Fault::Torn));
        buf.fill(2);
        assert_eq!(host.io(&mut pair, whole).status, SC_WRITE_FAULT);
        let back = rw(OPC_READ, 0, 2, at, next);
        assert_eq!(host.io(&mut pair, back).status, OK);
        let (first, second) = buf.split_at(4096);
        assert!([first, second].iter().all(|b| b.iter().all(|x| *x == b[0])));
        seen[usize::from(first[0] - 1) * 2 + usize::from(second[0] - 1)] += 1;
    }
    assert!(seen.iter().all(|&n| n > 0), "every subset: {seen:?}");
}

#[test]
fn completions_lie_as_told() {
    let mut host = Host::new(stepped());
    let mut pair = host.pair(1, 16);
    let first = host.io(&mut pair, flush()).cid;
    let hit = |host: &mut Host, pair: &mut Pair, fault| {
        host.device.inject(FaultRule::new(fault).on(Scope::Io));
        host.submit(pair, flush())
    };
    let stale = hit(&mut host, &mut pair, Fault::StaleCid);
    assert_eq!(host.end(&mut pair).unwrap().cid, first);
    assert_eq!(host.admin(abort(stale)).result, 0, "it never ended");
    assert_eq!(host.end(&mut pair).unwrap().cid, stale);

    let wrong = hit(&mut host, &mut pair, Fault::WrongCid);
    assert_ne!(host.end(&mut pair).unwrap().cid, wrong);
    assert_eq!(host.admin(abort(wrong)).result, 0);
    assert_eq!(host.end(&mut pair).unwrap().cid, wrong);

    let twice = hit(&mut host, &mut pair, Fault::Duplicate);
    let ends = [host.end(&mut pair).unwrap(), host.end(&mut pair).unwrap()];
    assert_eq!(ends.map(|end| end.cid), [twice, twice]);

    let garbage = hit(&mut host, &mut pair, Fault::GarbageSqHead);
    let end = host.end(&mut pair).unwrap();
    assert_eq!(end.cid, garbage);
    assert!(u32::from(end.sq_head) != pair.sq.tail, "a seeded number");

    hit(&mut host, &mut pair, Fault::WrongPhase);
    host.submit(&mut pair, flush());
    assert_eq!(
        host.end(&mut pair),
        None,
        "the entry is skipped and in the way"
    );
}

#[test]
fn identify_garbage_and_admin_losses() {
    let mut host = Host::new(stepped());
    let buf = host.buf(4096);
    let identify = command(ADM_IDENTIFY, 0, buf.iova().0, 0, &[CNS_CONTROLLER]);
    assert_eq!(host.admin(identify).status, OK);
    let right = buf.to_vec();
    host.device.inject(FaultRule::new(Fault::GarbageIdentify));
    assert_eq!(host.admin(identify).status, OK);
    assert_ne!(buf[..], right[..]);
    assert_eq!(host.admin(identify).status, OK);
    assert_eq!(buf[..], right[..]);
    host.device
        .inject(FaultRule::new(Fault::Lost).on(Scope::Admin));
    host.submit_admin(identify);
    assert_eq!(host.admin_end(), None);
}

#[test]
fn a_fatal_controller_needs_a_reset_and_a_gone_one_is_gone() {
    let mut host = Host::new(stepped());
    let mut pair = host.pair(1, 16);
    host.device
        .inject(FaultRule::new(Fault::Fatal).on(Scope::Io));
    host.submit(&mut pair, flush());
    assert_eq!(host.end(&mut pair), None);
    assert_eq!(host.csts(), CSTS_RDY | CSTS_CFS);
    host.device.write32(REG_CC, 0);
    host.enable(CC_ENABLED);
    assert_eq!(host.csts(), CSTS_RDY);
    let mut pair = host.pair(1, 16);
    host.device
        .inject(FaultRule::new(Fault::Gone).on(Scope::Io));
    host.submit(&mut pair, flush());
    assert_eq!(host.end(&mut pair), None);
    assert_eq!(host.csts(), u32::MAX);
    host.device.write32(REG_CC, CC_ENABLED);
    assert_eq!(host.device.read64(REG_CAP), u64::MAX);
    assert!(host.device.stop_dma().is_ok());
    assert_eq!(host.device.stats().faults_total(), 2);
}

#[test]
fn presets_and_replaced_plans() {
    assert_eq!(FaultPlan::hostile(5), FaultPlan::hostile(5));
    assert_ne!(FaultPlan::hostile(5), FaultPlan::hostile(6));
    let mut host = Host::new(EmuConfig {
        faults: FaultPlan::flaky(1, 300_000),
        ..stepped()
    });
    let mut pair = host.pair(1, 16);
    for _ in 0..10 {
        host.submit(&mut pair, flush());
    }
    host.device.step(20);
    assert!(host.device.stats().faults_total() > 0);
    host.device.set_faults(FaultPlan::default());
    host.device.write32(REG_CC, 0);
    host.enable(CC_ENABLED);
    let mut pair = host.pair(1, 16);
    let before = host.device.stats().faults_total();
    for _ in 0..100 {
        assert_eq!(host.io(&mut pair, flush()).status, OK);
    }
    assert_eq!(host.device.stats().faults_total(), before);
}
