#!/usr/bin/env bash
# What the services lose beside a card: the embedded pair, each side on a stand-in for a card that computes
# nothing and takes a fixed time a pass, so that the host's processor is free meanwhile. Shows guided over plain
# tokens a second at 1, 16 and 64 streams.
#   scripts/beside-card.sh BINARIES [MICROSECONDS A PASS, 4500 unless told] [FLAGS of attune bench serve]
# Unless flags are given, prompts have 128 tokens, and texts 64 to 192, so that they come and go one by one.
set -euo pipefail
bin=$(cd "${1:?the folder of the binaries}" && pwd)
export ATTUNE_CARD_PASS_US=${2:-4500}
shape=("${@:3}")
[ $# -ge 3 ] || shape=(--prompt-tokens 128 --max-tokens 128 --spread 0.5)
cd "$(dirname "$0")/.."
scripts/card.sh target/tools/card
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT
# starts NAME LOG FLAGS...: a service on a card of its own, and says where it listens.
start() {
    LD_LIBRARY_PATH="$PWD/target/tools/card" "$bin/$1" --device cuda:0 --dtype bf16 --context 512 --cache-mib 256 \
        --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --set prefix_cache=false "${@:3}" >"$work/$2" 2>&1 &
    for _ in $(seq 100); do
        address=$(grep -om1 'listening on [0-9.:]*' "$work/$2" | grep -o '[0-9.:]*$' || true)
        [ -z "$address" ] || return 0
        sleep 0.1
    done
    cat "$work/$2" >&2
    exit 1
}
start attune-reward reward --model models/demo/persrm
start attune-generator generator --model models/demo/base --reward "http://$address"
hidden=$(grep -o '"hidden_size": *[0-9]*' models/demo/persrm/config.json | grep -o '[0-9]*$')
ones=$(printf ',1%.0s' $(seq "$hidden"))
tokens() {
    "$bin/attune" bench serve --endpoint "http://$address" --streams "$1" "${shape[@]}" \
        --ignore-eos --temperature 0 --json "${@:2}" 2>/dev/null | grep -o '"tokens_per_second": *[0-9.]*' | grep -o '[0-9.]*$'
}
printf '%8s %10s %10s %7s\n' streams plain/s guided/s ratio
for streams in 1 16 64; do
    plain=$(tokens "$streams" --plain) guided=$(tokens "$streams" --weights "${ones#,}" --reference generator)
    awk -v s="$streams" -v p="$plain" -v g="$guided" 'BEGIN { printf "%8d %10.0f %10.0f %7.2f\n", s, p, g, g / p }'
done
