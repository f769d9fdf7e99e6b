#!/bin/sh
# The list of tests that the embedded controller passes, on PCI controllers over VFIO, two at a time: blocks of
# 512 and 4096 bytes, commands of at most 8 KiB and of at most 512 KiB.
# vm: --smp 2 --mem 2560 --hugepages 128 --timeout 1800 --nvme size=1280M,slot=4,mdts=1 --nvme size=1280M,slot=5,lba=4096,mdts=1 --nvme size=1280M,slot=6,mdts=7 --nvme size=1280M,slot=7,lba=4096,mdts=7
# tests: conformance
set -eu
addresses="0000:00:04.0 0000:00:05.0 0000:00:06.0 0000:00:07.0"
list=''
for address in $addresses; do
    list=$list,pci:$address
    sh ./vfio-setup.sh bind "$address"
done
export XTENT_CONFORMANCE="$list" XTENT_SCALE=small
{ ./tests/conformance --test-threads=2 && echo 0 || echo $?; } 2>&1 | tee /tmp/log
# Otherwise nothing was shown of two at once.
grep -q '^stands in use at once: 2' /tmp/log
exit "$(tail -n 1 /tmp/log)"
