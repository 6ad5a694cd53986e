#!/usr/bin/env bash
# One prompt, answered in several people's ways, by a generator and a reward worker on loopback.
set -euo pipefail
bin=${1:?the folder of the binaries}
cd "$(dirname "$0")/.."
source scripts/pair.sh
start_pair "$bin" 127.0.0.1:0
echo "generator on $generator, reward worker on $reward: they talk once per token"
echo
while IFS=$'\t' read -r prompt; do
    [ -n "$prompt" ] || continue
    "$bin/attune" generate --endpoint "http://$generator" --compare --max-tokens 120 --seed 1 --strength 2 \
        --prefer "please keep it brief" --prefer "be formal" --prefer "be a little funny" "$prompt"
    echo
done <<'PROMPTS'
How do I bake bread?
PROMPTS
