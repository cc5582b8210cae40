#!/usr/bin/env bash
# Builds MetalLB's controller, which `make bench-controller` measures beside Sheave's, into target/metallb, with MetalLB's own
# manifests beside it. Idempotent: does nothing while the sources are the same.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(cd "$here/../.." && pwd)/target/metallb}

command -v go >/dev/null || {
    echo "go is missing: install Go 1.26 (https://go.dev/dl, or a package of your system)" >&2
    exit 1
}

# What the binary depends on: module files, this script and the compiler.
stamp=$({ cd "$here" && sha256sum go.mod go.sum build.sh; go env GOVERSION GOARCH; } | sha256sum | cut -d' ' -f1)
if [[ -f $out/stamp && $(<"$out/stamp") == "$stamp" ]]; then
    exit 0
fi

mkdir -p "$out"
exec 9>"$out/lock"
flock 9
[[ -f $out/stamp && $(<"$out/stamp") == "$stamp" ]] && exit 0
rm -f "$out/stamp"

export CGO_ENABLED=0 GOWORK=off
began=$SECONDS
step() { printf '[%3ds] %s\n' $((SECONDS - began)) "$*" >&2; }

cd "$here"
module=go.universe.tf/metallb
version=$(go list -m -f '{{.Version}}' $module)
step "MetalLB's controller $version (about 2 min cold on 2 cores)"
go build -trimpath -ldflags "-s -w" -o "$out/controller" $module/controller
manifests=$(go list -m -f '{{.Dir}}' $module)/config/manifests
install -m 644 "$manifests/metallb-native.yaml" "$out/manifests.yaml"
echo "$version" >"$out/version"
echo "$stamp" >"$out/stamp"
step "done: $out ($(du -sh "$out" | cut -f1))"
