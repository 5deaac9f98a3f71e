#!/usr/bin/env bash
# Compares NodeSync with Redis and etcd on this machine, and prints medians and ratios as Markdown.
#
#   benches/rivals.sh [--rounds N] [--quick] [--only nodesync,redis,etcd] [--node-args FLAGS]
#
# Five rounds take about twelve minutes. Needs redis-server and etcd (Debian and Ubuntu:
# apt-get install redis-server etcd-server), and leaves out one that is missing.
# benches/rivals/main.rs describes the measurements.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
manifest=$root/Cargo.toml format=json-render-diagnostics
built=$(cargo bench -p nodesync-benches --manifest-path "$manifest" --bench rivals --no-run --message-format=$format)
bench=$(sed -n 's|.*"executable":"\([^"]*/rivals-[^"]*\)".*|\1|p' <<<"$built" | tail -1)
cargo build --release --manifest-path "$manifest"
target=${CARGO_TARGET_DIR:-$root/target}
exec "$bench" --binary "$target/release/nodesync" --dir "$target" "$@"
