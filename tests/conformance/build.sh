#!/usr/bin/env bash
# Builds what `make conformance` runs into target/conformance: Kubernetes' e2e.test with the specs of the network, agnhost (what its
# pods run), CoreDNS (the cluster DNS). Idempotent: does nothing while the sources are the same.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(cd "$here/../.." && pwd)/target/conformance}

command -v go >/dev/null || {
    echo "go is missing: install Go 1.26 (https://go.dev/dl, or a package of your system)" >&2
    exit 1
}

# The suite must be that of the cluster which it judges.
release() { sed -nE 's/^(require )?\t*k8s\.io\/kubernetes (v[0-9.]+)$/\2/p' "$1/go.mod"; }
version=$(release "$here")
[[ $version == "$(release "$here/../kubernetes")" ]] || {
    echo "tests/conformance/go.mod names Kubernetes $version, tests/kubernetes/go.mod $(release "$here/../kubernetes"): they must be the same" >&2
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
began=$SECONDS
step() { printf '[%3ds] %s\n' $((SECONDS - began)) "$*" >&2; }
flags=(-trimpath -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version")

step "CoreDNS"
(cd "$here/coredns" && go build -trimpath -ldflags "-s -w" -o "$out/coredns" .)
step "agnhost of Kubernetes $version"
(cd "$here" && go build "${flags[@]}" -o "$out/agnhost" k8s.io/kubernetes/test/images/agnhost)
step "e2e.test of Kubernetes $version, the network's specs"
(cd "$here" && go test -c "${flags[@]}" -o "$out/e2e.test" ./e2e)
# The names by which the suite asks for what we build.
agnhost=$(<"$(cd "$here" && go list -m -f '{{.Dir}}' k8s.io/kubernetes)/test/images/agnhost/VERSION")
ours="^registry\.k8s\.io/(e2e-test-images/agnhost:${agnhost//./\\.}|pause:[0-9.]+)\$"
"$out/e2e.test" --list-images | sort | sed -nE "\@$ours@p" >"$out/images"
[[ $(wc -l <"$out/images") == 2 ]] || { echo "the suite asks for other images than agnhost and pause: $(<"$out/images")" >&2; exit 1; }
echo "$stamp" >"$out/stamp"
step "done: $out ($(du -sh "$out" | cut -f1))"
