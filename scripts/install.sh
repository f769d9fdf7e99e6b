#!/bin/sh
# Installs xtent, vfio-setup.sh, the man pages and the completions.
#
#   scripts/install.sh                       into /usr/local
#   PREFIX=/usr scripts/install.sh           into another prefix
#   DESTDIR=pkg PREFIX=/usr scripts/install.sh   for a package: PREFIX below this directory
#
# XTENT names the binary [target/release/xtent, which is built where it is missing].
set -eu

usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
}

case "${1-}" in
'') ;;
-h | --help)
    usage
    exit 0
    ;;
*)
    echo "install.sh: $1: no such option; PREFIX and DESTDIR are variables of the environment (--help)" >&2
    exit 2
    ;;
esac

here=$(cd "$(dirname "$0")/.." && pwd)
prefix=${PREFIX:-/usr/local}
to=${DESTDIR-}$prefix
xtent=${XTENT:-$here/target/release/xtent}

if [ ! -x "$xtent" ]; then
    (cd "$here" && cargo build --release --locked)
fi

made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
trap 'exit 1' HUP INT TERM
"$xtent" man "$made/man1"
for shell in bash zsh fish; do
    "$xtent" completions "$shell" >"$made/$shell"
done

install -d "$to/bin" "$to/sbin" "$to/share/man/man1" "$to/share/bash-completion/completions" \
    "$to/share/zsh/site-functions" "$to/share/fish/vendor_completions.d"
install -m 755 "$xtent" "$to/bin/xtent"
install -m 755 "$here/vfio-setup.sh" "$to/sbin/vfio-setup.sh"
install -m 644 "$made"/man1/*.1 "$to/share/man/man1/"
install -m 644 "$made/bash" "$to/share/bash-completion/completions/xtent"
install -m 644 "$made/zsh" "$to/share/zsh/site-functions/_xtent"
install -m 644 "$made/fish" "$to/share/fish/vendor_completions.d/xtent.fish"
echo "installed xtent into $to"
