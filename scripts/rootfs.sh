#!/usr/bin/env bash
# Lays out what goes into the images, from static binaries: target/images/rootfs/<image>/. No base image: the speaker's holds
# Debian's nft with its libraries beside our binary, the others one file. Prints sizes.
#   scripts/rootfs.sh DIRECTORY-WITH-BINARIES
set -euo pipefail
cd "$(dirname "$0")/.."
binaries=$1
root=target/images/rootfs

put() { # FILE PATH-IN-IMAGE: only if it differs, so that unchanged images are not packed again
  cmp -s "$1" "$2" || install -D -m 755 "$1" "$2"
}

put_nft() { # IMAGE
  put "$nft" "$root/$1/nft"
  # "name => /path" for libraries, a bare path for the loader; the vdso has neither.
  ldd "$nft" | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }' | while read -r library; do
    put "$library" "$root/$1$library"
  done
}

for name in sheave-controller sheave-speaker sheave-traffic; do
  put "$binaries/$name" "$root/$name/$name"
done
nft=$(command -v nft || echo /usr/sbin/nft)
put_nft sheave-speaker
if [ -e "$binaries/sheave-speaker-next" ]; then
  put "$binaries/sheave-speaker-next" "$root/sheave-speaker-next/sheave-speaker"
  put_nft sheave-speaker-next
fi
for name in sheave-controller sheave-speaker sheave-traffic; do
  printf '%-20s %6.1f MB\n' "$name" "$(du -sb "$root/$name" | awk '{ print $1 / 1e6 }')"
done
