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
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${apt[@]}" >/dev/null
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

# reserve_hugepages N: sees to N free hugepages of 2 MiB, where that is allowed; false when they are not to be had.
# return_hugepages gives back what it took.
hugepages_before=''
reserve_hugepages() {
    local all=/proc/sys/vm/nr_hugepages free
    grep -q '^Hugepagesize: *2048 kB' /proc/meminfo || return 1
    free=$(sed -n 's/^HugePages_Free: *//p' /proc/meminfo)
    if [ "$free" -lt "$1" ]; then
        [ -w $all ] || return 1
        hugepages_before=$(cat $all)
        echo $((hugepages_before + $1 - free)) >$all
        # What is in the way is moved, if that helps.
        echo 1 >/proc/sys/vm/compact_memory
        echo $((hugepages_before + $1 - free)) >$all
        free=$(sed -n 's/^HugePages_Free: *//p' /proc/meminfo)
    fi
    [ "$free" -ge "$1" ]
}
return_hugepages() {
    [ -z "$hugepages_before" ] || echo "$hugepages_before" >/proc/sys/vm/nr_hugepages
    hugepages_before=''
}
