#!/bin/sh
# Gives NVMe disks to vfio-pci, so that xtent (or SPDK, or QEMU) can drive them, and gives them back to the kernel.
#
#   vfio-setup.sh status [BDF...]            what is here: disks, who uses them, IOMMU, hugepages, limits
#   vfio-setup.sh bind [OPTIONS] BDF...      take the disks from the kernel and give them to vfio-pci
#   vfio-setup.sh reset [BDF...]             give them (or all that vfio-pci has) back to the kernel
#   vfio-setup.sh hugepages N [--node K]     reserve N hugepages of 2 MiB (or an amount: 512M, 2G); 0 frees them
#   vfio-setup.sh persist [OPTIONS] BDF...   bind, now and at every boot
#   vfio-setup.sh unpersist [BDF...]         reset, and no longer at boot
#
# BDF is a PCI address: 0000:01:00.0, or 01:00.0.
#
# Options of bind and persist:
#   --user NAME    the disk's IOMMU group (/dev/vfio/N) belongs to this user, who then needs no root
#   --force BDF    take this disk although it carries data (a partition table, a file system, a member of LVM,
#                  RAID, ...). Nothing overrides a disk in use: unmount it, swapoff, stop what holds it.
# For every command:
#   --dry-run      say what would be done, do nothing
#
# bind changes nothing at all unless it can take every disk named. bind and then reset leaves the machine as it
# was (the vfio modules stay loaded). Disks of one IOMMU group go together: name them all.
#
# Exit status: 0 done, or nothing to do; 1 something failed (the message says what); 2 wrong usage;
# 3 refused: in use; 4 refused: carries data; 5 refused: others in its IOMMU group; 6 no IOMMU or no vfio;
# 7 no such device, or not NVMe; 8 not root.

set -u

PATH=$PATH:/usr/sbin:/sbin:/usr/local/sbin
pci=/sys/bus/pci/devices
drivers=/sys/bus/pci/drivers
state_dir=/run/vfio-setup # what bind found, for reset and status
boot_dir=/etc/vfio-setup  # the copy of this script that runs at boot
rules_dir=/etc/udev/rules.d
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

need_root() { [ "$(id -u)" = 0 ] || fail 8 "$1 needs root: sudo $0 $1 ..."; }

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

# group_of BDF: $group, the number of its IOMMU group or nothing.
group_of() {
    group=
    for path in /sys/kernel/iommu_groups/*/devices/"$1"; do
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
        [ -d "/sys/class/block/$disk" ] || continue
        disks="$disks $disk"
        blocks="$blocks $disk"
        for path in "/sys/class/block/$disk/$disk"p*; do
            [ ! -e "$path/partition" ] || blocks="$blocks ${path##*/}"
        done
    done
}

has_disk() {
    disks_of "$1"
    [ -n "$disks" ]
}

# remembered BDF KEY: $noted, what bind noted about a disk.
remembered() {
    noted=
    [ ! -e "$state_dir/$1" ] || while IFS='=' read -r key text; do
        [ "$key" != "$2" ] || noted=$text
    done <"$state_dir/$1"
}

# describe BDF: $description, model, serial number and size; while vfio-pci has the disk, as bind saw it.
describe() {
    for controller in "$pci/$1"/nvme/nvme*; do
        [ -e "$controller/model" ] || continue
        get "$controller/model"
        description=$got
        get "$controller/serial"
        description="$description, serial $got"
        disks_of "$1"
        for disk in $disks; do
            get "/sys/class/block/$disk/size"
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
# Who uses a disk

# survey: $survey, a line "NAME HOW" for each use of any NVMe disk that only a look at all processes shows:
# mounts, swap, open devices.
survey() {
    list_nvme
    names=
    for controller in $controllers; do
        disks_of "$controller"
        names="$names $blocks"
        for path in "$pci/$controller"/nvme/nvme* "$pci/$controller"/nvme/nvme*/ng* "$pci/$controller"/vfio-dev/vfio*; do
            case $path in */vfio-dev/*) prefix=vfio/devices/ ;; *) prefix= ;; esac
            [ ! -e "$path" ] || names="$names $prefix${path##*/}"
        done
        group_of "$controller"
        names="$names ${group:+vfio/$group}"
    done
    survey=$(
        mounts_of "$names"
        swaps_of "$names"
        open_by "$names"
    )
}

# mounts_of NAMES: where these are mounted, in any mount namespace (containers have their own). By number, by
# name (btrfs has numbers of its own), and as a log or realtime device in the options.
mounts_of() {
    wanted=
    for name in $1; do
        get "/sys/class/block/$name/dev"
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
        file=$(readlink -f "$file")
        ! within "${file#/dev/}" "$1" || say "${file#/dev/} is swapped on"
    done </proc/swaps
}

# open_by NAMES: the processes that have /dev/NAME open. udev looks at disks all the time and lets go.
open_by() {
    # shellcheck disable=SC2012 # find would cost a process for every descriptor
    ls -l /proc/[0-9]*/fd 2>/dev/null | awk -v wanted="$1" '
        BEGIN { n = split(wanted, list, " "); for (i = 1; i <= n; i++) node["/dev/" list[i]] = list[i] }
        /^\/proc\// { split($0, p, "/"); pid = p[3] }
        ($NF in node) && !seen[pid, $NF]++ { print pid, node[$NF] }' | while read -r pid name; do
        get "/proc/$pid/comm"
        case $got in *udevd | '') ;; *) say "$name is open in process $pid ($got)" ;; esac
    done
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
        for path in /sys/fs/btrfs/*/devices/"$name"; do
            [ ! -e "$path" ] || say "$name is part of a mounted btrfs"
        done
        holders_of "$name"
        exports_of "$name"
    done
}

# holders_of NAME: what the kernel stacked on it: LVM, crypt, multipath, md, bcache, ...
holders_of() {
    for path in "/sys/class/block/$1/holders"/*; do
        [ -e "$path" ] || continue
        holder=${path##*/}
        get "/sys/class/block/$holder/dm/uuid"
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
        get "/sys/class/block/$holder/dm/name"
        say "$1 is held by the $kind ${got:-$holder}"
    done
}

# exports_of NAME: loop devices and kernel targets that stand on it.
exports_of() {
    for path in /sys/block/loop*/loop/backing_file; do
        get "$path"
        [ "$got" != "/dev/$1" ] || {
            path=${path%/loop/backing_file}
            say "$1 is the file behind ${path##*/}"
        }
    done
    for path in /sys/kernel/config/nvmet/subsystems/*/namespaces/*/device_path \
        /sys/kernel/config/target/core/iblock_*/*/udev_path; do
        [ -e "$path" ] || continue
        get "$path"
        [ "$(readlink -f "$got")" != "/dev/$1" ] || say "$1 is exported by the kernel (${path%/*})"
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
        get "/sys/class/block/$name/size"
        [ "$got" != 0 ] || continue
        {
            wipefs --noheadings --output TYPE "/dev/$name" 2>/dev/null ||
                blkid -p -o value -s TYPE -s PTTYPE "/dev/$name" 2>/dev/null
            magic_of "$name" "$got"
        } | sort -u | while read -r kind; do
            case $kind in
            '') continue ;;
            unreadable)
                say "$name cannot be read, so that nobody knows what it carries"
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
        say unreadable # too small for anything: nobody ships such a namespace
        return
    }
    {
        dd if="/dev/$1" bs=4096 count=2
        dd if="/dev/$1" bs=512 skip=127 count=2
        dd if="/dev/$1" bs=512 skip=$(($2 - 8)) count=8
        dd if="/dev/$1" bs=512 skip=$((($2 - 16) & ~7)) count=1
        dd if="/dev/$1" bs=512 skip=$((($2 & ~127) - 128)) count=1
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
        # Bridges stay with the kernel; a device without a driver or with vfio's is in nobody's way.
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
        modprobe nvme 2>/dev/null
        put "$1" /sys/bus/pci/drivers_probe
        wait_until 5 is_bound "$1"
    fi
    has_driver "$1" nvme || return 0
    # The namespaces appear a moment after the driver.
    wait_until 3 has_disk "$1"
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
        say "$1: the nvme driver does not take it, so that nobody can see what it carries; --force $1 takes it anyway"
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
        say "    to take it with what is on it: --force $1; to empty it: wipefs -a on the disk and its partitions"
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
        ! has_driver "$one" vfio-pci || continue
        reasons=$(check "$one" "$1" "$2")
        result=$?
        if [ $result != 0 ]; then
            printf 'vfio-setup: refused: %s\n' "$reasons" >&2
            [ $worst != 0 ] || worst=$result
        fi
    done
    [ $worst = 0 ] || {
        printf 'vfio-setup: nothing was changed\n' >&2
        exit $worst
    }
}

# remember BDF: what reset restores and status tells.
remember() {
    ! $dry_run || return 0
    mkdir -p "$state_dir" && chmod 755 "$state_dir" && {
        describe "$1"
        say "description=$description"
        get "$pci/$1/driver_override"
        say "override=$got"
        get "$pci/$1/power/control"
        say "power=$got"
    } >"$state_dir/$1"
}

# take BDF: from whatever driver it has to vfio-pci. What bind took before goes back when one fails.
take() {
    if has_driver "$1" vfio-pci; then
        say "$1: vfio-pci has it already"
        return 0
    fi
    remember "$1"
    put vfio-pci "$pci/$1/driver_override" || undo 1 "$1: the kernel takes no driver_override for it"
    taken="$taken $1"
    if is_bound "$1"; then
        put "$1" "$pci/$1/driver/unbind"
    fi
    put "$1" /sys/bus/pci/drivers_probe
    ! $dry_run || return 0
    wait_until 5 has_driver "$1" vfio-pci || undo 1 "$1: vfio-pci did not take it (see dmesg)"
    group_of "$1"
    say "$1: vfio-pci has it now (IOMMU group $group)"
}

# undo STATUS MESSAGE: gives back what this run took, then fails.
undo() {
    for back in $taken; do
        give_back "$back"
    done
    fail "$1" "$2; what was taken is given back"
}

# own BDF USER: the group's node, and the device's where the kernel has those, belong to the user.
own() {
    group_of "$1"
    node=/dev/vfio/$group
    if $dry_run; then
        say "would give $node to $2"
        return 0
    fi
    wait_until 5 test -e "$node" || fail 1 "$1: $node did not appear"
    chown "$2" "$node" || fail 1 "cannot give $node to $2"
    for path in "$pci/$1"/vfio-dev/vfio*; do
        [ ! -e "/dev/vfio/devices/${path##*/}" ] || chown "$2" "/dev/vfio/devices/${path##*/}"
    done
    # The container is for everybody, as udev makes it; without udev it is root's.
    [ ! -e /dev/vfio/vfio ] || chmod 0666 /dev/vfio/vfio
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
    taken=''
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
    put "$1" /sys/bus/pci/drivers_probe
    $dry_run || rm -f "$state_dir/$1"
}

reset() {
    worst=0
    survey
    for one in $list; do
        if ! has_driver "$one" vfio-pci; then
            if is_bound "$one"; then
                driver_of "$one"
                say "$one: is with the driver $driver; nothing to do"
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
        if ! wait_until "$wait_seconds" is_bound "$one"; then
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
    if [ -n "$node_number" ]; then
        awk '$3 == "MemFree:" || $3 == "FilePages:" { n += $4 } $3 == "Shmem:" { n -= $4 } END { print int(n / 1024) }' \
            "/sys/devices/system/node/node$node_number/meminfo"
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
    where=/sys/kernel/mm/hugepages/hugepages-2048kB
    [ -z "$node_number" ] || where=/sys/devices/system/node/node$node_number/hugepages/hugepages-2048kB
    if [ ! -e "$where/nr_hugepages" ]; then
        [ -z "$node_number" ] || fail 7 "this machine has no NUMA node $node_number"
        fail 6 "this kernel has no hugepages of 2 MiB"
    fi
    get "$where/nr_hugepages"
    before=$got
    # The kernel would take what it can get, down to the last page that running programs need.
    free_mib=$(free_memory_mib)
    [ $(((pages - before) * 2)) -le $((free_mib * 15 / 16)) ] ||
        fail 1 "$pages hugepages take $((pages * 2)) MiB, and only $free_mib MiB are available${node_number:+ on node $node_number}: no more than $((free_mib * 15 / 32 + before)) fit, with some room for everything else"
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
    say "hugepages of 2 MiB${node_number:+ on node $node_number}: $reserved ($got free)"
    if [ "$reserved" -gt "$pages" ]; then
        warn "$((reserved - pages)) more are in use and go when their programs end"
    fi
}

# ---------------------------------------------------------------------------------------------------------
# persist

# rule_of BDF: $rule, the file.
rule_of() { rule=$rules_dir/60-vfio-setup-$1.rules; }

# With driverctl its own saved overrides; otherwise a udev rule that runs a copy of this script, with all its
# checks: another disk at the same address is refused, not taken.
persist() {
    if ! have driverctl && [ ! -d "$rules_dir" ]; then
        fail 6 "there is neither driverctl nor udev here; let your boot scripts run: $0 bind $list"
    fi
    bind
    for one in $list; do
        if $dry_run; then
            say "would make it last: $one"
        elif have driverctl; then
            driverctl set-override "$one" vfio-pci || fail 1 "driverctl refuses $one"
            [ -z "$user" ] || own "$one" "$user"
            say "$one: driverctl binds it at every boot"
            [ -z "$user" ] || warn "driverctl restores no owner: run 'bind --user $user $one' after boot"
        else
            if ! mkdir -p "$boot_dir" || ! cp "$0" "$boot_dir/vfio-setup.sh"; then
                fail 1 "cannot write to $boot_dir"
            fi
            chmod 755 "$boot_dir/vfio-setup.sh"
            options=
            [ -z "$user" ] || options="$options --user $user"
            ! within "$one" "$forced" || options="$options --force $one"
            rule_of "$one"
            {
                say "# Written by 'vfio-setup.sh persist'; 'vfio-setup.sh unpersist $one' removes it."
                say "ACTION==\"add\", SUBSYSTEM==\"pci\", KERNEL==\"$one\", RUN+=\"$boot_dir/vfio-setup.sh bind$options $one\""
            } >"$rule" || fail 1 "cannot write $rule"
            ! have udevadm || udevadm control --reload 2>/dev/null
            say "$one: $rule binds it at every boot"
        fi
    done
}

# persisted BDF: $persisted, how, or nothing.
persisted() {
    persisted=
    rule_of "$1"
    get "/etc/driverctl.d/pci-$1"
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
                ! have udevadm || udevadm control --reload 2>/dev/null
            fi
            ;;
        esac
    done
    reset || forgotten=$?
    # The last rule takes the copy of the script with it.
    $dry_run || for path in "$rules_dir"/60-vfio-setup-*.rules; do
        [ -e "$path" ] || rm -rf "$boot_dir"
    done
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
    owner=$(ls -ld "/dev/vfio/$group" 2>/dev/null | awk '{ print $3 }')
    say "      /dev/vfio/$group belongs to ${owner:-nobody: it is not there}"
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
        say "      (root sees more: what the disk carries, and who has it open)"
    fi
    indent "shares its IOMMU group with " "$(group_obstacles "$1" "$1")"
}

status_system() {
    groups=0
    for path in /sys/kernel/iommu_groups/*; do
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
    for path in /sys/devices/system/node/node*/hugepages/hugepages-2048kB; do
        [ -e "$path" ] || path=/sys/kernel/mm/hugepages/hugepages-2048kB
        [ -e "$path/nr_hugepages" ] || continue
        node=${path#/sys/devices/system/node/}
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
list='' forced='' user='' amount='' node_number=''
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry_run=true ;;
    --user | --force | --node)
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
        --node)
            node_number=$2
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
            ! has_driver "$one" vfio-pci || list="$list $one"
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
