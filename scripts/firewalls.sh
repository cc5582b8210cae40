#!/usr/bin/env bash
# Debian's firewalld and ufw for the tests: unpacked and not installed, for installed they would guard this machine. Fetched once into the
# user's cache, linked as target/firewalls. Called by setup.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(firewalld python3-firewall python3-nftables ufw)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sheave/firewalls
link=target/firewalls

if [ ! -e "$cache" ]; then
  echo "==> firewalld and ufw (700 kB)" >&2
  mkdir -p "$(dirname "$cache")"
  work=$(mktemp -d "$cache.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  # apt verifies what it fetches by the archive's signature. What it knows may be older than what the archive has.
  fetch() { (cd "$work" && apt-get -o APT::Sandbox::User=root -qq download "${packages[@]}" >/dev/null); }
  fetch 2>/dev/null || { apt-get update -q >/dev/null; fetch; }
  mkdir "$work/root"
  for package in "$work"/*.deb; do dpkg -x "$package" "$work/root"; done
  # Where /lib is a link to usr/lib, a folder of that name would hide it.
  cp -r "$work/root/lib/." "$work/root/usr/lib" && rm -r "$work/root/lib"
  # As ufw's postinst does.
  cp "$work"/root/usr/share/ufw/{*.rules,*.init,ufw.conf} "$work/root/etc/ufw"
  # Whole or not at all; a second one that was as quick is as good.
  mv -T "$work/root" "$cache" 2>/dev/null || [ -e "$cache/usr/sbin/ufw" ]
fi
mkdir -p target
ln -sfn "$cache" "$link"
