//! The commands of the cluster scripts for eventual writes (`commands.rs` lists them), and the
//! views of stores and outboxes.

use nodesync::service::{Request, RequestHandle};
use nodesync::store::Writer;
use nodesync::types::{Entry, NodeId, Payload, Record, RequestId, SnapshotMeta, Version, Write};

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
                self.ask(id, Request::Stamp(writes), "");
            }
            "cancel-stamp" => {
                let (seq, boot) = (args.take()?, self.node(id).settings.boot);
                self.cancel(id, RequestHandle::Stamp(RequestId { node: id, boot, seq }));
            }
            "get" => {
                while let Some(key) = args.0.next_pos() {
                    let newest = self.process(id).writer.store().newest(key.as_bytes());
                    let seen = newest.map_or(format!("nothing of {key}"), |held| show::held(&held));
                    self.say(id, format!("sees {seen}"));
                }
            }
            "skew" => self.node(id).skew = args.take()?,
            _ => {
                let (key, value) = args.0.next_key().ok_or("a key is missing")?;
                self.corrupt(id, key, value)?;
            }
        }
        Ok(())
    }

    /// Gives a key of a node's store another value at the same version, as a memory error would:
    /// restores the image of a second store, to which the log has brought the altered records.
    fn corrupt(&mut self, id: NodeId, key: &str, value: &str) -> Outcome {
        let writer = &mut self.process(id).writer;
        let SnapshotMeta { index, term } = writer.applied();
        let alter = |record: &Record| {
            let is_hit = record.key() == key.as_bytes();
            let value = if is_hit { Some(value.as_bytes()) } else { record.value() };
            Write::new(record.version(), record.key(), value)
        };
        let altered = writer.store().base_records().iter().map(alter).collect();
        let mut other = Writer::new();
        for index in 1..index {
            other.apply(&Entry { index, term, payload: Payload::Noop }, false)?;
        }
        other.apply(&Entry { index, term, payload: Payload::Merge(altered) }, false)?;
        drop(writer.restore(other.image()));
        Ok(())
    }

    /// `n1 applied=4 floor=v0 [x=1 v50.n3] over [y=2 v60.n3]`
    fn show_store(&mut self, id: NodeId) {
        let store = self.process(id).writer.store();
        let all = |mut records: Vec<Record>| {
            records.sort_by(|a, b| a.key().cmp(b.key()));
            show::list(records.iter().map(show::held))
        };
        let (floor, base) = (show::version(store.floor()), all(store.base_records()));
        let mut line = format!("applied={} floor={floor} {base}", store.applied());
        if store.overlaid() > 0 {
            line += &format!(" over {}", all(store.overlay_records()));
        }
        if store.late() > 0 {
            line += &format!(" late={}", store.late());
        }
        self.say(id, line);
    }

    /// `n1: n3 stamps; holds 1 in 202 bytes; on disk [x=1 v50.n3] clock up to v550.log; drained up
    /// to v49.log; checkpoint 7`
    fn show_outbox(&mut self, id: NodeId) {
        let (status, disk) = (self.replica(id).status(), &self.nodes[&id].disk);
        let stamper = status.stamper.map_or("no node".into(), |id| format!("n{id}"));
        let (writes, bytes) = status.backlog;
        let mut line = format!(": {stamper} stamps; holds {writes} in {bytes} bytes");
        line += &format!("; on disk {}", show::writes(&disk.held));
        if disk.clock > Version(0) {
            line += &format!(" clock up to {}", show::version(disk.clock));
        }
        if let Some(heartbeat) = &self.process(id).last_heartbeat {
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
    Write::new(Version::default(), key.as_bytes(), value.map(str::as_bytes))
}
