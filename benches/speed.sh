#!/usr/bin/env bash
# Measures a three-node cluster on this machine with redis-benchmark and prints medians.
#
#   benches/speed.sh [ROUNDS]        (default 5; needs redis-benchmark: Debian package redis-tools)
#
# Rounds go through all cases in turn, so that a machine whose speed drifts is fair to all of them.
set -euo pipefail

rounds=${1:-5}
command -v redis-benchmark >/dev/null || { echo "needs redis-benchmark (apt-get install redis-tools)" >&2; exit 1; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=$(mktemp -d "$root/target/speed.XXXXXX")
base=$((20000 + RANDOM % 10000)) leader=$((base + 2))

"$root/run_cluster.sh" --port "$base" --dir "$scratch" >"$scratch/log" 2>&1 &
cluster=$!
trap 'kill -TERM $cluster 2>/dev/null; wait $cluster 2>/dev/null; rm -rf "$scratch"' EXIT
until grep -q '^Ready' "$scratch/log"; do
    kill -0 $cluster || { cat "$scratch/log" >&2; exit 1; }
    sleep 0.1
done

# name | port | arguments
cases=(
    "SET, 1 client, at the leader|$leader|-t set -c 1 -n 3000"
    "SET, 64 clients, at the leader|$leader|-t set -c 64 -n 60000"
    "SET, 64 clients, at a follower|$base|-t set -c 64 -n 60000"
    "SET, 64 clients, pipeline 16, at the leader|$leader|-t set -c 64 -P 16 -n 400000"
    "GET, 64 clients, at the leader|$leader|-t get -c 64 -n 100000"
    "GET, 64 clients, at a follower|$base|-t get -c 64 -n 100000"
    "GET, 64 clients, pipeline 16, at the leader|$leader|-t get -c 64 -P 16 -n 600000"
)
for ((round = 1; round <= rounds; round++)); do
    for i in "${!cases[@]}"; do
        IFS='|' read -r _ port arguments <<<"${cases[i]}"
        # shellcheck disable=SC2086
        redis-benchmark -p "$port" -d 64 -r 100000 $arguments --csv | tail -1 | tr -d '"' >>"$scratch/case$i"
    done
    # One write and one sync of 512 bytes into a file that is there already.
    dd if=/dev/zero of="$scratch/sync" bs=512 count=1000 conv=notrunc oflag=dsync 2>&1 |
        awk '/copied/ { for (i = 1; i < NF; i++) if ($(i + 1) ~ /^s,?$/) print $i }' >>"$scratch/dsync"
done

median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
echo "medians of $rounds rounds; $(nproc) cores; Linux $(uname -r); $(git -C "$root" rev-parse --short HEAD)"
printf '| %-44s | %10s | %8s | %8s |\n' "64-byte values" "per second" "p50 ms" "p99 ms"
printf '|%s|%s|%s|%s|\n' "$(printf -- '-%.0s' {1..46})" "-----------:" "---------:" "---------:"
for i in "${!cases[@]}"; do
    printf '| %-44s | %10.0f | %8s | %8s |\n' "${cases[i]%%|*}" \
        "$(cut -d, -f2 "$scratch/case$i" | median)" \
        "$(cut -d, -f5 "$scratch/case$i" | median)" "$(cut -d, -f7 "$scratch/case$i" | median)"
done
echo "one 512-byte O_DSYNC write: $(median <"$scratch/dsync") ms"
