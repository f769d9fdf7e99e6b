#!/usr/bin/env bash
# AddressSanitizer over the tests of the unsafe islands and of what works their memory hardest.
# The sanitizer is a compiler option that stable Rust ships but hides; RUSTC_BOOTSTRAP opens it.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
need_cargo

target=$(rustc -vV | sed -n 's/^host: //p')
if [ "$target" != x86_64-unknown-linux-gnu ] && [ "$target" != aarch64-unknown-linux-gnu ]; then
    echo "SKIPPED: no AddressSanitizer for $target" >&2
    exit 0
fi
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-Zsanitizer=address"
export ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/asan"
# Memory that is with a device is leaked on purpose when the device does not give it back, so leaks are
# not looked for; use after free and out of bounds are.
# A test that limits address space leaves the sanitizer no room for its own.
cargo test --locked --target "$target" --test vfio_user -- --skip memory_that_cannot_be_had
# What measures how well the cache chooses its pages has no memory to be careful of.
cargo test --locked --target "$target" --lib -- mem:: sys:: device:: nvme:: iomap:: volume:: cache:: \
    --skip policy_tests
# A slice of the page cache's model test and of fsx, which leave no way through the cache untried.
XTENT_RUNS=${XTENT_RUNS:-8000} XTENT_FSX_RUNS=${XTENT_FSX_RUNS:-8000} \
    cargo test --locked --target "$target" --test cache_model
