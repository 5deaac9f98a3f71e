#!/usr/bin/env bash
# Counts the work of one operation: CPU, context switches, system calls, syncs, allocations, copied
# bytes and bytes over loopback, for strong and eventual SET and GET, with 1 and with 64 clients.
#
#   benches/where_it_goes.sh [FLAGS OF THE NODES]      such as --io threads
#
# CPU and switches come from /proc, over two undisturbed seconds. strace counts system calls, perf's
# probe on malloc counts allocations, and a library in front of the system's counts copies
# (count_copies.c). Each of these has a run of its own, because it slows the node down. Without the
# tools (apt-get install strace linux-perf gcc; perf needs root) their columns stay empty.
set -euo pipefail
# shellcheck source=benches/cluster.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"

# for_each MEASURE: calls it under the load of each case in turn; clients, mode and ratio hold the
# case.
for_each() {
    for clients in 1 64; do
        for mode in strong eventual; do
            for ratio in 0 1; do
                "$NODESYNC" bench --peers "$peers" --to leader --consistency "$mode" --ratio "$ratio" \
                    --preload --clients "$clients" --warmup 0 --seconds 600 --json - >/dev/null 2>&1 &
                extra=($!)
                sleep 3
                "$1"
                kill -INT "${extra[0]}"
                wait "${extra[0]}" 2>/dev/null || true
                extra=()
            done
        done
    done
}

commands() { info "${ports[2]}" total_commands_processed; }

# ---- bytes copied by the leader's own code ----

declare -A copies

copied() { od -An -tu8 "$scratch/copies.$leader" | tr -d ' '; }

count_copies() {
    local ops bytes
    ops=$(commands) bytes=$(copied)
    sleep 1
    bytes=$(($(copied) - bytes)) ops=$(($(commands) - ops))
    copies["$clients $mode $ratio"]=$((bytes / ops))
}

if command -v cc >/dev/null; then
    cc -O2 -shared -fPIC -fno-builtin -fno-tree-loop-distribute-patterns \
        -o "$scratch/count_copies.so" "$root/benches/count_copies.c"
    export COPIES=$scratch/copies LD_PRELOAD=$scratch/count_copies.so
    up "$@"
    unset LD_PRELOAD
    for_each count_copies
    down
else
    echo "no cc: copied bytes are not counted" >&2
fi

# ---- everything else ----

up "$@"
have_strace=$(command -v strace || true)
have_probe=
if command -v perf >/dev/null; then
    libc=$(awk '/libc\.so/ { print $6; exit }' "/proc/$leader/maps")
    perf probe --quiet --add malloc --exec "$libc" 2>/dev/null || true
    perf stat -e probe_libc:malloc -p "$leader" -- true 2>/dev/null && have_probe=1
fi
[ -n "$have_strace" ] || echo "no strace: system calls are not counted" >&2
[ -n "$have_probe" ] || echo "no perf probe: allocations are not counted" >&2

# CPU time in microseconds, and context switches, of a process so far.
cpu() { sed 's/.*) //' "/proc/$1/stat" | awk -v hz="$(getconf CLK_TCK)" '{ print ($12 + $13) * 1e6 / hz }'; }
switches() { cat /proc/"$1"/task/*/status 2>/dev/null | awk '/ctxt_switches/ { n += $2 } END { print n }'; }
loopback() { awk '/lo:/ { print $10 }' /proc/net/dev; }

# System calls of the leader in one second, by name, divided by operations.
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

measure() {
    local at ops c0 c1 s0 s1 bytes row calls="|||||||" mallocs=
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
    [ -n "$have_strace" ] && calls=$(trace)
    [ -n "$have_probe" ] && mallocs=$(allocations)
    row+="|$calls|$mallocs|${copies["$clients $mode $ratio"]:-}"
    echo "|$mode $([ "$ratio" = 0 ] && echo SET || echo GET)|$clients|$row|" |
        sed 's/|/ | /g; s/^ //; s/ $//'
}

echo "one operation, at the leader of three nodes; $(about); nodes with: ${*:-no flags}"
echo
echo "| operation | clients | per second | CPU µs leader | follower | switches leader | follower | loopback bytes" \
    "| system calls | receive | send | epoll_wait | futex | sched_yield | fdatasync | pwrite | malloc | copied bytes |"
echo "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
for_each measure
