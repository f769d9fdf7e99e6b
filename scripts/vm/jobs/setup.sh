#!/bin/sh
# vfio-setup.sh: words, status, the round trip, owners, groups, hugepages, what lasts over a boot.
# machine: setup
# Names of disks have no blanks:
# shellcheck disable=SC2086
# shellcheck source=scripts/vm/jobs/lib/setup.sh
. ./lib/setup.sh

# Jobs before this one may have left them.
modprobe -r vfio-pci vfio_iommu_type1

echo "-- words"
expect 2 "unknown command" setup frobnicate
expect 2 "PCI addresses" setup bind
expect 2 "not a PCI address" setup bind /dev/nvme0n1
expect 2 "not among those" setup bind --force $work $free
expect 2 "no user 'no-such-user'" setup bind --user no-such-user $free
expect 7 "no device at 0000:77:00.0" setup bind 77:00.0
expect 7 "is not an NVMe controller" setup bind 00:1f.2
expect 0 "hugepages N" setup --help
expect 0 "nothing to do" setup reset
expect 8 "needs root" su -s /bin/sh lab -c "cd /files && sh ./vfio-setup.sh bind $free"
expect 0 "$free" su -s /bin/sh lab -c "cd /files && sh ./vfio-setup.sh status"

echo "-- status"
expect 0 "QEMU NVMe Ctrl, serial WORK, $disk 335 MB" setup status
for text in "driver nvme, NUMA node none, IOMMU group" "shares its IOMMU group with $pair_b (driver nvme" \
    "not in use" "IOMMU      on" "vfio       not loaded" "hugepages  2 MiB: 0, 0 free" "memlock "; do
    grep -qF "$text" $out || wrong "status does not say '$text'"
done

echo "-- bind, reset: the round trip"
[ ! -d /sys/module/vfio_pci ] || wrong "vfio-pci is loaded too early for this test"
snapshot $free >/tmp/before
expect 0 "would write 'vfio-pci'" setup bind --dry-run $free
[ "$(driver $free)" = nvme ] || wrong "--dry-run did something"
expect 0 "vfio-pci has it now" setup bind 00:04.0
[ "$(driver $free)" = vfio-pci ] || wrong "bind: the driver is '$(driver $free)'"
[ ! -e "/dev/$base" ] || wrong "/dev/$base is still there"
[ -c "/dev/vfio/$(basename "$(readlink $pci/$free/iommu_group)")" ] || wrong "no node of the group"
expect 0 "already" setup bind $free
expect 0 "serial FREE, $base" setup status $free
expect 0 "is back with nvme" setup reset $free
snapshot $free >/tmp/after
diff /tmp/before /tmp/after >/tmp/diff || { wrong "the round trip changed:" && cat /tmp/diff; }
[ -z "$(ls -A /run/vfio-setup)" ] || wrong "/run/vfio-setup is not empty"
expect 0 "nothing to do" setup reset $free

echo "-- a setting of the user survives the round trip; other shells"
for other in dash bash; do
    echo auto >$pci/$free/power/control
    snapshot $free >/tmp/before
    expect 0 "vfio-pci has it now" $other ./vfio-setup.sh bind $free
    expect 0 "is back with nvme" $other ./vfio-setup.sh reset $free
    snapshot $free >/tmp/after
    diff /tmp/before /tmp/after >/tmp/diff || { wrong "$other: the round trip changed:" && cat /tmp/diff; }
    echo on >$pci/$free/power/control
done

echo "-- several, all or none, with an owner"
made mkfs.xfs -q -f /dev/$disk
expect 4 "nothing was changed" setup bind $free $work
[ "$(driver $free)" = nvme ] || wrong "bind took one although it refused the other"
expect 0 "belongs to lab" setup bind --user lab $free $free4k
for one in $free $free4k; do
    [ "$(driver $one)" = vfio-pci ] || wrong "$one was not taken"
    node=/dev/vfio/$(basename "$(readlink $pci/$one/iommu_group)")
    [ "$(stat -c %U "$node")" = lab ] || wrong "$node belongs to $(stat -c %U "$node")"
    su -s /bin/sh lab -c ": <>$node" || wrong "lab cannot open $node"
done
# shellcheck disable=SC3045 # busybox has it
ulimit -l 64
expect 0 "may lock only 64 KiB" setup bind --user lab $free
# shellcheck disable=SC3045
ulimit -l unlimited

echo "-- reset refuses a disk that a program drives"
node=/dev/vfio/$(basename "$(readlink $pci/$free/iommu_group)")
# shellcheck disable=SC2217 # it shall only have it open
sleep 1000 <>"$node" &
holder=$!
sleep 0.3
expect 3 "in use through vfio by process $holder" setup reset $free
expect 0 "in use through vfio by process $holder" setup status $free
kill $holder
wait $holder 2>/dev/null
expect 0 "$free4k: is back with nvme" setup reset
[ "$(driver $free)$(driver $free4k)" = nvmenvme ] || wrong "reset left one behind"

echo "-- a group with others in it"
refused 5 "$pair_b (driver nvme" $pair_a
expect 5 "shares IOMMU group" setup bind --force $pair_a $pair_a
expect 0 "vfio-pci has it now" setup bind $pair_a $pair_b
[ "$(driver $pair_a)$(driver $pair_b)" = vfio-pcivfio-pci ] || wrong "the pair was not taken"
expect 0 "is back with nvme" setup reset $pair_a $pair_b

echo "-- a disk without a driver is looked at first"
echo $free >$pci/$free/driver/unbind
expect 0 "vfio-pci has it now" setup bind $free
expect 0 "is back with nvme" setup reset $free
made mkfs.xfs -q -f /dev/$disk
echo $work >$pci/$work/driver/unbind
expect 4 "carries xfs" setup bind $work

echo "-- hugepages"
expect 0 "2 MiB: 16 (16 free)" setup hugepages 16
[ "$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)" = 16 ] || wrong "no 16 hugepages"
expect 0 "on node 0: 8 (8 free)" setup hugepages 16M --node 0
expect 7 "no NUMA node 7" setup hugepages 16 --node 7
expect 2 "wants a number" setup hugepages many
expect 1 "are available" setup hugepages 100G
expect 1 "are available" setup hugepages 100G --node 0
[ "$(cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)" = 8 ] || wrong "a refusal changed the hugepages"
expect 0 "2 MiB: 0 (0 free)" setup hugepages 0

echo "-- an override that driverctl keeps is shown, and taken away"
made /sbin/driverctl set-override $free vfio-pci
expect 0 "bound at every boot by driverctl" setup status $free
expect 0 "$free" setup unpersist
[ "$(driver $free)" = nvme ] || wrong "unpersist did not give it back"
[ ! -e /etc/driverctl.d/pci-$free ] || wrong "driverctl still has it"

echo "-- a driver_override that a killed run left"
echo vfio-pci >$pci/$free/driver_override
expect 0 "is cleared" setup reset $free
[ "$(cat $pci/$free/driver_override)" = "(null)" ] || wrong "reset left the driver_override"

echo "-- persist, by udev's rules"
expect 6 "there is no udev" setup persist $free
mkdir -p /etc/udev/rules.d
expect 4 "carries xfs" setup persist $work
[ -z "$(driver $work)" ] || wrong "a refused disk that had no driver has one now"
setup reset $work >/dev/null
expect 0 "binds it at every boot" setup persist --user lab $free
rule=/etc/udev/rules.d/60-vfio-setup-$free.rules
grep -q "KERNEL==\"$free\".*--identity $free=FREE,QEMU=20NVMe=20Ctrl " $rule || wrong "the rule is not of this disk"
# What the rule would run at boot, before any driver came.
setup reset $free >/dev/null
echo $free >$pci/$free/driver/unbind
eval "$(sed -n 's/.*RUN+="\(.*\)"$/\1/p' $rule)" >/dev/null
[ "$(driver $free)" = vfio-pci ] || wrong "the rule's command does not bind"
expect 0 "bound at every boot by $rule" setup status $free
# Another disk in its slot.
setup reset $free >/dev/null
sed -i "s/=FREE,/=OTHER,/" $rule
expect 9 "another disk" eval "$(sed -n 's/.*RUN+="\(.*\)"$/\1/p' $rule)"
[ "$(driver $free)" = nvme ] || wrong "another disk was taken"
expect 0 "is with the driver nvme" setup unpersist
[ ! -e $rule ] || wrong "unpersist left its rule behind"
[ ! -e /etc/vfio-setup ] || wrong "unpersist left the script's copy behind"

echo "-- unplugged: gone while the script knows it"
echo 1 >$pci/$free4k/remove
expect 7 "no device at $free4k" setup reset $free4k

finish
