//! The workloads of a comparison.

use std::time::Duration;

use xtent::volume::VolumeInfo;

use super::compare_plan::{Plan, WorkloadSet};
use super::layout::Layout;
use super::mix::mix;
use super::workload::{Measure, Rw, Workload, WriteSync};

const K: usize = 1024;
/// Extents of a fragmented file, and those of the workload on it at once.
const FRAGMENTS: u64 = 1024;

/// Bytes of the files of a comparison.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileSizes {
    pub(crate) read_bytes: u64,
    pub(crate) write_bytes: u64,
}

/// The sets of a plan, without what depends on its files.
fn of_sets(plan: &Plan, fs_block_bytes: u64, size_bytes: u64) -> Vec<Workload> {
    let mut all = Vec::new();
    if plan.has(WorkloadSet::Overwrite) {
        all.extend(if plan.buffered { buffered() } else { direct() });
    }
    if plan.has(WorkloadSet::Sync) {
        all.extend(synced());
    }
    if plan.has(WorkloadSet::Grow) {
        all.extend(growing(fs_block_bytes, size_bytes));
    }
    all
}

/// The number of workloads of a plan.
pub(crate) fn count(plan: &Plan) -> usize {
    of_sets(plan, 1, 1).len()
}

/// The workloads of a plan.
pub(crate) fn workloads(plan: &Plan, sizes: FileSizes, volume: &VolumeInfo) -> Vec<Workload> {
    let fs_block_bytes = volume.filesystem.block_bytes.into();
    let mut all = of_sets(plan, fs_block_bytes, sizes.write_bytes);
    for (index, workload) in all.iter_mut().enumerate() {
        if workload.size_bytes == 0 {
            workload.size_bytes = match workload.rw.writes() {
                true => sizes.write_bytes,
                false => sizes.read_bytes,
            };
        }
        if workload.sync_every() == 0 {
            workload.fsync = plan.fsync;
        }
        // A file that is laid out is filled once.
        let is_once = !matches!(workload.layout, Layout::Found | Layout::Fragmented(_));
        *workload = Workload {
            rwmixread: 70,
            runtime: Some(plan.runtime),
            time_based: !is_once,
            ramp_time: (!is_once).then_some(plan.ramp_time),
            seed: mix(plan.seed ^ mix(index as u64)),
            buffered: plan.buffered || workload.buffered,
            measure: Measure {
                interval: (plan.runtime / 40).max(Duration::from_millis(10)),
                ..Measure::default()
            },
            ..std::mem::take(workload)
        };
    }
    all
}

fn workload(name: &str, rw: Rw, block_bytes: usize, iodepth: usize) -> Workload {
    Workload {
        name: name.into(),
        rw,
        block_bytes,
        iodepth,
        ..Workload::default()
    }
}

/// The usual figures of storage.
fn direct() -> Vec<Workload> {
    vec![
        workload("4k random read, depth 1", Rw::Randread, 4 * K, 1),
        workload("4k random read, depth 32", Rw::Randread, 4 * K, 32),
        workload("4k random write, depth 1", Rw::Randwrite, 4 * K, 1),
        workload("4k random write, depth 32", Rw::Randwrite, 4 * K, 32),
        workload("4k random 70/30 mix, depth 32", Rw::Randrw, 4 * K, 32),
        workload("128k sequential read, depth 8", Rw::Read, 128 * K, 8),
        workload("128k sequential write, depth 8", Rw::Write, 128 * K, 8),
    ]
}

/// Those of a page cache.
fn buffered() -> Vec<Workload> {
    vec![
        workload("64 bytes random read", Rw::Randread, 64, 1),
        workload("4k random read", Rw::Randread, 4 * K, 1),
        workload("4k random write", Rw::Randwrite, 4 * K, 1),
        workload("777 bytes random write", Rw::Randwrite, 777, 1),
        workload("4k random 70/30 mix", Rw::Randrw, 4 * K, 1),
        workload("1m sequential read", Rw::Read, 1024 * K, 1),
        workload("1m sequential write", Rw::Write, 1024 * K, 1),
    ]
}

/// Overwrites where the caller waits for the medium, and with `fsync` for the log.
fn synced() -> Vec<Workload> {
    let fsync = |name, numjobs| Workload {
        numjobs,
        fsync: 1,
        touch: true,
        ..workload(name, Rw::Randwrite, 4 * K, 1)
    };
    vec![
        Workload {
            sync: WriteSync::Dsync,
            ..workload("4k random write, O_DSYNC", Rw::Randwrite, 4 * K, 1)
        },
        fsync("4k write, touch, fsync", 1),
        fsync("4k write, touch, fsync, 4 jobs", 4),
    ]
}

/// Writes that the kernel sleeps for: they allocate, convert or go to several extents.
fn growing(fs_block_bytes: u64, size_bytes: u64) -> Vec<Workload> {
    let extent_bytes = fs_block_bytes.max(4 * K as u64);
    let two_extents = usize::try_from(2 * extent_bytes).unwrap_or(8 * K);
    let laid_out = |layout, workload| Workload {
        layout,
        size_bytes,
        ..workload
    };
    let append = |name| workload(name, Rw::Write, 4 * K, 1);
    let fill = |name| workload(name, Rw::Write, 4 * K, 8);
    let dsync = Workload {
        sync: WriteSync::Dsync,
        ..append("4k append, O_DSYNC")
    };
    let across = workload(
        "write to two extents, depth 8",
        Rw::Randwrite,
        two_extents,
        8,
    );
    let buffered = Workload {
        buffered: true,
        fsync: 16,
        ..append("4k buffered append, fsync/16")
    };
    vec![
        laid_out(Layout::Empty, dsync),
        laid_out(Layout::Sparse, fill("4k fill of a hole, depth 8")),
        laid_out(Layout::Preallocated, fill("4k fill, preallocated, depth 8")),
        Workload {
            layout: Layout::Fragmented(extent_bytes),
            size_bytes: FRAGMENTS * extent_bytes,
            ..across
        },
        // The last: files that were opened buffered are not laid out anew.
        laid_out(Layout::Empty, buffered),
    ]
}
