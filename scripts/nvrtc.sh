#!/usr/bin/env bash
# Puts NVRTC of CUDA 13.0, from its Python wheel, into target/tools/nvrtc, where the test of the CUDA
# sources looks for it. Needs pip, no GPU and no driver.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=target/tools/nvrtc
[ ! -e "$folder/libnvrtc.so.13" ] || exit 0
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
python3 -m pip install -q --no-deps --target "$unpacked" 'nvidia-cuda-nvrtc==13.0.*'
mkdir -p "$folder"
for name in libnvrtc-builtins.so.13.0 libnvrtc.so.13; do
    mv "$(find "$unpacked" -name "$name")" "$folder/"
done
