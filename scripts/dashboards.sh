#!/usr/bin/env bash
# The dashboard, the alerts and the autoscalers' queries: by their own tools, and against a pair at work.
# Needs promtool and prometheus (Debian's package `prometheus`), helm, python3, and the binaries in BIN.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/target/tools:$PATH"
bin=${BIN:-target/debug}
for tool in promtool prometheus helm python3; do
    if ! command -v "$tool" >/dev/null; then
        if [ "${ATTUNE_REQUIRE_ALL:-}" = 1 ]; then
            echo "$tool is missing, and ATTUNE_REQUIRE_ALL=1 forbids leaving it out" >&2
            exit 1
        fi
        echo "left out: the dashboard, the alerts and the autoscalers' queries ($tool is not installed)"
        exit 0
    fi
done
source scripts/pair.sh
work=$(mktemp -d)
trap 'stop_pair; rm -rf "$work"' EXIT

promtool check config deploy/prometheus/prometheus.yaml >"$work/said" || { cat "$work/said" >&2; exit 1; }
(cd deploy/prometheus && promtool test rules alerts.test.yaml) >"$work/said" 2>&1 || { cat "$work/said" >&2; exit 1; }
python3 scripts/dashboards.py static
echo "dashboards: configuration, alerts and their tests pass"

free_ports() {
    python3 -c 'import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in sockets))'
}
read -r admin_generator admin_reward web < <(free_ports)
# Nothing listens on port 1: what telemetry loses is counted.
common=(--threads 1 --log error --set telemetry.endpoint=http://127.0.0.1:1 --set telemetry.timeout_seconds=1)
start reward "$bin/attune-reward" --model models/demo/persrm --listen 127.0.0.1:0 --set profiles.url= \
    --admin-listen "127.0.0.1:$admin_reward" "${common[@]}"
start generator "$bin/attune-generator" --model models/demo/base --listen 127.0.0.1:0 \
    --reward "http://$address" --admin-listen "127.0.0.1:$admin_generator" "${common[@]}"
cat >"$work/prometheus.yaml" <<YAML
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [$PWD/deploy/prometheus/alerts.yaml]
scrape_configs:
  - job_name: attune
    static_configs:
      - targets: [127.0.0.1:$admin_generator]
        labels: {component: generator, release: demo, namespace: attune, pod: generator}
      - targets: [127.0.0.1:$admin_reward]
        labels: {component: reward, release: demo, namespace: attune, pod: reward}
YAML
prometheus --config.file="$work/prometheus.yaml" --storage.tsdb.path="$work/data" \
    --web.listen-address="127.0.0.1:$web" --log.level=warn 2>"$logs/prometheus.err" &
pids+=("$!")
# Work, for as long as the queries take.
while "$bin/attune" generate --endpoint "http://$address" --max-tokens 48 --prefer "with a funny joke" \
    "How do I bake the bread?" >/dev/null 2>&1; do :; done &
pids+=("$!")
# --fail: else a retry stumbles over the body of "not ready yet", which it cannot take back from /dev/null.
curl --silent --fail --output /dev/null --retry 50 --retry-connrefused --retry-delay 1 "http://127.0.0.1:$web/-/ready"
helm template demo helm/attune --namespace attune --kube-version 1.30.0 --values helm/attune/ci/keda.yaml \
    --show-only templates/autoscaling.yaml >"$work/scalers.yaml"
python3 scripts/dashboards.py live "http://127.0.0.1:$web" "$work/scalers.yaml"
