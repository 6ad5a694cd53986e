#!/usr/bin/env bash
# Makes a stand-in for a card of the C++ compiler: libraries of the names of NVIDIA's driver, cuBLAS and
# NVRTC that compute on this CPU, in target/tools/card or the folder given. With that folder first on
# LD_LIBRARY_PATH every program of Attune finds a `cuda:0`. No toolkit, driver or card is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-target/tools/card}
kernels=crates/kernels
sources=(tests/card/*.cpp "$kernels"/tests/cuda/emulator.h "$kernels"/cuda/* scripts/card.sh)
made=$folder/made-of
stamp=$(cat "${sources[@]}" | sha256sum)
[ "$(cat "$made" 2>/dev/null)" != "$stamp" ] || exit 0
compiler=
for name in c++ g++ clang++; do
    if command -v "$name" >/dev/null; then compiler=$name && break; fi
done
[ -n "$compiler" ] || { echo "the stand-in for a card needs a C++ compiler" >&2; exit 1; }
mkdir -p "$folder"
# Others may load the libraries while they are made anew: they are moved into place.
work=$(mktemp -d "$folder/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
flags=(-std=c++17 -O2 -U_FORTIFY_SOURCE -ffp-contract=off -fno-strict-aliasing -fPIC -shared -w)
"$compiler" "${flags[@]}" -I"$kernels/tests/cuda" -I"$kernels/cuda" -Wl,-soname,libcuda.so -o "$work/libcuda.so" tests/card/driver.cpp
"$compiler" "${flags[@]}" -O3 -Wl,-soname,libcublas.so -o "$work/libcublas.so" tests/card/blas.cpp
"$compiler" "${flags[@]}" -Wl,-soname,libnvrtc.so -o "$work/libnvrtc.so" tests/card/compiler.cpp
for library in "$work"/*.so; do mv "$library" "$folder/"; done
echo "$stamp" >"$made"
