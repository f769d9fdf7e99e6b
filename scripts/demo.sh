#!/usr/bin/env bash
# The kernel's xfs and xtent on the same bytes, with a report to look at. On a fresh Debian or Fedora machine
# it first installs what it needs, by package name, after saying which.
#
#   scripts/demo.sh [--dir DIR] [--runtime SECONDS] [--rounds N] [--fresh]
#
#   --dir DIR       where the image and the report go (default: $XDG_CACHE_HOME/xtent or ~/.cache/xtent)
#   --runtime S     seconds each workload runs in each turn (default 2)
#   --rounds N      turns of each side (default 3)
#   --fresh         makes the image anew; otherwise the one of the last run is used again
#
# As root the kernel is measured too, by a loop mount in a private mount namespace. Without root the image
# is filled by mkfs.xfs and the kernel is skipped. Needs 2 GiB of disk.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

dir=${XDG_CACHE_HOME:-${HOME:-$PWD}/.cache}/xtent
runtime=2 rounds=3 fresh=false
while [ $# -gt 0 ]; do
    case $1 in
    --dir | --runtime | --rounds)
        [ $# -ge 2 ] || die "$1 needs a value"
        declare "${1#--}=$2"
        shift
        ;;
    --fresh) fresh=true ;;
    -h | --help)
        sed -n '2,13s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *) die "unknown argument '$1'; see --help" ;;
    esac
    shift
done

need_packages mkfs.xfs:xfsprogs mount:mount:util-linux cc:gcc git:git
need_cargo
PATH=$PATH:/usr/sbin:/sbin

step "building xtent"
cargo build --release --locked
xtent=${CARGO_TARGET_DIR:-target}/release/xtent

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
image=$dir/demo.img
half=$dir/demo.img.part
proto=$dir/demo.proto
data=$dir/demo.data
mnt=

# shellcheck disable=SC2317,SC2329 # called by the trap
clean_up() {
    local status=$?
    trap - EXIT
    if [ -n "$mnt" ]; then
        umount "$mnt" 2>/dev/null || umount -l "$mnt" 2>/dev/null || true
        rmdir "$mnt" 2>/dev/null || true
    fi
    rm -f "$half" "$proto" "$data"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# One file of random bytes; sizes in MiB.
random_file() { dd if=/dev/urandom of="$1" bs=1M count="$2" status=none; }

# A small tree that the kernel's own xfs writes: every kind of thing that `ls -l` can show.
fill_by_kernel() {
    mkfs.xfs -q -L demo "$half"
    mnt=$(mktemp -d)
    mount -t xfs -o loop,nodev,nosuid "$half" "$mnt"
    mkdir "$mnt/bench" "$mnt/docs" "$mnt/many"
    random_file "$mnt/bench/read.dat" 256
    random_file "$mnt/bench/write.dat" 256
    touch "$mnt/bench/grow.dat"
    cp README.md ARCHITECTURE.md LICENSE-MIT LICENSE-APACHE "$mnt/docs/"
    ln -s docs/README.md "$mnt/README.md"
    (cd "$mnt/many" && seq -f 'file-%05g' 2000 | xargs touch)
    truncate -s 1G "$mnt/sparse.dat"
    printf 'in the middle of a hole\n' |
        dd of="$mnt/sparse.dat" bs=4096 seek=100000 conv=notrunc status=none
    umount "$mnt"
    rmdir "$mnt"
    mnt=
}

# The same by mkfs.xfs alone, for those who may not mount. It copies files from the host as it makes them.
fill_by_mkfs() {
    # It writes each as if it were one extent: both must fit into one allocation group, beside the log.
    random_file "$data" 192
    cat >"$proto" <<END
/dev/null
0 0
d--755 0 0
bench d--755 0 0
read.dat ---644 0 0 $data
write.dat ---644 0 0 $data
grow.dat ---644 0 0 /dev/null
$
docs d--755 0 0
README.md ---644 0 0 $PWD/README.md
ARCHITECTURE.md ---644 0 0 $PWD/ARCHITECTURE.md
LICENSE-MIT ---644 0 0 $PWD/LICENSE-MIT
$
README.md l--777 0 0 docs/README.md
$
END
    mkfs.xfs -q -L demo -d agcount=2 -p "$proto" "$half"
    xfs_repair -n -f "$half" >/dev/null 2>&1 || die "mkfs.xfs made an image that xfs_repair does not like"
}

if $fresh || [ ! -f "$image" ]; then
    step "making an XFS image of 1 GiB: $image"
    rm -f "$half"
    truncate -s 1G "$half"
    if [ "$(id -u)" = 0 ]; then fill_by_kernel; else fill_by_mkfs; fi
    # Under its own name only when it is whole.
    mv "$half" "$image"
else
    step "using the image of an earlier run: $image"
fi

step "xtent info $image"
"$xtent" info "$image"

step "xtent ls -l $image"
"$xtent" ls -l "$image" / /docs

step "xtent compare --image $image"
if [ "$(id -u)" != 0 ]; then
    echo "not root: the kernel's side is skipped; run this with sudo to measure both" >&2
fi
if [ "$(cat /proc/sys/vm/nr_hugepages 2>/dev/null || echo 0)" = 0 ]; then
    echo "no hugepages are reserved, so xtent uses ordinary locked memory; to reserve 64 of 2 MiB:" >&2
    echo "  sudo sysctl vm.nr_hugepages=64" >&2
fi
report=$dir/report.html
"$xtent" compare --image "$image" --runtime "$runtime" --rounds "$rounds" \
    --json "$dir/report.json" --report "$report"

step "done: open the report in a browser"
echo "$report"
