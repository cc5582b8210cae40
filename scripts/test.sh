#!/usr/bin/env bash
# All tests, stage by stage; with `check` what else CI runs, too. Called by `make test` and `make check`.
#
# What compiles comes first: compilers beside a cluster starve it. The stages with a cluster wait most of the time: they run three at a
# time (beside a fourth lane all took longer, one start more than 10 s). What only computes runs at the lowest priority. Each stage's
# output is shown in one piece when it ends, and the times of all at the end. A stage that fails keeps none of the others from running,
# except for the build.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-test}
case "$mode" in
  test) compiled=(doctests) suite=() ;;
  check) compiled=(fmt-check deny lint docs crds-check doctests) suite=(conformance) ;;
  # A lane of such a run: LOGS STAGES...
  lane) logs=$2 ;;
  *) echo "$0: $mode is neither 'test' nor 'check'" >&2; exit 1 ;;
esac

# A new test program has to be given a stage; controller_hardship is `make hardship`, three minutes, and endpoint_daemonset
# `make endpoint-daemonset`, as many.
staged=" e2e e2e_iptables lab_cluster controller_api controller_chaos controller_hardship sim_election sim_scale xdp_verdicts xdp_dispatch xdp_truncation xdp_source_ranges xdp_world backend_nft e2e_nftables e2e_objects e2e_clusters emulation endpoint endpoint_init endpoint_ha endpoint_daemonset "
for path in tests/tests/* speaker/tests/*; do
  name=$(basename "$path" .rs)
  case "$staged" in *" $name "*) ;; *) echo "$path has no stage in $0" >&2; exit 1 ;; esac
done

# A stage's name, then its command: one command, for `set -e` does not hold inside of it.
stage() {
  local name=$1 status=0 real user system; shift
  local TIMEFORMAT='%0R %0U %0S'
  { time "$@" </dev/null >"$logs/$name" 2>&1; } 2>"$logs/time-$name" || status=$?
  read -r real user system < <(tail -n 1 "$logs/time-$name")
  {
    flock 9
    echo "--- $name: $real s$([ "$status" = 0 ] || echo ", FAILED")"
    cat "$logs/$name"
  } 9>"$logs/lock"
  printf '%-30s %9d %13d\n' "$name" "$real" "$((user + system))" >>"$logs/times"
  [ "$status" = 0 ] || echo "$name" >>"$logs/failed"
}

stages() { # STAGES...
  for name in "$@"; do stage "$name" "run_$name"; done
}
# Stages one after the other, beside the other lanes.
lane() { # STAGES...
  stages "$@" &
  lanes+=($!)
}
# The same for what only computes. Labs have a session for each of their programs, and the kernel weighs sessions against each other
# (autogroup, sched(7)): the lowest priority counts among all only in a session that has it as well.
background_lane() { # STAGES...
  set +m
  setsid scripts/test.sh lane "$logs" "$@" &
  lanes+=($!)
  set -m
}
run_in_background() { # STAGES...
  renice -n 19 $$ >"$logs/renice"
  chrt --idle --pid 0 $$
  [ ! -w /proc/self/autogroup ] || echo 19 >/proc/self/autogroup
  stages "$@"
}
# An error in a lane itself fails the run as well.
await() { # LANES...
  for lane in "$@"; do wait "$lane" || echo "lane-$lane" >>"$logs/failed"; done
}

# Test programs, where `cargo test` runs them, too. Cargo would wait for the lint that is being compiled.
programs() { # PACKAGE'S-FOLDER OPTION PROGRAM...
  local folder=$1 option=$2 name path
  for name in "${@:3}"; do
    path=$(sed -n "s|^ *Executable .*(\(.*/$name-[0-9a-f]*\))\$|\1|p" "$logs/build")
    case "$path" in
      '') echo "the build names no program $name" >&2; return 1 ;;
      *$'\n'*) echo "the build names several programs $name: $path" >&2; return 1 ;;
    esac
    path=$(realpath "$path")
    echo "$name"
    (cd "$folder" && "$path" "$option") || return 1
  done
}

# One build for all: any other choice of packages gives the crates below other features, and compiles them again.
run_build() { cargo test --workspace --no-run; }
run_images() { make images; }
run_units() { cargo test -q --workspace --lib --bins -- --skip "$PROPERTIES"; }
run_properties() { programs speaker/core "$PROPERTIES" speaker_core; }
run_simulation() { programs tests -q sim_election sim_scale; }
run_packets() { programs tests -q xdp_verdicts xdp_dispatch xdp_truncation xdp_source_ranges backend_nft; }
# Speakers with the file source, without Kubernetes.
run_endpoint() { programs speaker -q endpoint; }
# What `sheave endpoint init` writes and refuses, with its speakers.
run_endpoint_init() { programs speaker --nocapture endpoint_init; }
# Three API servers behind it, with the figures of each fault.
run_endpoint_ha() { programs speaker --nocapture endpoint_ha; }
# The speaker of the images, on another kernel.
run_emulation() { programs tests -q emulation; }
run_doctests() { cargo test -q --workspace --doc; }
# With the figures of each step, and with what could not be judged.
run_controller_api() { programs tests --nocapture controller_api; }
# A minute of it; ten are `make chaos`.
run_controller_chaos() { programs tests --nocapture controller_chaos; }
run_lab_cluster() { programs tests --nocapture lab_cluster; }
run_e2e_iptables() { programs tests --nocapture e2e_iptables; }
run_e2e_objects() { programs tests --nocapture e2e_objects; }
# Two clusters on one segment.
run_e2e_clusters() { programs tests --nocapture e2e_clusters; }
run_e2e_nftables() { programs tests --nocapture e2e_nftables; }
# Kubernetes' own specs that take less than 80 s each; all of them are `make conformance`.
run_conformance() { make conformance MODE=nftables ONLY="$FAST_SPECS" ARGS="--selected --again --name ciconform"; }
run_fmt-check() { make fmt-check; }
run_lint() { make lint; }
run_docs() { make docs; }
run_crds-check() { make crds-check; }
run_deny() { make deny; }
# Random histories: minutes of computing (speaker/core/src/forwarding/alternates/properties).
PROPERTIES=alternates::properties

FAST_SPECS="change the type and ports of a TCP service|work for type=LoadBalancer|have session affinity work for LoadBalancer service with Cluster|only allow access from service loadbalancer source ranges"

finish() {
  echo "--- time per stage             elapsed s   processor s (of what labs start: not counted)"
  cat "$logs/times"
  echo "all: $((SECONDS - began)) s"
  if [ -s "$logs/failed" ]; then
    # What went wrong, once more: the log of a stage may be far above.
    while read -r name; do
      { grep -E -A 8 "^(Error: |error(\[|:)|thread '.*panicked)" "$logs/$name" || true; } | head -n 20 | sed "s/^/$name: /" >&2
    done < <(grep -v ^lane- "$logs/failed")
    echo "failed: $(tr '\n' ' ' <"$logs/failed")" >&2
    exit 1
  fi
}

if [ "$mode" = lane ]; then
  run_in_background "${@:3}"
  exit
fi
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
touch "$logs/times" "$logs/failed"
# Every lane is a process group of its own, which ends as a whole: programs with a lab remove it on SIGTERM.
set -m
lanes=()
end_lanes() {
  trap '' INT TERM
  for lane in "${lanes[@]}"; do kill -TERM -- "-$lane" 2>/dev/null || true; done
  wait
  exit 130
}
trap end_lanes INT TERM

# A test that fails says its causes: the stack of threads below them would push them out of sight.
export RUST_LIB_BACKTRACE=0
# Clients of the labs as they are built for the images: unoptimized they take several times the processor.
SHEAVE_TRAFFIC=$(realpath -m target/static/x86_64-unknown-linux-gnu/release/sheave-traffic)
export SHEAVE_TRAFFIC

began=$SECONDS
lane images
lane build
await "${lanes[@]}"
[ ! -s "$logs/failed" ] || finish

# Units in real time: before the labs.
lane "${compiled[@]}"
lane units
await "${lanes[@]:2}"
background_lane properties simulation
lane e2e_nftables controller_chaos endpoint_ha endpoint_init endpoint
lane e2e_objects e2e_iptables e2e_clusters
lane controller_api "${suite[@]}" packets emulation lab_cluster
await "${lanes[@]:4}"
finish
