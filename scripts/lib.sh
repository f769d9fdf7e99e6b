#!/usr/bin/env bash
# What the scripts share: messages, packages, the Rust toolchain. Sourced, not run.

step() { printf '\n== %s\n' "$*" >&2; }
die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# as_root COMMAND...: runs it as root, by sudo where that is needed.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# apt_get ARGUMENT...: apt-get as root, which waits while another apt or dpkg holds one of its locks. apt itself waits for
# dpkg's locks only, and only when told to: those of its lists and archives are errors at once. So what names a lock is
# tried again, for XTENT_APT_WAIT seconds (600).
apt_get() {
    local start=$SECONDS wait=${XTENT_APT_WAIT:-600} log status said=false
    log=$(mktemp)
    while :; do
        status=0
        as_root env LC_ALL=C DEBIAN_FRONTEND=noninteractive \
            apt-get -o DPkg::Lock::Timeout="$wait" "$@" 2>"$log" || status=$?
        if [ $status = 0 ] || [ $((SECONDS - start)) -ge "$wait" ] ||
            ! grep -qiE 'could not get lock|unable to lock|unable to acquire the dpkg|is locked by another' "$log"; then
            break
        fi
        $said || echo "Waiting up to $wait s for another apt: $(grep -im1 lock "$log")" >&2
        said=true
        sleep 2
    done
    cat "$log" >&2
    rm -f "$log"
    return $status
}

# need_packages PROGRAM:DEBIAN[:FEDORA]...: installs the packages of the programs that are missing.
need_packages() {
    local entry program debian fedora apt=() dnf=()
    for entry in "$@"; do
        IFS=: read -r program debian fedora <<<"$entry"
        if ! PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null; then
            apt+=("$debian")
            dnf+=("${fedora:-$debian}")
        fi
    done
    [ ${#apt[@]} -gt 0 ] || return 0
    if command -v apt-get >/dev/null; then
        echo "Installing with apt-get: ${apt[*]}" >&2
        apt_get update -qq
        apt_get install -y -qq "${apt[@]}" >/dev/null
    elif command -v dnf >/dev/null; then
        echo "Installing with dnf: ${dnf[*]}" >&2
        as_root dnf install -y -q "${dnf[@]}"
    else
        die "missing programs; install what your system calls: ${apt[*]}"
    fi
}

# need_cargo: a Rust toolchain that is new enough for Cargo.toml's rust-version.
need_cargo() {
    local want have
    export PATH="$PATH:$HOME/.cargo/bin"
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    command -v cargo >/dev/null ||
        die "no cargo found: install Rust $want or newer with rustup (https://rustup.rs), then run this again"
    have=$(cargo --version | cut -d' ' -f2)
    if [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n1)" != "$want" ]; then
        die "Rust $have is too old, $want or newer is needed: run 'rustup update stable'"
    fi
}

# hugetlbfs: sees to a mounted hugetlbfs, which SPDK's programs want; return_hugepages unmounts what it mounted. False when
# there is none and none may be mounted.
hugetlbfs_made=''
hugetlbfs() {
    local found
    found=$(findmnt -nt hugetlbfs -o TARGET | head -n1 || true)
    [ -z "$found" ] || return 0
    found=$(mktemp -d)
    if ! mount -t hugetlbfs -o pagesize=2M none "$found" 2>/dev/null; then
        rmdir "$found"
        return 1
    fi
    hugetlbfs_made=$found
}

# remove_hugepages_of PID: the files that SPDK's programs leave in hugetlbfs.
remove_hugepages_of() {
    findmnt -nt hugetlbfs -o TARGET | while read -r mount; do
        rm -f "$mount/spdk_pid$1"map_*
    done
}

# reserve_hugepages N: sees to N free hugepages of 2 MiB, where that is allowed; false when they are not to be had.
# return_hugepages gives back what it took.
hugepages_before=''
# Free and not reserved by other processes.
free_hugepages() { awk '/^HugePages_Free:/ { n += $2 } /^HugePages_Rsvd:/ { n -= $2 } END { print n }' /proc/meminfo; }
reserve_hugepages() {
    local all=/proc/sys/vm/nr_hugepages free
    grep -q '^Hugepagesize: *2048 kB' /proc/meminfo || return 1
    free=$(free_hugepages)
    if [ "$free" -lt "$1" ]; then
        [ -w $all ] || return 1
        hugepages_before=$(cat $all)
        echo $((hugepages_before + $1 - free)) >$all
        # Compact memory: fragmentation may be the obstacle.
        echo 1 >/proc/sys/vm/compact_memory
        echo $((hugepages_before + $1 - free)) >$all
        free=$(free_hugepages)
    fi
    [ "$free" -ge "$1" ]
}
return_hugepages() {
    if [ -n "$hugetlbfs_made" ]; then
        if umount "$hugetlbfs_made"; then rmdir "$hugetlbfs_made"; fi
        hugetlbfs_made=''
    fi
    [ -z "$hugepages_before" ] || echo "$hugepages_before" >/proc/sys/vm/nr_hugepages
    hugepages_before=''
}

# descendants PID: its processes, and theirs, the youngest last.
descendants() {
    local child
    for child in $(pgrep -P "$1"); do
        echo "$child"
        descendants "$child"
    done
}

# end_process PID: ends a child of this shell; one that does not end by itself in 10 s is killed.
end_process() {
    local n
    kill "$1" 2>/dev/null || true
    for n in $(seq 100); do
        # A child that has ended is there until it is waited for.
        case $(ps -o stat= -p "$1") in '' | Z*) break ;; esac
        [ "$n" != 100 ] || kill -9 "$1" 2>/dev/null || true
        sleep 0.1
    done
    wait "$1" 2>/dev/null || true
}

# no_longer_than SECONDS FILE...: has this script fail when it takes longer, after it said what runs and how the files
# end. $watchdog is to be ended with end_watchdog.
watchdog=''
no_longer_than() {
    local limit=$1 script=$$
    shift
    (
        trap - EXIT INT TERM
        sleep "$limit"
        {
            step "not ended after $limit s; what runs:"
            ps -o pid,ppid,stat,etime,wchan:24,args -p "$(descendants "$script" | paste -sd,)"
            for file in "$@"; do
                [ ! -s "$file" ] || {
                    step "the end of $(basename "$file")"
                    tail -n 40 "$file"
                }
            done
        } >&2
        # The oldest first: what one waits for is not begun anew.
        for process in $(descendants "$script"); do
            [ "$process" = "$BASHPID" ] || kill -9 "$process" 2>/dev/null || true
        done
        kill "$script"
    ) &
    watchdog=$!
}
end_watchdog() {
    local process
    [ -n "$watchdog" ] || return 0
    for process in $(descendants "$watchdog") "$watchdog"; do
        kill "$process" 2>/dev/null || true
    done
    watchdog=''
}

# beside DIR FUNCTION...: runs these in a process group of their own ($lane), up to the first in which a command fails.
# What each says goes to DIR/NUMBER-FUNCTION.passed or .failed.
beside() {
    local work=$1 name start status number=0
    shift
    set -m
    for name in "$@"; do
        start=$SECONDS number=$((number + 1))
        # Not as a condition: there the shell would go on after a command that fails.
        set +e
        (
            set -e
            "$name"
        ) >"$work/log" 2>&1
        status=$?
        set -e
        if [ $status = 0 ]; then
            echo "($((SECONDS - start)) s, beside other steps)" >>"$work/log"
            mv "$work/log" "$work/$number-$name.passed"
        else
            mv "$work/log" "$work/$number-$name.failed"
            exit 1
        fi
    done </dev/null &
    # shellcheck disable=SC2034 # for the caller
    lane=$!
    set +m
}
