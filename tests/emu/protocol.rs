//! Registers, queues and admin commands.

use xtent::internals::device::Device;
use xtent::internals::device::emu::{EmuConfig, EmuDevice, Fault, FaultRule, Scope};
use xtent::internals::nvme::spec::*;
use zerocopy::FromBytes;

use crate::host::*;

const OK: StatusField = StatusField::SUCCESS;

fn dnr(status: StatusField) -> StatusField {
    status.do_not_retry()
}

fn identify(host: &mut Host, cns: u32, nsid: u32) -> (StatusField, Vec<u8>) {
    let buf = host.buf(4096);
    let cqe = host.admin(command(ADM_IDENTIFY, nsid, buf.iova().0, 0, &[cns]));
    (cqe.status, buf.to_vec())
}

#[test]
fn identify_tells_what_was_configured() {
    let mut host = Host::new(EmuConfig {
        model: "Model X".to_owned(),
        serial: "S1".to_owned(),
        mdts: 3,
        noiob_blocks: 32,
        read_only: true,
        ..stepped()
    });
    let cap = Capabilities(host.device.read64(REG_CAP));
    assert_eq!(cap.max_queue_entries(), 1024);
    assert_eq!((cap.timeout_ms(), cap.doorbell_stride_bytes()), (2000, 32));
    assert!(cap.nvm_command_set() && cap.contiguous_queues_required());
    assert_eq!((cap.min_page_shift(), cap.max_page_shift()), (12, 12));
    assert_eq!(u64::from(host.device.read32(REG_CAP + 4)), cap.0 >> 32);
    assert_eq!(host.device.read32(REG_VS), 0x1_0400);

    let (status, page) = identify(&mut host, CNS_CONTROLLER, 0);
    assert_eq!(status, OK);
    let id = IdentifyController::read_from_bytes(&page).unwrap();
    assert_eq!((&id.mn[..8], &id.sn[..3]), (&b"Model X "[..], &b"S1 "[..]));
    assert_eq!((id.mdts, id.sqes, id.cqes, id.nn.get()), (3, 0x66, 0x44, 1));
    assert_eq!(id.oncs.get(), ONCS_DATASET_MANAGEMENT | ONCS_WRITE_ZEROES);
    assert_eq!(id.vwc & 1, VWC_PRESENT);

    let (status, page) = identify(&mut host, CNS_NAMESPACE, 1);
    assert_eq!(status, OK);
    let ns = IdentifyNamespace::read_from_bytes(&page).unwrap();
    assert_eq!((ns.nsze.get(), ns.noiob.get()), (4096, 32));
    assert_eq!(ns.lbaf[ns.format_index()].data_shift, 12);
    assert_eq!(page[99], 1, "write protected");

    let (_, page) = identify(&mut host, CNS_ACTIVE_NAMESPACES, 0);
    assert_eq!(page[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    let (_, page) = identify(&mut host, CNS_ACTIVE_NAMESPACES, 1);
    assert_eq!(page[..4], [0; 4]);
    let (_, page) = identify(&mut host, 3, 1);
    assert_eq!(page[..2], [2, 16]);
    for (cns, nsid, want) in [
        (CNS_NAMESPACE, 0, SC_INVALID_NAMESPACE),
        (CNS_NAMESPACE, 2, SC_INVALID_NAMESPACE),
        (CNS_ACTIVE_NAMESPACES, u32::MAX, SC_INVALID_NAMESPACE),
        (0x7f, 1, SC_INVALID_FIELD),
    ] {
        assert_eq!(identify(&mut host, cns, nsid).0, dnr(want), "CNS {cns}");
    }
}

#[test]
fn illegal_settings_are_fatal_until_reset() {
    let mut host = Host::attach(stepped());
    host.enable(CC_ENABLED | 1 << CC_MPS_SHIFT);
    assert_eq!(host.csts(), CSTS_CFS);
    host.device.write32(REG_CC, 0);
    assert_eq!(host.csts(), 0);
    host.enable(CC_ENABLED | 1 << CC_CSS_SHIFT);
    assert_eq!(host.csts(), CSTS_CFS);
    host.device.write32(REG_CC, 0);
    host.device.write32(REG_AQA, 0);
    host.device.write32(REG_CC, CC_ENABLED);
    assert_eq!(host.csts(), CSTS_CFS, "a queue of one entry");
    host.device.write32(REG_CC, 0);
    host.device.write32(REG_AQA, 15 << 16 | 15);
    host.device.write64(REG_ASQ, 0x1000);
    host.device.write32(REG_CC, CC_ENABLED);
    assert_eq!(
        host.csts(),
        CSTS_CFS,
        "a queue in memory that is not mapped"
    );
    host.device.write32(REG_CC, 0);
    host.enable(CC_ENABLED);
    assert_eq!(host.csts(), CSTS_RDY);
    // Settled while enabled.
    host.device.write32(REG_AQA, 0);
    host.device.write64(REG_ASQ, 0);
    host.device.write32(REG_CC, CC_ENABLED | 1 << CC_MPS_SHIFT);
    assert_eq!(host.device.read32(REG_AQA), 15 << 16 | 15);
    assert_eq!(host.device.read64(REG_ASQ), host.admin_sq.ring.iova().0);
    assert_eq!(host.device.read32(REG_CC), CC_ENABLED);
    assert_eq!(identify(&mut host, CNS_CONTROLLER, 0).0, OK);
}

#[test]
fn interrupt_masks_and_reserved_registers() {
    let host = Host::attach(stepped());
    host.device.write32(REG_INTMS, 0xf0);
    host.device.write32(REG_INTMC, 0x30);
    assert_eq!(host.device.read32(REG_INTMS), 0xc0);
    host.device.write64(REG_CAP, 0);
    host.device.write32(0xffc, 7);
    assert_eq!(host.device.read32(0xffc), 0);
    assert_eq!(host.device.read32(u32::MAX), 0);
    assert_eq!(host.device.read64(u32::MAX), 0);
    host.device.write32(u32::MAX, 7);
    host.device.write64(u32::MAX, 7);
    assert_ne!(host.device.read64(REG_CAP), 0);
    assert!(
        host.device.doorbell(0x1010).is_err(),
        "between two doorbells"
    );
    assert!(host.device.doorbell(0xfe0).is_err());
    assert!(host.device.doorbell(0x1000 + 2 * 65 * 32).is_err());
}

#[test]
fn readiness_may_take_its_time_or_never_come() {
    let mut host = Host::attach(EmuConfig {
        ready_delay_ns: 5_000_000,
        ..stepped()
    });
    host.enable(CC_ENABLED);
    assert_eq!(host.csts(), 0);
    assert!(host.wait(|host| host.csts() == CSTS_RDY));
    assert!(host.device.now_ns() >= 5_000_000);
    host.device.write32(REG_CC, 0);
    host.device.inject(FaultRule::new(Fault::NeverReady));
    host.enable(CC_ENABLED);
    assert!(!host.wait(|host| host.csts() != 0));
    host.device.write32(REG_CC, 0);
    host.enable(CC_ENABLED);
    assert!(host.wait(|host| host.csts() == CSTS_RDY));
}

#[test]
fn queues_are_created_and_deleted_by_the_rules() {
    let mut host = Host::new(EmuConfig {
        max_io_queues: 4,
        ..stepped()
    });
    let page = host.buf(1 << 17);
    let at = page.iova().0;
    let delete = |opcode, id: u32| command(opcode, 0, 0, 0, &[id]);
    let mut scattered = create_cq(1, 16, at);
    scattered.cdw10_15[1] = 0.into();
    let invalid_id = dnr(SC_INVALID_QUEUE_ID);
    let steps = [
        (create_cq(0, 16, at), invalid_id),
        (create_cq(5, 16, at), invalid_id),
        (create_cq(1, 1, at), dnr(SC_INVALID_QUEUE_SIZE)),
        (create_cq(1, 1025, at), dnr(SC_INVALID_QUEUE_SIZE)),
        (scattered, dnr(SC_INVALID_FIELD)),
        (create_cq(1, 16, at + 64), dnr(SC_INVALID_PRP_OFFSET)),
        (create_cq(1, 16, 0x5000), SC_DATA_TRANSFER),
        (create_sq(1, 1, 16, at), dnr(SC_INVALID_CQ)),
        (create_sq(1, 4, 16, at), dnr(SC_INVALID_CQ)),
        (create_sq(1, 0, 16, at), invalid_id),
        (create_sq(1, 5, 16, at), invalid_id),
        (create_sq(1, 0xffff, 16, at), invalid_id),
        (create_cq(1, 16, at), OK),
        (create_cq(1, 16, at), invalid_id),
        (create_sq(1, 1, 1024, at + 4096), OK),
        (create_sq(1, 1, 16, at + 4096), invalid_id),
        (create_sq(2, 1, 16, at + 4096), OK),
        (delete(ADM_DELETE_CQ, 1), dnr(SC_INVALID_QUEUE_DELETION)),
        (delete(ADM_DELETE_CQ, 0), invalid_id),
        (delete(ADM_DELETE_SQ, 0), invalid_id),
        (delete(ADM_DELETE_SQ, 3), invalid_id),
        (delete(ADM_DELETE_SQ, 0xffff), invalid_id),
        (delete(ADM_DELETE_SQ, 1), OK),
        (delete(ADM_DELETE_SQ, 2), OK),
        (delete(ADM_DELETE_CQ, 1), OK),
        (delete(ADM_DELETE_CQ, 1), invalid_id),
    ];
    for (n, (command, want)) in steps.into_iter().enumerate() {
        assert_eq!(host.admin(command).status, want, "step {n}");
    }
    // Entry sizes must be set before I/O queues are made.
    host.device.write32(REG_CC, 0);
    host.enable(CC_EN);
    let made = host.admin(create_cq(1, 16, at)).status;
    assert_eq!(made, dnr(SC_INVALID_QUEUE_SIZE));
}

#[test]
fn features_number_of_queues_and_write_cache() {
    let mut host = Host::new(EmuConfig {
        max_io_queues: 4,
        ..stepped()
    });
    let set = |id, value| command(ADM_SET_FEATURES, 0, 0, 0, &[id, value]);
    let get = |id| command(ADM_GET_FEATURES, 0, 0, 0, &[id]);
    let got = host.admin(set(FEAT_NUMBER_OF_QUEUES, 99 << 16 | 1));
    assert_eq!((got.status, got.result), (OK, 3 << 16 | 1));
    assert_eq!(host.admin(get(FEAT_NUMBER_OF_QUEUES)).result, 3 << 16 | 1);
    assert_eq!(
        host.admin(set(FEAT_NUMBER_OF_QUEUES, 0xffff)).status,
        dnr(SC_INVALID_FIELD)
    );
    assert_eq!(host.admin(get(FEAT_VOLATILE_WRITE_CACHE)).result, 1);
    assert_eq!(host.admin(set(FEAT_VOLATILE_WRITE_CACHE, 0)).status, OK);
    assert_eq!(host.admin(get(FEAT_VOLATILE_WRITE_CACHE)).result, 0);
    assert_eq!(
        host.admin(get(FEAT_VOLATILE_WRITE_CACHE | 1 << 8)).result,
        1,
        "the default"
    );
    let save = set(FEAT_VOLATILE_WRITE_CACHE | 1 << 31, 1);
    assert_eq!(host.admin(save).status, dnr(SC_FEATURE_NOT_SAVEABLE));
    assert_eq!(host.admin(get(0x7f)).status, dnr(SC_INVALID_FIELD));
    let _pair = host.pair(1, 16);
    assert_eq!(
        host.admin(set(FEAT_NUMBER_OF_QUEUES, 0)).status,
        dnr(SC_COMMAND_SEQUENCE)
    );
    // A reset brings the defaults back.
    host.device.write32(REG_CC, 0);
    host.enable(CC_ENABLED);
    assert_eq!(host.admin(get(FEAT_VOLATILE_WRITE_CACHE)).result, 1);

    let mut host = Host::new(EmuConfig {
        volatile_write_cache: false,
        ..stepped()
    });
    let got = host.admin(get(FEAT_VOLATILE_WRITE_CACHE));
    assert_eq!(got.status, dnr(SC_INVALID_FIELD));
}

#[test]
fn features_that_hosts_ask_for_and_none_can_set() {
    let mut host = Host::new(stepped());
    let mut buf = host.buf(4096);
    buf.fill(7);
    let address = buf.iova().0;
    // Keep alive timer and host behaviour support: SPDK's nvme_compliance asks for both.
    for (id, zeroes) in [(0x0f, 0), (0x16, 512)] {
        let got = host.admin(command(ADM_GET_FEATURES, 0, address, 0, &[id]));
        assert_eq!((got.status, got.result), (OK, 0));
        let written = buf.iter().take_while(|&&byte| byte == 0).count();
        assert_eq!(written, zeroes, "{id:#x}");
        let set = command(ADM_SET_FEATURES, 0, address, 0, &[id, 1]);
        assert_eq!(host.admin(set).status, dnr(SC_INVALID_FIELD));
    }
}

#[test]
fn log_pages_and_unknown_commands() {
    let mut host = Host::new(stepped());
    let buf = host.buf(8192);
    let log = |id: u32, dwords: u32, offset: u32| {
        let dw10 = id | (dwords - 1) << 16;
        command(ADM_GET_LOG_PAGE, 0, buf.iova().0, 0, &[dw10, 0, offset, 0])
    };
    assert_eq!(host.admin(log(2, 128, 0)).status, OK);
    assert_eq!(buf[1..5], [44, 1, 100, 10]);
    assert_eq!(host.admin(log(3, 4, 8)).status, OK);
    assert_eq!(buf[..8], *b"1.0     ");
    assert_eq!(host.admin(log(1, 16, 0)).status, OK);
    assert_eq!(
        host.admin(log(0x55, 16, 0)).status,
        dnr(SC_INVALID_LOG_PAGE)
    );
    assert_eq!(host.admin(log(2, 16, 516)).status, dnr(SC_INVALID_FIELD));
    let mut huge = log(2, 65536, 0);
    huge.cdw10_15[1] = 0xffff.into();
    assert_eq!(host.admin(huge).status, dnr(SC_INVALID_FIELD));
    let unknown = command(0xc1, 0, 0, 0, &[]);
    assert_eq!(host.admin(unknown).status, dnr(SC_INVALID_OPCODE));
    let mut pair = host.pair(1, 16);
    let unknown = command(0x05, 1, 0, 0, &[]);
    assert_eq!(host.io(&mut pair, unknown).status, dnr(SC_INVALID_OPCODE));
}

#[test]
fn a_full_completion_queue_is_not_overwritten() {
    let mut host = Host::new(stepped());
    let (mut sq, mut cq) = rings(&host.device, &host.heap, (1, 16), (1, 4));
    assert_eq!(host.admin(create_cq(1, 4, cq.ring.iova().0)).status, OK);
    assert_eq!(host.admin(create_sq(1, 1, 16, sq.ring.iova().0)).status, OK);
    for cid in 0..10_u16 {
        let mut flush = command(OPC_FLUSH, 1, 0, 0, &[]);
        flush.cid = cid.into();
        sq.push(flush);
    }
    sq.ring();
    let mut seen = Vec::new();
    for round in 0..4 {
        host.device.step(100);
        let posted: Vec<_> = std::iter::from_fn(|| cq.pop()).collect();
        assert_eq!(posted.len(), if round < 3 { 3 } else { 1 });
        for cqe in &posted {
            // Fetched one by one: the head is past the command that ended.
            assert_eq!((cqe.sq, cqe.sq_head), (1, cqe.cid + 1));
        }
        seen.extend(posted.iter().map(|cqe| cqe.cid));
        assert_eq!(
            host.device.step(100),
            0,
            "no command is executed before the head moves"
        );
        cq.consume();
    }
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
}

#[test]
fn several_submission_queues_share_a_completion_queue() {
    let mut host = Host::new(stepped());
    let mut pair = host.pair(1, 64);
    let (mut other, _) = rings(&host.device, &host.heap, (2, 8), (2, 8));
    let made = host.admin(create_sq(2, 1, 8, other.ring.iova().0));
    assert_eq!(made.status, OK);
    for cid in 0..5_u16 {
        let mut flush = command(OPC_FLUSH, 1, 0, 0, &[]);
        flush.cid = cid.into();
        pair.sq.push(flush);
        other.push(flush);
    }
    pair.sq.ring();
    other.ring();
    assert_eq!(host.device.step(100), 10);
    let all: Vec<_> = std::iter::from_fn(|| pair.cq.pop()).collect();
    for queue in [1, 2] {
        let cids: Vec<_> = all
            .iter()
            .filter(|c| c.sq == queue)
            .map(|c| c.cid)
            .collect();
        assert_eq!(cids, [0, 1, 2, 3, 4]);
    }
}

#[test]
fn invalid_doorbells_are_ignored_and_told() {
    let mut host = Host::new(stepped());
    let mut pair = host.pair(1, 16);
    let request = host.submit_admin(command(ADM_ASYNC_EVENT, 0, 0, 0, &[]));
    pair.sq.bell.ring(16);
    let event = host.admin_end().unwrap();
    assert_eq!((event.cid, event.result), (request, 0x1_0100));
    pair.cq.bell.ring(3);
    host.device.step(10);
    pair.sq.bell.ring(u32::MAX);
    host.device.step(10);
    assert_eq!(host.device.stats().invalid_doorbells, 3);
    // The event is masked until the error log is read.
    let request = host.submit_admin(command(ADM_ASYNC_EVENT, 0, 0, 0, &[]));
    host.device.step(10);
    assert_eq!(host.admin_cq.pop(), None);
    let buf = host.buf(4096);
    let log = command(ADM_GET_LOG_PAGE, 0, buf.iova().0, 0, &[1 | 15 << 16]);
    assert_eq!(host.admin(log).status, OK);
    pair.sq.bell.ring(99);
    assert_eq!(host.admin_end().unwrap().cid, request);
    pair.cq.bell.ring(0);
    let flush = command(OPC_FLUSH, 1, 0, 0, &[]);
    assert_eq!(host.io(&mut pair, flush).status, OK);
    // Four requests may wait, not five; an abort ends one.
    let waiting: Vec<_> = (0..4)
        .map(|_| host.submit_admin(command(ADM_ASYNC_EVENT, 0, 0, 0, &[])))
        .collect();
    let fifth = host.admin(command(ADM_ASYNC_EVENT, 0, 0, 0, &[]));
    assert_eq!(fifth.status, dnr(SC_ASYNC_EVENT_LIMIT));
    let abort = command(ADM_ABORT, 0, 0, 0, &[u32::from(waiting[2]) << 16]);
    host.submit_admin(abort);
    let ended = host.admin_end().unwrap();
    assert_eq!((ended.cid, ended.status), (waiting[2], SC_ABORT_REQUESTED));
    assert_eq!(host.admin_end().unwrap().result, 0);
}

#[test]
fn abort_ends_what_is_held_and_says_when_it_did_not() {
    let mut host = Host::new(stepped());
    let mut pair = host.pair(1, 16);
    host.device
        .inject(FaultRule::new(Fault::Lost).on(Scope::Io).times(2));
    let flush = command(OPC_FLUSH, 1, 0, 0, &[]);
    let first = host.submit(&mut pair, flush);
    let second = host.submit(&mut pair, flush);
    assert_eq!(host.device.step(2), 2);
    let abort = |cid: u16| command(ADM_ABORT, 0, 0, 0, &[1 | u32::from(cid) << 16]);
    assert_eq!(host.admin(abort(second)).result, 0);
    let ended = host.end(&mut pair).unwrap();
    assert_eq!((ended.cid, ended.status), (second, SC_ABORT_REQUESTED));
    assert_eq!(host.admin(abort(second)).result, 1, "it is over");
    host.device.inject(FaultRule::new(Fault::AbortFails));
    assert_eq!(host.admin(abort(first)).result, 1, "it refuses");
    assert_eq!(host.admin(abort(first)).result, 0);
    assert_eq!(host.end(&mut pair).unwrap().cid, first);
    let stats = host.device.stats();
    assert_eq!((stats.aborts, stats.aborts_refused), (2, 2));
    assert_eq!((stats.fault("lost"), stats.faults_total()), (2, 3));
}

#[test]
fn deleting_a_queue_ends_what_it_held() {
    let mut host = Host::new(stepped());
    let mut pair = host.pair(1, 16);
    host.device
        .inject(FaultRule::new(Fault::LostCompletion).on(Scope::Io));
    let cid = host.submit(&mut pair, command(OPC_FLUSH, 1, 0, 0, &[]));
    host.device.step(1);
    let deleted = host.admin(command(ADM_DELETE_SQ, 0, 0, 0, &[1]));
    assert_eq!(deleted.status, OK);
    let ended = host.end(&mut pair).unwrap();
    assert_eq!((ended.cid, ended.status), (cid, SC_SQ_DELETED));
}

#[test]
fn shutdown_completes_and_stops_the_queues() {
    let mut host = Host::new(stepped());
    let mut pair = host.pair(1, 16);
    let flush = command(OPC_FLUSH, 1, 0, 0, &[]);
    assert_eq!(host.io(&mut pair, flush).status, OK);
    host.device.write32(REG_CC, CC_ENABLED | 1 << CC_SHN_SHIFT);
    assert_eq!(host.csts() & CSTS_SHST_MASK, CSTS_SHST_COMPLETE);
    host.submit(&mut pair, flush);
    assert_eq!(host.device.step(10), 0);
    host.device.write32(REG_CC, 0);
    assert_eq!(host.csts(), 0);
    host.enable(CC_ENABLED);
    assert_eq!(identify(&mut host, CNS_CONTROLLER, 0).0, OK);
    // Without being enabled, too.
    host.device.write32(REG_CC, 0);
    host.device.write32(REG_CC, 2 << CC_SHN_SHIFT);
    assert_eq!(host.csts(), CSTS_SHST_COMPLETE);
}

#[test]
fn a_reset_forgets_all_that_is_under_way() {
    let mut host = Host::new(stepped());
    let mut pair = host.pair(1, 16);
    let flush = command(OPC_FLUSH, 1, 0, 0, &[]);
    let late = Fault::Late { delay_ns: 10_000 };
    host.device.inject(FaultRule::new(late).on(Scope::Io));
    host.submit(&mut pair, flush);
    host.device.step(1);
    host.submit(&mut pair, flush);
    host.device.write32(REG_CC, 0);
    assert_eq!(host.csts(), 0);
    host.device.advance_ns(1_000_000);
    assert_eq!(host.device.step(10), 0);
    host.enable(CC_ENABLED);
    assert_eq!(host.device.step(10), 0);
    assert_eq!(pair.cq.pop(), None);
    // The queues are gone, and can be made anew.
    let mut pair = host.pair(1, 16);
    assert_eq!(host.io(&mut pair, flush).status, OK);
    host.device.write32(REG_NSSR, 1);
    assert_eq!(host.csts(), CSTS_RDY, "only the magic word resets");
    host.device.write32(REG_NSSR, 0x4e56_4d65);
    assert_eq!((host.csts(), host.device.read32(REG_CC)), (1 << 4, 0));
    host.device.write32(REG_CSTS, 1 << 4);
    assert_eq!(host.csts(), 0);
}

#[test]
fn stop_dma_is_a_reset_of_everything_and_can_fail() {
    let mut host = Host::new(stepped());
    let mut pair = host.pair(1, 16);
    host.device.inject(FaultRule::new(Fault::StopFails));
    assert!(host.device.stop_dma().is_err());
    host.device.stop_dma().unwrap();
    for register in [REG_CC, REG_CSTS, REG_AQA, REG_ASQ, REG_ACQ] {
        assert_eq!(host.device.read32(register), 0);
    }
    host.submit(&mut pair, command(OPC_FLUSH, 1, 0, 0, &[]));
    assert_eq!(host.device.step(10), 0);
    host.enable(CC_ENABLED);
    assert_eq!(identify(&mut host, CNS_CONTROLLER, 0).0, OK);
    assert_eq!(host.device.stats().resets, 1);
    // A controller that does not stop when it is disabled stops so.
    host.device.inject(FaultRule::new(Fault::ResetFails));
    host.device.write32(REG_CC, 0);
    assert_eq!(host.csts(), CSTS_RDY);
    host.device.stop_dma().unwrap();
    assert_eq!(host.csts(), 0);
}

#[test]
fn unmapped_queues_are_fatal_not_touched() {
    let mut host = Host::new(stepped());
    let mut pair = host.pair(1, 16);
    let mapper = host.device.mapper();
    host.heap.detach(&mapper).unwrap();
    host.submit(&mut pair, command(OPC_FLUSH, 1, 0, 0, &[]));
    host.device.step(10);
    assert_eq!(host.csts(), CSTS_RDY | CSTS_CFS);
    assert_eq!(pair.cq.pop(), None);
    host.heap.attach(mapper).unwrap();
    host.device.write32(REG_CC, 0);
    host.enable(CC_ENABLED);
    assert_eq!(identify(&mut host, CNS_CONTROLLER, 0).0, OK);
}

#[test]
fn senseless_configurations_are_refused_with_a_reason() {
    for (config, word) in [
        (
            EmuConfig {
                lba_bytes: 1024,
                ..stepped()
            },
            "512 or 4096",
        ),
        (
            EmuConfig {
                max_io_queues: 0,
                ..stepped()
            },
            "max_io_queues",
        ),
        (
            EmuConfig {
                max_queue_entries: 1,
                ..stepped()
            },
            "max_queue_entries",
        ),
        (
            EmuConfig {
                mdts: 17,
                ..stepped()
            },
            "mdts",
        ),
        (
            EmuConfig {
                serial: "x".repeat(21),
                ..stepped()
            },
            "serial",
        ),
        (
            EmuConfig {
                model: "\u{e9}".to_owned(),
                ..stepped()
            },
            "model",
        ),
        (
            EmuConfig {
                medium: xtent::internals::device::emu::Medium::memory(4095),
                ..stepped()
            },
            "too small to be a disk image (4095 bytes)",
        ),
    ] {
        let error = EmuDevice::start(config).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}
