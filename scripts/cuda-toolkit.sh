#!/usr/bin/env bash
# Makes a CUDA 13.0 toolkit of NVIDIA's Python wheels, for whoever has none and builds `attune` for training on
# a card (docs/training.md): nvcc, NVRTC, headers, and small libraries that stand for the driver, cuBLAS and
# cuRAND when a program is linked; at run time the real ones are found. Needs pip and a C compiler, no card.
#   scripts/cuda-toolkit.sh [FOLDER]              the toolkit, in target/tools/cuda
#   scripts/cuda-toolkit.sh --stand-in [FOLDER]   an nvcc that compiles nothing, in target/tools/cuda-stand-in:
#                                                 enough for `cargo check`, and needs nothing at all
# Prints the settings that cargo needs: eval "$(scripts/cuda-toolkit.sh)"
set -euo pipefail
cd "$(dirname "$0")/.."
stand_in=
if [ "${1:-}" = --stand-in ]; then stand_in=1 && shift; fi
folder=${1:-target/tools/cuda${stand_in:+-stand-in}}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

make_stand_in() {
    mkdir -p "$folder/bin"
    cat >"$folder/bin/nvcc" <<'NVCC'
#!/bin/sh
# Writes an empty file for whatever is asked for.
case " $* " in *" --version "*) echo "Cuda compilation tools, release 13.0, V13.0.0" && exit ;; esac
into=
while [ $# -gt 0 ]; do
    case $1 in
    -o) : >"$2" ;;
    --output-directory) into=$2 ;;
    *.cu) source=$1 ;;
    esac
    shift
done
source=${source##*/}
[ -z "$into" ] || : >"$into/${source%.cu}.ptx"
NVCC
    chmod +x "$folder/bin/nvcc"
}

make_toolkit() {
    unpacked=$(mktemp -d)
    trap 'rm -rf "$unpacked"' EXIT
    python3 -m pip install -q --no-deps --target "$unpacked" \
        'nvidia-cuda-nvcc==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-crt==13.0.*' \
        'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-nvrtc==13.0.*' 'nvidia-cuda-cccl==13.0.*' >&2
    cp -r "$unpacked"/nvidia/cu13/. "$folder/"
    ln -sfn lib "$folder/lib64"
    for name in cudart nvrtc; do ln -sf "lib$name.so.13" "$folder/lib/lib$name.so"; done
    # What cudarc declares of the libraries that only a machine with a card has.
    local cudarc source name version stub
    cudarc=$(${CARGO:-cargo} metadata --quiet --format-version 1 --locked --filter-platform x86_64-unknown-linux-gnu |
        python3 -c 'import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(next(os.path.dirname(p["manifest_path"]) for p in packages if p["name"] == "cudarc"))')
    mkdir -p "$folder/lib/stubs"
    for stub in driver:cuda:1 cublas:cublas:13 cublaslt:cublasLt:13 curand:curand:10; do
        IFS=: read -r source name version <<<"$stub"
        grep -rhoE '\bfn (cu|cublas|curand)[A-Za-z0-9_]+' "$cudarc/src/$source/sys" | awk '{ print $2 }' | sort -u |
            sed 's/.*/void &(void) {}/' |
            ${CC:-cc} -shared -fPIC -w -x c - -Wl,-soname,"lib$name.so.$version" -o "$folder/lib/stubs/lib$name.so"
    done
}

if [ ! -e "$folder/made" ]; then
    if [ -n "$stand_in" ]; then make_stand_in; else make_toolkit; fi
    touch "$folder/made"
fi
# Which card to compile for: by default Hopper.
cat <<SETTINGS
export CUDA_HOME='$folder' CUDA_PATH='$folder' CUDA_ROOT='$folder' NVCC='$folder/bin/nvcc'
export CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-90}" PATH='$folder/bin':"\$PATH"
export LIBRARY_PATH='$folder/lib:$folder/lib/stubs'"\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
SETTINGS
