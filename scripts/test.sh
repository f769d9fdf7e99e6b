#!/usr/bin/env bash
# Runs every test of xtent. On a fresh Debian or Fedora machine it first installs what it needs, by package
# name, after saying which. What cannot be had is named in a line that starts with SKIPPED.
#
#   scripts/test.sh            everything (about 25 minutes on 2 cores; root for the kernel's side)
#   scripts/test.sh --quick    without the virtual machines, the sanitizer, SPDK and the cost bench
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
    shellcheck:shellcheck:ShellCheck
need_cargo

step "format and lints"
cargo fmt --all --check
cargo clippy --all-targets --locked -- -D warnings

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --quiet

step "tests"
# The harness hides what passing tests print, and with it why one was skipped: so it is asked for, and shown.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --locked -- --show-output >"$log" 2>&1 || {
    cat "$log"
    die "tests failed"
}
grep -E '^(test |test result|[[:space:]]+(Running|Doc-tests))|SKIPPED' "$log"

if ! $quick; then
    step "AddressSanitizer on the unsafe islands"
    scripts/asan.sh

    scripts/loom.sh

    step "PCI controllers over VFIO, in virtual machines"
    scripts/vm/test

    step "SPDK, both ways"
    scripts/spdk/test.sh

    step "cost in instructions"
    cargo bench --locked --bench cost
fi
step "all passed"
