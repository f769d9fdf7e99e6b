//! What an operation costs the host, in instructions: `cargo bench --bench cost` prints a line for
//! each case, `NAME INSTRUCTIONS_PER_OPERATION`. `cargo bench --bench cost -- NAME..` runs the
//! named cases only; those that take minutes (`file_append_4k_few_extents` and `_many_extents`,
//! which are compared) run only when they are named. A case that costs more than its bound is told,
//! and one that costs a tenth more fails the run, after all have been counted: instructions do not
//! depend on how busy the machine is.
//!
//! The program runs itself under callgrind, which counts inside of the functions called
//! `host_side_*` and nowhere else: the embedded controller is stepped outside of them, and is not
//! counted. Each case runs twice, with N and with 2N operations; the difference has no start-up in
//! it.
//!
//! To add a case, write a function that does `operations` of them, and name it in [`CASES`] with
//! its bound. Callbacks that are passed into `host_side_*` come from a function of another name
//! ([`count_ends`]): callgrind would take a closure's name for its function's, and stop counting
//! there.
#[path = "cost/append.rs"]
mod append;
#[path = "cost/cache.rs"]
mod cache;
#[path = "cost/file.rs"]
mod file;
#[path = "cost/image.rs"]
mod image;

use std::process::{Command, ExitCode};
use std::sync::Arc;

use xtent::internals::block::{Chain, ChainFlags, Completion, Op, Queue};
use xtent::internals::device::emu::{EmuConfig, EmuDevice, Medium, Mode};
use xtent::internals::mem::{Heap, HeapConfig, HugePages, Lent, Segment};
use xtent::internals::nvme::{Controller, ControllerOptions, QueueOptions, QueuePair};
use xtent::internals::units::Lba;

/// A case does as many operations as it is told.
type Case = fn(operations: usize) -> xtent::Result<()>;

const CASES: &[(&str, f64, Case)] = &[
    ("raw_read_4k_qd1", RAW, |n| raw(Op::Read, 1, n)),
    ("raw_read_4k_qd32", RAW, |n| raw(Op::Read, 32, n)),
    ("raw_write_4k_qd32", RAW, |n| raw(Op::Write, 32, n)),
    ("file_read_4k_qd1", FILE_READ_1, |n| {
        file::file(file::Way::Read, 1, n)
    }),
    ("file_read_4k_qd32", FILE_READ_32, |n| {
        file::file(file::Way::Read, 32, n)
    }),
    ("file_read_4k_64_files", FILE_READ_MANY, |n| {
        file::by_handles(file::Way::Read, 32, 64, n)
    }),
    ("file_write_4k_qd1", FILE_WRITE_1, |n| {
        file::file(file::Way::Write, 1, n)
    }),
    ("file_write_4k_qd32", FILE_WRITE_32, |n| {
        file::file(file::Way::Write, 32, n)
    }),
    ("file_append_4k", FILE_APPEND, |n| {
        file::file(file::Way::Append, 1, n)
    }),
    (
        "file_append_4k_few_extents",
        2.0 * FILE_APPEND,
        append::append,
    ),
    (
        "file_append_4k_many_extents",
        2.0 * FILE_APPEND,
        append::append,
    ),
    ("file_buffered_read_64", FILE_BUFFERED, file::buffered),
    ("cache_read_64", CACHE_READ, cache::read),
    ("cache_write_64", CACHE_WRITE, cache::write),
    ("cache_view_4k", CACHE_VIEW, cache::view),
    ("cache_read_4k_without_copy", CACHE_HIT, cache::read_page),
    (
        "cache_write_4k_without_copy",
        CACHE_OVERWRITE,
        cache::write_page,
    ),
];

/// How far above its bound a case may be before the run fails: how the compiler divides a crate,
/// and with it what it inlines, depends on where the crate lies.
const SLACK: f64 = 1.1;

/// The most an operation on the raw queue may cost, in instructions.
const RAW: f64 = 200.0;

/// As [`RAW`], through a file, the lookup of its mapping included. At a depth of 1 there are two
/// polls.
const FILE_READ_1: f64 = 450.0;

/// As [`FILE_READ_1`], at a depth of 32.
const FILE_READ_32: f64 = 380.0;

/// As [`FILE_READ_32`], with another file each time: a search for it, and for the version of its
/// mappings.
const FILE_READ_MANY: f64 = 410.0;

/// As [`FILE_READ_1`], for an overwrite, which looks for cached pages when it has ended, too.
const FILE_WRITE_1: f64 = 490.0;

/// As [`FILE_WRITE_1`], at a depth of 32.
const FILE_WRITE_32: f64 = 416.0;

/// As [`FILE_WRITE_1`], past the end of the file into blocks that are allocated there: a
/// transaction in memory, without a write of the log.
const FILE_APPEND: f64 = 3000.0;

/// As [`CACHE_READ`], by a file of a volume.
const FILE_BUFFERED: f64 = 190.0;

/// A cached read of 64 bytes, the call of memcpy included.
const CACHE_READ: f64 = 117.0;

/// As [`CACHE_READ`], for an overwrite.
const CACHE_WRITE: f64 = 145.0;

/// A hit of 4 KiB without the copy.
const CACHE_HIT: f64 = 106.0;

/// A view of a cached page, taken and dropped.
const CACHE_VIEW: f64 = 113.0;

/// As [`CACHE_HIT`], for an overwrite. The prefetch of the lines that memcpy writes to belongs to
/// the copy.
const CACHE_OVERWRITE: f64 = 116.0;

/// N: a multiple of every depth above.
const OPERATIONS: usize = 32 * 256;

/// What tells the program that it is the one under callgrind: `CASE OPERATIONS`.
const CHILD: &str = "XTENT_COST_CHILD";

const BLOCK_BYTES: usize = 4096;

fn main() -> ExitCode {
    if let Ok(job) = std::env::var(CHILD) {
        return child(&job);
    }
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    let benching = names.iter().any(|name| name == "--bench");
    names.retain(|name| !name.starts_with('-'));
    if !benching {
        println!(
            "SKIPPED: instruction counts need an optimised build; run `cargo bench --bench cost`"
        );
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIPPED: valgrind is not installed (apt install valgrind, dnf install valgrind)");
        return ExitCode::SUCCESS;
    }
    let mut too_many = false;
    let mut appends = Vec::new();
    for (name, bound, _) in CASES {
        let is_named = names.iter().any(|wanted| wanted == name);
        if !is_named && (!names.is_empty() || name.ends_with("_extents")) {
            continue;
        }
        if name.starts_with("file_") && !image::is_possible() {
            println!("SKIPPED: {name} needs mkfs.xfs (apt install xfsprogs, dnf install xfsprogs)");
            continue;
        }
        match measure(name) {
            Ok(instructions) => {
                println!("{name} {instructions:.1}");
                if instructions > *bound {
                    eprintln!("{name}: more than {bound}");
                }
                too_many |= instructions > bound * SLACK;
                if name.ends_with("_extents") {
                    appends.push(instructions);
                }
            }
            Err(why) => {
                eprintln!("{name}: {why}");
                return ExitCode::FAILURE;
            }
        }
    }
    if let [few, many] = appends[..] {
        println!(
            "file_append_4k_many_extents / file_append_4k {:.2}",
            many / few
        );
        too_many |= many > 2.0 * few;
    }
    if too_many {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn measure(name: &str) -> Result<f64, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let image = match name.ends_with("_extents") {
        true => Some(append::prepare(name, dir.path()).map_err(|e| e.to_string())?),
        false => None,
    };
    let once = count(name, OPERATIONS, image.as_ref())?;
    let twice = count(name, 2 * OPERATIONS, image.as_ref())?;
    let more = twice
        .checked_sub(once)
        .filter(|&more| more > 0)
        .ok_or_else(|| format!("{once} instructions for N operations, {twice} for 2N"))?;
    Ok(more as f64 / OPERATIONS as f64)
}

/// Instructions inside of `host_side_*` while a case does `operations`.
fn count(
    name: &str,
    operations: usize,
    image: Option<&(&'static str, String)>,
) -> Result<u64, String> {
    let this = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--toggle-collect=*host_side_*"]);
    if name.ends_with("_without_copy") {
        // Off on the way into the copy, on again behind it: memcpy, or what calls it.
        let copy = if name.contains("write") {
            "*copy_in*"
        } else {
            "__mem*_unaligned*"
        };
        command.arg(format!("--toggle-collect={copy}"));
    }
    let output = command
        .arg("--callgrind-out-file=/dev/null")
        .arg(this)
        .env(CHILD, format!("{name} {operations}"))
        .envs(image.map(|(name, image)| (name, image)))
        .output()
        .map_err(|e| format!("valgrind: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("failed under valgrind:\n{said}"));
    }
    said.lines()
        .find_map(|line| line.split_once("Collected :"))
        .and_then(|(_, number)| number.trim().parse().ok())
        .ok_or_else(|| format!("valgrind did not say what it counted:\n{said}"))
}

fn child(job: &str) -> ExitCode {
    let (name, operations) = job.split_once(' ').unwrap_or((job, ""));
    let case = CASES.iter().find(|(known, ..)| *known == name);
    let (Some((.., case)), Ok(operations)) = (case, operations.parse()) else {
        eprintln!("{CHILD}={job}: no such case");
        return ExitCode::FAILURE;
    };
    match case(operations) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn heap() -> Heap {
    Heap::new(HeapConfig {
        arena_bytes: 8 << 20,
        huge_pages: HugePages::Never,
        ..HeapConfig::default()
    })
}

/// A stepped embedded controller over 16 MiB of memory.
fn stepped() -> xtent::Result<Arc<EmuDevice>> {
    EmuDevice::start(EmuConfig {
        medium: Medium::memory(16 << 20),
        lba_bytes: 4096,
        mode: Mode::Stepped,
        ..EmuConfig::default()
    })
}

/// Reads or writes of 4 KiB on a queue pair, in batches of `depth`.
fn raw(op: Op, depth: usize, operations: usize) -> xtent::Result<()> {
    let device = stepped()?;
    let heap = heap();
    let controller = Controller::open(device.clone(), &heap, ControllerOptions::default())?;
    let mut pair = controller.queue(
        1,
        QueueOptions {
            depth,
            ..QueueOptions::default()
        },
    )?;
    let memory = heap.alloc(depth * BLOCK_BYTES, BLOCK_BYTES)?.lend();
    let segments = pieces(&memory, depth);
    let mut ended = 0;
    for batch in 0..operations / depth {
        let first = (batch * depth) as u64 % 2048;
        for (n, segment) in segments.iter().enumerate() {
            let chain = Chain {
                op,
                flags: ChainFlags::empty(),
                lba: Lba(first + n as u64),
                blocks: 1,
                segments: std::slice::from_ref(segment),
                token: n as u64,
            };
            assert!(host_side_submit(&mut pair, &chain));
        }
        host_side_poll(&mut pair, count_ends(&mut ended));
        device.step(depth);
        host_side_poll(&mut pair, count_ends(&mut ended));
    }
    assert_eq!(ended, operations, "every operation ended well");
    Ok(())
}

fn pieces(memory: &Lent, count: usize) -> Vec<Segment> {
    (0..count)
        .filter_map(|n| memory.segment(n * BLOCK_BYTES..(n + 1) * BLOCK_BYTES))
        .collect()
}

fn count_ends(ended: &mut usize) -> impl FnMut(Completion) {
    |completion| *ended += usize::from(completion.status.is_success())
}

#[inline(never)]
fn host_side_submit(pair: &mut QueuePair, chain: &Chain<'_>) -> bool {
    pair.submit(chain).is_ok()
}

#[inline(never)]
fn host_side_poll(pair: &mut QueuePair, mut done: impl FnMut(Completion)) {
    pair.poll(usize::MAX, &mut done);
}
