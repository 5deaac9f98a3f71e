//! The commands of the cluster scripts for eventual writes (`commands.rs` lists them), and the
//! views of stores and outboxes.

use nodesync::replica::Input;
use nodesync::replica::pending::Cancelled;
use nodesync::types::{NodeId, RequestId, Version, Write, Writes};

use super::Cluster;
use super::commands::{Args, Outcome};
use super::show;

impl Cluster {
    pub fn eventual(&mut self, name: &str, args: &mut Args<'_>) -> Outcome {
        let id: Option<NodeId> = args.maybe()?.map(NodeId);
        if let "stores" | "outbox" = name {
            for node in self.nodes.keys().copied().collect::<Vec<_>>() {
                if id.is_none_or(|only| only == node) && self.is_up(node) {
                    if name == "stores" { self.show_store(node) } else { self.show_outbox(node) }
                }
            }
            return Ok(());
        }
        let id = id.ok_or("a node is missing")?;
        match name {
            "stamp" => {
                let mut writes = Vec::new();
                while let Some((key, value)) = args.0.next_key() {
                    writes.push(write(key, Some(value)));
                }
                while let Some(key) = args.0.next_pos() {
                    writes.push(write(key, None));
                }
                let request = self.replica(id).next_stamp();
                self.step(id, Input::Stamp { id: request, writes });
            }
            "cancel-stamp" => {
                let (seq, boot) = (args.take()?, self.node(id).settings.boot);
                let request = RequestId { node: id, boot, seq };
                let was = match self.replica(id).cancel_stamp(request) {
                    Cancelled::Unsent => "certainly not done",
                    Cancelled::Sent => "it may still be done",
                    Cancelled::NotPending => "it was not pending",
                };
                self.say(id, format!("cancels {}: {was}", show::stamp_id(&request)));
            }
            "get" => {
                while let Some(key) = args.0.next_pos() {
                    let newest = self.node(id).store.newest(key).cloned();
                    let text = newest.map_or(format!("nothing of {key}"), |held| {
                        show::held(key, held.value.as_deref(), held.version)
                    });
                    self.say(id, format!("sees {text}"));
                }
            }
            "skew" => self.node(id).skew = args.take()?,
            _ => {
                let (key, value) = args.0.next_key().ok_or("a key is missing")?;
                let held = self.node(id).store.base.get_mut(key).ok_or("no such key")?;
                held.value = Some(value.to_owned());
            }
        }
        Ok(())
    }

    /// Puts stamped writes into a node's overlay, then answers the node's own clients.
    pub fn hold(&mut self, id: NodeId, spread: &[Writes], stamped: &[(RequestId, Writes)]) {
        for writes in spread {
            self.node(id).store.put_overlay(writes);
            self.say(id, format!("holds {}", show::writes(writes)));
        }
        for (request, writes) in stamped {
            self.node(id).store.put_overlay(writes);
            let (request, writes) = (show::stamp_id(request), show::writes(writes));
            self.say(id, format!("answers {request}: stamped {writes}"));
        }
    }

    /// `n1 applied=4 floor=v0 [x=1 v50.n3] over [y=2 v60.n3]`
    fn show_store(&mut self, id: NodeId) {
        let store = &self.node(id).store;
        let all = |map: &std::collections::BTreeMap<String, super::store::Held>| {
            let held = |(key, held): (&String, &super::store::Held)| {
                show::held(key, held.value.as_deref(), held.version)
            };
            show::list(map.iter().map(held))
        };
        let floor = show::version(store.floor);
        let mut line = format!("applied={} floor={floor} {}", store.applied, all(&store.base));
        if !store.overlay.is_empty() {
            line += &format!(" over {}", all(&store.overlay));
        }
        if store.late > 0 {
            line += &format!(" late={}", store.late);
        }
        self.say(id, line);
    }

    /// `n1: n3 stamps; holds 1 in 202 bytes; on disk [x=1 v50.n3] clock up to v550.log; drained to
    /// v49.log; checkpoint 7`
    fn show_outbox(&mut self, id: NodeId) {
        let (status, node) = (self.replica(id).status(), self.node(id));
        let stamper = status.stamper.map_or("no node".into(), |id| format!("n{id}"));
        let (writes, bytes) = status.backlog;
        let mut line = format!(": {stamper} stamps; holds {writes} in {bytes} bytes");
        line += &format!("; on disk {}", show::writes(&node.disk.held));
        if node.disk.clock > Version(0) {
            line += &format!(" clock up to {}", show::version(node.disk.clock));
        }
        if let Some(heartbeat) = &node.last_heartbeat {
            line += &format!("; drained up to {}", show::version(heartbeat.drained));
        }
        if let Some((index, _)) = status.checkpoint {
            line += &format!("; checkpoint {index}");
        }
        if !status.clock_trusted {
            line += "; distrusts its clock";
        }
        self.transcript.push(format!("n{id}{line}"));
    }
}

fn write(key: &str, value: Option<&str>) -> Write {
    let value = value.map(|value| value.as_bytes().into());
    Write { version: Version::default(), key: key.as_bytes().into(), value }
}
