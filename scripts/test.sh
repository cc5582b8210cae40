#!/usr/bin/env bash
# All tests, stage by stage, with the time of each; what a stage printed is shown when it ends. Called by `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
times=()
failed=()

# A stage's name, then its command.
stage() {
  local name=$1 status=0; shift
  echo "--- $name"
  SECONDS=0
  "$@" >"$logs/$name" 2>&1 || status=$?
  cat "$logs/$name"
  times+=("$(printf '%-12s %4d s' "$name" "$SECONDS")")
  [ "$status" = 0 ] || failed+=("$name")
}
tests() { cargo test -q -p sheave-tests "$@"; }

# A new test program has to be given a stage.
staged=" e2e e2e_iptables lab_cluster controller_api sim_election sim_scale xdp_verdicts xdp_dispatch xdp_truncation xdp_world backend_nft e2e_nftables "
for path in tests/tests/*; do
  name=$(basename "$path" .rs)
  case "$staged" in *" $name "*) ;; *) echo "tests/tests/$name has no stage in $0" >&2; exit 1 ;; esac
done

stage build cargo test -q --workspace --no-run
stage units cargo test -q --workspace --exclude sheave-tests
stage simulation tests --lib --bins --test sim_election --test sim_scale
stage packets tests --test xdp_verdicts --test xdp_dispatch --test xdp_truncation --test backend_nft
for name in controller_api lab_cluster e2e_iptables e2e_nftables; do
  stage "$name" tests --test "$name"
done

echo "--- time per stage"
printf '%s\n' "${times[@]}"
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
