#!/usr/bin/env bash
# Checks or measures on an NVIDIA card:
#   scripts/gpu.sh BINARIES test|bench [--dry-run] [flags of `attune gpu test` or `attune gpu bench`]
# `test` goes on with compute-sanitizer, where it is there; `bench` with the same work in PyTorch, where
# Python has it. --dry-run: all of it at small sizes on the stand-in for a card (scripts/card.sh).
set -euo pipefail
bin=$(cd "${1:?the folder of the binaries}" && pwd) what=${2:?test or bench}
shift 2
cd "$(dirname "$0")/.."
dry= flags=()
for flag in "$@"; do
    if [ "$flag" = --dry-run ]; then dry=1; else flags+=("$flag"); fi
done
python=${ATTUNE_GPU_PYTHON:-python3}
out=${ATTUNE_GPU_OUT:-target/gpu}
mkdir -p "$out"
if [ -n "$dry" ]; then
    scripts/card.sh target/tools/card
    export LD_LIBRARY_PATH="$PWD/target/tools/card"
    flags=(--quick "${flags[@]+"${flags[@]}"}")
else
    # cuBLAS and NVRTC: of a toolkit, or of Python's wheels.
    found=$("$python" - 2>/dev/null <<'FIND' || true
import glob, os, sys
for base in sys.path:
    for library in glob.glob(os.path.join(base, "nvidia", "**", "lib", "lib*.so*"), recursive=True):
        if os.path.basename(library).startswith(("libcublas.so", "libnvrtc.so")):
            print(os.path.dirname(library))
FIND
    )
    for folder in /usr/local/cuda/lib64 $found; do
        [ ! -d "$folder" ] || LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
    done
    export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}"
fi
case $what in
test)
    "$bin/attune" gpu test --out "$out/test.json" "${flags[@]+"${flags[@]}"}"
    if [ -n "$dry" ]; then
        echo "dry run: compute-sanitizer is left out"
    elif command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            echo "compute-sanitizer $tool:"
            compute-sanitizer --tool "$tool" --error-exitcode 9 "$bin/attune" gpu test --quick --kernels
        done
    else
        echo "left out: compute-sanitizer (it is not installed)"
    fi
    ;;
bench)
    "$bin/attune" gpu bench --out "$out/bench.json" "${flags[@]+"${flags[@]}"}"
    if [ -n "$dry" ]; then
        "$python" tests/peers/gpu_kernels.py --dry-run
    elif "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        "$python" tests/peers/gpu_kernels.py --beside "$out/bench.json"
    else
        echo "left out: the same work in PyTorch (no Python with torch and a card: ATTUNE_GPU_PYTHON)"
    fi
    ;;
*)
    echo "scripts/gpu.sh: $what is neither test nor bench" >&2
    exit 64
    ;;
esac
