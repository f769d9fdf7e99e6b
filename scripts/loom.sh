#!/usr/bin/env bash
# Runs the tests of what threads share without a lock under loom, which tries every interleaving that the memory model
# allows, up to three preemptions.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

need_cargo
step "loom: pages and pins, the index of the page cache, versions of mappings"
RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=${LOOM_MAX_PREEMPTIONS:-3} CARGO_TARGET_DIR=target/loom \
    cargo test --locked --lib loom_tests
