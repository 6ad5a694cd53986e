#!/usr/bin/env bash
# The chart, offline: linted, rendered for every file of helm/attune/ci, every object held against the
# schemas of Kubernetes and of the operators, every setting against the services themselves; what must be
# refused is refused; certificates outlive an upgrade; and one guided text goes through a pair that has
# nothing but the chart's settings and certificates.
# Needs helm and kubectl-validate (`scripts/chart-tools.sh install`), go, python3, and the binaries in BIN.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/target/tools:$PATH"
source scripts/chart-tools.sh
bin=${BIN:-target/debug}
chart=helm/attune
out=target/chart
rm -rf "$out"
mkdir -p "$out"

leave_out() {
    if [ "${ATTUNE_REQUIRE_ALL:-}" = 1 ]; then
        echo "chart: $1, and ATTUNE_REQUIRE_ALL=1 forbids leaving it out" >&2
        exit 1
    fi
    echo "left out: the chart ($1: scripts/chart-tools.sh install)"
    exit 0
}
missing=$(chart_tools_missing)
[ -z "$missing" ] || leave_out "$missing is not installed"
crds=$(crd_folders) || leave_out "the operators' CRDs cannot be had"
fail() {
    echo "chart: $*" >&2
    exit 1
}
# The objects as a cluster of the oldest version that the chart takes would get them.
render() {
    helm template demo "$chart" --namespace attune --kube-version 1.30.0 "$@"
}

# The values' own tidiness: each with its comment, all of them known to the schema.
python3 scripts/chart_values.py "$chart"

for values in "$chart"/ci/*.yaml; do
    name=$(basename "$values" .yaml)
    helm lint --strict --quiet --kube-version 1.30.0 "$chart" --values "$values"
    render --values "$values" >"$out/$name.yaml"
    # A TOML file's lines are indented by four spaces in its ConfigMap.
    for service in generator reward; do
        awk -v start="  $service.toml: |" '$0 == start {on = 1; next} on && /^    |^$/ {print substr($0, 5); next} {on = 0}' \
            "$out/$name.yaml" >"$out/$name.$service.toml"
        # A service reads its settings first, and ends with 64 where they are wrong; with 1 it misses what
        # only a pod has.
        echo postgres://attune@localhost/attune >"$out/url"
        sed -i "s|\"/profiles/url\"|\"$PWD/$out/url\"|" "$out/$name.$service.toml"
        code=0
        "$bin/attune-$service" --config "$out/$name.$service.toml" --model "$out/none" >"$out/said" 2>&1 || code=$?
        [ "$code" = 1 ] || fail "$values: attune-$service does not take its settings: $(cat "$out/said")"
    done
done
kubectl-validate --version 1.30 --local-crds "$crds" "$out"/*.yaml >"$out/validated" 2>&1 ||
    fail "objects that Kubernetes would refuse: $(cat "$out/validated")"
echo "chart: $(grep -c OK "$out/validated") value files, $(cat "$out"/*.yaml | grep -c ^kind:) objects"

# That the validator would see a wrong field.
sed '0,/failureThreshold/s//failureTreshold/' "$out/defaults.yaml" >"$out/wrong.yaml"
! kubectl-validate --version 1.30 "$out/wrong.yaml" >/dev/null 2>&1 || fail "a misspelt field was not seen"
rm "$out/wrong.yaml"

# What must be refused, and what is said then: values | a part of the message.
refused=0
while IFS='|' read -r values message; do
    [ -n "$values" ] || continue
    read -r -a flags <<<"$values"
    if render "${flags[@]/#/--set=}" >"$out/said" 2>&1; then
        fail "not refused: $values"
    fi
    grep -qF -- "$message" "$out/said" || fail "refused $values, but without '$message': $(cat "$out/said")"
    refused=$((refused + 1))
done <scripts/chart-refused.txt
if helm template demo "$chart" --kube-version 1.29.0 >"$out/said" 2>&1; then
    fail "Kubernetes 1.29 was not refused"
fi
grep -q "requires kubeVersion" "$out/said"
echo "chart: $refused wrong values refused"

# What values make of an object: template | values | a line of it.
while IFS='|' read -r template values line; do
    [ -n "$template" ] || continue
    read -r -a flags <<<"$values"
    render --show-only "templates/$template" "${flags[@]/#/--set=}" >"$out/said"
    grep -qF -- "$line" "$out/said" || fail "$template with $values has no line '$line'"
done <scripts/chart-rendered.txt

python3 scripts/chart_upgrades.py "$chart"
scripts/chart-pair.sh "$bin" "$out"
