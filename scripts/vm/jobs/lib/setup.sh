#!/bin/sh
# What the jobs about vfio-setup.sh share: the disks of their machine, and how to expect things.
# Variables are for the jobs, and names of disks have no blanks:
# shellcheck disable=SC2034,SC2086
set -u
free=0000:00:04.0
free4k=0000:00:05.0
pair_a=0000:00:06.0
pair_b=0000:00:06.1
work=0000:00:07.0
pci=/sys/bus/pci/devices
failures=0
out=/tmp/out

shell="sh" # busybox, with its own tools; dash and bash take the real ones
setup() { $shell ./vfio-setup.sh "$@"; }
disk_of() { for d in "$pci/$1"/nvme/nvme*/nvme*n*; do basename "$d"; done; }
driver() { [ ! -e "$pci/$1/driver" ] || basename "$(readlink "$pci/$1/driver")"; }
wrong() {
    echo "WRONG: $*"
    failures=$((failures + 1))
}

# expect STATUS TEXT COMMAND...: the command ends so, and says so.
expect() {
    status=$1 text=$2
    shift 2
    "$@" >$out 2>&1
    result=$?
    if [ $result != "$status" ] || ! grep -qF -- "$text" $out; then
        wrong "$* gave $result instead of $status, or does not say '$text':"
        cat $out
    fi
}

# refused STATUS TEXT BDF: bind refuses the disk and leaves it alone.
refused() {
    expect "$1" "$2" setup bind "$3"
    [ "$(driver "$3")" = nvme ] || wrong "after the refusal ($2) $3 is with '$(driver "$3")'"
}

# snapshot BDF: everything a round trip must leave alone.
snapshot() {
    (
        cd "$pci/$1" || exit
        echo "$(driver "$1") $(cat driver_override power/control class numa_node)"
        find . -maxdepth 3 | sort
        stat -c '%A %U %G %t %T' "/dev/$(disk_of "$1")"
        md5sum <"/dev/$(disk_of "$1")"
    )
}

wipe() {
    wipefs -qaf /dev/$disk?* /dev/$disk 2>/dev/null
    dd if=/dev/zero of=/dev/$disk bs=1M count=2 conv=fsync 2>/dev/null
    dd if=/dev/zero of=/dev/$disk bs=1M seek=318 count=2 conv=fsync 2>/dev/null
    blockdev --rereadpt /dev/$disk
}

# made COMMAND...: it must work, or the check after it means nothing.
made() { "$@" >$out 2>&1 || { wrong "$* failed:" && cat $out; }; }

disk=$(disk_of $work)
base=$(disk_of $free)


# table TEXT: partitions it.
# shellcheck disable=SC2059 # the text has escapes
table() {
    printf "$1" | made sfdisk -q /dev/$disk
}

# finish: how it went.
finish() {
    [ $failures = 0 ] || echo "$failures checks failed"
    [ $failures = 0 ]
    exit
}
