#!/usr/bin/env bash
# The protos' style by `buf lint` (STANDARD), and that the last release's peers still understand them by
# `buf breaking`, where buf is installed. The latter is also a test of the proto crate.
set -euo pipefail
cd "$(dirname "$0")/../proto"
if command -v buf >/dev/null; then
    buf lint
    buf breaking --against released.binpb
elif [ "${ATTUNE_REQUIRE_ALL:-}" = 1 ]; then
    echo "buf is missing, and ATTUNE_REQUIRE_ALL=1 forbids leaving it out" >&2
    exit 1
else
    echo "left out: buf lint and buf breaking (buf is not installed: go install github.com/bufbuild/buf/cmd/buf@latest)"
fi
