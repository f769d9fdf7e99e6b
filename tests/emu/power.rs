//! Power cuts: what was promised durable is there, the rest is old or new block by block.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtent::ErrorKind;
use xtent::internals::device::Device;
use xtent::internals::device::emu::{EmuConfig, Fault, FaultPlan, Medium, Scope};
use xtent::internals::nvme::spec::*;

use crate::host::*;

const BLOCKS: u64 = 64;
const OK: StatusField = StatusField::SUCCESS;

fn config(medium: Medium, seed: u64) -> EmuConfig {
    EmuConfig {
        medium,
        lba_bytes: 512,
        cache_model: true,
        faults: FaultPlan::none(seed),
        ..stepped()
    }
}

/// What a block may hold after a cut: the durable version, and everything written since. A version
/// is the number that fills the block; 0 is a block of zeroes.
#[derive(Clone, Default)]
struct Legal(BTreeSet<u64>);

impl Legal {
    fn durable(&mut self, version: u64) {
        self.0 = BTreeSet::from([version]);
    }
}

struct Run {
    rng: StdRng,
    legal: Vec<Legal>,
    current: Vec<u64>,
    next: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut legal = Legal::default();
        legal.durable(0);
        Self {
            rng: StdRng::seed_from_u64(seed),
            legal: vec![legal; 64],
            current: vec![0; 64],
            next: 1,
        }
    }

    fn written(&mut self, lba: usize, version: u64, durable: bool) {
        self.current[lba] = version;
        self.legal[lba].0.insert(version);
        if durable {
            self.legal[lba].durable(version);
        }
    }

    fn operation(&mut self, host: &mut Host, pair: &mut Pair) {
        let lba = self.rng.random_range(0..BLOCKS - 8);
        let blocks = self.rng.random_range(1..=8_u32);
        let range = usize::try_from(lba).unwrap()..usize::try_from(lba).unwrap() + blocks as usize;
        let fua = self.rng.random_bool(0.2);
        let mut buf = host.buf(4096);
        let mut command = rw(OPC_WRITE, lba, blocks, buf.iova().0, 0);
        if fua {
            command.cdw10_15[2] = ((blocks - 1) | CDW12_FUA).into();
        }
        match self.rng.random_range(0..8) {
            0 => {
                let flush = crate::host::command(OPC_FLUSH, 1, 0, 0, &[]);
                assert_eq!(host.io(pair, flush).status, OK);
                for (legal, &current) in self.legal.iter_mut().zip(&self.current) {
                    legal.durable(current);
                }
            }
            1 => {
                command.opcode = OPC_WRITE_ZEROES;
                assert_eq!(host.io(pair, command).status, OK);
                range.for_each(|lba| self.written(lba, 0, fua));
            }
            2 => {
                command.opcode = OPC_READ;
                assert_eq!(host.io(pair, command).status, OK);
                for (block, lba) in buf.chunks_exact(512).zip(range) {
                    assert_eq!(version_of(block), Some(self.current[lba]));
                }
            }
            _ => {
                self.fill(&mut buf, blocks);
                assert_eq!(host.io(pair, command).status, OK);
                for (block, lba) in buf.chunks_exact(512).zip(range) {
                    self.written(lba, version_of(block).unwrap(), fua);
                }
            }
        }
    }

    fn fill(&mut self, buf: &mut [u8], blocks: u32) {
        for block in buf.chunks_exact_mut(512).take(blocks as usize) {
            for word in block.chunks_exact_mut(8) {
                word.copy_from_slice(&self.next.to_le_bytes());
            }
            self.next += 1;
        }
    }
}

/// The number that fills the block; `None` for a mixture.
fn version_of(block: &[u8]) -> Option<u64> {
    let mut words = block
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    let first = words.next()?;
    words.all(|word| word == first).then_some(first)
}

#[test]
fn flushed_data_survives_and_the_rest_is_old_or_new() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..200 {
        let mut run = Run::new(seed);
        let mut medium = Medium::memory(BLOCKS * 512);
        for _ in 0..3 {
            let mut host = Host::new(config(medium, seed));
            let mut pair = host.pair(1, 16);
            for _ in 0..run.rng.random_range(1..40) {
                run.operation(&mut host, &mut pair);
            }
            // One more write, cut while it is under way.
            let mut buf = host.buf(4096);
            let before = run.next;
            run.fill(&mut buf, 4);
            host.submit(&mut pair, rw(OPC_WRITE, 60, 4, buf.iova().0, 0));
            for (lba, version) in (60..64).zip(before..) {
                run.legal[lba].0.insert(version);
            }
            medium = host.device.power_cut(run.rng.random()).unwrap();
            assert_eq!(host.csts(), u32::MAX);
            for lba in 0..64 {
                let mut block = [0; 512];
                medium.read_at(lba as u64 * 512, &mut block).unwrap();
                let version = version_of(&block);
                let legal = &run.legal[lba].0;
                assert!(
                    version.is_some_and(|version| legal.contains(&version)),
                    "seed {seed}: block {lba} holds {version:?}, legal are {legal:?}"
                );
                let version = version.unwrap();
                lost += usize::from(version != run.current[lba]);
                kept += usize::from(version == run.current[lba] && legal.len() > 1);
                run.current[lba] = version;
                run.legal[lba].durable(version);
            }
        }
    }
    assert!(lost > 1000 && kept > 1000, "lost {lost}, kept {kept}");
}

#[test]
fn a_cut_is_seeded_and_takes_the_medium_once() {
    let cut = |seed| {
        let mut host = Host::new(config(Medium::memory(BLOCKS * 512), 1));
        let mut pair = host.pair(1, 16);
        let mut run = Run::new(1);
        for _ in 0..30 {
            run.operation(&mut host, &mut pair);
        }
        let medium = host.device.power_cut(seed).unwrap();
        let again = host.device.power_cut(seed).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::DeviceGone);
        let mut bytes = vec![0; 64 * 512];
        medium.read_at(0, &mut bytes).unwrap();
        bytes
    };
    assert!(cut(1) == cut(1));
    let different = (2..10).filter(|&seed| cut(seed) != cut(1)).count();
    assert!(different > 0);
}

#[test]
fn without_a_write_cache_and_after_shutdown_nothing_is_lost() {
    for shutdown in [false, true] {
        for seed in 0..10 {
            let mut host = Host::new(EmuConfig {
                volatile_write_cache: shutdown,
                ..config(Medium::memory(BLOCKS * 512), seed)
            });
            let mut pair = host.pair(1, 16);
            let mut run = Run::new(seed);
            for _ in 0..30 {
                run.operation(&mut host, &mut pair);
            }
            if shutdown {
                host.device.write32(REG_CC, CC_ENABLED | 1 << CC_SHN_SHIFT);
            }
            let medium = host.device.power_cut(seed).unwrap();
            for (lba, &want) in run.current.iter().enumerate() {
                let mut block = [0; 512];
                medium.read_at(lba as u64 * 512, &mut block).unwrap();
                assert_eq!(version_of(&block), Some(want), "seed {seed}");
            }
        }
    }
}

#[test]
fn held_back_writes_are_cut_too() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..60 {
        let late = Fault::Late { delay_ns: 1 << 40 };
        let mut host = Host::new(EmuConfig {
            faults: FaultPlan::none(seed).rate(Scope::Io, late, 1_000_000),
            ..config(Medium::memory(BLOCKS * 512), seed)
        });
        let mut pair = host.pair(1, 16);
        let mut buf = host.buf(4096);
        Run::new(seed).fill(&mut buf, 1);
        host.submit(&mut pair, rw(OPC_WRITE, 7, 1, buf.iova().0, 0));
        assert_eq!(host.device.step(1), 1);
        let medium = host.device.power_cut(seed).unwrap();
        let mut block = [0; 512];
        medium.read_at(7 * 512, &mut block).unwrap();
        outcomes.insert(version_of(&block));
    }
    assert_eq!(outcomes, BTreeSet::from([Some(0), Some(1)]));
}
