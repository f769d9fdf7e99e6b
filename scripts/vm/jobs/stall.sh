#!/bin/sh
# A controller that stops answering is reset, its operations end, and it works again when it can.
# machine: disks
# tests: vfio
# shellcheck source=scripts/vm/jobs/lib/disks.sh
. ./lib/disks.sh
small=$(address_of SMALL)
with_data "$small"
take "$small"
XTENT_STALL=$small=disk0 ./tests/vfio --test-threads=1 --nocapture stall::
