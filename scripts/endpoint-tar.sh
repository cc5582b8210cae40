#!/usr/bin/env bash
# Packs what a machine needs to serve the address of its API servers with systemd (docs/api-endpoint.md): the speaker, nft with its own
# libraries beside it, the unit, and `sheave`. It is unpacked with tar -C / -xzf, below /usr/local alone. The archive is tried in an
# empty root, where there is no library but those in it.
#   scripts/endpoint-tar.sh DIRECTORY-WITH-BINARIES
set -euo pipefail
cd "$(dirname "$0")/.."
binaries=$1
out=target/images/sheave-endpoint.tar.gz
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

library=$work/root/usr/local/lib/sheave
mkdir -p "$library/lib" "$work/root/usr/local/bin"
install -m 755 "$binaries/sheave-speaker" "$library/sheave-speaker"
install -m 755 "$binaries/sheave" "$work/root/usr/local/bin/sheave"
install -m 644 endpoint/sheave-endpoint.service "$library/sheave-endpoint.service"

nft=$(command -v nft || echo /usr/sbin/nft)
install -m 755 "$nft" "$library/lib/nft"
# "name => /path" for libraries, a bare path for the loader; the vdso has neither.
loader=
while read -r path; do
  install -m 755 "$path" "$library/lib/$(basename "$path")"
  case $(basename "$path") in ld-*) loader=$(basename "$path") ;; esac
done < <(ldd "$nft" | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }')
[ -n "$loader" ] || { echo "$nft names no loader" >&2; exit 1; }
# The loader by hand: the machine's own libraries may be older, or another C library.
cat >"$library/nft" <<EOF
#!/bin/sh
here=/usr/local/lib/sheave/lib
exec "\$here/$loader" --library-path "\$here" "\$here/nft" "\$@"
EOF
chmod 755 "$library/nft"

mkdir -p "$(dirname "$out")"
tar --create --gzip --file "$work/archive" --directory "$work/root" --owner=0 --group=0 --sort=name usr
mv "$work/archive" "$out"

empty=$work/empty
mkdir -p "$empty/bin"
cp "$(command -v busybox)" "$empty/bin/sh"
tar --extract --gzip --file "$out" --directory "$empty"
chroot "$empty" /usr/local/lib/sheave/nft --version >"$work/said"
grep -q '^nftables v' "$work/said" || { echo "nft of $out does not run alone: $(cat "$work/said")" >&2; exit 1; }
# And it talks to the kernel, as the speaker has it do.
echo 'add table inet sheave; add chain inet sheave one; list tables' |
  unshare --net chroot "$empty" /usr/local/lib/sheave/nft -f - | grep -qx 'table inet sheave' ||
  { echo "nft of $out loads no rules" >&2; exit 1; }
for program in /usr/local/lib/sheave/sheave-speaker /usr/local/bin/sheave; do
  chroot "$empty" "$program" --version >>"$work/said" || { echo "$program of $out does not run alone" >&2; exit 1; }
done
printf '%s: %s MB; in an empty root: %s\n' "$out" "$(du -m "$out" | cut -f1)" "$(paste -sd ';' "$work/said")"
