//! The campaign: seeded runs of 4 threads over one or two disks, and what they leave behind.

use std::sync::Barrier;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtent::internals::device::emu::{Fault, FaultPlan, FaultRule, Scope};
use xtent::target::TargetOptions;
use xtent::volume::MountOptions;

use super::common;
use super::disk::{Disk, Seat};
use super::model::{Model, SECTOR, THREADS};
use super::stand::{alone, options};
use super::watch::{Level, Watched};
use super::worker::{Models, Unlucky, Worker};

/// Runs before the process has what it keeps for good, or a tenth of them.
const WARM_UP: u64 = 20;

#[test]
fn nothing_hangs_nothing_is_left_and_every_byte_is_right() {
    let Some(_alone) = alone() else {
        return;
    };
    let runs = common::number("XTENT_RUNS", common::scaled(120, 20));
    let first = common::number("XTENT_SEED", 1);
    silence_callbacks();
    let mut before = None;
    let (mut flaky, mut gone) = (0, 0);
    for seed in first..first + runs {
        let _watched = Watched::new(seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let disks: Vec<_> = (0..rng.random_range(1..=2))
            .map(|_| Disk::new(plan(seed, &mut rng), options_of(&mut rng)))
            .collect();
        flaky += u64::from(disks.iter().any(|disk| disk.is_flaky));
        gone += u64::from(run(seed, &disks));
        drop(disks);
        if (seed + 1 - first).is_multiple_of(500) {
            println!("{} runs", seed + 1 - first);
        }
        if seed + 1 == first + WARM_UP.max(runs / 10).min(runs) {
            before = Some(Level::now());
        }
        if let Some(before) = &before {
            Level::now().assert_no_more_than(before);
        }
    }
    println!(
        "{runs} runs from seed {first}: {flaky} with faults, {gone} with a device that was lost; {:?}, before: {before:?}",
        Level::now()
    );
}

/// Callbacks panic by the thousand.
fn silence_callbacks() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.payload().is::<Unlucky>() {
            hook(info);
        }
    }));
}

fn plan(seed: u64, rng: &mut StdRng) -> FaultPlan {
    match rng.random_range(0..10) {
        0..3 => FaultPlan::default(),
        3..9 => {
            let rate = [200, 1_000, 5_000][rng.random_range(0..3)];
            FaultPlan::flaky(seed, rate).rate(Scope::Io, Fault::WrongPhase, rate / 5)
        }
        // The device goes for good in the middle.
        _ => {
            let rule = FaultRule::new(Fault::Gone).on(Scope::Io);
            FaultPlan::default().rule(rule.after(rng.random_range(0..400)))
        }
    }
}

fn options_of(rng: &mut StdRng) -> (TargetOptions, MountOptions) {
    let (target, mut mount) = options();
    if rng.random_bool(0.3) {
        mount = mount
            .writeback_interval(Duration::from_millis(1))
            .dirty_expire(Duration::from_millis(rng.random_range(0..3)));
    }
    (
        target.queue_depth([2, 8, 32][rng.random_range(0..3)]),
        mount,
    )
}

/// One run; whether a device was lost.
fn run(seed: u64, disks: &[Disk]) -> bool {
    let pause = Barrier::new(THREADS + 1);
    let mut ends = Vec::new();
    let models: Vec<Models> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let pause = &pause;
                let worker = move || Worker::new(disks, thread, seed).run(pause);
                scope.spawn(move || EndsAll::run(worker))
            })
            .collect();
        pause.wait();
        for disk in disks {
            // Closing succeeds from here on.
            disk.device.set_faults(FaultPlan::none(seed));
            ends.push(disk.is_alive());
            disk.unmount();
        }
        pause.wait();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a thread panicked"))
            .collect()
    });
    let mut is_gone = false;
    for (number, &(closed_well, generation)) in ends.iter().enumerate() {
        let Ok(mut seat) = Seat::take(disks, number) else {
            assert!(disks[number].is_flaky, "it cannot be opened any more");
            is_gone = true;
            continue;
        };
        disks[number].unmount();
        is_gone |= check(&mut seat, &models, number, closed_well, generation);
    }
    is_gone
}

/// Ends the process when a thread panics, for others would wait for it: the seed is printed by
/// then.
struct EndsAll;

impl EndsAll {
    fn run<T>(work: impl FnOnce() -> T) -> T {
        let guard = Self;
        let result = work();
        std::mem::forget(guard);
        result
    }
}

impl Drop for EndsAll {
    fn drop(&mut self) {
        super::watch::say_seed();
        std::process::abort();
    }
}

/// What the disk holds, against what each thread knows; whether the device was lost.
fn check(
    seat: &mut Seat<'_>,
    models: &[Models],
    number: usize,
    closed_well: bool,
    generation: u64,
) -> bool {
    for models in models {
        let (model, known) = &models[number];
        let mut model = model.clone();
        if !closed_well || *known != generation {
            model.closed();
        }
        for place in Model::places() {
            let mut bytes = [0xee; SECTOR];
            let offset = place.offset(model.thread);
            match seat.direct[place.file].read_at(&mut seat.io, &mut bytes, offset) {
                Ok(_) => model.check(place, &bytes, "on the device"),
                Err(error) => {
                    assert!(seat.disk.is_flaky, "{error}");
                    return true;
                }
            }
        }
    }
    false
}
