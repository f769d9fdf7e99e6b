#!/bin/sh
# Opening, using and closing controllers again and again leaves nothing behind: neither in the process nor, once
# it has ended, in the machine.
# machine: disks
# tests: vfio
# shellcheck source=scripts/vm/jobs/lib/disks.sh
. ./lib/disks.sh
small=$(address_of SMALL) large=$(address_of LARGE)

# held: hugepages in use, and pages that are pinned for devices.
held() {
    echo 1 >/proc/sys/vm/stat_refresh
    awk '/HugePages_(Total|Free)/ { print }' /proc/meminfo
    awk '/nr_foll_pin_acquired/ { n += $2 } /nr_foll_pin_released/ { n -= $2 } END { print "pinned", n }' /proc/vmstat
}

with_data "$small"
with_data "$large"
take "$small" "$large"
held >/tmp/before
XTENT_VFIO="$small,$large" XTENT_VFIO_CYCLES="${XTENT_VFIO_CYCLES:-30}" ./tests/vfio --nocapture leaves_nothing_behind
held >/tmp/after
diff /tmp/before /tmp/after
