#!/usr/bin/env bash
# The chart's tools, as Go programs in target/tools, and the operators' CRDs, in the modules of their
# projects. `chart-tools.sh install` installs what is missing; sourced, it tells where things are.
HELM=v3.22.0
VALIDATE=v0.0.4
# A module, and the folder of its CRDs.
CRDS=(
    "github.com/kedacore/keda/v2@v2.21.0 config/crd/bases"
    "github.com/cert-manager/cert-manager@v1.21.2 deploy/crds"
    "github.com/prometheus-operator/prometheus-operator@v0.85.0 example/prometheus-operator-crd"
)

chart_tools_missing() {
    local tool missing=()
    for tool in helm kubectl-validate go python3; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    echo "${missing[*]}"
}

# The folders, separated by commas. A module that is not in the cache is fetched.
crd_folders() {
    local module folder there folders=()
    for line in "${CRDS[@]}"; do
        read -r module folder <<<"$line"
        there=$(cd / && go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
        [ -d "$there/$folder" ] || { echo "no CRDs in $module" >&2; return 1; }
        folders+=("$there/$folder")
    done
    local IFS=,
    echo "${folders[*]}"
}

if [ "${BASH_SOURCE[0]}" = "$0" ] && [ "${1:-}" = install ]; then
    set -euo pipefail
    cd "$(dirname "$0")/.."
    export GOBIN="$PWD/target/tools" PATH="$PWD/target/tools:$PATH"
    # Without debug information and optimisation: they are built in half the time, and run for seconds.
    fast=(-ldflags=-s\ -w -gcflags=all=-N\ -l)
    command -v kubectl-validate >/dev/null || go install "${fast[@]}" "sigs.k8s.io/kubectl-validate@$VALIDATE"
    command -v helm >/dev/null || go install "${fast[@]}" "helm.sh/helm/v3/cmd/helm@$HELM"
    crd_folders >/dev/null
fi
