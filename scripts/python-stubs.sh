#!/usr/bin/env bash
# Makes the Python client's stubs from the protos: python-stubs.sh [PYTHON [FOLDER]]. PYTHON has grpcio-tools,
# which carries its own protoc. The pair's own wire (reward.proto) is no client's.
set -euo pipefail
cd "$(dirname "$0")/../proto"
python=${1:-../target/tools/python/bin/python}
out=${2:-../clients/python/src}
"$python" -m grpc_tools.protoc -I. --python_out="$out" --pyi_out="$out" \
    attune/reward/v1/guidance.proto attune/generator/v1/generator.proto attune/profile/v1/profile.proto
"$python" -m grpc_tools.protoc -I. --grpc_python_out="$out" \
    attune/generator/v1/generator.proto attune/profile/v1/profile.proto
