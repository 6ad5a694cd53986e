# Sourced: starts the pair on the embedded models and stops it at exit.
#   start_pair BINARIES LISTEN [PROFILES]: sets $generator to the generator's address. Profiles are kept at the address
#   PROFILES; by default they are gone when the pair is.

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

# start NAME COMMAND...: runs a service and sets $address to where it listens, once it does.
start() {
    local name=$1 line
    shift
    exec {out}< <(exec "$@" 2>"$logs/$name.err")
    pids+=("$!")
    address=
    while IFS= read -r -t 60 line <&"$out"; do
        if [[ $line == "listening on "* ]]; then
            address=${line#listening on }
            return
        fi
    done
    echo "$name did not start:" >&2
    cat "$logs/$name.err" >&2
    exit 1
}

start_pair() {
    local bin=$1 listen=$2 profiles=${3:-sqlite:$logs/profiles.db}
    local models
    models=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/models/demo
    start reward "$bin/attune-reward" --model "$models/persrm" --listen 127.0.0.1:0 \
        --set "profiles.url=$profiles"
    reward=$address
    start generator "$bin/attune-generator" --model "$models/base" --listen "$listen" \
        --reward "http://$reward"
    generator=$address
}
