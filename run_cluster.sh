#!/usr/bin/env bash
# Builds NodeSync and runs a cluster on this machine until Ctrl-C.
#
#   ./run_cluster.sh [--nodes N] [--port BASE] [--dir DIR] [--clean] [-- extra node flags]
#
# Nodes listen on 127.0.0.1, ports BASE to BASE+N-1; the one with the highest port leads.
set -euo pipefail

nodes=3 base=5000 dir=nodesync-data clean=no
usage() { sed -n '2,6s/^# \{0,1\}//p' "$0"; }
need() { [[ $# -ge 2 ]] || { echo "run_cluster.sh: $1 needs a value" >&2; exit 2; }; }
while [[ $# -gt 0 ]]; do
    case $1 in
        --nodes) need "$@"; nodes=$2; shift 2 ;;
        --port) need "$@"; base=$2; shift 2 ;;
        --dir) need "$@"; dir=$2; shift 2 ;;
        --clean) clean=yes; shift ;;
        -h | --help) usage; exit 0 ;;
        --) shift; break ;;
        *) echo "run_cluster.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
    esac
done
[[ $nodes =~ ^[1-9][0-9]?$ ]] || { echo "run_cluster.sh: --nodes takes a number from 1 to 99" >&2; exit 2; }
[[ $base =~ ^[1-9][0-9]{0,4}$ && $((base + nodes - 1)) -le 65535 ]] ||
    { echo "run_cluster.sh: --port takes a port; all nodes' ports must be below 65536" >&2; exit 2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The first build takes a minute or two: cargo shows a progress bar on a terminal, and a line for each
# crate elsewhere.
echo "Building the release binary ..." >&2
cargo build --release --manifest-path "$root/Cargo.toml"
binary=${CARGO_TARGET_DIR:-$root/target}/release/nodesync

ports=()
for ((i = 0; i < nodes; i++)); do ports+=($((base + i))); done
if [[ $clean == yes ]]; then
    for port in "${ports[@]}"; do rm -rf "${dir:?}/$port"; done
fi

# Each node is a process group of its own: Ctrl-C then reaches this script alone, which sends every node
# exactly one signal.
set -m
pids=()
for port in "${ports[@]}"; do
    peers=()
    for other in "${ports[@]}"; do [[ $other == "$port" ]] || peers+=("127.0.0.1:$other"); done
    "$binary" "$port" ${peers[@]+"${peers[@]}"} --dir "$dir/$port" "$@" \
        > >(sed -u "s/^/[$port] /") 2>&1 &
    pids+=($!)
done
set +m

status=0
stop() {
    trap '' INT TERM
    kill -TERM "${pids[@]}" 2>/dev/null || true
    for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
    exit "$status"
}
trap stop INT TERM

# Asks a node over the line protocol, without any tool but the shell.
ask() {
    local answer
    exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
    printf '%s\n' "$2" >&3
    IFS= read -r -t 2 answer <&3 || { exec 3>&-; return 1; }
    exec 3>&-
    printf '%s' "${answer%$'\r'}"
} 2>/dev/null

# The cluster is ready when every node follows the node with the highest port. A cluster with a password
# names its leader to authenticated clients only; it is ready when every node answers.
leader=${ports[-1]}
ready() {
    local port answer
    for port in "${ports[@]}"; do
        answer=$(ask "$port" LEADER) || return 1
        [[ $answer == "LEADER $leader" || $answer == *uthentication* ]] || return 1
    done
}
until ready; do
    for pid in "${pids[@]}"; do
        kill -0 "$pid" 2>/dev/null || { echo "run_cluster.sh: a node has failed, see above" >&2; status=1; stop; }
    done
    sleep 0.05
done

cat <<TEXT
Ready: $nodes node(s) on 127.0.0.1:$base-$leader, $leader leads. Try in another terminal:

  printf 'SET hello world\nGET hello\n' | nc -N 127.0.0.1 $base
  redis-cli -p $base set greeting hi
  redis-cli -p $leader get greeting
  kill -9 ${pids[-1]}        # the leader; then go on writing to the others

Ctrl-C stops all nodes.
TEXT

while :; do
    alive=0
    for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null && alive=$((alive + 1)); done
    [[ $alive -gt 0 ]] || { echo "run_cluster.sh: no node is left" >&2; exit 1; }
    sleep 0.5 &
    wait $! || true
done
