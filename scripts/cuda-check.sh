#!/usr/bin/env bash
# Checks the types of the whole workspace as it is built for training on a card, with candle's CUDA code. A
# stand-in for nvcc is enough: nothing is linked or run.
set -euo pipefail
cd "$(dirname "$0")/.."
eval "$(scripts/cuda-toolkit.sh --stand-in)"
${CARGO:-cargo} check --workspace --features attune-cli/cuda
