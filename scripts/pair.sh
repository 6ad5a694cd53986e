# Sourced: starts the pair on the embedded models and stops it at exit.
#   start_pair BINARIES LISTEN: sets $generator to the generator's address.

pids=()
logs=$(mktemp -d)
stop_pair() {
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$logs"
}
trap stop_pair EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# start NAME COMMAND...: runs a service and sets $address to where it listens.
start() {
    local name=$1
    shift
    "$@" >"$logs/$name.out" 2>"$logs/$name.err" &
    local pid=$!
    pids+=("$pid")
    # The service says where it listens as soon as it does; a loop on its output is the signal.
    address=$(timeout 60 tail -n +1 -f --pid="$pid" "$logs/$name.out" | sed -n 's/^listening on //p;T;q')
    if [ -z "$address" ]; then
        echo "$name did not start:" >&2
        cat "$logs/$name.err" >&2
        exit 1
    fi
}

start_pair() {
    local bin=$1 listen=$2
    local models
    models=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/models/demo
    # Two processes share the machine: each computes on its half.
    local threads=$((($(nproc) + 1) / 2))
    start reward "$bin/attune-reward" --model "$models/persrm" --listen 127.0.0.1:0 --threads "$threads"
    reward=$address
    start generator "$bin/attune-generator" --model "$models/base" --listen "$listen" \
        --reward "http://$reward" --threads "$threads"
    generator=$address
}
