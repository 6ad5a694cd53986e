#!/usr/bin/env bash
# Both services on the embedded pair, until ctrl-c.
set -euo pipefail
bin=${1:?the folder of the binaries}
cd "$(dirname "$0")/.."
source scripts/pair.sh
start_pair "$bin" "127.0.0.1:${2:-50051}" "sqlite:$PWD/target/run/profiles.db"
cat <<TEXT
generator      http://$generator
reward worker  http://$reward

try:  $bin/attune generate --endpoint http://$generator --prefer "with a funny joke" "How do I bake the bread?"
      $bin/attune profile put me --text "with a funny joke" --endpoint http://$generator
      $bin/attune generate --endpoint http://$generator --profile me "How do I bake the bread?"
      $bin/attune describe --endpoint http://$generator
stop: ctrl-c
TEXT
wait
