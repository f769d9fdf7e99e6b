#!/bin/sh
# Gives NVMe disks to vfio-pci, so that xtent (or SPDK, or QEMU) can drive them, and gives them back to the kernel.
#
#   vfio-setup.sh status [BDF...]            show disks, their users, IOMMU, hugepages, limits
#   vfio-setup.sh bind [OPTIONS] BDF...      take the disks from the kernel and give them to vfio-pci
#   vfio-setup.sh reset [BDF...]             give them (or all that vfio-pci has) back to the kernel; also clears a
#                                            driver_override that a killed run left behind
#   vfio-setup.sh hugepages N [--node K]     reserve N hugepages of 2 MiB (or an amount: 512M, 2G); 0 frees them
#   vfio-setup.sh persist [OPTIONS] BDF...   bind, now and at every boot, by a udev rule that names the serial number and
#                                            model of the disk: another disk at that address is refused
#   vfio-setup.sh unpersist [BDF...]         reset, and no longer at boot
#
# BDF is a PCI address: 0000:01:00.0, or 01:00.0.
#
# Options of bind and persist:
#   --user NAME    the disk's IOMMU group (/dev/vfio/N) belongs to this user, who then needs no root
#   --force BDF    take this disk although it carries data (a partition table, a file system, a member of LVM,
#                  RAID, ...). Nothing overrides a disk in use: unmount it, swapoff, stop what holds it.
#   --identity BDF=SERIAL,MODEL   refuse another disk at this address; persist writes this into its rule, with bytes other
#                  than letters, digits and ._:+- as =HH (hexadecimal)
# For every command:
#   --dry-run      say what would be done, do nothing
#
# bind changes nothing at all unless it can take every disk named; when it fails or is interrupted later, it undoes what
# it did. Use is checked again right before a disk is taken, with the disk held exclusively (by perl or python3), so that
# nothing can mount it meanwhile. bind and then reset leaves the machine as it was (the vfio modules stay loaded). Disks
# of one IOMMU group go together: name them all.
#
# Exit status: 0 done, or nothing to do; 1 something failed (the message says what); 2 wrong usage;
# 3 refused: in use; 4 refused: carries data; 5 refused: others in its IOMMU group; 6 no IOMMU or no vfio;
# 7 no such device, or not NVMe; 8 not root; 9 refused: another disk than --identity names.

set -u

PATH=$PATH:/usr/sbin:/sbin:/usr/local/sbin
# Tests play the kernel below a directory of their own, which they mark. Everything but /proc is then looked for there.
root=
if [ -n "${VFIO_SETUP_TEST_ROOT:-}" ]; then
    root=$VFIO_SETUP_TEST_ROOT
    [ -f "$root/vfio-setup-test-root" ] || {
        echo "vfio-setup: VFIO_SETUP_TEST_ROOT is for the tests of this script" >&2
        exit 2
    }
fi
sys=$root/sys
dev=$root/dev
pci=$sys/bus/pci/devices
drivers=$sys/bus/pci/drivers
state_dir=$root/run/vfio-setup # what bind found, for reset and status
boot_dir=$root/etc/vfio-setup  # the copy of this script that runs at boot
rules_dir=$root/etc/udev/rules.d
driverctl_dir=$root/etc/driverctl.d
wait_seconds=30 # for a disk to come back
dry_run=false

# POSIX sh has no local variables. Functions that ask something leave the answer in the variable their comment
# names, without starting a process: a machine with 24 disks shall not wait for its status.

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
fail() {
    code=$1
    shift
    printf 'vfio-setup: %s\n' "$*" >&2
    exit "$code"
}

have() { command -v "$1" >/dev/null 2>&1; }

# get FILE: $got, its first line without blanks around it, or nothing.
get() { { read -r got <"$1"; } 2>/dev/null || got=''; }

# within WORD LIST
within() { case " $2 " in *" $1 "*) ;; *) return 1 ;; esac; }

# put TEXT FILE: writes to the kernel.
put() {
    if $dry_run; then
        say "would write '$1' to $2"
        return 0
    fi
    { printf '%s\n' "$1" >"$2"; } 2>/dev/null
}

# wait_until SECONDS COMMAND...: until the command succeeds.
wait_until() {
    tries=$(($1 * 10))
    shift
    while ! "$@"; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        sleep 0.1 2>/dev/null || {
            sleep 1
            tries=$((tries - 9))
        }
    done
}

need_root() { [ -n "$root" ] || [ "$(id -u)" = 0 ] || fail 8 "$1 needs root: sudo $0 $1 ..."; }

# human SECTORS: $size, in decimal units, as disks are sold.
human() {
    size=$(($1 * 512 / 1000)) unit=kB tenths=0
    for larger in MB GB TB PB; do
        [ $size -ge 1000 ] || break
        tenths=$((size % 1000 / 100)) size=$((size / 1000)) unit=$larger
    done
    if [ $size -lt 100 ]; then
        size="$size.$tenths $unit"
    else
        size="$size $unit"
    fi
}

# join LINES: in one line.
join() { printf '%s\n' "$1" | awk 'NR > 1 { printf "; " } { printf "%s", $0 }'; }

# ---------------------------------------------------------------------------------------------------------
# What a device is

# resolve TEXT: $bdf, the full address of the NVMe controller that TEXT names; or ends.
resolve() {
    bdf=${1#pci:}
    case $bdf in *[A-F]*) bdf=$(printf '%s' "$bdf" | tr ABCDEF abcdef) ;; esac
    case $bdf in
    *[!0-9a-f:.]*) bdf= ;;
    [0-9a-f][0-9a-f]:[0-9a-f][0-9a-f].[0-7]) bdf=0000:$bdf ;;
    [0-9a-f][0-9a-f][0-9a-f][0-9a-f]*:[0-9a-f][0-9a-f]:[0-9a-f][0-9a-f].[0-7]) ;;
    *) bdf= ;;
    esac
    [ -n "$bdf" ] || fail 2 "'$1' is not a PCI address; it looks like 0000:01:00.0 or 01:00.0 (see status)"
    [ -e "$pci/$bdf" ] || {
        list_nvme
        fail 7 "there is no device at $bdf; the NVMe controllers here:${controllers:- none}"
    }
    get "$pci/$bdf/class"
    case $got in
    0x0108*) ;;
    *) fail 7 "$bdf is not an NVMe controller (PCI class $got); refusing to touch it" ;;
    esac
}

# list_nvme: $controllers, the addresses of all.
list_nvme() {
    controllers=
    for path in "$pci"/*; do
        get "$path/class"
        case $got in 0x0108*) controllers="$controllers ${path##*/}" ;; esac
    done
}

# driver_of BDF: $driver, its name or nothing.
driver_of() {
    driver=
    for path in "$drivers"/*/"$1"; do
        [ ! -e "$path" ] || {
            driver=${path%/*}
            driver=${driver##*/}
        }
    done
}

has_driver() { [ -e "$drivers/$2/$1" ]; }
is_bound() { [ -e "$pci/$1/driver" ]; }
is_back() { is_bound "$1" && ! has_driver "$1" vfio-pci; }

# group_of BDF: $group, the number of its IOMMU group or nothing.
group_of() {
    group=
    for path in "$sys"/kernel/iommu_groups/*/devices/"$1"; do
        [ ! -e "$path" ] || {
            group=${path%/devices/*}
            group=${group##*/}
        }
    done
}

# disks_of BDF: $disks, the block devices of its namespaces; $blocks, these and their partitions. With native
# multipathing the controller's own entry is hidden (nvme0c0n1), and the disk is nvme0n1.
disks_of() {
    disks='' blocks=''
    for namespace in "$pci/$1"/nvme/nvme*/nvme*n*; do
        disk=${namespace##*/}
        case $disk in nvme*c*n*) disk=${disk%%c*}n${disk##*n} ;; esac
        [ -d "$sys/class/block/$disk" ] || continue
        disks="$disks $disk"
        blocks="$blocks $disk"
        for path in "$sys/class/block/$disk/$disk"p*; do
            [ ! -e "$path/partition" ] || blocks="$blocks ${path##*/}"
        done
    done
}

# has_disk BDF: it has a namespace, and each has its node: sysfs shows a disk before devtmpfs does.
has_disk() {
    disks_of "$1"
    for disk in $disks; do
        [ -e "$dev/$disk" ] || return 1
    done
    [ -n "$disks" ]
}

# remembered BDF KEY: $noted, what bind noted about a disk.
remembered() {
    noted=
    [ ! -e "$state_dir/$1" ] || while IFS='=' read -r key text; do
        [ "$key" != "$2" ] || noted=$text
    done <"$state_dir/$1"
}

# printable TEXT: $text, without what would move a terminal's cursor.
printable() {
    text=$1
    case $text in *[![:print:]]*) text=$(printf '%s' "$text" | LC_ALL=C tr -c '[:print:]' '?') ;; esac
}

# encode TEXT: $encoded, as --identity has it: one word for a shell and for udev, whatever a disk calls itself.
encode() {
    encoded=$(printf '%s' "$1" | od -An -v -tx1 | awk '
        { for (i = 1; i <= NF; i++) {
            digits = "0123456789abcdef"
            c = sprintf("%c", 16 * (index(digits, substr($i, 1, 1)) - 1) + index(digits, substr($i, 2, 1)) - 1)
            printf "%s", c ~ /[A-Za-z0-9._:+-]/ ? c : "=" toupper($i)
        } }')
}

# identity_of BDF: $identity, SERIAL,MODEL; while vfio-pci has the disk, as bind saw it; or nothing.
identity_of() {
    identity=
    for controller in "$pci/$1"/nvme/nvme*; do
        [ -e "$controller/serial" ] || continue
        get "$controller/serial"
        [ -n "$got" ] || return
        encode "$got"
        identity=$encoded
        get "$controller/model"
        encode "$got"
        identity=$identity,$encoded
        return
    done
    remembered "$1" identity
    identity=$noted
}

# describe BDF: $description, model, serial number and size; while vfio-pci has the disk, as bind saw it.
describe() {
    for controller in "$pci/$1"/nvme/nvme*; do
        [ -e "$controller/model" ] || continue
        get "$controller/model"
        printable "$got"
        description=$text
        get "$controller/serial"
        printable "$got"
        description="$description, serial $text"
        disks_of "$1"
        for disk in $disks; do
            get "$sys/class/block/$disk/size"
            human "$got"
            description="$description, $disk $size"
        done
        return
    done
    remembered "$1" description
    description=$noted
    if [ -z "$description" ]; then
        get "$pci/$1/vendor"
        description="PCI ${got#0x}"
        get "$pci/$1/device"
        description="$description:${got#0x} (model and size cannot be read without the nvme driver)"
    fi
}

# ---------------------------------------------------------------------------------------------------------
# The users of a disk

# node_number NODE: $number, MAJOR:MINOR of the device that it stands for, or nothing.
node_number() {
    number=
    # shellcheck disable=SC2046 # three words
    set -- $(stat -L -c '%f %t %T' "$1" 2>/dev/null)
    case ${1:-} in 6??? | 2???) number=$((0x$2)):$((0x$3)) ;; esac
}

# is_node NODE NAME: whether the node, by whatever name, is the block device NAME.
is_node() {
    [ -b "$1" ] || return 1
    node_number "$1"
    get "$sys/class/block/$2/dev"
    [ "$number" = "$got" ]
}

# survey: $survey, a line "NAME HOW" for each use of any NVMe disk that only a look at all processes shows:
# mounts, swap, open devices.
survey() {
    list_nvme
    names='' numbers=''
    for controller in $controllers; do
        disks_of "$controller"
        names="$names $blocks"
        for name in $blocks; do
            number_as b "$sys/class/block/$name" "$name"
        done
        for path in "$pci/$controller"/nvme/nvme* "$pci/$controller"/nvme/nvme*/ng*; do
            [ ! -e "$path" ] || number_as c "$path" "${path##*/}"
        done
        for path in "$pci/$controller"/vfio-dev/vfio*; do
            [ ! -e "$path" ] || number_as c "$path" "vfio/devices/${path##*/}"
        done
        group_of "$controller"
        [ -z "$group" ] || number_as c "$sys/class/vfio/$group" "vfio/$group"
    done
    survey=$(
        mounts_of "$names"
        swaps_of "$names"
        open_by "$numbers"
    )
}

# number_as KIND SYSFS NAME: adds "KIND:MAJOR:MINOR=NAME" to $numbers, from sysfs or else from the node of that name.
number_as() {
    get "$2/dev"
    [ -n "$got" ] || {
        node_number "$dev/$3"
        got=$number
    }
    [ -z "$got" ] || numbers="$numbers $1:$got=$3"
}

# mounts_of NAMES: where these are mounted, in any mount namespace (containers have their own). By number, by
# name (btrfs has numbers of its own), and as a log or realtime device in the options.
mounts_of() {
    wanted=
    for name in $1; do
        get "$sys/class/block/$name/dev"
        wanted="$wanted $name=$got"
    done
    cat /proc/self/mountinfo /proc/[0-9]*/mountinfo 2>/dev/null | awk -v wanted="$wanted" '
        BEGIN {
            n = split(wanted, list, " ")
            for (i = 1; i <= n; i++) { split(list[i], p, "="); dev[p[2]] = p[1]; node["/dev/" p[1]] = p[1] }
            delete dev[""]
        }
        # The same mount again, in another process.
        seen[$3, $5]++ { next }
        {
            name = ($3 in dev) ? dev[$3] : ""
            for (i = 7; i <= NF; i++) if ($i == "-") { source = $(i + 2); options = $(i + 3) }
            if (source in node) name = node[source]
            m = split(options, o, ",")
            for (i = 1; i <= m; i++) { sub(/^[^=]*=/, "", o[i]); if (o[i] in node) name = node[o[i]] }
            if (name != "") { gsub(/\\040/, " ", $5); print name, "is mounted on " $5 }
        }'
}

swaps_of() {
    while read -r file _; do
        case $file in /*) ;; *) continue ;; esac
        for name in $1; do
            ! is_node "$file" "$name" || say "$name is swapped on"
        done
    done </proc/swaps
}

# open_by NUMBERS: the processes that have these devices open, by whatever name: containers and chroots have nodes of
# their own. udev looks at disks all the time and lets go.
open_by() {
    look=
    ! have timeout || look='timeout -s KILL 30'
    # The kernel follows the links; on a file system that hangs it would wait forever.
    found=$($look find -L /proc/[0-9]*/fd -maxdepth 1 '(' -type b -o -type c ')' 2>/dev/null)
    case $? in
    124 | 137 | 143)
        for entry in $1; do
            say "${entry#*=} is perhaps open: a file system does not answer, so that not all open files can be looked at"
        done
        ;;
    esac
    printf '%s\n' "$found" | xargs stat -L -c '%f %t %T %n' 2>/dev/null | awk -v wanted="$1" '
        function number(hex,  i, n) {
            for (i = 1; i <= length(hex); i++) n = n * 16 + index("0123456789abcdef", substr(hex, i, 1)) - 1
            return n + 0
        }
        BEGIN {
            n = split(wanted, list, " ")
            for (i = 1; i <= n; i++) { at = index(list[i], "="); node[substr(list[i], 1, at - 1)] = substr(list[i], at + 1) }
        }
        {
            key = ($1 ~ /^6/ ? "b:" : "c:") number($2) ":" number($3)
            split($4, p, "/")
            if ((key in node) && !seen[p[3], key]++) print p[3], node[key]
        }' | while read -r pid name; do
        [ "$pid" != "$hold_pid" ] || continue
        get "/proc/$pid/comm"
        [ -n "$got" ] || continue
        ! is_udev "$pid" "$got" || continue
        printable "$got"
        say "$name is open in process $pid ($text)"
    done
}

# is_udev PID NAME: any program may call itself so; only root's can be udev's.
is_udev() {
    case $2 in *udevd | *udev-worker*) ;; *) return 1 ;; esac
    # shellcheck disable=SC2012 # stat's %u is of the link's target
    [ "$(ls -ldn "/proc/$1" 2>/dev/null | awk '{ print $3 }')" = 0 ]
}

# surveyed NAMES: the lines of the survey about these.
surveyed() {
    while IFS= read -r use; do
        ! within "${use%% *}" "$1" || say "$use"
    done <<LINES
$survey
LINES
}

# uses_of BDF: one line for each use of the controller's disks; nothing when they are free.
uses_of() {
    disks_of "$1"
    control=
    for path in "$pci/$1"/nvme/nvme* "$pci/$1"/nvme/nvme*/ng*; do
        control="$control ${path##*/}"
    done
    surveyed "$blocks $control"
    for name in $blocks; do
        for path in "$sys"/fs/btrfs/*/devices/"$name"; do
            [ ! -e "$path" ] || say "$name is part of a mounted btrfs"
        done
        holders_of "$name"
        exports_of "$name"
    done
}

# holders_of NAME: what the kernel stacked on it: LVM, crypt, multipath, md, bcache, ...
holders_of() {
    for path in "$sys/class/block/$1/holders"/*; do
        [ -e "$path" ] || continue
        holder=${path##*/}
        get "$sys/class/block/$holder/dm/uuid"
        case $got in
        LVM-*) kind="LVM volume" ;;
        CRYPT-*) kind="encrypted volume" ;;
        mpath-*) kind="multipath device" ;;
        *) case $holder in
            dm-*) kind="device-mapper target" ;;
            md*) kind="RAID array" ;;
            *) kind="device" ;;
            esac ;;
        esac
        get "$sys/class/block/$holder/dm/name"
        say "$1 is held by the $kind ${got:-$holder}"
    done
}

# exports_of NAME: loop devices and kernel targets that stand on it.
exports_of() {
    for path in "$sys"/block/loop*/loop/backing_file; do
        get "$path"
        file=$got
        if [ "$file" = "/dev/$1" ] || is_node "$file" "$1"; then
            path=${path%/loop/backing_file}
            say "$1 is the file behind ${path##*/}"
        fi
    done
    for path in "$sys"/kernel/config/nvmet/subsystems/*/namespaces/*/device_path \
        "$sys"/kernel/config/target/core/iblock_*/*/udev_path; do
        [ -e "$path" ] || continue
        get "$path"
        file=$(readlink -f "$got")
        if [ "$file" = "/dev/$1" ] || is_node "$file" "$1"; then
            say "$1 is exported by the kernel (${path%/*})"
        fi
    done
    if have zpool && zpool status -LP 2>/dev/null | grep -qw "/dev/$1"; then
        say "$1 is part of a ZFS pool"
    fi
}

# group_users BDF: the processes that drive the disk through vfio.
group_users() {
    group_of "$1"
    nodes="vfio/$group"
    for path in "$pci/$1"/vfio-dev/vfio*; do
        nodes="$nodes vfio/devices/${path##*/}"
    done
    surveyed "$nodes" | sed 's/^.* is open in //'
}

# ---------------------------------------------------------------------------------------------------------
# What a disk carries

# signatures_of BDF: one line for each sign of data on the controller's disks and their partitions.
signatures_of() {
    disks_of "$1"
    for name in $blocks; do
        get "$sys/class/block/$name/size"
        [ "$got" != 0 ] || continue
        {
            wipefs --noheadings --output TYPE "$dev/$name" 2>/dev/null ||
                blkid -p -o value -s TYPE -s PTTYPE "$dev/$name" 2>/dev/null
            magic_of "$name" "$got"
        } | sort -u | while read -r kind; do
            case $kind in
            '') continue ;;
            unreadable)
                say "$name cannot be read, so its content is unknown"
                continue
                ;;
            dos | PMBR) kind=MBR ;;
            gpt) kind=GPT ;;
            LVM2_member) kind=LVM ;;
            linux_raid_member) kind=RAID ;;
            esac
            say "$name carries $kind"
        done | uniq
    done
}

# magic_of NAME SECTORS: what the common magic numbers say, for systems that lack wipefs. Pieces of the disk in
# one stream of hex digits: 8 KiB from the start, 1 KiB around 64 KiB, and of the end the last 4 KiB (GPT's
# copy) and the two places of old RAID superblocks.
magic_of() {
    [ "$2" -ge 256 ] || {
        say unreadable # smaller than any namespace in use
        return
    }
    {
        dd if="$dev/$1" bs=4096 count=2
        dd if="$dev/$1" bs=512 skip=127 count=2
        dd if="$dev/$1" bs=512 skip=$(($2 - 8)) count=8
        dd if="$dev/$1" bs=512 skip=$((($2 - 16) & ~7)) count=1
        dd if="$dev/$1" bs=512 skip=$((($2 & ~127) - 128)) count=1
    } 2>/dev/null | od -An -v -tx1 | awk '
        function at(offset, hex) { return substr(disk, offset * 2 + 1, length(hex)) == hex }
        { gsub(/ /, ""); disk = disk $0 }
        END {
            if (length(disk) != 2 * (8192 + 1024 + 4096 + 512 + 512)) print "unreadable"
            if (at(0, "58465342")) print "xfs"
            if (at(0, "4c554b53babe")) print "crypto_LUKS"
            if (at(0, "626c756573746f7265")) print "ceph_bluestore"
            if (at(0, "5350444b424c4f42")) print "SPDK_blobstore"
            if (at(3, "4e54465320202020")) print "ntfs"
            if (at(3, "4558464154202020")) print "exfat"
            if (at(510, "55aa")) print "MBR"
            if (at(1024, "1020f5f2")) print "f2fs"
            if (at(1080, "53ef")) print "ext"
            if (at(4120, "c68573f64e1a45ca")) print "bcache"
            for (i = 0; i < 4; i++) if (at(512 * i, "4c4142454c4f4e45")) print "LVM"
            gpt = "4546492050415254"
            if (at(512, gpt) || at(4096, gpt)) print "GPT"
            raid = "fc4e2ba9"
            if (at(0, raid) || at(4096, raid)) print "RAID"
            swap = "5357415053504143"
            middle = 8192 # at 127 * 512 of the disk
            if (at(4086, swap) || at(middle + 65526 - 65024, swap)) print "swap"
            if (at(middle + 65600 - 65024, "5f42485266535f4d")) print "btrfs"
            end = middle + 1024
            if (at(end, gpt) || at(end + 3584, gpt)) print "GPT"
            if (at(end + 4096, raid) || at(end + 4608, raid)) print "RAID"
        }'
}

# ---------------------------------------------------------------------------------------------------------
# IOMMU and modules

# no_iommu_advice: $advice, what to switch on.
no_iommu_advice() {
    case $(sed -n '/^vendor_id/{s/.*: //p;q;}' /proc/cpuinfo) in
    GenuineIntel) advice="switch on VT-d in the firmware and boot with intel_iommu=on on the kernel's command line" ;;
    AuthenticAMD) advice="switch on the IOMMU (AMD-Vi) in the firmware, and see that the kernel's command line has no amd_iommu=off" ;;
    *) advice="switch it on in the firmware and on the kernel's command line (intel_iommu=on for Intel)" ;;
    esac
    if grep -q '^flags.* hypervisor' /proc/cpuinfo; then
        advice="$advice; in a virtual machine its host must give it an IOMMU, too"
    fi
}

# group_obstacles BDF LIST: the members of its group that keep vfio from it; those in LIST come along.
group_obstacles() {
    for path in "$pci/$1"/iommu_group/devices/*; do
        member=${path##*/}
        ! within "$member" "$2" || continue
        # Bridges stay with the kernel; a device without a driver or with vfio's does not matter.
        get "$pci/$member/class"
        case $got in 0x0604*) continue ;; esac
        driver_of "$member"
        case $driver in '' | vfio-pci | *-vfio-pci | *_vfio_pci | pci-stub) continue ;; esac
        say "$member (driver $driver, PCI class $got)"
    done
}

load_vfio() {
    if $dry_run; then
        [ -d "$drivers/vfio-pci" ] || say "would load the modules vfio_iommu_type1 and vfio-pci"
        return 0
    fi
    # The type1 backend may be built in, or come from iommufd: no failure of its own.
    modprobe vfio_iommu_type1 2>/dev/null
    modprobe vfio-pci 2>/dev/null
    [ -d "$drivers/vfio-pci" ] ||
        fail 6 "this kernel has no vfio-pci: 'modprobe vfio-pci' failed; install the kernel's full set of modules"
}

# ---------------------------------------------------------------------------------------------------------
# bind

# look_inside BDF: a disk without a driver shows what it carries only once the kernel's driver has it.
look_inside() {
    if ! is_bound "$1" && ! $dry_run; then
        looked="$looked $1"
        modprobe nvme 2>/dev/null
        put "$1" "$sys/bus/pci/drivers_probe"
        wait_until 5 is_bound "$1"
    fi
    has_driver "$1" nvme || return 0
    # The namespaces appear a moment after the driver.
    wait_until 3 has_disk "$1"
}

# is_expected BDF: says so and fails when --identity names another disk than the one that is there.
is_expected() {
    for entry in $identities; do
        [ "${entry%%=*}" = "$1" ] || continue
        identity_of "$1"
        [ "${entry#*=}" != "$identity" ] || continue
        say "$1: another disk is at this address: ${identity:-one whose serial number cannot be read}, not ${entry#*=}"
        return 1
    done
}

# check BDF LIST FORCED: says why the disk cannot be taken, and returns bind's exit status for that.
check() {
    group_of "$1"
    if [ -z "$group" ]; then
        no_iommu_advice
        say "$1: there is no IOMMU for it, and without one the disk could write anywhere in memory: $advice"
        return 6
    fi
    driver_of "$1"
    case $driver in
    nvme) ;;
    '')
        say "$1: the nvme driver does not take it, so its content is unknown; --force $1 takes it anyway"
        within "$1" "$3" || return 4
        ;;
    *)
        say "$1: in use by the driver $driver"
        return 3
        ;;
    esac
    found=$(uses_of "$1")
    if [ -n "$found" ]; then
        say "$1: in use: $(join "$found")"
        return 3
    fi
    is_expected "$1" || return 9
    found=$(group_obstacles "$1" "$2")
    if [ -n "$found" ]; then
        say "$1: shares IOMMU group $group with devices that the kernel drives:"
        say "$found" | sed 's/^/    /'
        say "    bind them together (NVMe), take their drivers away, or use a slot with a group of its own"
        return 5
    fi
    ! within "$1" "$3" || return 0
    found=$(signatures_of "$1")
    if [ -n "$found" ]; then
        say "$1: $(join "$found")"
        say "    to take it with its content: --force $1; to empty it: wipefs -a on the disk and its partitions"
        return 4
    fi
    return 0
}

# check_all LIST FORCED: all or none; every obstacle is named, the first one's status counts.
check_all() {
    worst=0
    for one in $1; do
        has_driver "$one" vfio-pci || look_inside "$one"
    done
    survey
    for one in $1; do
        if has_driver "$one" vfio-pci; then
            # Nothing is taken, but its user gets it.
            reasons=$(is_expected "$one") && continue
            result=9
        else
            reasons=$(check "$one" "$1" "$2")
            result=$?
        fi
        if [ $result != 0 ]; then
            printf 'vfio-setup: refused: %s\n' "$reasons" >&2
            [ $worst != 0 ] || worst=$result
        fi
    done
    [ $worst = 0 ] || {
        undo_all
        printf 'vfio-setup: nothing was changed\n' >&2
        exit $worst
    }
}

# hold BDF: opens the controller's disks exclusively, as a mount does, until `let_go`: nothing can mount them meanwhile,
# and none that is claimed can be taken. Says why when that fails.
hold_pid='' hold_pipes=''
hold() {
    disks_of "$1"
    nodes=
    for disk in $disks; do
        is_node "$dev/$disk" "$disk" || {
            say "$1: $dev/$disk is not the node of $disk, so that it cannot be held"
            return 1
        }
        nodes="$nodes $dev/$disk"
    done
    [ -n "$nodes" ] || return 0
    # O_EXCL is 128 (0200) on every processor that has vfio but MIPS and SPARC.
    # shellcheck disable=SC2016 # perl's variables
    if have perl; then
        set -- "$1" perl -e '$| = 1; for (@ARGV) { sysopen(my $f, $_, 128) or print("$_: $!\n"), exit; push @held, $f }
            print "held\n"; <STDIN>'
    elif have python3; then
        set -- "$1" python3 -c 'import os, sys
try:
    for name in sys.argv[1:]: os.open(name, os.O_RDONLY | os.O_EXCL)
    print("held", flush=True)
    sys.stdin.read()
except OSError as error: print(f"{error.filename}: {error.strerror}")'
    else
        warn "$1: there is neither perl nor python3 to hold it while it changes hands"
        return 0
    fi
    one_held=$1
    shift
    hold_pipes=$state_dir/.hold.$$
    rm -rf "$hold_pipes"
    if ! mkdir -p "$hold_pipes" || ! mkfifo "$hold_pipes/stay" "$hold_pipes/answer"; then
        say "$one_held: cannot write to $state_dir"
        return 1
    fi
    # shellcheck disable=SC2086 # names of disks have no blanks
    "$@" $nodes <"$hold_pipes/stay" >"$hold_pipes/answer" 2>/dev/null &
    hold_pid=$!
    # The end of this process, however it comes, lets go.
    exec 8>"$hold_pipes/stay"
    answer=
    read -r answer <"$hold_pipes/answer"
    [ "$answer" != held ] || return 0
    let_go
    case $answer in
    *busy*) say "$one_held: in use: ${answer%%:*} is held exclusively by another program or the kernel" ;;
    *) say "$one_held: cannot be opened exclusively: ${answer:-no answer}" ;;
    esac
    return 1
}

let_go() {
    [ -n "$hold_pid" ] || return 0
    exec 8>&-
    wait "$hold_pid"
    hold_pid=
    rm -rf "$hold_pipes"
}

# remember BDF: what reset restores and status tells.
remember() {
    ! $dry_run || return 0
    mkdir -p "$state_dir" && chmod 755 "$state_dir" && {
        describe "$1"
        say "description=$description"
        identity_of "$1"
        say "identity=$identity"
        get "$pci/$1/driver_override"
        say "override=$got"
        get "$pci/$1/power/control"
        say "power=$got"
    } >"$state_dir/$1"
}

# take BDF: from whatever driver it has to vfio-pci.
take() {
    if has_driver "$1" vfio-pci; then
        say "$1: vfio-pci has it already"
        return 0
    fi
    if ! $dry_run; then
        # The state may have changed since the first check. A new obstacle is reported as it would have been then.
        reasons=$state_dir/.why.$$
        : >"$reasons" || fail 1 "cannot write to $state_dir"
        hold "$1" >"$reasons"
        result=$?
        [ $result = 0 ] || result=3
        if [ $result = 0 ]; then
            survey
            check "$1" "$list" "$forced" >"$reasons"
            result=$?
        fi
        text=$(cat "$reasons")
        rm -f "$reasons"
        [ $result = 0 ] || fail $result "refused: $text"
    fi
    remember "$1" || fail 1 "$1: cannot write to $state_dir"
    taken="$taken $1"
    put vfio-pci "$pci/$1/driver_override" || fail 1 "$1: the kernel takes no driver_override for it"
    if is_bound "$1"; then
        put "$1" "$pci/$1/driver/unbind" || fail 1 "$1: its driver does not let go of it"
    fi
    let_go
    put "$1" "$sys/bus/pci/drivers_probe" || fail 1 "$1: the kernel looks for no driver of it"
    ! $dry_run || return 0
    wait_until 5 has_driver "$1" vfio-pci || fail 1 "$1: vfio-pci did not take it (see dmesg)"
    group_of "$1"
    say "$1: vfio-pci has it now (IOMMU group $group)"
}

# What bind and persist did so far; `undo` takes it back unless the command comes to its end.
taken='' looked='' owned='' rules='' identities=''
begin() {
    trap undo EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    $dry_run || { mkdir -p "$state_dir" && chmod 755 "$state_dir"; } || fail 1 "cannot write to $state_dir"
}
end() { trap - EXIT HUP INT TERM; }

undo() {
    status=$?
    trap '' HUP INT TERM
    trap - EXIT
    anything="$taken$looked$owned$rules"
    undo_all
    if [ -n "$anything" ] && ! $dry_run; then
        if [ -z "$stuck" ]; then
            say "what was done is undone" >&2
        else
            say "not all of it could be undone:$stuck (see dmesg; reset tries again)" >&2
        fi
    fi
    exit $status
}

# undo_all: takes back what was done, the last first; $stuck, the disks that no driver took back.
undo_all() {
    let_go
    rm -f "$state_dir/.why.$$"
    stuck=
    for path in $rules; do
        rm -f "$path"
        reload_rules
    done
    forget_script
    for entry in $owned; do
        node=${entry%%=*} entry=${entry#*=}
        [ ! -e "$node" ] || {
            chown "${entry%,*}" "$node"
            chmod "${entry#*,}" "$node"
        }
    done
    for back in $taken; do
        give_back "$back"
        $dry_run || wait_until "$wait_seconds" is_back "$back" || stuck="$stuck $back"
    done
    # Without a driver before, and given to the kernel's only to be looked at.
    for back in $looked; do
        ! is_bound "$back" || put "$back" "$pci/$back/driver/unbind"
    done
    taken='' looked='' owned='' rules=''
}

# note_owner NODE: owner and mode of a node that is about to be changed, for `undo`.
note_owner() { owned="$1=$(stat -c %u:%g,%a "$1") $owned"; }

# own BDF USER: the group's node, and the device's where the kernel has those, belong to the user.
own() {
    group_of "$1"
    node=$dev/vfio/$group
    if $dry_run; then
        say "would give $node to $2"
        return 0
    fi
    wait_until 5 test -e "$node" || fail 1 "$1: $node did not appear"
    for path in "$node" "$pci/$1"/vfio-dev/vfio*; do
        [ "$path" = "$node" ] || path=$dev/vfio/devices/${path##*/}
        [ -e "$path" ] || continue
        note_owner "$path"
        chown "$2" "$path" || fail 1 "cannot give $path to $2"
    done
    # The container is for all users, as udev makes it; without udev it is root's.
    if [ -e "$dev/vfio/vfio" ]; then
        note_owner "$dev/vfio/vfio"
        chmod 0666 "$dev/vfio/vfio"
    fi
    say "$1: $node belongs to $2"
}

# check_memlock USER: everything a device may reach counts as locked memory of its user.
check_memlock() {
    limit=$(su -s /bin/sh "$1" -c 'ulimit -l' 2>/dev/null)
    case $limit in
    unlimited | '') return 0 ;;
    *[!0-9]*) return 0 ;;
    esac
    [ "$limit" -ge 262144 ] || {
        warn "$1 may lock only $limit KiB of memory, and memory for DMA counts as locked."
        warn "Put the line '$1 - memlock unlimited' into /etc/security/limits.d/vfio.conf and log in again."
    }
}

bind() {
    begin
    take_all
    end
}

take_all() {
    check_all "$list" "$forced"
    load_vfio
    for one in $list; do
        take "$one"
        [ -z "$user" ] || own "$one" "$user"
    done
    if [ -n "$user" ]; then
        check_memlock "$user"
    elif [ -n "${SUDO_USER:-}" ] && [ "${SUDO_USER:-}" != root ]; then
        say "Only root can use it; '--user $SUDO_USER' would give it to you."
    fi
}

# ---------------------------------------------------------------------------------------------------------
# reset

# give_back BDF: to the driver the kernel would choose, with what bind found restored.
give_back() {
    remembered "$1" override
    case $noted in '(null)' | vfio-pci) noted= ;; esac
    put "$noted" "$pci/$1/driver_override"
    if is_bound "$1"; then
        put "$1" "$pci/$1/driver/unbind"
    fi
    remembered "$1" power
    [ -z "$noted" ] || put "$noted" "$pci/$1/power/control"
    $dry_run || modprobe nvme 2>/dev/null
    put "$1" "$sys/bus/pci/drivers_probe"
    $dry_run || rm -f "$state_dir/$1"
}

# has_leftovers BDF: whether a run that was killed left its driver_override or its note.
has_leftovers() {
    get "$pci/$1/driver_override"
    [ "$got" = vfio-pci ] || [ -e "$state_dir/$1" ]
}

# clear_leftovers BDF: of a disk that the kernel's driver has.
clear_leftovers() {
    get "$pci/$1/driver_override"
    if [ "$got" = vfio-pci ]; then
        remembered "$1" override
        case $noted in '(null)' | vfio-pci) noted= ;; esac
        put "$noted" "$pci/$1/driver_override" || return 1
    fi
    $dry_run || rm -f "$state_dir/$1"
}

reset() {
    worst=0
    survey
    for one in $list; do
        if ! has_driver "$one" vfio-pci; then
            if is_bound "$one"; then
                driver_of "$one"
                if ! has_leftovers "$one"; then
                    say "$one: is with the driver $driver; nothing to do"
                elif clear_leftovers "$one"; then
                    say "$one: is with the driver $driver; what an earlier run left (driver_override) is cleared"
                else
                    printf 'vfio-setup: %s: the kernel does not let driver_override be cleared\n' "$one" >&2
                    worst=1
                fi
                continue
            fi
        else
            # The kernel would wait for them for ever.
            found=$(group_users "$one")
            if [ -n "$found" ]; then
                printf 'vfio-setup: refused: %s: in use through vfio by %s; end it first\n' "$one" "$found" >&2
                worst=3
                continue
            fi
        fi
        give_back "$one"
        ! $dry_run || continue
        if ! wait_until "$wait_seconds" is_back "$one"; then
            printf 'vfio-setup: %s: no driver of the kernel took it back (see dmesg)\n' "$one" >&2
            worst=1
        elif ! wait_until "$wait_seconds" has_disk "$one"; then
            warn "$one: has a driver of the kernel again, but no namespace appeared in $wait_seconds s"
        else
            driver_of "$one"
            say "$one: is back with $driver:$disks"
        fi
    done
    return $worst
}

# ---------------------------------------------------------------------------------------------------------
# hugepages

# free_memory_mib: what could become hugepages, on the node asked for or on the machine.
free_memory_mib() {
    if [ -n "$numa_node" ]; then
        awk '$3 == "MemFree:" || $3 == "FilePages:" { n += $4 } $3 == "Shmem:" { n -= $4 } END { print int(n / 1024) }' \
            "$sys/devices/system/node/node$numa_node/meminfo"
    else
        awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo
    fi
}

hugepages() {
    case $amount in
    *[!0-9KMGkmg]* | '' | [KMGkmg]* | *[KMGkmg]?*) fail 2 "hugepages wants a number of 2 MiB pages, or an amount such as 512M or 2G" ;;
    *[Gg]) pages=$((${amount%?} * 512)) ;;
    *[Mm]) pages=$(((${amount%?} + 1) / 2)) ;;
    *[Kk]) pages=$(((${amount%?} + 2047) / 2048)) ;;
    *) pages=$amount ;;
    esac
    where=$sys/kernel/mm/hugepages/hugepages-2048kB
    [ -z "$numa_node" ] || where=$sys/devices/system/node/node$numa_node/hugepages/hugepages-2048kB
    if [ ! -e "$where/nr_hugepages" ]; then
        [ -z "$numa_node" ] || fail 7 "this machine has no NUMA node $numa_node"
        fail 6 "this kernel has no hugepages of 2 MiB"
    fi
    get "$where/nr_hugepages"
    before=$got
    # The kernel would take what it can get, down to the last page that running programs need.
    free_mib=$(free_memory_mib)
    [ $(((pages - before) * 2)) -le $((free_mib * 15 / 16)) ] ||
        fail 1 "$pages hugepages take $((pages * 2)) MiB, and only $free_mib MiB are available${numa_node:+ on node $numa_node}: no more than $((free_mib * 15 / 32 + before)) fit, with some room for everything else"
    put "$pages" "$where/nr_hugepages" || fail 1 "the kernel refuses $pages hugepages"
    ! $dry_run || return 0
    get "$where/nr_hugepages"
    if [ "$got" -lt "$pages" ]; then
        # Free memory is there but in pieces: let the kernel put it together, then ask again.
        put 1 /proc/sys/vm/compact_memory
        put "$pages" "$where/nr_hugepages"
        get "$where/nr_hugepages"
    fi
    reserved=$got
    if [ "$reserved" -lt "$pages" ]; then
        put "$before" "$where/nr_hugepages"
        fail 1 "only $reserved of $pages could be reserved, memory is in pieces ($before are reserved, as before); it works right after boot, or with hugepages=$pages on the kernel's command line"
    fi
    get "$where/free_hugepages"
    say "hugepages of 2 MiB${numa_node:+ on node $numa_node}: $reserved ($got free)"
    if [ "$reserved" -gt "$pages" ]; then
        warn "$((reserved - pages)) more are in use and go when their programs end"
    fi
}

# ---------------------------------------------------------------------------------------------------------
# persist

# rule_of BDF: $rule, the file.
rule_of() { rule=$rules_dir/60-vfio-setup-$1.rules; }

# A udev rule that runs a copy of this script, with all its checks. The rule names the disk's serial number and model:
# another disk at the same address is refused, not taken. (driverctl knows addresses only.)
persist() {
    [ -d "$rules_dir" ] || fail 6 "there is no udev here ($rules_dir); let your boot scripts run: $0 bind$list"
    begin
    take_all
    for one in $list; do
        if $dry_run; then
            say "would make it last: $one"
            continue
        fi
        identity_of "$one"
        [ -n "$identity" ] || fail 1 "$one: its serial number is not known; run 'reset $one' and then this again"
        make_rule "$one" || fail 1 "cannot write $rule, or to $boot_dir"
        say "$one: $rule binds it at every boot, and no other disk"
    done
    end
}

# make_rule BDF: with $identity.
make_rule() {
    rule_of "$1"
    mkdir -p "$boot_dir" && cp "$0" "$boot_dir/vfio-setup.sh.new" && chmod 755 "$boot_dir/vfio-setup.sh.new" &&
        mv "$boot_dir/vfio-setup.sh.new" "$boot_dir/vfio-setup.sh" || return 1
    options="--identity $1=$identity"
    [ -z "$user" ] || options="$options --user $user"
    ! within "$1" "$forced" || options="$options --force $1"
    [ -e "$rule" ] || rules="$rules $rule"
    describe "$1"
    if ! {
        say "# $description"
        say "# Written by 'vfio-setup.sh persist'; 'vfio-setup.sh unpersist $1' removes it."
        say "ACTION==\"add\", SUBSYSTEM==\"pci\", KERNEL==\"$1\", RUN+=\"$boot_dir/vfio-setup.sh bind $options $1\""
    } >"$rule.new" || ! mv "$rule.new" "$rule"; then
        rm -f "$rule.new"
        return 1
    fi
    reload_rules
}

# reload_rules: udev need not run (containers, other boot systems): rules are read when it starts.
reload_rules() {
    ! have udevadm || udevadm control --reload 2>/dev/null || true
}

# forget_script: the last rule takes the copy of the script with it.
forget_script() {
    $dry_run || for path in "$rules_dir"/60-vfio-setup-*.rules; do
        [ -e "$path" ] || rm -rf "$boot_dir"
    done
}

# persisted BDF: $persisted, how, or nothing.
persisted() {
    persisted=
    rule_of "$1"
    get "$driverctl_dir/pci-$1"
    if [ "$got" = vfio-pci ]; then
        persisted=driverctl
    elif [ -e "$rule" ]; then
        persisted=$rule
    fi
}

unpersist() {
    forgotten=0
    survey
    for one in $list; do
        persisted "$one"
        case $persisted in
        '') say "$one: is not persisted" ;;
        driverctl)
            found=$(group_users "$one")
            if [ -n "$found" ]; then
                printf 'vfio-setup: refused: %s: in use through vfio by %s; end it first\n' "$one" "$found" >&2
                forgotten=3
                continue
            fi
            if $dry_run; then
                say "would run: driverctl unset-override $one"
            else
                driverctl unset-override "$one" || forgotten=1
            fi
            ;;
        *)
            if $dry_run; then
                say "would remove $persisted"
            else
                rm -f "$persisted"
                reload_rules
            fi
            ;;
        esac
    done
    reset || forgotten=$?
    forget_script
    return $forgotten
}

# ---------------------------------------------------------------------------------------------------------
# status

status() {
    say "NVMe controllers"
    survey
    [ -n "$list" ] || list=$controllers
    [ -n "$list" ] || say "  none"
    for one in $list; do
        describe "$one"
        say "  $one  $description"
        driver_of "$one"
        group_of "$one"
        get "$pci/$one/numa_node"
        [ "$got" != -1 ] || got=none
        say "      driver ${driver:-none}, NUMA node $got, IOMMU group ${group:-none}"
        if [ "$driver" = vfio-pci ]; then
            status_vfio "$one"
        else
            status_kernel "$one"
        fi
        persisted "$one"
        [ -z "$persisted" ] || say "      bound at every boot by $persisted"
        case $persisted in
        '' | driverctl) ;;
        *) grep -q -e --identity "$persisted" || say "      (the rule is of an old version and takes any disk at this address: persist it again)" ;;
        esac
    done
    say
    say "System"
    status_system
}

# indent PREFIX LINES
indent() { [ -z "$2" ] || say "$2" | sed "s/^/      $1/"; }

# status_vfio BDF: whose it is, and who drives it.
status_vfio() {
    # shellcheck disable=SC2012 # stat is no POSIX tool
    owner=$(ls -ld "$dev/vfio/$group" 2>/dev/null | awk '{ print $3 }')
    say "      /dev/vfio/$group ${owner:+belongs to }${owner:-does not exist}"
    indent "in use through vfio by " "$(group_users "$1")"
}

# status_kernel BDF: used by what, carrying what, in whose company.
status_kernel() {
    found=$(uses_of "$1")
    [ -n "$found" ] || say "      not in use"
    indent "in use: " "$found"
    if [ "$(id -u)" = 0 ]; then
        indent "" "$(signatures_of "$1")"
    else
        say "      (run as root to see what the disk carries and which processes have it open)"
    fi
    indent "shares its IOMMU group with " "$(group_obstacles "$1" "$1")"
}

status_system() {
    groups=0
    for path in "$sys"/kernel/iommu_groups/*; do
        [ ! -d "$path" ] || groups=$((groups + 1))
    done
    if [ $groups = 0 ]; then
        no_iommu_advice
        say "  IOMMU      none: $advice"
    else
        say "  IOMMU      on, $groups groups"
    fi
    if [ -d "$drivers/vfio-pci" ]; then
        say "  vfio       loaded"
    elif grep -qs '/vfio-pci\.ko' "/lib/modules/$(uname -r)/modules.dep"; then
        say "  vfio       not loaded (bind loads it)"
    else
        say "  vfio       this kernel has no vfio-pci"
    fi
    for path in "$sys"/devices/system/node/node*/hugepages/hugepages-2048kB; do
        [ -e "$path" ] || path=$sys/kernel/mm/hugepages/hugepages-2048kB
        [ -e "$path/nr_hugepages" ] || continue
        node=${path#"$sys"/devices/system/node/}
        case $node in node*) node=", ${node%%/*}" ;; *) node= ;; esac
        get "$path/nr_hugepages"
        reserved=$got
        get "$path/free_hugepages"
        say "  hugepages  2 MiB: $reserved, $got free$node"
    done
    # shellcheck disable=SC3045 # dash, busybox and bash have it
    limit=$(ulimit -l 2>/dev/null)
    case $limit in *[!0-9]* | '') ;; *) limit="$limit KiB" ;; esac
    say "  memlock    ${limit:-unknown} (this shell; memory for DMA counts, root is exempt)"
}

# ---------------------------------------------------------------------------------------------------------
# The command line

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

command=${1:-help}
[ $# = 0 ] || shift
list='' forced='' user='' amount='' numa_node=''
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry_run=true ;;
    --user | --force | --identity | --node)
        [ $# -ge 2 ] || fail 2 "$1 wants a value; see --help"
        case $command in
        bind | persist) [ "$1" != --node ] || fail 2 "--node belongs to hugepages" ;;
        hugepages) [ "$1" = --node ] || fail 2 "$1 belongs to bind and persist" ;;
        *) fail 2 "$1 does not belong to $command" ;;
        esac
        case $1 in
        --user)
            user=$2
            id -u "$user" >/dev/null 2>&1 || fail 2 "there is no user '$user'"
            ;;
        --force)
            resolve "$2"
            forced="$forced $bdf"
            ;;
        --identity)
            resolve "${2%%=*}"
            case $2 in *=*,*) ;; *) fail 2 "--identity wants BDF=SERIAL,MODEL" ;; esac
            identities="$identities $bdf=${2#*=}"
            ;;
        --node)
            numa_node=$2
            case $2 in *[!0-9]* | '') fail 2 "--node wants a number" ;; esac
            ;;
        esac
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    -*) fail 2 "unknown option '$1'; see --help" ;;
    *)
        case $command in
        hugepages)
            [ -z "$amount" ] || fail 2 "hugepages wants one number"
            amount=$1
            ;;
        status | bind | reset | persist | unpersist)
            resolve "$1"
            within "$bdf" "$list" || list="$list $bdf"
            ;;
        *) fail 2 "$command takes no '$1'; see --help" ;;
        esac
        ;;
    esac
    shift
done
for one in $forced; do
    within "$one" "$list" || fail 2 "--force $one: that disk is not among those to bind"
done

case $command in
status) status ;;
bind | persist)
    [ -n "$list" ] || fail 2 "$command wants the PCI addresses of the disks; 'status' shows them"
    need_root "$command"
    "$command"
    ;;
reset)
    need_root reset
    [ -n "$list" ] || {
        list_nvme
        for one in $controllers; do
            if has_driver "$one" vfio-pci || has_leftovers "$one"; then
                list="$list $one"
            fi
        done
    }
    [ -n "$list" ] || say "vfio-pci has no NVMe disk; nothing to do"
    reset
    ;;
unpersist)
    need_root unpersist
    [ -n "$list" ] || {
        list_nvme
        for one in $controllers; do
            persisted "$one"
            [ -z "$persisted" ] || list="$list $one"
        done
    }
    unpersist
    ;;
hugepages)
    need_root hugepages
    hugepages
    ;;
help | -h | --help) usage ;;
*) fail 2 "unknown command '$command'; see --help" ;;
esac
