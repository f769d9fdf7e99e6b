#!/bin/sh
# What the jobs on the machine `disks` share: finding disks by their serials, and handing them over.
set -eu

# address_of SERIAL: the PCI address of the controller that the kernel has.
address_of() {
    for controller in /sys/class/nvme/nvme*; do
        read -r serial <"$controller/serial"
        [ "$serial" != "$1" ] || basename "$(readlink "$controller/device")"
    done
}

# disk_of ADDRESS: the block device that the kernel has of it.
disk_of() {
    for name in /sys/bus/pci/devices/"$1"/nvme/nvme*; do
        echo "/dev/${name##*/}n1"
    done
}

# port_of ADDRESS: the port that it is plugged into.
port_of() { basename "$(dirname "$(readlink -f "/sys/bus/pci/devices/$1")")"; }

# with_data ADDRESS: puts an XFS on it that holds a file `data` of 8 MiB, and a copy of that, `keep`.
with_data() {
    mkfs.xfs -q -f "$(disk_of "$1")"
    mount "$(disk_of "$1")" /mnt
    dd if=/dev/urandom of=/mnt/data bs=1M count=8 2>/dev/null
    cp /mnt/data /mnt/keep
    sha256sum </mnt/keep >"/tmp/sum-$1"
    umount /mnt
}

# take ADDRESS...: gives controllers to vfio-pci, whatever is on their disks.
take() {
    for address in "$@"; do
        sh ./vfio-setup.sh bind --force "$address" "$address"
    done
}

# give_back: all of them to the kernel.
give_back() { sh ./vfio-setup.sh reset; }

wrong() {
    echo "WRONG: $*"
    exit 1
}

# says FILE TEXT...: the file has all of the texts.
says() {
    file=$1
    shift
    for text in "$@"; do
        grep -qF -- "$text" "$file" || {
            cat "$file"
            wrong "it does not say '$text'"
        }
    done
}

mkdir -p /mnt
modprobe xfs
# Jobs find the disks with the kernel, and leave them so.
trap 'give_back >/dev/null' EXIT
