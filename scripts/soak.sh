#!/usr/bin/env bash
# Long, seeded campaigns: what the test run does a slice of, at full length, in release.
#
#   scripts/soak.sh NAME [--runs N] [--seed S]
#
# NAME:
#   faults         mixed operations against the embedded controller with seeded faults (10,000 runs)
#   lifecycle      volumes, Ios, files and views that are opened, used, dropped and leaked in any order by 4 threads, with
#                  faults and callbacks that panic (10,000 runs)
#   hostile-image  flipped bits, truncated images, looping trees, absurd sizes (20,000 flips)
#   overwrite      random direct overwrites of each block size, with small and large commands, verified by a
#                  kernel mount (100,000 writes on each; root)
#   cache-model    mixed operations on the page cache, with power cuts, against a model (1,000,000 operations by
#                  1 thread, 1,000,000 by 4, half of these with files written back in the background)
#   fsx            fsx's operations against what the file must hold: on a file of an XFS disk, direct, through the page
#                  cache, and both (3,400,000 operations each; root), and on the page cache alone (1,000,000)
#   log-lives      disks that live through mounts, power cuts and xfsprogs' tools; what the kernel, xfs_logprint and
#                  xtent call a clean log, also with broken blocks in it (100 disks, 7,200 broken logs; root)
#   replay         logs that the kernel left dirty on disks of many forms, replayed beside the kernel, sector by sector, and
#                  what they leave open, finished beside the kernel; replays that are cut off (100 disks, 5 logs each; root)
#   change         changes of inodes on disks of many forms, replayed and mounted by the kernel (50 disks; root)
#   grow           random writes, direct and through the page cache, and changes of length and space, against a model, after
#                  the kernel's replay and in place (60 disks for each way; root)
#   crash          losses of power at every command of workloads, replayed by xtent and the kernel (100 disks; root)
#   enospc         operations that find no space, at any point where they ask for it, and threads on full disks
#                  (10,000 runs of each; root)
#   fields         superblocks and inodes with one field changed, judged by the kernel (all of them; root)
#   check          disks with one field changed, judged by xfs_repair and the checker (10,000 on each of 4 disks; root)
#   vfio-cycles    opening, using and closing PCI controllers, in the virtual machine (1,000 cycles)
#   fuzz           every fuzz target for --runs seconds each (900; needs nightly Rust and cargo-fuzz)
#
# Figures of the last full runs are in docs/soak.md.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

usage() { sed -n '2,32s/^# \{0,1\}//p' "$0"; }
[ $# -gt 0 ] || { usage >&2; exit 2; }
name=$1
shift
runs=''
seed=1
while [ $# -gt 0 ]; do
    case $1 in
    --runs | --seeds) runs=${2:?"$1 needs a number"} && shift 2 ;;
    --seed) seed=${2:?"$1 needs a number"} && shift 2 ;;
    *) die "unknown argument '$1'; see scripts/soak.sh" ;;
    esac
done
need_cargo

# campaign TEST DEFAULT_RUNS [FILTER...]: one integration test at length, or those in it whose names have FILTER.
campaign() {
    local test=$1 count=${runs:-$2}
    shift 2
    step "$name${1:+: $1}: $count runs from seed $seed"
    XTENT_RUNS=$count XTENT_SEED=$seed cargo test --release --locked --test "$test" -- --nocapture "$@"
}

case $name in
faults) campaign faults 10000 ;;
lifecycle) campaign lifecycle 10000 campaign:: ;;
hostile-image) campaign hostile_image 20000 ;;
fields) campaign xfs_fields 100000 ;;
check) campaign xfs_check 10000 ;;
change) campaign xfs_change 50 ;;
grow)
    export XTENT_OPERATIONS=${XTENT_OPERATIONS:-400}
    campaign grow 60
    ;;
crash)
    export XTENT_OPS=${XTENT_OPS:-60} XTENT_IMAGES=${XTENT_IMAGES:-4} XTENT_KERNEL=${XTENT_KERNEL:-8}
    campaign xfs_crash 100
    ;;
enospc)
    # Space is denied where the allocator has debug assertions.
    export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true
    campaign xfs_enospc 10000
    ;;
replay)
    campaign xfs_replay 100
    campaign xfs_intents 100
    campaign hostile_log 20000
    ;;
log-lives)
    campaign xfs_log 100 random_lives
    campaign xfs_log_write 100
    ;;
overwrite) campaign conformance 100000 overwrite:: ;;
cache-model)
    campaign cache_model 1000000 one_thread --exact
    campaign cache_model 1000000 four_threads --exact
    ;;
fsx)
    XTENT_FSX_RUNS=${runs:-3400000} campaign fsx 1
    XTENT_FSX_RUNS=${runs:-1000000} campaign cache_model 1 fsx
    ;;
vfio-cycles)
    count=${runs:-1000}
    step "$name: $count cycles"
    # A cycle takes half a second on a quiet machine.
    scripts/vm/test --verbose --env "XTENT_VFIO_CYCLES=$count" --timeout $((300 + count * 3)) cycles
    ;;
fuzz)
    need_packages clang:clang
    cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
    [ -e fuzz/corpus/disk.img ] || fuzz/seed.sh
    for target in $(cargo +nightly fuzz list); do
        step "fuzz $target for ${runs:-900} s"
        cargo +nightly fuzz run "$target" -- -max_total_time="${runs:-900}" -seed="$seed" -rss_limit_mb=2048 -timeout=2 \
            -print_final_stats=1
    done
    ;;
-h | --help) usage ;;
*) die "unknown campaign '$name'; see scripts/soak.sh --help" ;;
esac
