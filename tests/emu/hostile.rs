//! A host that writes garbage: the controller answers with errors and stays whole.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtent::internals::device::Device;
use xtent::internals::device::emu::{EmuConfig, FaultPlan, Medium};
use xtent::internals::nvme::spec::*;
use zerocopy::FromBytes;

use crate::host::*;

/// A command that is mostly legal, with some fields replaced.
fn bent(rng: &mut StdRng, memory: u64) -> Command {
    let mut bytes = [0_u8; 64];
    rng.fill(&mut bytes);
    let mut command = Command::read_from_bytes(&bytes).unwrap();
    let mut keep = |chance| rng.random_bool(chance);
    if keep(0.8) {
        command.flags = 0;
    }
    if keep(0.8) {
        command.nsid = 1.into();
    }
    if keep(0.8) {
        command.opcode &= 0xf;
    }
    if keep(0.6) {
        command.prp1 = memory.into();
    }
    if keep(0.6) {
        command.prp2 = (memory + 4096).into();
    }
    if keep(0.7) {
        command.cdw10_15[1] = (command.cdw10_15[1].get() & 0x1_0005).into();
    }
    if keep(0.7) {
        command.cdw10_15[0] = (command.cdw10_15[0].get() & 0x1f_0007).into();
    }
    if keep(0.7) {
        command.cdw10_15[2] = (command.cdw10_15[2].get() & 0xc000_001f).into();
    }
    command
}

fn garbage(config: EmuConfig, seed: u64, commands: usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut host = Host::new(config);
    let memory = host.buf(64 << 10);
    let mut pair = host.pair(1, 64);
    for n in 0..commands {
        let bent = bent(&mut rng, memory.iova().0);
        if rng.random_bool(0.7) {
            pair.sq.push(bent);
            pair.sq.ring();
        } else {
            host.admin_sq.push(bent);
            host.admin_sq.ring();
        }
        match rng.random_range(0..40) {
            0 => pair.sq.bell.ring(rng.random()),
            1 => pair.cq.bell.ring(rng.random()),
            2 => pair.cq.bell.ring(rng.random_range(0..64)),
            3 => host.admin_sq.bell.ring(rng.random_range(0..17)),
            4 => host
                .device
                .write32(rng.random_range(0..0x2000), rng.random()),
            5 => host
                .device
                .write64(rng.random_range(0..16) * 4, rng.random()),
            _ => {}
        }
        host.device.step(rng.random_range(0..4));
        while pair.cq.pop().is_some() {}
        while host.admin_cq.pop().is_some() {}
        if rng.random_bool(0.9) {
            pair.cq.consume();
            host.admin_cq.consume();
        }
        host.device.advance_ns(rng.random_range(0..100_000));
        if n % 200 == 199 {
            // Whatever happened: a reset brings it back, unless a fault took the device away.
            host.device.write32(REG_CC, 0);
            host.device.stop_dma().unwrap_or_default();
            host.enable(CC_ENABLED);
            if host.csts() != CSTS_RDY {
                assert!(
                    host.device.stats().faults_total() > 0,
                    "seed {seed} command {n}"
                );
                return;
            }
            host.device.set_faults(FaultPlan::default());
            let identify = command(ADM_IDENTIFY, 1, memory.iova().0, 0, &[0]);
            let cqe = host.admin(identify);
            assert_eq!(cqe.status, StatusField::SUCCESS, "seed {seed} command {n}");
            pair = host.pair(1, 64);
            host.device.set_faults(FaultPlan::hostile(rng.random()));
        }
    }
}

#[test]
fn garbage_commands_doorbells_and_registers() {
    for seed in 0..10 {
        garbage(stepped(), seed, 1_000);
    }
}

#[test]
fn garbage_to_a_hostile_controller_with_a_cache_model() {
    for seed in 0..100 {
        let config = EmuConfig {
            cache_model: true,
            medium: Medium::memory(1 << 20),
            lba_bytes: 512,
            ..stepped()
        };
        garbage(config, 1000 + seed, 600);
    }
}

#[test]
fn shadow_doorbells_in_the_wrong_place_are_refused() {
    let mut host = Host::new(EmuConfig {
        shadow_doorbells: true,
        ..stepped()
    });
    let config = |values, events| command(ADM_DOORBELL_BUFFER_CONFIG, 0, values, events, &[]);
    let (values, events) = (host.buf(4096).lend(), host.buf(4096).lend());
    let (good, other) = (values.iova().0, events.iova().0);
    for (a, b) in [(good + 8, other), (good, other + 2048)] {
        let cqe = host.admin(config(a, b));
        assert_eq!((cqe.status.sct(), cqe.status.sc()), (0, 2));
    }
    let cqe = host.admin(config(good, 0x7fff_0000_0000));
    assert_eq!((cqe.status.sct(), cqe.status.sc()), (0, 4));
    assert!(host.admin(config(good, other)).status.is_success());
    let mut pair = host.pair(1, 8);
    let buf = host.buf(4096);
    // Rung by register, with nothing in the shadow: there is nothing to do.
    host.submit(&mut pair, read(0, &buf));
    host.device.step(10);
    assert!(pair.cq.pop().is_none());
    assert_eq!(host.csts() & CSTS_CFS, 0);
}
