# `make help` lists what there is. Only `demo` and `test` are needed to get to know the project.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CARGO ?= cargo
PORT ?= 50051
HOURS ?= 2
SEED ?= 1
SECONDS_EACH ?= 600
IMAGES ?= cpu

.PHONY: help demo run test lint bench eval kernel-bench gpu-test gpu-bench gpu-pack chaos simulate models fuzz vectors python chart dashboards images

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## one prompt, answered in several people's ways, by two processes that talk at every step
	$(CARGO) build --workspace --bins
	scripts/demo.sh target/debug

run: ## start both services on the embedded pair and keep them up
	$(CARGO) build --release --workspace --bins
	scripts/run.sh target/release $(PORT)

test: lint ## everything that can be checked here; what is left out is listed
	scripts/cuda-check.sh
	$(CARGO) build --workspace --bins
	scripts/left-out.sh
	scripts/chart.sh
	scripts/dashboards.sh
	$(CARGO) test --workspace

lint: ## formatting, clippy without warnings, the protos' style, what is built in
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	scripts/buf-lint.sh
	scripts/deny.sh

chart: ## the Helm chart: linted, rendered, validated offline, refusals, upgrades, and a pair on its settings
	$(CARGO) build --workspace --bins
	scripts/chart.sh

dashboards: ## the dashboard, alerts and autoscalers' queries, against a pair at work
	$(CARGO) build --workspace --bins
	scripts/dashboards.sh

images: ## the container images (IMAGES=cuda: with CUDA's libraries); IMAGES=local: without a registry, and run
	if [ "$(IMAGES)" = local ]; then $(CARGO) build --workspace --bins; fi
	scripts/images.sh $(IMAGES)

bench: models ## the table of figures to reach; BENCH="--rows floor,wire --quick" narrows it
	target/release/attune bench table --out target/bench/table.json $(BENCH)

eval: ## every alignment method on the shipped pair: target/eval/table.json and plot.svg; EVAL="--quick" narrows it
	$(CARGO) build --release --workspace --bins
	target/release/attune eval $(EVAL)

kernel-bench: ## the kernels by themselves, against the bandwidth of the same run
	$(CARGO) bench -p attune-kernels

gpu-test: ## on an NVIDIA card: kernels, models and both services; GPU="--dry-run": on a stand-in for a card
	$(CARGO) build --release --workspace --bins
	scripts/gpu.sh target/release test $(GPU)

gpu-bench: ## on an NVIDIA card: the kernels' times beside PyTorch's, and decoding; GPU="--dry-run"
	$(CARGO) build --release --workspace --bins
	scripts/gpu.sh target/release bench $(GPU)

gpu-pack: ## what a machine with a card but without Rust and network needs: target/gpu-pack.tar.xz
	scripts/gpu-pack.sh

chaos: ## 64 streams while workers are killed, for a minute; target/chaos/report.json
	$(CARGO) build --workspace --bins
	ATTUNE_STRICT=1 ATTUNE_CHAOS_SECONDS=60 $(CARGO) test --workspace --test chaos -- --nocapture
	ATTUNE_STRICT=1 $(CARGO) test --workspace --test workers more_workers -- --nocapture

simulate: ## hours of simulated time with random faults: HOURS=2 SEED=1
	ATTUNE_SIMULATION_HOURS=$(HOURS) ATTUNE_SIMULATION_SEED=$(SEED) \
		$(CARGO) test --workspace --test simulation -- --ignored --nocapture

models: ## write the 'small' and 'medium' checkpoints of the benchmarks to models/
	$(CARGO) build --release --workspace --bins
	target/release/attune models --out models --sizes small,medium --keep

fuzz: ## ten minutes of each fuzz target (needs a nightly compiler and cargo-fuzz); SECONDS_EACH=600
	scripts/fuzz.sh $(SECONDS_EACH)

python: ## the Python client with what its tests need, in target/tools/python; and its stubs, anew from proto/
	scripts/python-client.sh
	scripts/python-stubs.sh

vectors: ## remake the kept test vectors with the Python reference (needs tests/peers/.venv)
	tests/peers/.venv/bin/python tests/peers/make_vectors.py
