#!/bin/sh
# An NVMe disk goes to vfio-pci, xtent talks to it when it can, and the kernel's driver gets it back.
# vm: --nvme size=256M,slot=4,serial=SMOKE --hugepages 32
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
    *"not yet"* | *unknown* | *unsupported* | *"not supported"*) echo "SKIPPED: this xtent has no pci: targets" ;;
    *) [ "$result" = 0 ] && echo "$answer" | grep -q SMOKE ;;
    esac
else
    echo "SKIPPED: xtent is not built"
fi

sh ./vfio-setup.sh reset "$disk"
[ "$(driver)" = nvme ]
dd if=/dev/nvme0n1 of=/dev/null bs=1M count=1 2>/dev/null
