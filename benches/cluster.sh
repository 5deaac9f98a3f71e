# Cluster of three nodes on this machine, for the scripts beside this file, which source it. It runs
# the release build of this tree, or the binary that NODESYNC names. All its processes end with the
# script.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${NODESYNC:-}" ]; then
    cargo build --release --manifest-path "$root/Cargo.toml"
    NODESYNC=$(cargo metadata --format-version 1 --no-deps --manifest-path "$root/Cargo.toml" |
        sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/nodesync
fi
scratch=$(mktemp -d)
pids=()  # the nodes, by ascending port
extra=() # other processes
trap 'down; rm -rf "$scratch"' EXIT

# a_port: prints a port below those that the system gives to outgoing connections.
a_port() { echo $((20000 + RANDOM % 10000)); }

# up FLAGS: starts a cluster, and waits until the node with the highest port leads.
up() {
    local base port
    base=$(a_port)
    ports=("$base" $((base + 1)) $((base + 2)))
    peers=$(IFS=,; echo "${ports[*]/#/127.0.0.1:}")
    pids=()
    for port in "${ports[@]}"; do start "$port" "$@"; done
    leader=${pids[2]}
    until [ "$(info "${ports[2]}" role 2>/dev/null)" = master ]; do
        kill -0 "${pids[@]}" 2>/dev/null || fail "a node did not start"
        sleep 0.1
    done
}

# start PORT FLAGS: starts one node of the cluster.
start() {
    local port=$1 others=() other
    shift
    for other in "${ports[@]}"; do
        [ "$other" = "$port" ] || others+=("127.0.0.1:$other")
    done
    "$NODESYNC" "$port" "${others[@]}" --dir "$scratch/$port" "$@" 2>>"$scratch/$port.log" &
    pids+=($!)
}

# down: ends all processes, and removes their data.
down() {
    local all=("${pids[@]}" "${extra[@]}")
    if [ ${#all[@]} -gt 0 ]; then kill -KILL "${all[@]}" 2>/dev/null || true; fi
    wait 2>/dev/null || true
    pids=() extra=()
    rm -rf "${scratch:?}"/*
}

# fail MESSAGE: prints the message and the last lines of the nodes' logs, and exits.
fail() {
    echo "$1" >&2
    tail -n 5 "$scratch"/*.log >&2
    exit 1
}

# info PORT NAME: prints the value of one field of INFO.
info() {
    exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf '*2\r\n$4\r\nINFO\r\n$3\r\nall\r\n*1\r\n$4\r\nQUIT\r\n' >&3
    tr -d '\r' <&3 | awk -F: -v name="$2" '$1 == name { print $2 }'
    exec 3>&-
}

# about: prints the machine and the commit.
about() { echo "$(nproc) cores; Linux $(uname -r); $(git -C "$root" rev-parse --short HEAD)"; }
