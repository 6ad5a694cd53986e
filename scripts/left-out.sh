#!/usr/bin/env bash
# Says which checks this machine cannot make, and why. With ATTUNE_REQUIRE_ALL=1 that is a failure.
set -euo pipefail
left_out=()
command -v buf >/dev/null || left_out+=("buf lint and buf breaking of the protos: buf is not installed")
[ -e "${ATTUNE_NVRTC:-target/tools/nvrtc}/libnvrtc.so.13" ] ||
    left_out+=("the CUDA sources through NVRTC: it is not installed (scripts/nvrtc.sh)")
command -v c++ g++ clang++ >/dev/null || left_out+=("the CUDA sources, and the services on a stand-in for a card, on a CPU: no C++ compiler")
command -v cargo-deny >/dev/null || left_out+=("cargo deny: cargo-deny is not installed")
command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 ||
    left_out+=("profiles in PostgreSQL: it is not installed (Debian: apt-get install postgresql)")
have() { [ -x "target/tools/$1" ] || command -v "$1" >/dev/null; }
have python/bin/pytest || left_out+=("the Python client and its examples: scripts/python-client.sh was not run")
have grpcurl || left_out+=("the grpcurl examples: grpcurl is not installed")
for program in go buf protoc-gen-go protoc-gen-go-grpc; do
    have "$program" || left_out+=("the Go examples: $program is not installed")
done
for tool in helm kubectl-validate; do
    have "$tool" ||
        left_out+=("the chart: $tool is not installed (scripts/chart-tools.sh install)")
done
{ command -v prometheus && command -v promtool; } >/dev/null ||
    left_out+=("the dashboard, alerts and autoscalers' queries: Debian's package prometheus is not installed")
for line in "${left_out[@]+"${left_out[@]}"}"; do
    echo "left out: $line"
done
if [ ${#left_out[@]} -gt 0 ] && [ "${ATTUNE_REQUIRE_ALL:-}" = 1 ]; then
    echo "ATTUNE_REQUIRE_ALL=1: nothing may be left out" >&2
    exit 1
fi
echo "not part of this command: remaking the Python vectors (make vectors), benchmarks (make bench), a real card (make gpu-test), images (make images), fuzzing (make fuzz), the soak of ten minutes (docs/operations.md)"
