#!/usr/bin/env bash
# Lays out the images of `make conformance`: target/conformance/rootfs/<image>/. agnhost, which is what the suite's pods run, as its own
# Dockerfile does, with Debian's programs instead of Alpine's: dash, busybox (nslookup, seq …), curl, wget, OpenBSD's nc, ss.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=target/conformance
root=$out/rootfs/agnhost

put() { # FILE PATH-IN-IMAGE: only if it differs, so that an unchanged image is not packed again
  cmp -s "$1" "$root$2" || install -D -m 755 "$1" "$root$2"
}
put_with_libraries() { # PROGRAM PATH-IN-IMAGE
  local file
  file=$(command -v "$1") || { echo "$0: no program $1: scripts/setup.sh installs it" >&2; exit 1; }
  put "$file" "$2"
  # "name => /path" for libraries, a bare path for the loader; the vdso has neither.
  ldd "$file" | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }' | while read -r library; do put "$library" "$library"; done
}

root=$out/rootfs/coredns put "$out/coredns" /coredns
root=$out/rootfs/pause put "${SHEAVE_KUBERNETES_BIN:-target/kubernetes}/pause" /pause

put "$out/agnhost" /agnhost
put "$(command -v busybox)" /bin/busybox
for applet in $(busybox --list); do
  case "$applet" in busybox | nc | sh | wget) continue ;; esac
  [ -L "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
done
# Not busybox: the shell of Debian's prefers its own programs to those in PATH, and its nc knows no -v.
put_with_libraries dash /bin/sh
# Nor busybox' wget, which crashes where the C library has to read /etc/nsswitch.conf. Alpine's tries once, and the suite counts on it.
put_with_libraries wget /usr/bin/wget
printf 'tries = 1\n' >"$out/wgetrc"
put "$out/wgetrc" /etc/wgetrc
put_with_libraries curl /usr/bin/curl
put_with_libraries nc.openbsd /bin/nc
put_with_libraries ss /bin/ss
# Pods write there.
[ -e "$root/tmp/.keep" ] || install -D -m 644 /dev/null "$root/tmp/.keep"
