#!/bin/sh
# An NVMe disk goes to vfio-pci, xtent talks to it when it can, and the kernel's driver gets it back.
# vm: --smp 1 --hugepages 32 --nvme size=64M,slot=4,serial=SMOKE,read-error=65536 --nvme size=64M,serial=GONE,lba=4096,hotplug=on
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
    case $answer in
    *SMOKE*) [ "$result" = 0 ] ;;
    *) exit 1 ;;
    esac
else
    echo "SKIPPED: xtent is not built"
fi

sh ./vfio-setup.sh reset "$disk"
[ "$(driver)" = nvme ]
dd if=/dev/nvme0n1 of=/dev/null bs=1M count=1 2>/dev/null
