#!/usr/bin/env bash
# Checks or measures on an NVIDIA card:
#   scripts/gpu.sh BINARIES test|bench [--dry-run | --stand-in] [flags of `attune gpu test` or `attune gpu bench`]
# `test` goes on with compute-sanitizer, where it is there; `bench` with the same work in PyTorch, where
# Python has it. --dry-run: all of it at small sizes on the stand-in for a card (scripts/card.sh). --stand-in: on
# it at whatever size; with ATTUNE_CARD_PASS_US=4500 it computes nothing and takes 4.5 ms a pass.
set -euo pipefail
bin=$(cd "${1:?the folder of the binaries}" && pwd) what=${2:?test or bench}
shift 2
cd "$(dirname "$0")/.."
dry= stand_in= flags=()
for flag in "$@"; do
    case $flag in
    --dry-run) dry=1 stand_in=1 ;;
    --stand-in) stand_in=1 ;;
    *) flags+=("$flag") ;;
    esac
done
python=${ATTUNE_GPU_PYTHON:-python3}
out=${ATTUNE_GPU_OUT:-target/gpu}
mkdir -p "$out"
if [ -n "$dry" ]; then flags=(--quick "${flags[@]+"${flags[@]}"}"); fi
if [ -n "$stand_in" ]; then
    scripts/card.sh target/tools/card
    export LD_LIBRARY_PATH="$PWD/target/tools/card"
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
    if [ -n "$stand_in" ]; then
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
