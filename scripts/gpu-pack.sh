#!/usr/bin/env bash
# Packs what a machine with a card needs, without Rust and without network, into target/gpu-pack.tar.xz: the
# binaries, stripped, the embedded pair, and the scripts. There: tar xf gpu-pack.tar.xz, then
# gpu-pack/scripts/gpu.sh gpu-pack/bin test (or bench). The binaries run with the C library of this machine
# or a later one; the driver, cuBLAS and NVRTC are found there.
set -euo pipefail
cd "$(dirname "$0")/.."
${CARGO:-cargo} build --release --workspace --bins
pack=target/gpu-pack
rm -rf "$pack"
mkdir -p "$pack"/{bin,scripts,models,tests/peers}
for name in attune attune-generator attune-reward; do
    strip -o "$pack/bin/$name" "target/release/$name"
done
cp scripts/gpu.sh "$pack/scripts/"
cp tests/peers/gpu_kernels.py "$pack/tests/peers/"
cp -r models/demo "$pack/models/"
XZ_OPT=-6T0 tar cJf target/gpu-pack.tar.xz -C target gpu-pack
bytes=$(stat -c %s target/gpu-pack.tar.xz)
echo "target/gpu-pack.tar.xz: $((bytes >> 20)) MiB; needs glibc $(ldd --version | head -1 | grep -o '[0-9.]*$')"
[ "$bytes" -lt 60000000 ] || { echo "more than 60 MB" >&2; exit 1; }
