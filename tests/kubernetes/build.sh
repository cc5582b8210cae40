#!/usr/bin/env bash
# Builds what the lab's cluster consists of into target/kubernetes: Kubernetes, etcd, kubectl, containerd, pause.
# Idempotent: does nothing while the sources are the same. SHEAVE_KUBERNETES_BIN=<folder> uses ready binaries instead.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(cd "$here/../.." && pwd)/target/kubernetes}
parts="kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl etcd"
runtime="containerd containerd-shim-runc-v2 ctr"

if [[ -n ${SHEAVE_KUBERNETES_BIN:-} ]]; then
    for name in $parts $runtime pause; do
        [[ -x $SHEAVE_KUBERNETES_BIN/$name ]] || {
            echo "SHEAVE_KUBERNETES_BIN=$SHEAVE_KUBERNETES_BIN: no executable $name in it (needed: $parts $runtime pause)" >&2
            exit 1
        }
    done
    exit 0
fi

command -v go >/dev/null || {
    echo "go is missing: install Go 1.26 (https://go.dev/dl, or a package of your system), or name a folder of ready" >&2
    echo "binaries with SHEAVE_KUBERNETES_BIN" >&2
    exit 1
}

# What the binaries depend on: sources, module files, this script and the compiler.
stamp=$({ cd "$here" && find . -type f \( -name '*.go' -o -name 'go.mod' -o -name 'go.sum' -o -name build.sh \) -print0 |
    sort -z | xargs -0 sha256sum; go env GOVERSION GOARCH; } | sha256sum | cut -d' ' -f1)
if [[ -f $out/stamp && $(<"$out/stamp") == "$stamp" ]]; then
    exit 0
fi

mkdir -p "$out"
exec 9>"$out/lock"
flock 9
[[ -f $out/stamp && $(<"$out/stamp") == "$stamp" ]] && exit 0
rm -f "$out/stamp"

export CGO_ENABLED=0 GOWORK=off
version=$(cd "$here" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
began=$SECONDS
step() { printf '[%3ds] %s\n' $((SECONDS - began)) "$*" >&2; }

step "containerd, its runc shim and ctr (about 1 min cold on 2 cores, seconds when Go's cache is warm)"
# shellcheck disable=SC2046 # one package a word
(cd "$here/containerd" && go build -trimpath -ldflags "-s -w" -o "$out/" $(go list tool))
step "pause"
(cd "$here" && go build -trimpath -ldflags "-s -w" -o "$out/pause" ./pause)
step "Kubernetes $version, etcd and kubectl as one program (about 5 min cold on 2 cores)"
(cd "$here" && go build -trimpath -o "$out/kubernetes" \
    -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/client-go/pkg/version.gitVersion=$version" .)
for name in $parts; do
    ln -sfn kubernetes "$out/$name"
done
echo "$stamp" >"$out/stamp"
step "done: $out ($(du -sh "$out" | cut -f1))"
