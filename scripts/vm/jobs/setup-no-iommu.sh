#!/bin/sh
# vfio-setup.sh on a machine without an IOMMU: refuses, and says what to switch on.
# vm: --smp 1 --no-iommu --nvme size=64M,slot=4,serial=FREE
set -u
disk=0000:00:04.0
answer=$(sh ./vfio-setup.sh bind $disk 2>&1)
result=$?
echo "$answer"
[ $result = 6 ] || exit 1
echo "$answer" | grep -q 'iommu=' || exit 1
[ "$(basename "$(readlink /sys/bus/pci/devices/$disk/driver)")" = nvme ] || exit 1
sh ./vfio-setup.sh status | grep 'IOMMU  *none' || exit 1
