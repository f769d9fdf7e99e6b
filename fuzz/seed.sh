#!/bin/sh
# Makes what the fuzz targets start from: a small image filled by the kernel, and seeds cut from it.
# Needs root (a loop mount) and mkfs.xfs. Usage: fuzz/seed.sh
set -eu
cd "$(dirname "$0")"
mkdir -p corpus/superblock corpus/inode corpus/directory
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
