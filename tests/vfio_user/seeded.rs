//! Seeded campaigns against both sides at once: one message of a driver's life is spoilt.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xtent::internals::device::vfio_user::ServerOptions;

use super::proxy::{Packet, Proxy, Then, Way};
use super::{PLENTY, drive, serving_with};

fn number(name: &str, default: u64) -> u64 {
    let set = std::env::var(name).ok();
    set.map_or(default, |text| text.parse().unwrap())
}

/// Spoils a message in one of many ways.
fn spoil(rng: &mut StdRng, packet: &mut Packet) -> Then {
    let len = packet.bytes.len();
    match rng.random_range(0..14) {
        0 => return Then::Nothing,
        1 => return Then::Twice,
        2 => return Then::CutAfter(rng.random_range(0..len)),
        3 => packet.fds.clear(),
        4 => {
            let null = std::fs::File::open("/dev/null").unwrap();
            for _ in 0..rng.random_range(1..20) {
                packet.fds.push(null.try_clone().unwrap().into());
            }
        }
        5 => {
            let sizes = [0, 15, 16, 17, 4096, 1 << 20, 1 << 31, u32::MAX];
            packet.set(4, sizes[rng.random_range(0..sizes.len())]);
        }
        6 => {
            let at = rng.random_range(16..=len);
            let more: Vec<u8> = (0..rng.random_range(1..64)).map(|_| rng.random()).collect();
            packet.bytes.splice(at..at, more);
        }
        7 => {
            packet.bytes.truncate(rng.random_range(16..=len));
            let size = u32::try_from(packet.bytes.len()).unwrap();
            packet.set(4, size);
        }
        8 => {
            let fields = [0, 2, 8, 12];
            let at = fields[rng.random_range(0..fields.len())];
            packet.bytes[at] = rng.random();
        }
        _ => {
            let from = if rng.random_bool(0.8) {
                16.min(len - 1)
            } else {
                0
            };
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(from..len);
                packet.bytes[at] ^= 1 << rng.random_range(0..8);
            }
        }
    }
    Then::Pass
}

#[test]
fn whatever_is_spoilt_both_sides_end_and_the_server_serves_the_next() {
    let (first, runs) = (number("XTENT_SEED", 1), number("XTENT_RUNS", 60));
    let serving = serving_with(&ServerOptions {
        patience: Duration::from_millis(300),
        ..ServerOptions::default()
    });
    let mut survived = 0;
    for seed in first..first + runs {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        // Most messages are sent while a driver comes up.
        let mut left = rng.random_range(0..90);
        let to_client = rng.random_bool(0.5);
        let proxy = Proxy::start(&serving.socket(), move |way, packet| {
            if (way == Way::ToClient) != to_client || left < 0 {
                return Then::Pass;
            }
            left -= 1;
            if left < 0 {
                spoil(&mut rng, packet)
            } else {
                Then::Pass
            }
        });
        let timeout = Duration::from_millis(300);
        survived += u64::from(drive(&proxy.socket(), timeout, 1).is_ok());
        drop(proxy);
        drive(&serving.socket(), PLENTY, 2).unwrap_or_else(|e| panic!("after seed {seed}: {e}"));
    }
    println!("{survived} of {runs} drivers did not mind");
    assert!(survived < runs, "nothing was ever spoilt");
}
