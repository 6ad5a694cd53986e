#!/usr/bin/env bash
# The collector of compose.yaml, for real: built as a Go program from the parts that its configuration names
# (minutes, once, into target/tools), asked whether it takes the configuration, and sent what a pair exports
# in one guided request: traces, metrics and logs have to arrive.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=v0.165.0
CONFIG=deploy/collector/collector.yaml
bin=${BIN:-target/debug}
tools=$PWD/target/tools
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if ! [ -x "$tools/otelcol" ]; then
    [ -x "$tools/builder" ] || GOBIN=$tools go install "go.opentelemetry.io/collector/cmd/builder@$VERSION"
    cat >"$work/parts.yaml" <<YAML
dist: {name: otelcol, description: The parts of $CONFIG, output_path: $work/otelcol}
receivers: [{gomod: go.opentelemetry.io/collector/receiver/otlpreceiver $VERSION}]
processors:
  - gomod: go.opentelemetry.io/collector/processor/batchprocessor $VERSION
  - gomod: go.opentelemetry.io/collector/processor/memorylimiterprocessor $VERSION
exporters: [{gomod: go.opentelemetry.io/collector/exporter/debugexporter $VERSION}]
YAML
    "$tools/builder" --config "$work/parts.yaml"
    mv "$work/otelcol/otelcol" "$tools/otelcol"
fi
"$tools/otelcol" validate --config "$CONFIG"

source scripts/pair.sh
trap 'stop_pair; rm -rf "$work"' EXIT
port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
"$tools/otelcol" --config "$CONFIG" --set "receivers::otlp::protocols::grpc::endpoint=127.0.0.1:$port" \
    2>"$work/log" >&2 &
pids+=("$!")
curl --silent --output /dev/null --retry 30 --retry-connrefused --retry-delay 1 --http0.9 "http://127.0.0.1:$port" || true
common=(--threads 1 --set "telemetry.endpoint=http://127.0.0.1:$port")
start reward "$bin/attune-reward" --model models/demo/persrm --listen 127.0.0.1:0 --set profiles.url= "${common[@]}"
start generator "$bin/attune-generator" --model models/demo/base --listen 127.0.0.1:0 \
    --reward "http://$address" "${common[@]}"
"$bin/attune" generate --endpoint "http://$address" --max-tokens 16 --prefer "with a funny joke" \
    "How do I bake the bread?" >/dev/null
# The pair ends first, and sends what it has; then the collector, and writes what it has.
for pid in "${pids[@]:1}"; do kill "$pid"; done
for pid in "${pids[@]:1}"; do wait "$pid" || true; done
stop_pair
for signal in Traces Metrics Logs; do
    grep -q "$signal.*resource \(spans\|metrics\|logs\)\": [1-9]" "$work/log" ||
        { echo "collector: no $signal arrived: $(tail -5 "$work/log")" >&2; exit 1; }
done
echo "collector: its configuration is taken, and traces, metrics and logs of a pair arrive"
