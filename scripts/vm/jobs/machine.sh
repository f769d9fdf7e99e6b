#!/bin/sh
# The machine itself keeps what scripts/vm/run promises: block sizes, bad sectors, pauses, unplugging.
# machine: small
set -u

# disk_with SERIAL: the name of its namespace.
disk_with() {
    for controller in /sys/class/nvme/nvme*; do
        read -r serial <"$controller/serial"
        [ "$serial" != "$1" ] || basename "$controller"/nvme*n*
    done
}
wrong() {
    echo "WRONG: $*"
    exit 1
}
sector() { dd if="/dev/$1" of=/dev/null bs=512 count=1 skip="$2" iflag=direct 2>/dev/null; }

good=$(disk_with GONE)
bad=$(disk_with SMOKE)
[ "$(cat "/sys/block/$good/queue/logical_block_size")" = 4096 ] || wrong "no 4096-byte blocks"
[ "$(cat "/sys/block/$bad/queue/logical_block_size")" = 512 ] || wrong "no 512-byte blocks"
sector "$bad" 65535 || wrong "the sector before the bad one cannot be read"
! sector "$bad" 65536 || wrong "the bad sector can be read"
sector "$bad" 65537 || wrong "the sector after the bad one cannot be read"

echo '@@HOST {"pause": 1}'
sleep 1

echo '@@HOST {"execute": "device_del", "arguments": {"id": "nvme1"}}'
tries=0
while [ -e "/sys/block/$good" ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || wrong "the disk is still there"
    sleep 0.1
done
