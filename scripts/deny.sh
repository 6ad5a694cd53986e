#!/usr/bin/env bash
# What is built in, by `cargo deny`: licences, sources, versions, and what is known against any of it. The
# last needs the advisory database from the network; where it cannot be had, that part alone is left out
# (ATTUNE_REQUIRE_ADVISORIES=1: fails).
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v cargo-deny >/dev/null; then
    if [ "${ATTUNE_REQUIRE_ALL:-}" = 1 ]; then
        echo "cargo-deny is missing, and ATTUNE_REQUIRE_ALL=1 forbids leaving it out" >&2
        exit 1
    fi
    echo "left out: cargo deny (cargo-deny is not installed: cargo install cargo-deny --locked)"
    exit 0
fi
cargo deny --log-level warn check --hide-inclusion-graph licenses bans sources
said=$(mktemp)
trap 'rm -f "$said"' EXIT
if cargo deny --log-level error check advisories >"$said" 2>&1; then
    cat "$said"
elif grep -q "failed to fetch advisory database" "$said" && [ "${ATTUNE_REQUIRE_ADVISORIES:-}" != 1 ]; then
    echo "left out: known vulnerabilities (the advisory database cannot be fetched from here)"
else
    cat "$said" >&2
    exit 1
fi
