# `make help` lists what there is. Only `demo` and `test` are needed to get to know the project.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CARGO ?= cargo
PORT ?= 50051

.PHONY: help demo run test lint bench models vectors

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## one prompt, answered in several people's ways, by two processes that talk at every step
	$(CARGO) build --workspace --bins
	scripts/demo.sh target/debug

run: ## start both services on the embedded pair and keep them up
	$(CARGO) build --release --workspace --bins
	scripts/run.sh target/release $(PORT)

test: lint ## everything that can be checked here; what is left out is listed
	$(CARGO) build --workspace --bins
	scripts/left-out.sh
	$(CARGO) test --workspace

lint: ## formatting, clippy without warnings, the protos' style
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	scripts/buf-lint.sh

bench: ## one guided and one plain step on the 'small' shape, and the kernels
	$(CARGO) bench -p attune-tests --bench step
	$(CARGO) bench -p attune-kernels

models: ## write the 'small' and 'medium' checkpoints of the benchmarks to models/
	$(CARGO) run --release -p attune-cli --bin attune -- models --out models --sizes small,medium

vectors: ## remake the kept test vectors with the Python reference (needs tests/peers/.venv)
	tests/peers/.venv/bin/python tests/peers/make_vectors.py
