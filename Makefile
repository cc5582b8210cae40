# Every command of the project has its home here; CI calls exactly these (.ci/run).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
STATIC_TARGET := x86_64-unknown-linux-gnu
STATIC := target/static
LAB ?= lab

.PHONY: help setup demo test fuzz-endpoint-file fmt fmt-check lint ebpf crds crds-check images endpoint-tar image-next lab lab-down bench-headline bench-survive bench-upgrade bench-xdp bench-ports bench-ranges bench-affinity bench-second-chance bench-scale bench-histories bench-controller demo-endpoint bench-endpoint status-page chaos hardship endpoint-daemonset status-war measure-election conformance docs check-docs deny check

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ —/'

setup: ## Install what is missing (idempotent)
	@scripts/setup.sh

demo: setup images ## A cluster, a Service, its owner loses power: what happens to 200 connections
	@cargo build -q -p sheave-bench -p sheave-tests --bins
	@target/debug/demo $(ARGS)

demo-endpoint: setup image-next ## Three API servers behind one address: cold start, death, power loss; ARGS="--only power --watches 30"
	@cargo build -q -p sheave-bench -p sheave-tests --bins
	@target/debug/demo_endpoint --wrong-clock $(STATIC)/$(STATIC_TARGET)/release/sheave-speaker-next $(ARGS)

bench-endpoint: setup images ## The same faults with the endpoint and with keepalived + HAProxy; ARGS="--only power --guides k3s"
	@cargo build -q -p sheave-bench -p sheave-tests --bins
	@target/debug/bench_endpoint $(ARGS)

test: setup ## All tests, on real parts, with the time of each stage
	@scripts/test.sh

SECONDS_OF_FUZZING ?= 60
SEED ?= 1
fuzz-endpoint-file: setup ## Coverage-guided fuzzing of the endpoint's file; SECONDS_OF_FUZZING=600 SEED=2
	@scripts/fuzz-endpoint-file.sh $(SECONDS_OF_FUZZING) $(SEED)

fmt: ## Format
	cargo fmt --all

fmt-check:
	cargo fmt --all --check

lint: ## Clippy, warnings are errors; the speaker with another map layout, which tests upgrade to, too
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p sheave-speaker --features next-abi --bin sheave-speaker-next -- -D warnings

ebpf: ## The eBPF program alone
	cargo build -p ebpf-object

crds: ## Write manifests/crds and docs/fields.md from the API types
	cargo run -q -p sheave-api --bin crdgen -- --write

crds-check: ## They follow the API types, and every field has a test that exists
	cargo run -q -p sheave-api --bin crdgen -- --check

images: ## Static release binaries and what else goes into the images
	@RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR=$(STATIC) cargo build -q --release --target $(STATIC_TARGET) \
	  -p sheave-controller -p sheave-speaker -p sheave -p sheave-tests --bin sheave-controller --bin sheave-speaker --bin sheave --bin sheave-traffic
	@scripts/rootfs.sh $(STATIC)/$(STATIC_TARGET)/release

endpoint-tar: images ## What a machine needs to serve the address of its API servers by systemd (docs/api-endpoint.md)
	@scripts/endpoint-tar.sh $(STATIC)/$(STATIC_TARGET)/release

image-next: images ## The speaker as it would be with another layout of its maps: what tests upgrade to
	@RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR=$(STATIC) cargo build -q --release --target $(STATIC_TARGET) \
	  -p sheave-speaker --features next-abi --bin sheave-speaker-next
	@scripts/rootfs.sh $(STATIC)/$(STATIC_TARGET)/release

lab: setup images ## Start a Kubernetes cluster with Sheave in it; it stays up
	@cargo build -q -p sheave-tests --bins
	@target/debug/sheave-lab up --name $(LAB) $(ARGS)

lab-down: ## Remove every trace of it
	@cargo build -q -p sheave-tests --bins
	@target/debug/sheave-lab down --name $(LAB)

bench-headline: setup images ## The promises, with counts: a table and JSON
	@cargo build -q -p sheave-bench -p sheave-tests --bins
	@target/debug/headline $(ARGS)

bench-survive: setup image-next ## What connections survive, beside the path that a cluster has today: hours; ARGS="--only drain --times 1"
	@cargo build -q -p sheave-bench -p sheave-tests --bins
	@target/debug/survive $(ARGS)

bench-upgrade: setup images ## An upgrade from an earlier commit under open connections; ARGS="--from f452a5a --times 1 --back"
	@cargo build -q -p sheave-bench -p sheave-tests --bins
	@target/debug/upgrade $(ARGS)

bench-xdp: setup ## What the packet path costs a packet: a table, and the memory of its maps
	@cargo run -q --release -p sheave-tests --bin xdp_cost

bench-ports: setup ## What 1,000, 5,000 and 10,000 service ports cost a node: times and memory; ARGS="--ports 10000 --steps"
	@cargo run -q --release -p sheave-bench --bin ports -- $(ARGS)

bench-ranges: setup ## What source ranges cost a node's nftables: time and memory of nft; a change among 1,000 Services until a node follows
	@cargo run -q -p sheave-bench --bin ranges
	@cargo run -q --release -p sheave-bench --bin ports -- --ranges

bench-affinity: setup ## What session affinity costs a node's nftables: time and memory of nft
	@cargo run -q -p sheave-bench --bin affinity

bench-controller: setup ## What 10,000 Services cost the controller, and MetalLB's beside it: half an hour; COUNT=1000 ARGS="--only sheave"
	@bench/metallb/build.sh
	@RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR=$(STATIC) cargo build -q --release --target $(STATIC_TARGET) \
	  -p sheave-controller -p sheave-speaker -p sheave -p sheave-tests -p sheave-bench \
	  --bin sheave-controller --bin sheave-traffic --bin controller
	@$(STATIC)/$(STATIC_TARGET)/release/controller --count $(or $(COUNT),10000) $(ARGS)

bench-scale: setup ## Does the election settle with 3 to 256 nodes and 200 to 4,096 VIPs: simulated, with measured costs; half an hour
	@cargo run -q --release -p sheave-tests --bin scale $(ARGS)

measure-election: setup ## What the election costs on this machine: what bench/costs/ keeps and the simulator charges
	@cargo run -q --release -p sheave-tests --bin election_cost

bench-second-chance: setup ## What it costs to know a flow: conntrack against a map of flows
	@cargo run -q --release -p second-chance-bench

bench-histories: setup ## What the second chance promises, under many more random histories than CI plays: HISTORIES=200 by default, half an hour
	@HISTORIES=$${HISTORIES:-200} cargo test -q -p speaker-core --lib -- --nocapture alternates::properties

status-page: setup ## The endpoint's status page in headless Chromium: pictures as a phone and a screen show it; needs chromium
	@scripts/status-page.sh

chaos: setup ## Leaders of the controller killed, stopped and cut off at random for ten minutes while 2,000 Services change
	@cargo build -q -p sheave-controller
	@CHAOS_SECONDS=$${CHAOS_SECONDS:-600} CHAOS_SERVICES=$${CHAOS_SERVICES:-2000} cargo test -q -p sheave-tests --test controller_chaos -- --nocapture

hardship: setup ## The controller beside an API server that refuses, forgets, closes watches, stops in pulses, is late, or is put back to an earlier state
	@cargo build -q -p sheave-controller
	@cargo test -q -p sheave-tests --test controller_hardship -- --nocapture

endpoint-daemonset: setup images ## The DaemonSet installed, upgraded, deleted on a whole cluster whose nodes serve its endpoint, keys rotated: 0 connections lost
	@cargo test -q -p sheave-tests --test endpoint_daemonset -- --nocapture

status-war: setup ## Another controller rewrites the statuses of its Services every second for ten minutes: ours writes nothing
	@cargo build -q -p sheave-controller
	@WAR_SECONDS=$${WAR_SECONDS:-600} cargo test -q -p sheave-tests --test controller_api -- --nocapture

conformance: setup images ## Kubernetes' own specs of LoadBalancers and Services: hours; MODE=nftables|iptables|both ONLY="source ranges|finalizer" ARGS=--print
	@tests/conformance/build.sh
	@tests/conformance/rootfs.sh
	@cargo build -q -p sheave-bench -p sheave-tests --bins
	@target/debug/conformance --mode "$(or $(MODE),both)" --only "$(ONLY)" $(ARGS)

docs: check-docs ## API documentation, warnings are errors; and every reference in the documents resolves
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

check-docs: ## Every link, section, path, symbol and command that documents and comments name exists
	@cargo test -q -p check-docs
	@cargo run -q -p check-docs

deny: ## Crates that must not be in the tree
	@if cargo tree --workspace -e normal,build --prefix none | grep -E '^(aws-lc-sys|openssl-sys) '; then echo "forbidden crate in the tree" >&2; exit 1; fi

check: setup ## What CI runs: all tests, and fmt-check, lint, docs, crds-check, deny beside them
	@scripts/test.sh check
