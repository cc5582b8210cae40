#!/usr/bin/env bash
# Installs what is missing to build and test Sheave: Debian packages, parts of the Rust toolchains, bpf-linker, a kernel for
# tests in emulation, the Kubernetes parts of the lab. Idempotent; under 3 s when all is there. Wanted before: Debian 12 (or a
# relative with apt), root, rustup with cargo, Go 1.26, and the package registries of Debian, Rust and Go.
set -euo pipefail
cd "$(dirname "$0")/.."

BPF_LINKER=0.13.0
LLVM=22
# Used only where there is no nightly toolchain at all. Its LLVM must not be newer than bpf-linker's.
NIGHTLY=nightly-2026-05-20

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
[ -t 2 ] || say() { printf '==> %s\n' "$*" >&2; }
need() { printf 'setup: %s is missing and cannot be installed from here: %s\n' "$1" "$2" >&2; exit 1; }

[ "$(id -u)" = 0 ] || need "root" "the tests make network namespaces and load eBPF programs; run as root"
# What a clone builds takes 9 GB; what is built already is there.
wanted=10; [ ! -d target/debug/deps ] || wanted=2
free=$(($(df --output=avail -k . | tail -n 1) / 1024 / 1024))
[ "$free" -ge "$wanted" ] || need "room on the disk" "$free GB are free below $PWD; $wanted GB are wanted"
command -v apt-get >/dev/null || need "apt-get" "use Debian 12 or a relative, or install the packages named in $0 by hand"
command -v cargo >/dev/null || need "cargo" "install rustup from https://rustup.rs or your distribution"
command -v go >/dev/null || need "go" "install Go 1.26 or newer from https://go.dev/dl or your distribution"

packages=(
  build-essential "llvm-$LLVM-dev" "libpolly-$LLVM-dev" "llvm-$LLVM" zlib1g-dev libzstd-dev libxml2-dev # bpf-linker
  iproute2 nftables iptables conntrack ethtool tcpdump procps util-linux                                # namespaces
  runc containernetworking-plugins busybox-static openssl                                               # the lab's nodes
  curl wget netcat-openbsd                                                                              # the suite's pods
  qemu-system-x86 ipvsadm                                                                               # another kernel
  dbus python3-dbus python3-gi                                                                          # firewalld
  keepalived systemd                                                                                    # the endpoint's tests
  haproxy psmisc                                                                                        # what it is compared with
)
missing=()
installed=" $(dpkg-query -W -f='${Package}:${Status} ' "${packages[@]}" 2>/dev/null || true)"
for package in "${packages[@]}"; do
  case "$installed" in *" $package:install ok installed "*) ;; *) missing+=("$package") ;; esac
done
if [ ${#missing[@]} -gt 0 ]; then
  say "Debian packages (about 1 min): ${missing[*]}"
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
fi

if command -v rustup >/dev/null; then
  toolchains=$(rustup toolchain list)
  wanted=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
  case "$toolchains" in
    *"$wanted"*) ;;
    *) say "Rust $wanted (about 1 min)"; rustup toolchain install "$wanted" --profile minimal -c clippy -c rustfmt ;;
  esac
  case "$toolchains" in
    *nightly*) nightly=nightly ;;
    *) say "Rust $NIGHTLY, for the eBPF program (about 1 min)"; rustup toolchain install "$NIGHTLY" --profile minimal
       rustup toolchain link nightly "$(rustup run "$NIGHTLY" rustc --print sysroot)"; nightly=$NIGHTLY ;;
  esac
  if [ ! -d "$(rustup run "$nightly" rustc --print sysroot)/lib/rustlib/src/rust/library" ]; then
    say "Rust's library sources for $nightly"
    rustup component add rust-src --toolchain "$nightly"
  fi
fi

if [ "$(bpf-linker --version 2>/dev/null)" != "bpf-linker $BPF_LINKER" ]; then
  say "bpf-linker $BPF_LINKER (about 1 min)"
  PATH="/usr/lib/llvm-$LLVM/bin:$PATH" LLVM_PREFIX="/usr/lib/llvm-$LLVM" \
    cargo install -q bpf-linker --version "$BPF_LINKER" --locked --no-default-features --features "llvm-$LLVM"
fi

bash scripts/kernel.sh
bash scripts/firewalls.sh
bash tests/kubernetes/build.sh
