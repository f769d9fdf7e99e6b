//! The kernel and xtent take turns on one disk: random overwrites by both, all bytes equal to a
//! model each time.
//!
//! `XTENT_ALTERNATE`: the controllers, which the kernel has at first; their content is erased.
//! `XTENT_ROUNDS` says how often each side has its turn (20), `XTENT_SEED` the seed. Disks take
//! their turns at the same time.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use xtent::target::TargetOptions;
use xtent::volume::{MountOptions, OpenOptions, Volume};

use super::rig::{Mounted, alone, disk_of, run, run_when_free, seed, told};

const KERNEL_WRITES: usize = 60;
const OUR_WRITES: usize = 150;
const MOST_BYTES: usize = 64 << 10;

/// Files of one extent, of hundreds, and with a last block that is not full; what they hold.
struct Model {
    seed: u64,
    rng: SmallRng,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Model {
    fn make(disk: &str, seed: u64) -> Self {
        run("mkfs.xfs", &["-q", "-f", disk]);
        let mut rng = SmallRng::seed_from_u64(seed);
        let sizes = [
            ("plain", 3 << 20),
            ("shredded", 1 << 20),
            ("too", 1 << 20),
            ("odd", 700_001),
        ];
        let mut bytes = |len| {
            let mut bytes = vec![0; len];
            rng.fill(&mut bytes[..]);
            bytes
        };
        let files: Vec<_> = sizes.map(|(name, len)| (name, bytes(len))).into();
        let mount = Mounted::new(disk, "defaults");
        let mut open: Vec<_> = files
            .iter()
            .map(|(name, _)| File::create_new(mount.path().join(name)).unwrap())
            .collect();
        // A block in turn, each on the disk before the next: no extent is longer than that.
        for at in (0..1 << 20).step_by(4096) {
            for n in [1, 2] {
                open[n].write_all(&files[n].1[at..at + 4096]).unwrap();
                open[n].sync_data().unwrap();
            }
        }
        for n in [0, 3] {
            open[n].write_all(&files[n].1).unwrap();
        }
        Self { seed, rng, files }
    }

    /// A file, and where in it something is written; in whole `grain_bytes`.
    fn pick(&mut self, grain_bytes: usize) -> (usize, usize, usize) {
        let file = self.rng.random_range(0..self.files.len());
        let grains = self.files[file].1.len() / grain_bytes;
        let most = (MOST_BYTES / grain_bytes).min(grains);
        let len = match self.rng.random_range(0..3) {
            0 => self.rng.random_range(1..=most),
            _ => self.rng.random_range(1..=(8192 / grain_bytes).max(1)),
        };
        let at = self.rng.random_range(0..=grains - len);
        (file, at * grain_bytes, len * grain_bytes)
    }

    fn check(&self, who: &str, round: usize, file: usize, found: &[u8]) {
        let (name, model) = &self.files[file];
        let wrong = found.iter().zip(model).position(|(a, b)| a != b);
        assert_eq!(
            (found.len(), wrong),
            (model.len(), None),
            "seed {}, round {round}: {name} as {who} reads it: its length, and the first byte that differs",
            self.seed
        );
    }

    fn kernel_turn(&mut self, disk: &str, round: usize) {
        run("xfs_repair", &["-n", disk]);
        let mount = Mounted::new(disk, "defaults");
        let open = |name: &str| {
            let mut options = File::options();
            options
                .read(true)
                .write(true)
                .open(mount.path().join(name))
                .unwrap()
        };
        let files: Vec<_> = self.files.iter().map(|(name, _)| open(name)).collect();
        for (n, file) in files.iter().enumerate() {
            let mut found = vec![0; self.files[n].1.len()];
            file.read_exact_at(&mut found, 0).unwrap();
            self.check("the kernel", round, n, &found);
        }
        for _ in 0..KERNEL_WRITES {
            let (n, at, len) = self.pick(1);
            let range = at..at + len;
            self.rng.fill(&mut self.files[n].1[range.clone()]);
            files[n]
                .write_all_at(&self.files[n].1[range], at as u64)
                .unwrap();
        }
        drop(files);
        drop(mount);
        run("xfs_repair", &["-n", disk]);
    }

    fn our_turn(&mut self, address: &str, round: usize) {
        let options = TargetOptions::new().memory_limit_bytes(16 << 20);
        let volume =
            Volume::open_with(&format!("pci:{address}"), &options, &MountOptions::new()).unwrap();
        let mut io = volume.io().unwrap();
        let options = OpenOptions::new().read(true).write(true);
        let names: Vec<_> = self.files.iter().map(|(name, _)| *name).collect();
        let files: Vec<_> = names
            .iter()
            .map(|name| options.open(&volume, &mut io, *name).unwrap())
            .collect();
        for (n, file) in files.iter().enumerate() {
            let mut found = vec![0; self.files[n].1.len()];
            assert_eq!(file.read_at(&mut io, &mut found, 0).unwrap(), found.len());
            self.check("xtent", round, n, &found);
        }
        for _ in 0..OUR_WRITES {
            let (n, at, len) = self.pick(io.block_bytes() as usize);
            let mut buf = io.alloc(len).unwrap();
            self.rng.fill(&mut buf[..]);
            self.files[n].1[at..at + len].copy_from_slice(&buf);
            assert_eq!(
                files[n].write_dma_at(&mut io, &mut buf, at as u64).unwrap(),
                len
            );
        }
        files[0].sync_all(&mut io).unwrap();
    }
}

fn take_turns(address: &str, seed: u64, rounds: usize) {
    let mut model = Model::make(&disk_of(address), seed);
    for round in 0..rounds {
        run(
            "sh",
            &["./vfio-setup.sh", "bind", "--force", address, address],
        );
        model.our_turn(address, round);
        run_when_free("sh", &["./vfio-setup.sh", "reset", address]);
        model.kernel_turn(&disk_of(address), round);
    }
    println!("{address}: {rounds} rounds");
}

#[test]
fn the_kernel_and_xtent_take_turns() {
    let Some(addresses) = told("XTENT_ALTERNATE") else {
        return;
    };
    let (_alone, seed) = (alone(), seed());
    let rounds = std::env::var("XTENT_ROUNDS").map_or(20, |text| text.parse().unwrap());
    std::thread::scope(|scope| {
        for (seed, address) in (seed..).zip(&addresses) {
            scope.spawn(move || take_turns(address, seed, rounds));
        }
    });
}
