#!/usr/bin/env bash
# Measures the targets beside throughput: failover, growth, restart, snapshots, idle nodes, many
# connections, and whether the leadership stays in place under load.
#
#   benches/limits.sh [PART ...]     kill freeze growth restart snapshot idle connections elections
#
# Without a part all of them run, which takes about 25 minutes; `elections` alone takes ten.
# `restart` and `growth` compare with Redis (apt-get install redis-server redis-tools).
set -euo pipefail

# shellcheck source=benches/cluster.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"

# read_key PORT: prints the answer to a strong GET of the last key that --keys 1000000 writes.
read_key() {
    { exec 3<>"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null || return 0
    printf 'GET key:%012d\nQUIT\n' 999999 >&3
    head -1 <&3
    exec 3>&-
}

# bench FLAGS: makes one strong run, and prints JSON. field NAME: extracts one number from it.
bench() { "$NODESYNC" bench --consistency strong --warmup 0.5 --json - "$@" 2>/dev/null || true; }
field() { sed -n "s/.*\"$1\": \([0-9.]*\).*/\1/p" | head -1; }
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }
resident() { awk '/VmRSS/ { print $2 }' "/proc/$1/status"; }
cpu_ticks() { sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'; }
now() { date +%s%N; }
since() { awk -v ns=$(($(now) - $1)) 'BEGIN { printf "%.2f", ns / 1e9 }'; }

# ---- the parts ----

kill_part() {
    for _ in $(seq 20); do
        bench --spawn 3 --kill-leader-at 1.5 --seconds 3 --clients 16 | field longest_gap_ms
    done >"$scratch/gaps"
    echo "kill -9 of the leader under load, 20 times, longest pause: median $(median <"$scratch/gaps") ms," \
        "from $(sort -n "$scratch/gaps" | head -1) to $(sort -n "$scratch/gaps" | tail -1) ms"
}

freeze_part() {
    local gaps=
    for _ in $(seq 10); do
        up
        bench --peers "$peers" --to follower --clients 16 --seconds 3 >"$scratch/run" &
        run=$!
        # The warm-up takes half a second.
        until [ "$(info "${ports[0]}" total_commands_processed)" -gt 1000 ]; do sleep 0.05; done
        sleep 1.5
        kill -STOP "$leader"
        wait "$run"
        gaps+=$(field longest_gap_ms <"$scratch/run")$'\n'
        down
    done
    echo "SIGSTOP of the leader under load, 10 times, longest pause of the others' clients: median" \
        "$(printf %s "$gaps" | median) ms, at most $(printf %s "$gaps" | sort -n | tail -1) ms"
}

growth_part() {
    for keys in 100000 10000000; do
        up
        before=$(resident "$leader")
        bench --peers "$peers" --keys $keys --preload --clients 64 --ratio 1 --seconds 1 >/dev/null
        loaded=$((($(resident "$leader") - before) * 1024 / keys))
        bench --peers "$peers" --keys $keys --clients 64 --ratio 0 --seconds 30 >"$scratch/set"
        bench --peers "$peers" --keys $keys --clients 64 --ratio 1 --seconds 5 >"$scratch/get"
        bench --peers "$peers" --keys $keys --clients 64 --pipeline 16 --ratio 0 --seconds 30 >"$scratch/set16"
        bench --peers "$peers" --keys $keys --clients 64 --pipeline 16 --ratio 1 --seconds 5 >"$scratch/get16"
        written=$((($(resident "$leader") - before) * 1024 / keys))
        for work in set get set16 get16; do
            printf -v "rate_${work}_$keys" '%s' "$(field per_second <"$scratch/$work")"
        done
        [ $keys = 100000 ] || echo "10 million keys: $loaded bytes resident each at the leader after loading," \
            "$written after a minute of overwriting"
        down
    done
    for work in set get set16 get16; do
        few=rate_${work}_100000 many=rate_${work}_10000000
        echo "10 million keys against 100,000, $work: ${!many} / ${!few} = $(ratio "${!many}" "${!few}")"
    done
    if command -v redis-server >/dev/null; then
        redis_up --save '' --appendonly no
        before=$(resident "$redis")
        "$NODESYNC" bench --peers "127.0.0.1:$redis_port" --to all --consistency default \
            --keys 10000000 --preload --seconds 1 --json - >/dev/null 2>&1 || true
        echo "Redis, 10 million keys: $((($(resident "$redis") - before) * 1024 / 10000000)) bytes resident each"
        down
    fi
}

# redis_up FLAGS: starts one Redis.
redis_up() {
    redis_port=$(a_port)
    redis-server --port "$redis_port" --dir "$scratch" --daemonize no "$@" >"$scratch/redis.log" &
    redis=$!
    extra=("$redis")
    until redis-cli -p "$redis_port" ping >/dev/null 2>&1; do sleep 0.02; done
}

restart_part() {
    up
    bench --peers "$peers" --keys 1000000 --preload --seconds 1 >/dev/null
    node=${pids[0]} port=${ports[0]}
    kill -KILL "$node"
    wait "$node" 2>/dev/null || true
    for _ in 1 2 3; do
        at=$(now)
        start "$port"
        until read_key "$port" | grep -q VALUE; do sleep 0.01; done
        echo "restart with a million keys: the last of them is read after $(since "$at") s"
        kill -KILL "${pids[-1]}"
        wait "${pids[-1]}" 2>/dev/null || true
    done
    down
    command -v redis-server >/dev/null || return 0
    redis_up --save '' --appendonly yes --appendfsync everysec --auto-aof-rewrite-percentage 0
    "$NODESYNC" bench --peers "127.0.0.1:$redis_port" --to all --consistency default \
        --keys 1000000 --preload --seconds 1 --json - >/dev/null 2>&1 || true
    redis-cli -p "$redis_port" shutdown >/dev/null 2>&1 || true
    wait "$redis" 2>/dev/null || true
    for _ in 1 2 3; do
        at=$(now)
        redis-server --port "$redis_port" --dir "$scratch" --save '' --appendonly yes >"$scratch/redis.log" &
        redis=$!
        extra=("$redis")
        until redis-cli -p "$redis_port" get x >/dev/null 2>&1 &&
            ! redis-cli -p "$redis_port" get x | grep -q LOADING; do sleep 0.01; done
        echo "Redis, the same from its AOF: answers after $(since "$at") s"
        kill "$redis"
        wait "$redis" 2>/dev/null || true
    done
    down
}

snapshot_part() {
    for log in 4gb 32mb; do
        up --snapshot-log "$log"
        bench --peers "$peers" --keys 1000000 --preload --clients 64 --seconds 15 >"$scratch/run"
        echo "SET under full load, a million keys, a snapshot every $log of log:" \
            "p99.9 $(field p999_ms <"$scratch/run") ms, $(field per_second <"$scratch/run")/s"
        down
    done
}

idle_part() {
    up
    bench --peers "$peers" --seconds 1 >/dev/null
    sleep 2
    ticks=()
    for pid in "${pids[@]}"; do ticks+=("$(cpu_ticks "$pid")"); done
    sleep 20
    for i in 0 1 2; do
        awk -v t=$(($(cpu_ticks "${pids[i]}") - ticks[i])) -v hz="$(getconf CLK_TCK)" -v i="$i" \
            'BEGIN { printf "idle node %d: %.2f %% of a core\n", i + 1, 100 * t / hz / 20 }'
    done
    down
}

connections_part() {
    local many
    many=$(ulimit -Hn)
    many=$((many > 12000 ? 10000 : many / 2))
    up --maxclients 20000
    before=$(bench --peers "$peers" --clients 64 --seconds 5 | field per_second)
    resident_before=$(resident "$leader")
    ulimit -Sn "$(ulimit -Hn)"
    # Connections that have set and read a key, and then stay silent.
    "$NODESYNC" bench --peers "$peers" --to leader --consistency strong --clients "$many" --ratio 0.5 \
        --rate 1 --warmup 0 --seconds 600 --json - >/dev/null 2>&1 &
    idle=$!
    extra=("$idle")
    until [ "$(info "${ports[2]}" connected_clients)" -gt "$many" ]; do sleep 0.2; done
    sleep 1
    each=$((($(resident "$leader") - resident_before) * 1024 / many))
    with=$(bench --peers "$peers" --clients 64 --seconds 5 | field per_second)
    kill -INT "$idle"
    wait "$idle" 2>/dev/null || true
    echo "$many idle connections: $each bytes resident each; SET with 64 others: $with / $before =" \
        "$(ratio "$with" "$before")"
    down
}

elections_part() {
    up
    term=$(info "${ports[2]}" raft_current_term)
    bench --peers "$peers" --to all --clients 256 --seconds 600 >"$scratch/run"
    echo "ten saturated minutes ($(field per_second <"$scratch/run") SET/s):" \
        "$(($(info "${ports[2]}" raft_current_term) - term)) terms later," \
        "longest pause $(field longest_gap_ms <"$scratch/run") ms"
    down
}

about
for part in "${@:-kill freeze growth restart snapshot idle connections elections}"; do
    # Without arguments the list of parts is one word.
    for one in $part; do "${one}_part"; done
done
