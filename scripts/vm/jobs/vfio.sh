#!/bin/sh
# The driver over VFIO on two controllers at once, with blocks of 512 and 4096 bytes: what the kernel wrote is
# read, what xtent overwrites the kernel reads, and a controller that is taken away ends every operation.
# vm: --smp 2 --mem 2048 --hugepages 96 --nvme size=512M,slot=4,serial=SMALL,mdts=3 --nvme size=512M,slot=5,serial=LARGE,lba=4096
# tests: vfio
set -eu
small=0000:00:04.0 large=0000:00:05.0

# disk ADDRESS: the block device that the kernel has of it.
disk() {
    for name in /sys/bus/pci/devices/"$1"/nvme/nvme*; do
        echo "/dev/${name##*/}n1"
    done
}

mkdir -p /mnt
modprobe xfs
for address in "$small" "$large"; do
    mkfs.xfs -q -f "$(disk "$address")"
    mount "$(disk "$address")" /mnt
    dd if=/dev/urandom of=/mnt/data bs=1M count=8 2>/dev/null
    cp /mnt/data /mnt/keep
    sha256sum </mnt/keep >"/tmp/sum-$address"
    umount /mnt
    # The disk has a filesystem now, which bind leaves alone unless it is told.
    sh ./vfio-setup.sh bind --force "$address" "$address"
    ./xtent info "pci:$address"
    ./xtent ls -l "pci:$address" /
    ./xtent cat "pci:$address" /keep | sha256sum | cmp - "/tmp/sum-$address"
done

dd if=/dev/urandom of=/tmp/new bs=1M count=2 2>/dev/null
./xtent put /tmp/new "pci:$large" /keep

export XTENT_VFIO="$small,$large" XTENT_VFIO_CYCLES=10
./tests/vfio --test-threads=1 --skip z_
XTENT_VFIO_UNPLUG=1 ./tests/vfio --test-threads=1 z_

sh ./vfio-setup.sh reset "$large"
mount "$(disk "$large")" /mnt
dd if=/mnt/keep bs=1M count=2 2>/dev/null | cmp - /tmp/new
umount /mnt
xfs_repair -n "$(disk "$large")"
