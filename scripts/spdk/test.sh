#!/usr/bin/env bash
# Tests xtent with an installed SPDK, both ways: SPDK's driver as an engine of xtent's (the feature `spdk`) against
# SPDK's own target, over NVMe/TCP on loopback and over vfio-user; SPDK's programs against `xtent serve vfio-user`;
# and xtent's own driver against SPDK's target. Needs no disk. Without an SPDK it says SKIPPED.
#
#   scripts/spdk/test.sh [PART...]      parts are missing, engine, host and target; all of them when none is named
#
#   missing   what the feature says without SPDK, or with one that is too old (needs none)
#   engine    bindings, lints, linking, the engine's tests, the conformance list through it
#   host      SPDK's identify, hello_world and perf drive xtent's controller; then xtent's driver, for the data
#   target    xtent's driver on SPDK's nvmf_tgt: the conformance list, files
#
# SPDK is looked for in $SPDK_DIR (where it was built or installed), by pkg-config, in /opt/spdk, /usr/local and the
# PATH. Its hello_world needs hugepages, which are reserved for it; the targets need root.
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

parts=("$@")
for part in "${parts[@]}"; do
    case $part in
    missing | engine | host | target) ;;
    -h | --help)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$0" | sed '/^Functions/,$d'
        exit 0
        ;;
    *) die "there is no part '$part'; see --help" ;;
    esac
done
# wanted PART: whether it is to be run.
wanted() {
    [ ${#parts[@]} -eq 0 ] || [[ " ${parts[*]} " = *" $1 "* ]]
}

tgt=$(find_spdk nvmf_tgt)
identify=$(find_spdk spdk_nvme_identify)
perf=$(find_spdk spdk_nvme_perf)
hello=$(find_spdk hello_world)
for dir in ${SPDK_DIR:+"$SPDK_DIR/lib" "$SPDK_DIR/build/lib"} /opt/spdk/lib /usr/local/lib; do
    if ! pkg-config --exists spdk_nvme 2>/dev/null && [ -e "$dir/pkgconfig/spdk_nvme.pc" ]; then
        export PKG_CONFIG_PATH=$dir/pkgconfig${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
    fi
done
need_cargo
target_dir=${CARGO_TARGET_DIR:-$PWD/target}
xtent=$target_dir/debug/xtent

work=$(mktemp -d)
children=()
# Ends the processes that still run, each by its own id.
end_children() {
    local pid
    for pid in "${children[@]}"; do
        end_process "$pid"
    done
    children=()
}
finish() {
    end_children
    return_hugepages
    rm -rf "$work"
}
trap finish EXIT

# wait_for SOCKET LOG: until a process listens there.
wait_for() {
    local n
    for n in $(seq 300); do
        [ -S "$1" ] && return
        sleep 0.1
    done
    cat "$2" >&2
    die "$1 did not appear within $((n / 10)) s"
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

# says LOG WORDS: fails unless the log has them.
says() {
    grep -q -- "$2" "$1" || {
        cat "$1" >&2
        die "this does not say: $2"
    }
}

test_missing() {
    step "without SPDK the build error names the missing package"
    if PKG_CONFIG_PATH='' PKG_CONFIG_LIBDIR="$work" cargo check --locked --features spdk >"$work/log" 2>&1; then
        die "--features spdk was built without SPDK"
    fi
    says "$work/log" "does not know .spdk_nvme."
    says "$work/log" "v24.09 or newer"
    says "$work/log" "https://spdk.io/doc/getting_started.html"

    step "an SPDK that is too old is refused by its version"
    mkdir -p "$work/old/include/spdk"
    local name
    for name in spdk_nvme spdk_env_dpdk spdk_syslibs; do
        printf 'Name: %s\nDescription: old\nVersion: 1.0\nLibs:\nCflags: -I%s\n' \
            "$name" "$work/old/include" >"$work/old/$name.pc"
    done
    printf '#define SPDK_VERSION_MAJOR 23\n#define SPDK_VERSION_MINOR 5\n' >"$work/old/include/spdk/version.h"
    if PKG_CONFIG_PATH="$work/old" PKG_CONFIG_LIBDIR="$work/old" \
        cargo check --locked --features spdk >"$work/log" 2>&1; then
        die "--features spdk was built with an SPDK that is too old"
    fi
    says "$work/log" "SPDK v23.05 was found, which is too old"
}

# A package of its own that depends on xtent, with the same profile, so that little is compiled again.
test_dependent() {
    step "a program that depends on xtent is linked with SPDK"
    mkdir -p "$work/dependent/src"
    cat >"$work/dependent/Cargo.toml" <<END
[package]
name = "dependent"
version = "0.1.0"
edition = "2024"

[workspace]

[dependencies]
xtent = { path = "$PWD", features = ["spdk"] }

[profile.dev]
opt-level = 1
debug = "line-tables-only"
END
    cat >"$work/dependent/src/main.rs" <<'END'
fn main() {
    let options = xtent::internals::spdk::EnvironmentOptions::default();
    xtent::internals::spdk::SpdkEnvironment::start(&options).expect("SPDK's environment");
    // Fails at the address, not for want of the transport: that is what whole-archive linking is for.
    let id = "trtype=TCP traddr=127.0.0.1 trsvcid=1 subnqn=nqn.2016-06.io.spdk:none";
    let options = xtent::internals::spdk::SpdkControllerOptions::default();
    let error = xtent::internals::spdk::SpdkController::open(&id.parse().expect("an id"), None, options).unwrap_err();
    assert!(!error.to_string().contains("has no TCP"), "{error}");
    println!("{error}");
}
END
    cp Cargo.lock "$work/dependent/"
    cargo run --quiet --offline --manifest-path "$work/dependent/Cargo.toml" --target-dir "$target_dir"
}

# run_tests COMMAND...: shows what was run and what was skipped; everything when it fails.
run_tests() {
    "$@" >"$work/log" 2>&1 || {
        cat "$work/log"
        die "tests failed: $*"
    }
    grep -E '^(test |test result|[[:space:]]+Running)|SKIPPED' "$work/log"
}

test_engine() {
    if ! pkg-config --exists spdk_nvme spdk_env_dpdk spdk_syslibs; then
        skip "pkg-config knows no SPDK (PKG_CONFIG_PATH names the directory of spdk_nvme.pc): not tried as an engine"
        return
    fi
    step "bindings, and lints with the feature"
    run_tests cargo test --locked -p xtent-spdk-sys --features installed
    cargo clippy --all-targets --locked --quiet --features spdk -- -D warnings
    test_dependent
    step "SPDK's driver as an engine, on SPDK's target"
    XTENT_SPDK_BIN=${tgt%/*}
    export XTENT_SPDK_BIN
    run_tests cargo test --locked --features spdk --lib spdk:: -- --show-output
    run_tests cargo test --locked --features spdk --test spdk -- --show-output
    # Each transport with one size of blocks. All of it, without --skip, takes seven minutes.
    step "the conformance list through it"
    XTENT_CONFORMANCE=spdk-tcp,spdk-vfio-user XTENT_SCALE=small run_tests cargo test --locked --features spdk \
        --test conformance -- --test-threads=1 --skip spdk-tcp:4096 --skip spdk-vfio-user:512 \
        --skip :512::read_equality --skip :4096::read_equality
}

test_host() {
    local load rw bytes depth trid
    step "SPDK's host drives xtent's controller"
    mkdir "$work/ours"
    "$xtent" serve vfio-user "$work/ours" --media ram:1400M 2>"$work/serve.log" &
    children+=($!)
    wait_for "$work/ours/cntrl" "$work/serve.log"
    trid="trtype:VFIOUSER traddr:$work/ours subnqn:nqn.2014-08.org.nvmexpress:xtent"
    if [ -n "$identify" ]; then
        check identify "$identify" -r "$trid" -s 128 --no-huge
        says "$work/log" 'xtent embedded controller'
    else
        skip "spdk_nvme_identify is not there"
    fi
    if [ -z "$hello" ]; then
        skip "hello_world is not there: it is only in SPDK's build directory (SPDK_DIR)"
    elif ! hugetlbfs; then
        skip "hello_world wants a mounted hugetlbfs, and none can be mounted"
    elif ! reserve_hugepages 128; then
        return_hugepages
        skip "hello_world wants 128 free hugepages of 2 MiB, which are not to be had"
    else
        # shellcheck disable=SC2016 # for the shell in there
        check hello_world sh -c 'echo $$ >"$0"; exec "$@"' "$work/pid" "$hello" -r "$trid" -g
        remove_hugepages_of "$(cat "$work/pid")"
        return_hugepages
        says "$work/log" 'Hello world!'
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
    end_children
}

test_target() {
    if [ -z "$tgt" ]; then
        skip "nvmf_tgt is not there"
        return
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
    "$tgt" --no-huge -s 1024 -m 0x1 --num-trace-entries 0 -c "$work/config.json" -r "$work/rpc.sock" >"$work/tgt.log" 2>&1 &
    children+=($!)
    wait_for "$work/xfs/cntrl" "$work/tgt.log"
    check "the driver's list" conformance "$work/raw/cntrl"
    if command -v mkfs.xfs >/dev/null; then
        check info "$xtent" info "vfio-user:$work/xfs"
        check ls "$xtent" ls -la "vfio-user:$work/xfs" /
        check cat sh -c "'$xtent' cat 'vfio-user:$work/xfs' /data | cmp - '$work/data'"
        check "bench, verified" "$xtent" bench "vfio-user:$work/xfs" /data --rw randwrite --bs 4k --iodepth 32 --verify
        check "bench by interrupts" "$xtent" bench "vfio-user:$work/xfs,wait=interrupt" /data --rw randread --bs 4k \
            --iodepth 4 --runtime 2 --time-based
    else
        skip "mkfs.xfs is not there: no test of files"
    fi
    end_children
}

# Each part is a run of its own, so that one that fails does not hide the others.
if [ ${#parts[@]} -ne 1 ]; then
    parts_failed=''
    for part in missing engine host target; do
        wanted $part || continue
        if [ $part != missing ] && [ -z "$tgt$identify$perf" ]; then
            skip "no SPDK found: set SPDK_DIR to where it was built or installed (https://spdk.io/doc/getting_started.html)"
            break
        fi
        bash "$PWD/scripts/spdk/test.sh" $part || parts_failed+=" $part"
    done
    [ -z "$parts_failed" ] || die "these parts failed:$parts_failed"
    exit 0
fi
case ${parts[0]} in
host | target)
    # The program comes with it.
    cargo test --locked --quiet --test conformance --no-run
    ;;
esac
"test_${parts[0]}"
exit "$failed"
