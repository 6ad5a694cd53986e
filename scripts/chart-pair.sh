#!/usr/bin/env bash
# A pair that runs on the chart's own settings and certificates, and the request of `helm test` to it:
# chart-pair.sh BINARIES FOLDER, where FOLDER/defaults.yaml is the rendered chart. What differs from a
# cluster: paths of mounts, addresses, and localhost for the workers' name.
set -euo pipefail
bin=${1:?the folder of the binaries}
out=${2:?the folder of the rendered chart}
cd "$(dirname "$0")/.."
source scripts/pair.sh
place=$(mktemp -d)
trap 'stop_pair; rm -rf "$place"' EXIT
objects=$out/defaults.yaml

# field OBJECT FIELD: a Secret's field.
field() {
    awk -v name="  name: $1" -v field="  $2: " '
        /^---/ {found = 0} $0 == name {found = 1}
        found && index($0, field) == 1 {print substr($0, length(field) + 1)}' "$objects" | base64 -d
}
for service in generator reward; do
    mkdir -p "$place/$service/tls" "$place/$service/profiles"
    for file in tls.crt tls.key ca.crt; do
        field "demo-attune-$service-tls" "$file" >"$place/$service/tls/$file"
        [ -s "$place/$service/tls/$file" ] || { echo "chart: no $file for the $service" >&2; exit 1; }
    done
    sed -e "s|\"/tls/|\"$place/$service/tls/|" -e "s|:/profiles/|:$place/$service/profiles/|" \
        -e "s|\"/usr/share/attune/models/|\"$PWD/models/|" \
        -e 's|listen = "0.0.0.0:[0-9]*"|listen = "127.0.0.1:0"|' \
        "$out/defaults.$service.toml" >"$place/$service.toml"
done
threads=$((($(nproc) + 1) / 2))
start reward "$bin/attune-reward" --config "$place/reward.toml" --threads "$threads"
sed -i "s|dns://demo-attune-reward.attune.svc.cluster.local:50052|dns://localhost:${address##*:}|" "$place/generator.toml"
start generator "$bin/attune-generator" --config "$place/generator.toml" --threads "$threads"

# The command of the test's pod, and where it sends it.
mapfile -t args < <(awk '/^    - name: generate/ {on = 1} on && /^        - / {print substr($0, 11)} /securityContext/ && on {exit}' "$objects")
for i in "${!args[@]}"; do
    case ${args[i]} in
        --endpoint=*) args[i]=--endpoint=https://$address ;;
        --ca=*) args[i]=--ca=$place/generator/tls/ca.crt ;;
    esac
done
text=$("$bin/attune" generate "${args[@]}" 2>"$place/said") ||
    { echo "chart: the request of helm test failed: $(cat "$place/said" "$logs"/*.err)" >&2; exit 1; }
[ -n "$text" ] || { echo "chart: the request of helm test wrote nothing" >&2; exit 1; }
# Nobody without the generator's certificate reaches a worker.
if "$bin/attune" describe --endpoint "https://$(sed -n 's|.*dns://localhost:\([0-9]*\).*|127.0.0.1:\1|p' "$place/generator.toml")" \
    --ca "$place/reward/tls/ca.crt" --server-name demo-attune-reward.attune.svc --timeout 10 >/dev/null 2>&1; then
    echo "chart: a worker answers a stranger" >&2
    exit 1
fi
echo "chart: a pair on its settings and certificates answers helm test: \"${text:0:60}...\""
