#!/usr/bin/env bash
# Debian's kernel, with the modules that a node has and the machine at hand may lack (IPVS, dummy), for the tests in emulation. Fetched
# once into the user's cache, linked as target/emulation/kernel. Called by setup.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

# Debian 12's. Its archive replaces it now and then: the one that it has then is taken, with a warning.
RELEASE=6.1.0-56-amd64

cache=${XDG_CACHE_HOME:-$HOME/.cache}/sheave/kernels
link=target/emulation/kernel
stamp=target/emulation/stamp
if [ -e "$link/vmlinuz" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$RELEASE" ]; then exit 0; fi

# apt verifies what it fetches by the archive's signature.
fetch() { # RELEASE
  (cd "$work" && apt-get -o APT::Sandbox::User=root -qq download "linux-image-$1" >/dev/null 2>"$work/errors")
}

# Into $work/kernel: what packets need, with what it depends on.
unpack() { # RELEASE
  local modules=./lib/modules/$1
  dpkg --fsys-tarfile "$work"/*.deb | tar -x -C "$work" "./boot/vmlinuz-$1" "$modules"
  mkdir -p "$work/kernel/lib/modules/$1"
  (cd "$work/$modules" && tar -c modules.builtin modules.builtin.modinfo modules.order kernel/net/netfilter kernel/net/ipv{4,6}/netfilter \
    kernel/drivers/net/{dummy,veth}.ko kernel/lib/libcrc32c.ko kernel/crypto kernel/arch/x86/crypto) |
    tar -x -C "$work/kernel/lib/modules/$1"
  busybox depmod -b "$work/kernel" "$1"
  mv "$work/boot/vmlinuz-$1" "$work/kernel/vmlinuz"
}

release=$RELEASE
if [ ! -e "$cache/$release/vmlinuz" ]; then
  echo "==> Debian's kernel $release (70 MB)" >&2
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/new.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  # What apt knows may be older than what the archive has.
  if ! fetch "$release" && { apt-get update -q >/dev/null; ! fetch "$release"; }; then
    release=$(apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: linux-image-//p' | head -n 1)
    if [ -z "$release" ] || ! fetch "$release"; then
      echo "setup: neither linux-image-$RELEASE nor linux-image-amd64 can be fetched: $(tail -n 1 "$work/errors")" >&2
      exit 1
    fi
    echo "setup: the archive has no linux-image-$RELEASE any more; the tests in emulation run on $release" >&2
  fi
  unpack "$release"
  # Whole or not at all; a second one that was as quick is as good.
  mv -T "$work/kernel" "$cache/$release" 2>/dev/null || [ -e "$cache/$release/vmlinuz" ]
fi
mkdir -p "$(dirname "$link")"
ln -sfn "$cache/$release" "$link"
echo "$RELEASE" >"$stamp"
