#!/usr/bin/env bash
# Runs every fuzz target for so many seconds, one after the other; a crash ends it and leaves its input in
# fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-600}
for target in $(cargo +nightly fuzz list); do
    echo "$target:"
    mkdir -p "fuzz/corpus/$target"
    cargo +nightly fuzz run --sanitizer none "$target" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 -verbosity=0
done
