#!/bin/sh
# Bad sectors: exactly the operations that touch them fail, raw and through files, of blocks of 512 and 4096 bytes.
# machine: disks
# tests: vfio
# shellcheck source=scripts/vm/jobs/lib/disks.sh
. ./lib/disks.sh
bad512=$(address_of BAD512) bad4k=$(address_of BAD4K)
XTENT_ERRORS=$(address_of GOOD512)=$bad512,$(address_of GOOD4K)=$bad4k
export XTENT_ERRORS
# As the machine has them.
export XTENT_BAD_READS=81923,82175,82300,83000,85999 XTENT_BAD_WRITES=82430,82431,83001,84000
take "$bad512" "$bad4k"
./tests/vfio --test-threads=1 --nocapture errors::
