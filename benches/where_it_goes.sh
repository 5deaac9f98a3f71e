#!/usr/bin/env bash
# Tells where the work of one operation goes: CPU, context switches, system calls, syncs, allocations
# and bytes over loopback, for strong and eventual SET and GET, with 1 and with 64 clients.
#
#   benches/where_it_goes.sh [FLAGS OF THE NODES]      such as --io threads
#
# CPU and switches are those that /proc counts over two undisturbed seconds. System calls are counted
# with strace, and allocations with perf's probe on malloc, in runs of their own, because both slow
# the node down; without them (apt-get install strace linux-perf; root) those columns stay empty.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -n "${NODESYNC:-}" ] || cargo build --release --quiet --manifest-path "$root/Cargo.toml"
target=$(cargo metadata --format-version 1 --no-deps --manifest-path "$root/Cargo.toml" |
    sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
nodesync=$target/release/nodesync
scratch=$(mktemp -d)
base=$((20000 + RANDOM % 10000))
ports=("$base" $((base + 1)) $((base + 2)))
pids=()
load=

stop() {
    if [ -n "$load" ]; then kill "$load" 2>/dev/null || true; fi
    kill "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$scratch"
}
trap stop EXIT

for port in "${ports[@]}"; do
    peers=()
    for other in "${ports[@]}"; do
        [ "$other" = "$port" ] || peers+=("127.0.0.1:$other")
    done
    "$nodesync" "$port" "${peers[@]}" --dir "$scratch/$port" "$@" 2>>"$scratch/log" &
    pids+=($!)
done
leader=${pids[2]}

# What a node tells of itself: INFO's value of a name.
info() {
    exec 3<>"/dev/tcp/127.0.0.1/$1"
    printf '*2\r\n$4\r\nINFO\r\n$3\r\nall\r\n*1\r\n$4\r\nQUIT\r\n' >&3
    tr -d '\r' <&3 | awk -F: -v name="$2" '$1 == name { print $2 }'
    exec 3>&-
}
until [ "$(info "${ports[2]}" role 2>/dev/null)" = master ]; do sleep 0.1; done

have_strace=$(command -v strace || true)
have_probe=
if command -v perf >/dev/null; then
    libc=$(awk '/libc\.so/ { print $6; exit }' "/proc/$leader/maps")
    perf probe --quiet --add malloc --exec "$libc" 2>/dev/null || true
    perf stat -e probe_libc:malloc -p "$leader" -- true 2>/dev/null && have_probe=1
fi
[ -n "$have_strace" ] || echo "no strace: system calls are not counted" >&2
[ -n "$have_probe" ] || echo "no perf probe: allocations are not counted" >&2

commands() { info "${ports[2]}" total_commands_processed; }
# CPU time in microseconds, and context switches, of a process so far.
cpu() { sed 's/.*) //' "/proc/$1/stat" | awk -v hz="$(getconf CLK_TCK)" '{ print ($12 + $13) * 1e6 / hz }'; }
switches() { cat /proc/"$1"/task/*/status 2>/dev/null | awk '/ctxt_switches/ { n += $2 } END { print n }'; }
loopback() { awk '/lo:/ { print $10 }' /proc/net/dev; }

# System calls of the leader in one second, as "name count" lines, and how many operations there were.
trace() {
    local before after
    before=$(commands)
    timeout --signal INT 1 strace -f -c -U calls,name -p "$leader" -o "$scratch/calls" >/dev/null 2>&1 || true
    after=$(commands)
    awk -v ops=$((after - before)) '
        $1 ~ /^[0-9]+$/ && $2 != "total" { all += $1; count[$2] += $1 }
        END {
            printf "%.2f|%.2f|%.2f|%.2f|%.2f|%.2f|%.3f|%.2f", all / ops,
                (count["recvfrom"] + count["read"]) / ops,
                (count["sendto"] + count["write"]) / ops, count["epoll_wait"] / ops,
                count["futex"] / ops, count["sched_yield"] / ops, count["fdatasync"] / ops,
                count["pwrite64"] / ops
        }' "$scratch/calls"
}

allocations() {
    local before after
    before=$(commands)
    perf stat -x, -e probe_libc:malloc -p "$leader" -- sleep 1 2>"$scratch/mallocs"
    after=$(commands)
    awk -F, -v ops=$((after - before)) '/probe_libc/ { printf "%.1f", $1 / ops }' "$scratch/mallocs"
}

echo "one operation, at the leader of three nodes; $(nproc) cores; Linux $(uname -r);" \
    "$(git -C "$root" rev-parse --short HEAD); nodes with: ${*:-no flags}"
echo
echo "| operation | clients | per second | CPU µs leader | follower | switches leader | follower | loopback bytes" \
    "| system calls | receive | send | epoll_wait | futex | sched_yield | fdatasync | pwrite | malloc |"
echo "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
peers=$(IFS=,; echo "${ports[*]/#/127.0.0.1:}")
for clients in 1 64; do
    for mode in strong eventual; do
        for ratio in 0 1; do
            "$nodesync" bench --peers "$peers" --to leader --consistency "$mode" --ratio "$ratio" \
                --preload --clients "$clients" --warmup 0 --seconds 600 --json - >/dev/null 2>&1 &
            load=$!
            sleep 3
            at=$(date +%s%N) ops=$(commands) c0=$(cpu "$leader") c1=$(cpu "${pids[0]}")
            s0=$(switches "$leader") s1=$(switches "${pids[0]}") bytes=$(loopback)
            sleep 2
            row=$(awk -v ops=$(($(commands) - ops)) -v ns=$(($(date +%s%N) - at)) \
                -v c0="$c0" -v c1="$c1" -v d0="$(cpu "$leader")" -v d1="$(cpu "${pids[0]}")" \
                -v s0="$s0" -v s1="$s1" -v t0="$(switches "$leader")" -v t1="$(switches "${pids[0]}")" \
                -v bytes=$(($(loopback) - bytes)) 'BEGIN {
                    printf "%d|%.1f|%.1f|%.2f|%.2f|%d", ops * 1e9 / ns, (d0 - c0) / ops,
                        (d1 - c1) / ops, (t0 - s0) / ops, (t1 - s1) / ops, bytes / ops
                }')
            calls="|||||||" mallocs=
            [ -n "$have_strace" ] && calls=$(trace)
            [ -n "$have_probe" ] && mallocs=$(allocations)
            kill -INT "$load"
            wait "$load" 2>/dev/null || true
            load=
            echo "|$mode $([ "$ratio" = 0 ] && echo SET || echo GET)|$clients|$row|$calls|$mallocs|" |
                sed 's/|/ | /g; s/^ //; s/ $//'
        done
    done
done
