#!/bin/sh
# Several processes side by side; a second one on the same controller; users that are not root.
# machine: disks
# shellcheck source=scripts/vm/jobs/lib/disks.sh
. ./lib/disks.sh
small=$(address_of SMALL) large=$(address_of LARGE)
with_data "$small"
with_data "$large"
take "$small" "$large"

echo "-- two at once"
load="--rw randwrite --verify --iodepth 8 --runtime 8"
# shellcheck disable=SC2086 # several options
./xtent bench "pci:$small" /data $load >"/tmp/said-$small" 2>&1 &
first=$!
# shellcheck disable=SC2086
./xtent bench "pci:$large" /data $load >"/tmp/said-$large" 2>&1 &
second=$!
sleep 4
kill -0 $first
kill -0 $second

echo "-- a second one on the same controller"
status=0
./xtent info "pci:$small" >/tmp/said 2>&1 || status=$?
[ $status = 3 ] || wrong "it ended with status $status"
says /tmp/said "xtent ($first)" "one program at a time" "pci:$small"
wait $first || wrong "the first failed: $(cat "/tmp/said-$small")"
wait $second || wrong "the second failed: $(cat "/tmp/said-$large")"
says "/tmp/said-$small" "read back and right"
says "/tmp/said-$large" "read back and right"

echo "-- a user other than root"
# shellcheck disable=SC3045 # busybox has it
ulimit -l unlimited
as_lab() { su -s /bin/sh lab -c "cd /files && ulimit -l $1 && ./xtent $2"; }
status=0
as_lab 65536 "info pci:$small" >/tmp/said 2>&1 || status=$?
[ $status != 0 ] || wrong "it ended with status $status"
says /tmp/said "belongs to another user" "vfio-setup.sh bind $small --user"
sh ./vfio-setup.sh bind --user lab "$small"
# The last is the default of many systems, and less than an arena usually has.
for limit in unlimited 65536 8192; do
    as_lab $limit "bench pci:$small /data --rw randrw --verify --iodepth 16 --number-ios 500" >/tmp/said 2>&1 ||
        wrong "with $limit KiB of locked memory: $(cat /tmp/said)"
    says /tmp/said "hugepages" "read back and right"
done
status=0
as_lab 1024 "info pci:$small" >/tmp/said 2>&1 || status=$?
[ $status != 0 ] || wrong "it ended with status $status"
says /tmp/said "1024 KiB" "ulimit -l"
cat /tmp/said
