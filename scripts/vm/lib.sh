#!/usr/bin/env bash
# shellcheck disable=SC2034 # used by the scripts that source this
# What the virtual machine's scripts share: where things lie, packages, the guest's file system. Sourced, not run.

# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

vm_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo_dir=$(cd "$vm_dir/../.." && pwd)

# Everything fetched and built lies here and may be removed at any time. XTENT_VM_CACHE puts it elsewhere.
vm_cache=${XTENT_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/xtent-vm}

vm_guest=$vm_cache/guest       # guest tools, unpacked from their packages
vm_kernel=$vm_cache/kernel     # the kernel's package, unpacked; vmlinux beside boot/
vm_emulator=$vm_cache/emulator # QEMU, unpacked, where it could not be installed

# Guest tools by Debian package. Their libraries follow from the packages' dependencies.
vm_guest_packages=(
    libc6 libgcc-s1                             # for xtent and its test binaries
    busybox-static kmod util-linux mount fdisk # the system
    bash driverctl dash                         # what vfio-setup.sh meets elsewhere
    xfsprogs e2fsprogs dmsetup lvm2 mdadm       # what may be on a disk
    nvme-cli
)

# Programs of those packages that the guest gets, beside busybox. Their libraries are found by the loader.
vm_guest_programs=(
    bin/kmod bin/bash bin/dash sbin/blkid sbin/wipefs sbin/mkswap sbin/sfdisk sbin/losetup bin/mount bin/umount
    sbin/mkfs.xfs sbin/xfs_repair sbin/xfs_io sbin/xfs_db sbin/mke2fs sbin/dmsetup sbin/lvm sbin/mdadm
    sbin/nvme sbin/driverctl
)

# Kernel modules the guest carries, with those they depend on; loaded when asked for.
vm_guest_modules=(nvme xfs ext4 loop vfio-pci vfio_iommu_type1 dm-mod raid1)

# vm_skip REASON: ends a script that cannot run on this machine, the way tests do.
vm_skip() {
    echo "SKIPPED: $*"
    exit 0
}

# vm_supported: whether this machine can have the virtual machine at all; says why not.
vm_supported() {
    if [ "$(uname -m)" != x86_64 ]; then
        echo "the virtual machine needs an x86_64 host, this is $(uname -m)"
        return 1
    fi
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        echo "the virtual machine is put together from Debian packages, and there is no apt-get here;" \
            "run it in a Debian container or on a Debian or Ubuntu machine"
        return 1
    fi
}

# vm_loader ROOT PROGRAM...: runs a program of an unpacked root with that root's own loader and libraries.
vm_loader() {
    local root=$1
    shift
    "$root/lib64/ld-linux-x86-64.so.2" --library-path \
        "$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu" "$@"
}

vm_busybox() { "$vm_guest/bin/busybox" "$@"; }

vm_kernel_version() { ls "$vm_kernel/lib/modules"; }

# vm_find ROOT PATH: the file at PATH, or at usr/PATH: where /bin is a link to /usr/bin, packages differ.
vm_find() {
    local path
    for path in "$1/$2" "$1/usr/$2" "$1/${2/#sbin/bin}" "$1/usr/${2/#sbin/bin}"; do
        if [ -f "$path" ]; then
            echo "$path"
            return 0
        fi
    done
    return 1
}

# vm_emulator_command: sets the array `emulator` to the command that starts QEMU.
vm_emulator_command() {
    if [ -z "${XTENT_VM_UNPACK:-}" ] && command -v qemu-system-x86_64 >/dev/null; then
        emulator=(qemu-system-x86_64)
        return 0
    fi
    local libraries=$vm_emulator/usr/lib/x86_64-linux-gnu share=$vm_emulator/usr/share
    emulator=(
        env "LD_LIBRARY_PATH=$libraries:$vm_emulator/lib/x86_64-linux-gnu" "QEMU_MODULE_DIR=$libraries/qemu"
        "$vm_emulator/usr/bin/qemu-system-x86_64"
        -L "$share/qemu" -L "$share/seabios" -L "$vm_emulator/usr/lib/ipxe/qemu"
    )
}

# vm_copy_program FILE ROOT DIRECTORY: copies a program and the libraries it needs, as the guest's loader
# finds them, into the root. A static program comes alone.
vm_copy_program() {
    local library
    mkdir -p "$2/$3"
    cp -L "$1" "$2/$3/"
    while read -r library; do
        [ -e "$2/lib/${library##*/}" ] || cp -L "$library" "$2/lib/"
    done < <(vm_loader "$vm_guest" --list "$1" 2>/dev/null | sed -n 's/.* => \(\/[^ ]*\).*/\1/p')
}

# vm_standard_files: sets the array `standard_files` to the run options for what every guest gets: vfio-setup.sh,
# what jobs share and, when it is built, xtent (the newest of the release and the debug build).
vm_standard_files() {
    local newest target=${CARGO_TARGET_DIR:-$repo_dir/target}
    standard_files=(--file "$repo_dir/vfio-setup.sh" --file "$vm_dir/jobs/lib")
    # shellcheck disable=SC2012 # two known names, by age
    newest=$({ ls -t "$target"/{release,debug}/xtent 2>/dev/null || true; } | head -n1)
    [ -z "$newest" ] || standard_files+=(--file "$newest:xtent")
}

# vm_archive DIRECTORY: writes the directory to stdout as an initramfs archive; everything belongs to root.
vm_archive() {
    (cd "$1" && find . | LC_ALL=C sort | vm_busybox cpio -o -H newc -R 0:0 --quiet)
}
