#!/bin/sh
# Makes what the fuzz targets start from: messages of a vfio-user client, a small image filled by the kernel, and
# seeds cut from it.
# Needs root (a loop mount) and mkfs.xfs. Usage: fuzz/seed.sh
set -eu
cd "$(dirname "$0")"
mkdir -p corpus/superblock corpus/inode corpus/directory corpus/log corpus/vfio_user corpus/vfio_user_server corpus/bmbt corpus/refcount corpus/free_space
# These make their trees of any bytes.
for tree in bmbt refcount free_space; do
    printf '\022\100%0200d' 0 >"corpus/$tree/zeroes"
done

# little BYTES VALUE: a number, its least byte first.
little() {
    left=$1 value=$2
    while [ "$left" -gt 0 ]; do
        # shellcheck disable=SC2059
        printf "\\$(printf %03o $((value & 255)))"
        left=$((left - 1)) value=$((value >> 8))
    done
}
# message COMMAND BYTES:VALUE...: a message of a vfio-user client, with these fields behind the header.
message() {
    command=$1 size=16
    shift
    for field; do size=$((size + ${field%:*})); done
    little 2 7
    little 2 "$command"
    little 4 "$size"
    little 8 0
    for field; do little "${field%:*}" "${field#*:}"; done
}
# The first byte says whether the target greets before these (0) or not. Each alone, and all in a row.
{ little 1 1 && message 1 2:0 2:1; } >corpus/vfio_user/version
{ little 1 0 && message 4 4:16 4:0 4:0 4:0; } >corpus/vfio_user/info
{ little 1 0 && message 5 4:32 4:0 4:0 4:0 8:0 8:0; } >corpus/vfio_user/region-info
{ little 1 0 && message 7 4:16 4:0 4:2 4:0; } >corpus/vfio_user/irq-info
{ little 1 0 && message 8 4:24 4:33 4:2 4:0 4:1 4:0; } >corpus/vfio_user/set-irqs
{ little 1 0 && message 9 8:28 4:0 4:4; } >corpus/vfio_user/read-csts
{ little 1 0 && message 10 8:20 4:0 4:4 4:4587521; } >corpus/vfio_user/write-cc
{ little 1 0 && message 10 8:4096 4:0 4:4 4:1; } >corpus/vfio_user/write-doorbell
{ little 1 0 && message 2 4:32 4:3 8:0 8:4294967296 8:2097152; } >corpus/vfio_user/map
{ little 1 0 && message 3 4:24 4:0 8:4294967296 8:2097152; } >corpus/vfio_user/unmap
{ little 1 0 && message 13; } >corpus/vfio_user/reset
for seed in info region-info irq-info set-irqs read-csts map write-cc write-doorbell unmap reset; do
    tail -c +2 "corpus/vfio_user/$seed"
done | { little 1 0 && cat; } >corpus/vfio_user/session

# What a client does, each step a byte and its numbers (vfio_user_server.rs): brings the controller up; a command; lends
# memory; connects interrupts; cuts what it lent; rings; resets; sends half a message, and any message.
steps() {
    file=corpus/vfio_user_server/$1
    shift
    for number; do little 1 "$number"; done >"$file"
}
steps command 0 2 6 1 1 0 0 0 1 0 3 0 0
steps lend 4 0 0 0 0 0 4 2 1 1 0 0 4 3 2 2 0 0 5 0 0 0
steps interrupts 0 6 0 0 2 0 1 0 6 2 0 1 0 8 6 2 0 0 0 0
steps cut 0 7 0 0 2 6 1 1 0 0
steps ring 0 9 0 5 0 0 0 0 0 0 0
steps reset 0 12 13 5 0 0 2
steps half 15 3 9
steps any 14 9 3 1 6 9 20 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19

# record KIND PAYLOAD OPERATIONS FLAGS: a record of the target `log`, nothing in it broken.
record() {
    for field in "$@" 0 0 0; do little 1 "$field"; done
}
# Where the first one lies (3 bytes), its cycle, and what the rest of the log holds.
log() {
    for field; do little 1 "$field"; done
}
{ log 0 0 20 5 140 && record 16 1 1 32; } >corpus/log/unmount
{ log 0 1 0 5 140 && record 19 1 1 32; } >corpus/log/large
{ log 0 1 0 5 140 && record 23 200 9 0 && record 19 1 1 32; } >corpus/log/long
{ log 0 1 0 5 140 && record 16 1 1 32 && record 8 3 2 0; } >corpus/log/torn
{ log 0 0 0 1 250 170 3 && record 16 1 3 0 && record 16 1 1 32; } >corpus/log/wrapped

image=corpus/disk.img
mount=$(mktemp -d)
trap 'umount "$mount" 2>/dev/null || true; rmdir "$mount"' EXIT

rm -f "$image"
truncate -s 24M "$image"
# The variables let mkfs.xfs make so small an image.
TEST_DIR=1 TEST_DEV=1 QA_CHECK_FS=1 mkfs.xfs -q -d agcount=1 "$image"
mount -o loop "$image" "$mount"
: >"$mount/first"
for dir in block:30 leaf:300 node:2500; do
    name=${dir%:*} count=${dir#*:}
    mkdir "$mount/$name"
    i=0
    while [ "$i" -lt "$count" ]; do
        ln "$mount/first" "$mount/$name/$(printf 'a-name-of-some-length-%05d' "$i")"
        i=$((i + 1))
    done
done
ln -s target "$mount/link"
head -c 20000 /dev/zero >"$mount/file"
umount "$mount"

head -c 4096 "$image" >corpus/superblock/sector
# A block is 4096 bytes: the inodes of the first cluster, as they are.
root=$(xfs_db -r -c 'sb 0' -c 'print rootino' "$image" | sed 's/.* //')
first=$(xfs_db -r -c "convert ino $root fsblock" "$image" | sed 's/.*(\([0-9]*\)).*/\1/')
i=0
while [ "$i" -lt 16 ]; do
    dd if="$image" of="corpus/inode/$i" bs=512 skip=$((first * 8 + i)) count=1 status=none
    i=$((i + 1))
done
# The first byte chooses a block as the target counts them, the rest is the block behind its identity.
number=0
for dir in block leaf node; do
    xfs_db -r -c "path /$dir" -c bmap "$image" |
        sed -n 's/.*startblock \([0-9]*\) .*count \([0-9]*\) .*/\1 \2/p'
done | while read -r start count; do
    while [ "$count" -gt 0 ]; do
        case $(dd if="$image" bs=4096 skip="$start" count=1 status=none | head -c 2) in
        XD) keep=48 ;;
        *) keep=56 ;;
        esac
        {
            printf "\\$(printf %03o "$number")"
            dd if="$image" bs=4096 skip="$start" count=1 status=none | tail -c +$((keep + 1))
        } >"corpus/directory/$number"
        number=$((number + 1)) start=$((start + 1)) count=$((count - 1))
    done
done
