#!/bin/sh
# Controllers that are removed under load, orderly and by surprise: every operation completes or fails, and the process
# keeps running; the command reports which device is gone, and exits.
# machine: disks
# tests: vfio
# shellcheck source=scripts/vm/jobs/lib/disks.sh
. ./lib/disks.sh
raw=$(address_of PLUG6) files=$(address_of PLUG7)
torn_raw=$(address_of PLUG8) torn_files=$(address_of PLUG9)
benched=$(address_of PLUG10)
for address in "$files" "$torn_files" "$benched"; do
    with_data "$address"
done
take "$raw" "$files" "$torn_raw" "$torn_files" "$benched"

export XTENT_UNPLUG="$raw=nvme6,$files=nvme7"
XTENT_SURPRISE=$torn_raw=$(port_of "$torn_raw"),$torn_files=$(port_of "$torn_files")
export XTENT_SURPRISE
./tests/vfio --test-threads=1 --nocapture unplug::

./xtent bench "pci:$benched" /data --rw randrw --numjobs 2 --iodepth 8 --runtime 600 --time-based >/tmp/said 2>&1 &
bench=$!
sleep 3
kill -0 $bench
echo '@@HOST {"execute": "device_del", "arguments": {"id": "nvme10"}}'
status=0
wait $bench || status=$?
cat /tmp/said
[ $status = 5 ] || wrong "bench ended with status $status"
says /tmp/said "pci:$benched" "gone"
