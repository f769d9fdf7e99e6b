#!/usr/bin/env bash
# Runs xtent and an installed SPDK against each other, over vfio-user, both ways. Without an SPDK it says SKIPPED.
#
#   scripts/spdk/test.sh        SPDK's identify, hello_world and perf drive `xtent serve vfio-user`; xtent drives
#                               SPDK's nvmf_tgt: commands, files, and the driver's conformance list
#
# SPDK is looked for in $SPDK_DIR (where it was built or installed), /opt/spdk, /usr/local and the PATH. Only its
# hello_world needs free 2 MiB hugepages.
#
# Functions here are called by trap and by name.
# shellcheck disable=SC2317,SC2329
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

# find_spdk PROGRAM: its path, or nothing.
find_spdk() {
    local dir
    for dir in ${SPDK_DIR:+"$SPDK_DIR/bin" "$SPDK_DIR/build/bin" "$SPDK_DIR/build/examples"} \
        /opt/spdk/bin /usr/local/bin; do
        if [ -x "$dir/$1" ]; then
            echo "$dir/$1"
            return
        fi
    done
    command -v "$1" || true
}

skip() {
    echo "SKIPPED: $*"
}

tgt=$(find_spdk nvmf_tgt)
identify=$(find_spdk spdk_nvme_identify)
perf=$(find_spdk spdk_nvme_perf)
hello=$(find_spdk hello_world)
if [ -z "$tgt$identify$perf" ]; then
    skip "no SPDK found: set SPDK_DIR to where it was built or installed (https://spdk.io/doc/getting_started.html)"
    exit 0
fi
need_cargo
cargo build --locked --quiet
cargo test --locked --quiet --test conformance --no-run
xtent=${CARGO_TARGET_DIR:-target}/debug/xtent

work=$(mktemp -d)
children=()
# Ends what is still running, each by its own id.
finish() {
    local pid
    for pid in "${children[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap finish EXIT

# wait_for SOCKET LOG: until somebody listens there.
wait_for() {
    local n
    for n in $(seq 300); do
        [ -S "$1" ] && return
        sleep 0.1
    done
    cat "$2" >&2
    die "nobody made $1 within $((n / 10)) s"
}

# conformance SOCKET: the driver's list on what listens there.
conformance() {
    XTENT_CONFORMANCE=vfio-user:$1 XTENT_SCALE=small timeout 600 \
        cargo test --locked --quiet --test conformance -- --test-threads=1
}

failed=0
# check NAME COMMAND...: runs it, a minute at most unless it is a function of this script, and says how it went.
check() {
    local name=$1
    shift
    [ "$(type -t "$1")" = function ] || set -- timeout 60 "$@"
    if "$@" >"$work/log" 2>&1; then
        echo "ok      $name"
    else
        failed=1
        echo "FAILED  $name"
        tail -n 20 "$work/log"
    fi
}

step "SPDK's host drives xtent's controller"
mkdir "$work/ours"
"$xtent" serve vfio-user "$work/ours" --media ram:1400M 2>"$work/serve.log" &
children+=($!)
wait_for "$work/ours/cntrl" "$work/serve.log"
trid="trtype:VFIOUSER traddr:$work/ours subnqn:nqn.2014-08.org.nvmexpress:xtent"
if [ -n "$identify" ]; then
    check identify "$identify" -r "$trid" -s 128 --no-huge
    grep -q 'xtent embedded controller' "$work/log" || die "identify shows another controller"
else
    skip "spdk_nvme_identify is not there"
fi
free=$(sed -n 's/^HugePages_Free: *//p' /proc/meminfo)
size=$(sed -n 's/^Hugepagesize: *\([0-9]*\) kB/\1/p' /proc/meminfo)
if [ -z "$hello" ]; then
    skip "hello_world is not there: it is only in SPDK's build directory (SPDK_DIR)"
elif [ "${free:-0}" -lt 64 ] || [ "$size" != 2048 ]; then
    skip "hello_world wants 64 free hugepages of 2 MiB: echo 128 > /proc/sys/vm/nr_hugepages"
else
    check hello_world "$hello" -r "$trid" -g
    grep -q 'Hello world!' "$work/log" || die "hello_world did not read what it wrote"
fi
if [ -n "$perf" ]; then
    for load in "randrw 4096 32" "randread 512 1" "randwrite 131072 8"; do
        read -r rw bytes depth <<<"$load"
        check "perf $load" "$perf" -r "$trid" -s 128 --no-huge -q "$depth" -o "$bytes" -w "$rw" -M 50 -t 3 -c 1
        sed -n 's/^Total *: */        IOPS, MiB\/s, mean, min, max us: /p' "$work/log"
    done
else
    skip "spdk_nvme_perf is not there"
fi
# The data are checked by our own driver, on the same controller.
check "the driver's list, after them" conformance "$work/ours/cntrl"

if [ -z "$tgt" ]; then
    skip "nvmf_tgt is not there"
    exit "$failed"
fi

step "xtent drives SPDK's controller"
truncate -s 1400M "$work/raw.img"
truncate -s 512M "$work/xfs.img"
head -c 32M /dev/urandom >"$work/data"
printf '/\n0 0\nd--755 0 0\ndata ---644 0 0 %s\n$\n' "$work/data" >"$work/proto"
if command -v mkfs.xfs >/dev/null; then
    mkfs.xfs -q -p "$work/proto" "$work/xfs.img"
fi
mkdir "$work/raw" "$work/xfs"
cat >"$work/config.json" <<EOF
{"subsystems": [
  {"subsystem": "bdev", "config": [
    {"method": "bdev_aio_create", "params": {"name": "raw", "filename": "$work/raw.img", "block_size": 512}},
    {"method": "bdev_aio_create", "params": {"name": "xfs", "filename": "$work/xfs.img", "block_size": 512}},
    {"method": "bdev_wait_for_examine"}]},
  {"subsystem": "nvmf", "config": [
    {"method": "nvmf_create_transport", "params": {"trtype": "VFIOUSER"}},
$(for name in raw xfs; do
    nqn=nqn.2019-07.io.spdk:$name
    printf '%s\n' \
        "    {\"method\": \"nvmf_create_subsystem\", \"params\": {\"nqn\": \"$nqn\", \"allow_any_host\": true}}," \
        "    {\"method\": \"nvmf_subsystem_add_ns\", \"params\": {\"nqn\": \"$nqn\", \"namespace\": {\"bdev_name\": \"$name\"}}}," \
        "    {\"method\": \"nvmf_subsystem_add_listener\", \"params\": {\"nqn\": \"$nqn\", \"listen_address\": {\"trtype\": \"VFIOUSER\", \"traddr\": \"$work/$name\"}}},"
done)
    {"method": "nvmf_set_crdt", "params": {"crdt1": 0, "crdt2": 0, "crdt3": 0}}]}]}
EOF
"$tgt" --no-huge -s 1024 -m 0x1 -c "$work/config.json" -r "$work/rpc.sock" >"$work/tgt.log" 2>&1 &
children+=($!)
wait_for "$work/xfs/cntrl" "$work/tgt.log"
check "the driver's list" conformance "$work/raw/cntrl"
if command -v mkfs.xfs >/dev/null; then
    check info "$xtent" info "vfio-user:$work/xfs"
    check ls "$xtent" ls -la "vfio-user:$work/xfs" /
    check cat sh -c "'$xtent' cat 'vfio-user:$work/xfs' /data | cmp - '$work/data'"
    check "bench, verified" "$xtent" bench "vfio-user:$work/xfs" /data --rw randwrite --bs 4k --iodepth 32 --verify
    check "bench by interrupts" "$xtent" bench "vfio-user:$work/xfs,wait=interrupt" /data --rw randread --bs 4k \
        --iodepth 4 --runtime 2
else
    skip "mkfs.xfs is not there: no test of files"
fi
exit "$failed"
