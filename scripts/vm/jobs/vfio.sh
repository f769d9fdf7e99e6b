#!/bin/sh
# The driver over VFIO on two controllers at once, with blocks of 512 and 4096 bytes: what the kernel wrote is
# read, what xtent overwrites the kernel reads, and a controller that is taken away ends every operation.
# machine: disks
# tests: vfio
# shellcheck source=scripts/vm/jobs/lib/disks.sh
. ./lib/disks.sh
small=$(address_of SMALL) large=$(address_of LARGE)

for address in "$small" "$large"; do
    with_data "$address"
    take "$address"
    ./xtent info "pci:$address"
    ./xtent ls -l "pci:$address" /
    ./xtent cat "pci:$address" /keep | sha256sum | cmp - "/tmp/sum-$address"
done

dd if=/dev/urandom of=/tmp/new bs=1M count=2 2>/dev/null
./xtent put --partial /tmp/new "pci:$large" /keep

export XTENT_VFIO="$small,$large"
./tests/vfio --test-threads=1 --skip z_ --skip leaves_nothing_behind
XTENT_VFIO_UNPLUG=1 ./tests/vfio --test-threads=1 z_
echo 1 >/sys/bus/pci/rescan

give_back
mount "$(disk_of "$large")" /mnt
dd if=/mnt/keep bs=1M count=2 2>/dev/null | cmp - /tmp/new
umount /mnt
xfs_repair -n "$(disk_of "$large")"
