#!/usr/bin/env bash
# The protos' style by `buf lint` (STANDARD), where buf is installed.
set -euo pipefail
cd "$(dirname "$0")/../proto"
if command -v buf >/dev/null; then
    buf lint
elif [ "${ATTUNE_REQUIRE_ALL:-}" = 1 ]; then
    echo "buf is missing, and ATTUNE_REQUIRE_ALL=1 forbids leaving its lint out" >&2
    exit 1
else
    echo "left out: buf lint (buf is not installed: go install github.com/bufbuild/buf/cmd/buf@latest)"
fi
