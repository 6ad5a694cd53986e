#!/usr/bin/env bash
# One prompt, answered in several people's ways, by a generator and a reward worker on loopback.
set -euo pipefail
bin=${1:?the folder of the binaries}
cd "$(dirname "$0")/.."
source scripts/pair.sh
start_pair "$bin" 127.0.0.1:0
echo "generator on $generator, reward worker on $reward: they talk once per token"
echo
for prompt in "What is a good way to grow the lemon tree?" "Why should I plant the tomatoes?"; do
    echo "$prompt"
    echo
    "$bin/attune" generate --endpoint "http://$generator" --compare --max-tokens 160 --seed 1 --strength 1 \
        --prefer "in one short sentence, please" --prefer "with a funny joke" \
        --prefer "with scientific terms and in a polite tone" "$prompt" </dev/null
    echo
done
