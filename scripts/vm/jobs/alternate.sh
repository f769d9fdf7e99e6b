#!/bin/sh
# The kernel and xtent take turns on one disk, 20 times, with blocks of 512 and of 4096 bytes.
# machine: disks
# tests: vfio
# shellcheck source=scripts/vm/jobs/lib/disks.sh
. ./lib/disks.sh
XTENT_ALTERNATE=$(address_of SMALL),$(address_of LARGE)
export XTENT_ALTERNATE
./tests/vfio --nocapture alternate::
