#!/usr/bin/env bash
# Measures a tree of small files, cold, the kernel and xtent in turns: copying it out of an image (cp -r, xtent get -r),
# listing it (ls -lR), and reading all of its files (the best of several threads, examples/read_tree.rs at depth 32 on two).
#
#   sudo scripts/bench-tree.sh [--rounds N] [--files N] [--image FILE] [--to DIR]
#
#   --rounds   of each; medians are printed (default 5)
#   --files    of the tree: those of /usr/share, and copies of them for the rest (default 57000)
#   --image    where the image is made, or an image with a tree to use as it is (default: a temporary file, removed)
#   --to       a directory to copy into (default: beside the image)
#
# Needs root: it mounts the image and drops the system's caches before each measurement.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

rounds=5 files=57000 image='' to=''
while [ $# -gt 0 ]; do
    case $1 in
    --rounds) rounds=$2 ;;
    --files) files=$2 ;;
    --image) image=$2 ;;
    --to) to=$2 ;;
    *) die "unknown option $1: see the head of this script" ;;
    esac
    shift 2
done
[ "$(id -u)" = 0 ] || die 'run it as root: it mounts the image and drops caches'
need_packages mkfs.xfs:xfsprogs losetup:mount:util-linux
need_cargo
step 'Building'
cargo build --release --quiet --locked --bin xtent --example read_tree
xtent=target/release/xtent read_tree=target/release/examples/read_tree

work=$(mktemp -d)
mnt=$work/mnt
mkdir "$mnt"
leave() {
    if mountpoint -q "$mnt"; then umount "$mnt"; fi
    rm -rf "$work" "${out:-$work}"
}
trap leave EXIT

# make_image: a tree of $files files, as many as possible from /usr/share, copied once more for the rest.
make_image() {
    local have rest copy=0
    truncate -s 3G "$image"
    mkfs.xfs -q -f "$image"
    mount -o loop "$image" "$mnt"
    have=0
    while [ "$have" -lt "$files" ]; do
        rest=$((files - have))
        mkdir "$mnt/$copy"
        # By a list: a find whose output is cut off ends with an error, and with it this script.
        (cd /usr/share && find . -type f -print0 >"$work/list" &&
            head -z -n "$rest" "$work/list" | cpio -0pdm --quiet "$mnt/$copy")
        copy=$((copy + 1))
        have=$(find "$mnt" -type f | wc -l)
    done
    umount "$mnt"
}

if [ -z "$image" ]; then image=$work/tree.img; fi
if [ ! -e "$image" ]; then
    need_packages cpio:cpio
    step "Making an image of $files files"
    make_image
fi
out=$(mktemp -d -p "${to:-$(dirname "$image")}")

cold() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
}
# timed NAME COMMAND...: runs it with cold caches and adds the seconds to NAME's.
timed() {
    local name=$1 begin end
    shift
    cold
    begin=$(date +%s%N)
    "$@" >"$work/output"
    end=$(date +%s%N)
    echo $(((end - begin) / 1000)) >>"$work/$name"
    rm -rf "${out:?}"/*
}
with_kernel() {
    mount -o loop,ro "$image" "$mnt"
    timed "$@"
    umount "$mnt"
}
median() { sort -n "$work/$1" | sed -n "$(((rounds + 1) / 2))p"; }
# compare TITLE KERNEL... -- XTENT: the medians, the best of the kernel's, and their ratio.
compare() {
    local title=$1 best='' name value
    shift
    while [ "$1" != -- ]; do
        value=$(median "$1")
        if [ -z "$best" ] || [ "$value" -lt "$best" ]; then
            best=$value
            name=$1
        fi
        shift
    done
    value=$(median "$2")
    awk -v title="$title" -v kernel="$best" -v xtent="$value" -v name="$name" -v n="$count" 'BEGIN {
        printf "%-28s %9.2f s %9.2f s %7.2f %9.0f %9.0f   %s\n", title, kernel / 1e6, xtent / 1e6,
            xtent / kernel, n * 1e6 / kernel, n * 1e6 / xtent, name }'
}

mount -o loop,ro "$image" "$mnt"
count=$(find "$mnt" -type f | wc -l)
umount "$mnt"
kernel_threads=(1 2 8 32)
for round in $(seq "$rounds"); do
    step "Round $round of $rounds"
    with_kernel cp cp -r "$mnt" "$out/copy"
    timed get "$xtent" get -r "$image" / "$out/copy"
    with_kernel ls ls -lR "$mnt"
    timed xtent-ls "$xtent" ls -lR "$image" /
    for threads in "${kernel_threads[@]}"; do
        with_kernel "read-$threads" "$read_tree" "dir:$mnt" "$threads"
    done
    timed xtent-read "$read_tree" "$image,readonly" 2
done
printf '\n%s files, medians of %s rounds, load %s\n' "$count" "$rounds" "$(cut -d' ' -f1-3 /proc/loadavg)"
printf '%-28s %11s %11s %7s %9s %9s   %s\n' '' kernel xtent ratio files/s files/s 'kernel: best of'
compare 'copy (cp -r, get -r)' cp -- get
compare 'list (ls -lR)' ls -- xtent-ls
compare 'read (2 threads, depth 32)' "${kernel_threads[@]/#/read-}" -- xtent-read
