#!/usr/bin/env bash
# All tests, stage by stage, with the time of each. The two labs of the end-to-end tests run side by side; what a stage printed is
# shown when it ends. Called by `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
times=()
failed=()

# A stage's name, then its command. `wait_for_stages` shows what it printed.
start() {
  local name=$1; shift
  ( SECONDS=0; set +e; "$@" >"$logs/$name" 2>&1; echo "$? $SECONDS" >"$logs/$name.end" ) &
}
wait_for_stages() {
  wait
  local name status seconds
  for name in "$@"; do
    cat "$logs/$name"
    read -r status seconds <"$logs/$name.end"
    times+=("$(printf '%-28s %4d s' "$name" "$seconds")")
    [ "$status" = 0 ] || failed+=("$name")
  done
}
stage() { echo "--- $1"; start "$@"; wait_for_stages "$1"; }
tests() { cargo test -q -p sheave-tests "$@"; }
labs_in_turn() { tests --test e2e_iptables && tests --test lab_cluster && tests --test controller_api; }

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
echo "--- clusters"
start e2e_nftables tests --test e2e_nftables
start e2e_iptables_lab_controller labs_in_turn
wait_for_stages e2e_nftables e2e_iptables_lab_controller

echo "--- time per stage"
printf '%s\n' "${times[@]}"
if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
