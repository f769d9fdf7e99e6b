#!/bin/sh
# xtent compare --device: refuses the wrong disk, compares on the right one, gives it back; killed in any phase it
# leaves a disk that is with the kernel's driver, or that the next run mends.
# vm: --smp 2 --mem 2048 --hugepages 96 --timeout 1200 --nvme size=512M,slot=4,serial=ERASEME --nvme size=400M,slot=5,serial=KEEP
set -u
disk=0000:00:04.0
other=0000:00:05.0
failures=0
out=/tmp/out
runtime=100ms # of each workload

wrong() {
    echo "WRONG: $*"
    tail -n 20 $out
    failures=$((failures + 1))
}
driver() { basename "$(readlink "/sys/bus/pci/devices/$1/driver")"; }
node() { for d in "/sys/bus/pci/devices/$1"/nvme/nvme*/nvme*n*; do echo "/dev/${d##*/}"; done; }
# In a process of its own, whose number is then xtent's.
compare() {
    exec ./xtent compare --device "$disk" --i-may-erase ERASEME --file-size 16m --rounds 1 --runtime $runtime --ramp-time 0 "$@"
}

# start_of DEVICE: where mkfs.xfs would write first, as a sum.
start_of() { dd if="$(node "$1")" bs=1M count=4 2>/dev/null | md5sum; }

# refused STATUS TEXT DEVICE SERIAL: the command ends so and says so, and the disk's content is as it was.
refused() {
    ./xtent compare --device "$3" --i-may-erase "$4" >$out 2>&1
    result=$?
    [ $result = "$1" ] || wrong "$3 with $4: $result instead of $1"
    grep -qF -- "$2" $out || wrong "$3 with $4 does not say '$2'"
    [ "$(driver "$other")" = nvme ] || wrong "$other is with $(driver "$other")"
    [ "$(start_of $other)" = "$sum" ] || wrong "$other was written to ($2)"
}

# restored WHAT: the kernel has the disk, no process uses it, and the run left nothing behind.
restored() {
    [ "$(driver $disk)" = nvme ] || wrong "$1: the driver is $(driver $disk)"
    [ -b "$(node $disk)" ] || wrong "$1: there is no $(node $disk)"
    ! grep -q xtent- /proc/[0-9]*/mountinfo 2>/dev/null || wrong "$1: it is still mounted"
    [ ! -e "/run/vfio-setup/$disk" ] || wrong "$1: its note is still there"
    [ "$(cat /sys/bus/pci/devices/$disk/driver_override)" = "(null)" ] || wrong "$1: driver_override is set"
    [ -z "$(ls -d /tmp/xtent-* 2>/dev/null)" ] || wrong "$1: a directory is left"
}

modprobe xfs
echo "-- refusals"
mkfs.xfs -q -f "$(node $other)"
sum=$(start_of $other)
refused 3 "serial number is \`KEEP\`" $other ERASEME
refused 3 "no PCI device" 0000:0f:00.0 ERASEME
refused 3 "not an NVMe controller" 0000:00:00.0 ERASEME
refused 3 "no namespace 9" $other/9 KEEP
refused 2 "not a PCI address" nvme0n1 KEEP
unshare -m sh -c "mount -t xfs -o ro,norecovery $(node $other) /mnt; touch /tmp/mounted; exec sleep 1000" &
holder=$!
while [ ! -e /tmp/mounted ]; do sleep 0.1; done
refused 3 "is mounted on /mnt" $other KEEP
kill $holder
wait $holder 2>/dev/null
su -s /bin/sh lab -c "./xtent compare --device $other --i-may-erase KEEP" >$out 2>&1 && wrong "not refused to a user"
grep -q "needs root" $out || wrong "a user is not told that it needs root"
sh ./vfio-setup.sh bind --force $other $other >/dev/null
./xtent compare --device $other --i-may-erase KEEP >$out 2>&1 && wrong "a disk that vfio-pci has was taken"
grep -q "vfio-setup.sh reset $other" $out || wrong "it does not say how to give the disk back"
sh ./vfio-setup.sh reset $other >/dev/null

echo "-- the comparison"
(compare --json /tmp/compare.json --report /tmp/compare.html) >$out 2>&1 || wrong "compare ended with $?"
cat $out
for text in "4k random read, depth 1 " "over VFIO" "ok: xtent reads /bench/read.dat as it was filled" \
    "ok: xtent wrote, the kernel read" "ok: the kernel wrote, xtent read" "after by the kernel" \
    "ok: xfs_repair -n on the disk (clean)"; do
    grep -qF -- "$text" $out || wrong "the output does not say '$text'"
done
! grep -q FAILED $out || wrong "a check failed"
grep -q '"serial": "ERASEME"' /tmp/compare.json || wrong "no JSON"
grep -q "</html>" /tmp/compare.html || wrong "no report"
restored "after the comparison"

# Phases, as they show from outside.
erasing() { grep -q ERASING $out; }
mounted() { grep -q xtent- "/proc/$pid/mountinfo" 2>/dev/null; }
bypassing() {
    for fd in "/proc/$pid"/fd/*; do
        case $(readlink "$fd") in /dev/vfio/[0-9]*) return 0 ;; esac
    done
    return 1
}
back() { [ -e /tmp/bypassed ] && mounted; }

# kill_in PHASE SIGNAL: starts a comparison, waits for the phase, sends the signal, waits for the end.
kill_in() {
    rm -f /tmp/bypassed
    : >$out
    compare >$out 2>&1 &
    pid=$!
    until $1; do
        ! bypassing || touch /tmp/bypassed
        ! grep -q zombie "/proc/$pid/status" || {
            wrong "the comparison ended before the phase $1 was seen"
            break
        }
        sleep 0.02
    done
    kill "-$2" $pid 2>/dev/null
    wait $pid 2>/dev/null
    result=$?
}

# Long enough to see the phases.
runtime=1
for phase in erasing mounted bypassing back; do
    for signal in INT TERM; do
        echo "-- SIG$signal while $phase"
        # The shell ignores SIGINT for what it starts in the background, and xtent then catches it anyway.
        kill_in $phase $signal
        [ "$result" -gt 128 ] || wrong "SIG$signal while $phase: status $result"
        grep -q "is with the driver nvme" $out || wrong "SIG$signal while $phase: it does not say where the disk is"
        restored "SIG$signal while $phase"
    done
done

echo "-- SIGKILL"
# The empty mount point directory is left behind.
kill_in mounted KILL
rmdir /tmp/xtent-*
restored "SIGKILL while mounted"
kill_in bypassing KILL
[ "$(driver $disk)" = vfio-pci ] || wrong "SIGKILL: the driver is $(driver $disk)"
sh ./vfio-setup.sh reset >$out || wrong "reset after SIGKILL"
restored "SIGKILL, reset"
kill_in bypassing KILL
runtime=100ms
(compare) >$out 2>&1 || wrong "the comparison after SIGKILL ended with $?"
restored "SIGKILL, the next comparison"
[ $failures = 0 ]
