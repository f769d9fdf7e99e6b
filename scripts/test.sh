#!/usr/bin/env bash
# Runs every test of xtent. On a fresh Debian or Fedora machine it first installs what it needs, by package
# name, after saying which. What cannot be had is named in a line that starts with SKIPPED.
#
#   scripts/test.sh            everything (about 25 minutes on 2 cores; root for the kernel's side)
#   scripts/test.sh --quick    without the virtual machines, the sanitizer, loom, SPDK and the cost bench
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

quick=false
for argument in "$@"; do
    case $argument in
    --quick) quick=true ;;
    -h | --help)
        sed -n '2,7s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *) die "unknown argument '$argument'; see --help" ;;
    esac
done

need_packages mkfs.xfs:xfsprogs losetup:mount:util-linux valgrind:valgrind cc:gcc \
    shellcheck:shellcheck:ShellCheck chromium:chromium fio:fio script:bsdutils:util-linux \
    rsync:rsync ps:procps:procps-ng setfattr:attr setfacl:acl setcap:libcap2-bin:libcap chattr:e2fsprogs
need_cargo

work=$(mktemp -d)
# Where tests have their images, if there is room.
XTENT_TEST_MEMORY=$(mktemp -d /dev/shm/xtent-test.XXXXXX 2>/dev/null) && export XTENT_TEST_MEMORY
lane=''
# Ends what runs beside, with all of its children, however this ends.
finish() {
    end_watchdog
    [ -z "$lane" ] || kill -- "-$lane" 2>/dev/null || true
    cat "$work"/*.failed 2>/dev/null >&2 || true
    rm -rf "$work" "${XTENT_TEST_MEMORY:-}"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# A run that hangs says where, if it is told how long it may take.
[ -z "${XTENT_TEST_LIMIT:-}" ] || no_longer_than "$XTENT_TEST_LIMIT" "$work/tests" "$work/log"

# What keeps one processor busy at most runs beside the rest, one after the other, and is shown when it has ended.
sanitizer() {
    step "AddressSanitizer on the unsafe islands"
    scripts/asan.sh
}
loom() {
    scripts/loom.sh
}
cost() {
    step "cost in instructions"
    cargo bench --locked --bench cost
    cargo bench --locked --bench threads
}
small_machines() {
    step "PCI controllers over VFIO, in virtual machines of one processor"
    scripts/vm/test --smp 1
}

# show_beside: what has ended beside, in whole; ends the run when it failed.
show_beside() {
    local log
    for log in "$work"/*.passed "$work"/*.failed; do
        [ -e "$log" ] || continue
        cat "$log" >&2
        mv "$log" "$log.shown"
        case $log in *.failed) die "a step that ran beside others failed; it is shown above" ;; esac
    done
}

$quick || beside "$work" loom sanitizer cost small_machines

# The whole run is one with the oldest supported toolchain where that is the default, as on the project's CI.
oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
step "the oldest supported Rust, $oldest"
case $(cargo --version) in
"cargo $oldest."*) echo "it is the toolchain of this run" ;;
*)
    if cargo "+$oldest" --version >/dev/null 2>&1; then
        CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/oldest cargo "+$oldest" check --locked --all-targets
    else
        echo "SKIPPED: Rust $oldest is not installed (rustup toolchain install $oldest)"
    fi
    ;;
esac

step "format and lints"
cargo fmt --all --check
cargo clippy --all-targets --locked -- -D warnings

step "the library without the command"
cargo check --locked --quiet --lib --no-default-features

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --quiet

step "build of the tests"
cargo test --locked --quiet --no-run

step "tests"
# The harness hides what passing tests print, and with it why one was skipped: so it is asked for, and shown.
cargo test --locked -- --show-output >"$work/tests" 2>&1 || {
    cat "$work/tests"
    die "tests failed"
}
grep -E '^(test |test result|[[:space:]]+(Running|Doc-tests))|SKIPPED' "$work/tests"

if ! $quick; then
    show_beside
    step "PCI controllers over VFIO, in virtual machines of several processors"
    scripts/vm/test --smp many

    show_beside
    step "SPDK, both ways"
    scripts/spdk/test.sh

    status=0
    wait "$lane" || status=$?
    lane=''
    show_beside
    [ $status = 0 ] || {
        cat "$work/log" >&2 2>/dev/null || true
        die "what ran beside other steps ended with status $status"
    }
fi
step "all passed"
