#!/bin/sh
# vfio-setup.sh refuses a disk that carries data, whatever shows it, and takes it when forced by name.
# machine: setup
# Names of disks have no blanks:
# shellcheck disable=SC2086
# shellcheck source=scripts/vm/jobs/lib/setup.sh
. ./lib/setup.sh

echo "-- carries data: refused, unless forced by name"
made mkfs.xfs -q -f /dev/$disk
refused 4 "$disk carries xfs" $work
expect 0 "$disk carries xfs" setup status $work
expect 0 "vfio-pci has it now" setup bind --force 00:07.0 $work
expect 0 "is back with nvme" setup reset $work
disk=$(disk_of $work)

signs() {
    wipe
    made mkfs.xfs -q -f /dev/$disk
    refused 4 "carries xfs" $work
    wipe
    made /sbin/mke2fs -q -t ext4 /dev/$disk
    refused 4 "carries ext" $work
    wipe
    table 'label: gpt\n'
    refused 4 "carries GPT" $work
    made dd if=/dev/zero of=/dev/$disk bs=1M count=1 conv=fsync
    refused 4 "carries GPT" $work # only the copy at the end is left
    wipe
    table 'label: dos\n,,83\n'
    refused 4 "carries MBR" $work
    wipe
    made mkswap /dev/$disk
    refused 4 "carries swap" $work
    wipe
    made lvm pvcreate -qq -y /dev/$disk
    refused 4 "carries LVM" $work
    wipe
    for metadata in 0.90 1.0 1.1 1.2; do
        made mdadm -C /dev/md9 -R -q -e $metadata -l 1 -n 2 /dev/$disk missing
        made mdadm -S -q /dev/md9
        refused 4 "carries RAID" $work
        made mdadm --zero-superblock /dev/$disk
    done
    wipe
    printf 'LUKS\272\276\000\001' | made dd of=/dev/$disk conv=fsync
    expect 4 "refused" setup bind $work
    wipe
    printf '_BHRfS_M' | made dd of=/dev/$disk bs=1 seek=65600 conv=fsync
    refused 4 "carries btrfs" $work
    wipe
    # On a partition only.
    table 'label: gpt\n,,\n'
    made mkfs.xfs -q -f /dev/${disk}p1
    refused 4 "${disk}p1 carries xfs" $work
    wipe
    expect 0 "vfio-pci has it now" setup bind $work
    expect 0 "is back with nvme" setup reset $work
}
echo "-- every signature; dash, with util-linux's eyes"
shell=dash
signs
echo "-- the same with busybox, without wipefs and blkid"
shell="sh"
mkdir -p /tmp/hidden
mv /sbin/wipefs /sbin/blkid /tmp/hidden/
wipefs() { /tmp/hidden/wipefs "$@"; }
signs
mv /tmp/hidden/* /sbin/
unset -f wipefs
finish
