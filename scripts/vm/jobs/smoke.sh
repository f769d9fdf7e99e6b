#!/bin/sh
# An NVMe disk goes to vfio-pci, xtent talks to it when it can, and the kernel's driver gets it back.
# machine: small
set -eu
disk=0000:00:04.0

driver() { basename "$(readlink "/sys/bus/pci/devices/$disk/driver")"; }

sh ./vfio-setup.sh status
sh ./vfio-setup.sh bind "$disk"
[ "$(driver)" = vfio-pci ]
[ ! -b /dev/nvme0n1 ]

if [ -x ./xtent ]; then
    answer=$(./xtent info "pci:$disk" 2>&1) && result=0 || result=$?
    echo "$answer"
    # There is no filesystem on it, which is said after all else.
    case "$result $answer" in
    0*SMOKE* | *SMOKE*"no XFS filesystem"*) ;;
    *) exit 1 ;;
    esac
else
    echo "SKIPPED: xtent is not built"
fi

sh ./vfio-setup.sh reset "$disk"
[ "$(driver)" = nvme ]
dd if=/dev/nvme0n1 of=/dev/null bs=1M count=1 2>/dev/null
