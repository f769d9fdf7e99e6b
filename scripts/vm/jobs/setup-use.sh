#!/bin/sh
# vfio-setup.sh refuses a disk in use, forced or not, and says by what.
# machine: setup
# Names of disks have no blanks:
# shellcheck disable=SC2086
# shellcheck source=scripts/vm/jobs/lib/setup.sh
. ./lib/setup.sh

# in_use TEXT: refused with the reason, with and without --force.
in_use() {
    refused 3 "$1" $work
    expect 3 "$1" setup bind --force $work $work
    [ "$(driver $work)" = nvme ] || {
        wrong "--force took a disk in use"
        setup reset $work
    }
    expect 0 "in use: $1" setup status $work
}

for module in loop dm-mod raid1; do
    modprobe $module
done
wipe
echo "-- mounted"
made mkfs.xfs -q -f /dev/$disk
mkdir -p "/mnt/a b"
made mount -t xfs /dev/$disk "/mnt/a b"
in_use "$disk is mounted on /mnt/a b"
umount "/mnt/a b"

echo "-- mounted elsewhere"
# In a mount namespace of its own, as containers have.
unshare -m sh -c "mount -t xfs /dev/$disk /mnt; touch /tmp/mounted; exec sleep 1000" &
holder=$!
while [ ! -e /tmp/mounted ]; do sleep 0.1; done
in_use "$disk is mounted on /mnt"
kill $holder
wait $holder 2>/dev/null

wipe
echo "-- swap and partitions"
table 'label: gpt\n,304M\n,\n'
made mkswap /dev/${disk}p2
made swapon /dev/${disk}p2
in_use "${disk}p2 is swapped on"
swapoff /dev/${disk}p2

made mkfs.xfs -q -f /dev/${disk}p1
made mount -t xfs /dev/${disk}p1 /mnt
in_use "${disk}p1 is mounted on /mnt"
umount /mnt
wipe

echo "-- the log of another file system"
# Another disk's XFS keeps its log on this one.
loop=/dev/loop0
made dd if=/dev/zero of=/tmp/image bs=1M count=1 seek=319
made /sbin/losetup $loop /tmp/image
made mkfs.xfs -q -f -l logdev=/dev/$disk,size=64m $loop
made mount -t xfs -o logdev=/dev/$disk $loop /mnt
in_use "$disk is mounted on /mnt"
umount /mnt
made /sbin/losetup -d $loop
wipe

echo "-- device mapper"
made dmsetup create --noudevsync holds --table "0 2048 linear /dev/$disk 0"
in_use "$disk is held by the device-mapper target holds"
made dmsetup remove --noudevsync holds

echo "-- LVM"
config='activation{udev_sync=0 udev_rules=0} backup{backup=0 archive=0}'
made lvm pvcreate -qq -y /dev/$disk
made lvm vgcreate -qq --config "$config" lab_vg /dev/$disk
made lvm lvcreate -qq -y -Zn --config "$config" -n data -L 16M lab_vg
in_use "$disk is held by the LVM volume lab_vg-data"
made lvm vgchange -qq -an --config "$config" lab_vg
wipe

echo "-- RAID"
made mdadm -C /dev/md9 -R -q -l 1 -n 2 /dev/$disk missing
in_use "$disk is held by the RAID array md9"
made mdadm -S -q /dev/md9
wipe

echo "-- loop"
made /sbin/losetup $loop /dev/$disk
in_use "$disk is the file behind ${loop#/dev/}"
made /sbin/losetup -d $loop

echo "-- open"
# shellcheck disable=SC2217 # it shall only have it open
sleep 1000 </dev/$disk &
holder=$!
sleep 0.3
in_use "$disk is open in process $holder (sleep)"
kill $holder
wait $holder 2>/dev/null
# By a node of another name, as containers have.
mknod /tmp/other b $((0x$(stat -c %t /dev/$disk))) $((0x$(stat -c %T /dev/$disk)))
# shellcheck disable=SC2217 # it shall only have it open
sleep 1000 </tmp/other &
holder=$!
sleep 0.3
in_use "$disk is open in process $holder (sleep)"
kill $holder
wait $holder 2>/dev/null
finish
