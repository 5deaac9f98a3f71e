//! The answers to questions about the node: INFO, ROLE, NODES, LEADER, CLIENT LIST, TIME.

use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::clock::wall_micros;
use crate::node::clients::ConnectedClient;
use crate::node::shared::Shared;
use crate::protocol::{Protocol, Question, Reply};
use crate::replica::{PeerStatus, RoleName, Status};
use crate::types::{Index, NodeId};

/// Answers a question of the client `id`.
pub fn answer(shared: &Shared, id: u64, question: &Question) -> Reply {
    match question {
        Question::Info { sections } => Reply::Verbatim(info(shared, sections)),
        Question::Leader => Reply::leader(leader(shared)),
        Question::Nodes => nodes(shared),
        Question::Role => role(shared),
        Question::ClientList { ids } => {
            let wanted = |id: &u64| ids.as_ref().is_none_or(|ids| ids.contains(id));
            let clients = shared.clients.list();
            let lines = clients.iter().filter(|client| wanted(&client.id));
            Reply::Verbatim(lines.map(|client| client_line(client)).collect())
        }
        Question::ClientInfo => {
            let clients = shared.clients.list();
            let own = clients.iter().find(|client| client.id == id);
            Reply::Verbatim(own.map(|client| client_line(client)).unwrap_or_default())
        }
        Question::Time => Reply::time(Duration::from_micros(wall_micros())),
        Question::Wait { .. } => {
            debug_assert!(false, "the driver answers WAIT itself");
            Reply::Integer(0)
        }
    }
}

/// The leader; while no majority is alive, the node that stamps eventual writes.
fn leader(shared: &Shared) -> Option<NodeId> {
    shared.core.leader().or_else(|| {
        let status = shared.core.status();
        status.stamper.filter(|_| !status.quorum)
    })
}

fn client_line(client: &ConnectedClient) -> String {
    let (active, profile) = client.latest();
    let resp = if profile.protocol == Protocol::Resp3 { 3 } else { 2 };
    format!(
        "id={} addr={} name={} age={} idle={} flags=N db=0 cmd={} user=default resp={resp} \
         lib-name={} lib-ver={} tot-cmds={}\n",
        client.id,
        client.address,
        profile.name,
        client.since.elapsed().as_secs(),
        active.elapsed().as_secs(),
        if profile.last_command.is_empty() { "NULL" } else { profile.last_command },
        profile.library,
        profile.library_version,
        profile.commands,
    )
}

/// The address of a member, as host and port.
fn address(shared: &Shared, node: NodeId) -> (String, u16) {
    if node == shared.id {
        return (shared.config.bind.to_string(), shared.port);
    }
    let peer = shared.config.peers.iter().find(|peer| peer.id == node);
    peer.map(|peer| (peer.host.clone(), peer.port)).unwrap_or_default()
}

/// ROLE (Redis): a leader is a master with its live replicas, any other node a slave of the leader.
fn role(shared: &Shared) -> Reply {
    let status = shared.core.status();
    let number = |n: u64| Reply::Integer(i64::try_from(n).unwrap_or(i64::MAX));
    if status.role == RoleName::Leader {
        let alive = status.peers.iter().filter(|peer| peer.alive);
        let replicas = alive.map(|peer| {
            let (host, port) = address(shared, peer.id);
            let offset = peer.progress.map_or(0, |(matched, _)| matched).to_string();
            Reply::Array(vec![
                Reply::text(host),
                Reply::text(port.to_string()),
                Reply::text(offset),
            ])
        });
        let replicas = replicas.collect();
        // ROLE of a Redis master: its replication offset, then each replica's.
        return Reply::Array(vec![
            Reply::text("master"),
            number(status.commit),
            Reply::Array(replicas),
        ]);
    }
    // ROLE of a Redis replica. It reports "connect" while it looks for its master.
    let (host, port) = status.leader.map(|leader| address(shared, leader)).unwrap_or_default();
    let state = if status.leader.is_some() { "connected" } else { "connect" };
    Reply::Array(vec![
        Reply::text("slave"),
        Reply::text(host),
        Reply::Integer(port.into()),
        Reply::text(state),
        number(status.commit),
    ])
}

/// NODES: a map for each member. `match` and `lag` tell how far a member's durable log reaches. The
/// leader knows them of every follower, a follower only of itself.
fn nodes(shared: &Shared) -> Reply {
    let status = shared.core.status();
    let mut members: Vec<(NodeId, Reply)> =
        status.peers.iter().map(|peer| (peer.id, peer_map(shared, &status, peer))).collect();
    members.push((shared.id, own_map(shared, &status)));
    members.sort_by_key(|(id, _)| *id);
    Reply::Array(members.into_iter().map(|(_, map)| map).collect())
}

fn member_map(
    shared: &Shared,
    id: NodeId,
    alive: bool,
    role: &'static str,
    matched: Option<Index>,
    status: &Status,
) -> Reply {
    let (host, port) = address(shared, id);
    let number = |n: Option<Index>| {
        n.map_or(Reply::Null, |n| Reply::Integer(i64::try_from(n).unwrap_or(i64::MAX)))
    };
    Reply::Map(vec![
        (Reply::text("id"), Reply::Integer(id.0.into())),
        (Reply::text("address"), Reply::text(format!("{host}:{port}"))),
        (Reply::text("alive"), Reply::text(if alive { "yes" } else { "no" })),
        (Reply::text("role"), Reply::text(role)),
        (Reply::text("match"), number(matched)),
        (Reply::text("lag"), number(matched.map(|matched| status.last.saturating_sub(matched)))),
    ])
}

fn own_map(shared: &Shared, status: &Status) -> Reply {
    let durable = Some(status.durable);
    member_map(shared, shared.id, true, status.role.as_str(), durable, status)
}

fn peer_map(shared: &Shared, status: &Status, peer: &PeerStatus) -> Reply {
    let role = match (status.leader == Some(peer.id), peer.alive) {
        (true, _) => "leader",
        (false, true) => "follower",
        (false, false) => "unknown",
    };
    let matched = peer.progress.map(|(matched, _)| matched);
    member_map(shared, peer.id, peer.alive, role, matched, status)
}

/// Appends a section's lines.
type Section = fn(&Shared, &Status, &mut String);

/// INFO (Redis): the sections asked for, or all of them.
fn info(shared: &Shared, wanted: &[String]) -> String {
    let sections: [(&str, Section); 9] = [
        ("Server", server),
        ("Clients", clients),
        ("Memory", memory),
        ("Persistence", persistence),
        ("Stats", stats),
        ("Replication", replication),
        ("Raft", raft),
        ("Eventual", eventual),
        ("Keyspace", keyspace),
    ];
    let all = wanted.is_empty()
        || wanted.iter().any(|w| matches!(&**w, "all" | "default" | "everything"));
    let status = shared.core.status();
    let mut out = String::new();
    for (name, section) in sections {
        if all || wanted.iter().any(|w| w.eq_ignore_ascii_case(name)) {
            if !out.is_empty() {
                out.push_str("\r\n");
            }
            out.push_str(&format!("# {name}\r\n"));
            section(shared, &status, &mut out);
        }
    }
    out
}

/// One `name:value` line.
fn line(out: &mut String, name: &str, value: impl std::fmt::Display) {
    write!(out, "{name}:{value}\r\n").expect("writing to a string cannot fail");
}

fn server(shared: &Shared, _: &Status, out: &mut String) {
    // Clients choose the commands that they send by this version.
    line(out, "redis_version", "7.0.0");
    line(out, "redis_mode", "standalone");
    line(out, "nodesync_version", env!("CARGO_PKG_VERSION"));
    line(out, "os", std::env::consts::OS);
    line(out, "arch_bits", usize::BITS);
    line(out, "process_id", std::process::id());
    line(out, "node_id", shared.id);
    line(out, "boot", shared.boot);
    line(out, "cluster", &shared.config.cluster);
    line(out, "tcp_port", shared.port);
    line(out, "uptime_in_seconds", shared.started.elapsed().as_secs());
    line(out, "uptime_in_days", shared.started.elapsed().as_secs() / 86_400);
}

fn clients(shared: &Shared, status: &Status, out: &mut String) {
    line(out, "connected_clients", shared.clients.count());
    line(out, "maxclients", shared.config.maxclients);
    line(out, "blocked_clients", status.pending.0);
    line(out, "connections", shared.clients.connections());
}

fn memory(shared: &Shared, status: &Status, out: &mut String) {
    line(out, "used_memory_rss", resident_bytes());
    line(out, "used_memory_dataset", shared.store.stats().bytes);
    line(out, "pending_bytes", status.pending.1);
    line(out, "maxmemory", 0);
}

/// The resident memory of this process in bytes; 0 where the system does not say.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

fn persistence(shared: &Shared, status: &Status, out: &mut String) {
    // ioredis sends no command while this is 1. It never is: the threads start after recovery.
    line(out, "loading", 0);
    line(out, "aof_enabled", 1);
    line(out, "aof_last_write_status", if status.disk_full { "err" } else { "ok" });
    line(out, "snapshot_index", status.snapshot);
    line(out, "durable_index", status.durable);
    line(out, "recovery_ms", shared.recovery.as_millis());
}

fn stats(shared: &Shared, _: &Status, out: &mut String) {
    let clients = &shared.clients;
    let present: u64 = clients.list().iter().map(|client| client.latest().1.commands).sum();
    let gone = clients.commands.load(Ordering::Relaxed);
    line(out, "total_connections_received", clients.accepted.load(Ordering::Relaxed));
    line(out, "rejected_connections", clients.refused.load(Ordering::Relaxed));
    line(out, "total_commands_processed", gone + present);
    line(out, "strong_write_batches", clients.writes.load(Ordering::Relaxed));
    line(out, "strong_read_batches", clients.reads.load(Ordering::Relaxed));
    line(out, "eventual_write_batches", clients.stamps.load(Ordering::Relaxed));
    line(out, "eventual_read_batches", clients.local_reads.load(Ordering::Relaxed));
}

fn replication(shared: &Shared, status: &Status, out: &mut String) {
    let leads = status.role == RoleName::Leader;
    line(out, "role", if leads { "master" } else { "slave" });
    if leads {
        let alive = status.peers.iter().filter(|peer| peer.alive).count();
        line(out, "connected_slaves", alive);
    } else if let Some(leader) = status.leader {
        let (host, port) = address(shared, leader);
        line(out, "master_host", host);
        line(out, "master_port", port);
    }
    if !leads {
        let state = if status.leader.is_some() { "up" } else { "down" };
        line(out, "master_link_status", state);
    }
    line(out, "master_repl_offset", status.commit);
}

fn raft(shared: &Shared, status: &Status, out: &mut String) {
    line(out, "raft_role", status.role.as_str());
    let leader = status.leader.map(|leader| leader.to_string());
    line(out, "raft_leader_id", leader.as_deref().unwrap_or("none"));
    line(out, "raft_current_term", status.term);
    line(out, "raft_last_index", status.last);
    line(out, "raft_commit_index", status.commit);
    line(out, "raft_applied_index", shared.store.applied());
    let quorum = if status.quorum { "yes" } else { "no" };
    line(out, "raft_quorum_alive", quorum);
    let cause = status.last_election_cause.map_or("none", |cause| cause.as_str());
    line(out, "raft_last_election_cause", cause);
    for peer in &status.peers {
        let (host, port) = address(shared, peer.id);
        let state = peer.progress.map_or("unknown", |(_, state)| state);
        let matched = peer.progress.map_or(0, |(matched, _)| matched);
        let alive = if peer.alive { "yes" } else { "no" };
        let value = format!("addr={host}:{port},alive={alive},state={state},match={matched}");
        line(out, &format!("raft_node{}", peer.id), value);
    }
}

fn eventual(shared: &Shared, status: &Status, out: &mut String) {
    let stamper = status.stamper.map(|stamper| stamper.to_string());
    line(out, "eventual_acceptor", stamper.as_deref().unwrap_or("none"));
    line(out, "eventual_backlog_writes", status.backlog.0);
    line(out, "eventual_backlog_bytes", status.backlog.1);
    line(out, "eventual_unsynced_writes", status.unsynced);
    line(out, "eventual_overlaid_keys", shared.store.overlaid());
    line(out, "eventual_late_writes", shared.store.late());
    line(out, "tombstones", shared.store.stats().tombstones);
    line(out, "clock_trusted", if status.clock_trusted { "yes" } else { "no" });
    let (index, digest) = status.checkpoint.unwrap_or_default();
    line(out, "mark_index", index);
    line(out, "mark_digest", format!("{digest:016x}"));
}

fn keyspace(shared: &Shared, _: &Status, out: &mut String) {
    let keys = shared.store.stats().keys;
    if keys > 0 {
        line(out, "db0", format!("keys={keys},expires=0,avg_ttl=0"));
    }
}
