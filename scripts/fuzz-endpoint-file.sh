#!/usr/bin/env bash
# Coverage-guided fuzzing of the reader of the endpoint's file: SECONDS SEED. Called by `make fuzz-endpoint-file`.
#
# Coverage comes from LLVM's pass by flags of the pinned compiler. Texts that reached new code are kept in target/fuzz/corpus and are where
# the next run goes on; a finding stays in target/fuzz/found, and `endpoint_file FILE` repeats it. One process: the same seed and corpus
# give the same run.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1 seed=$2
folder=$PWD/target/fuzz
mkdir -p "$folder/corpus" "$folder/found" "$folder/seeds"
cp endpoint/example.yaml "$folder/seeds/"
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
# With --target the flags do not reach build scripts and macros, which run outside of the fuzzer.
RUSTFLAGS="$coverage" CARGO_TARGET_DIR="$folder/build" cargo build -q --release --locked --manifest-path endpoint/fuzz/Cargo.toml \
  --target x86_64-unknown-linux-gnu
program=$folder/build/x86_64-unknown-linux-gnu/release/endpoint_file
echo "seed $seed, $seconds s, $(find "$folder/corpus" -type f | wc -l) texts from earlier runs"
"$program" -seed="$seed" -max_total_time="$seconds" -max_len=70000 -timeout=1 -rss_limit_mb=512 -dict=endpoint/fuzz/words.dict \
  -artifact_prefix="$folder/found/" -print_final_stats=1 "$folder/corpus" "$folder/seeds" 2>&1 |
  awk '/^#[0-9]+\t(NEW|REDUCE|RELOAD)/ { next } { print; fflush() }
       /^stat::number_of_executed_units/ { cases = $2 } /^stat::average_exec_per_sec/ { rate = $2 }
       END { printf "%d cases, %d a second\n", cases, rate }'
