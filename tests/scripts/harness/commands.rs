//! The commands of the cluster scripts.
//!
//! | command | does |
//! |---|---|
//! | `cluster nodes=3 …` | starts a founded cluster; with `blank=true` one of empty directories |
//! | `disk 1 term=3 vote=2 1@1 2@3` | starts node 1 anew from a disk with this hard state and log |
//! | `campaign 1` | node 1's patience ends; it has heard all live nodes meanwhile |
//! | `tick 300` | lets milliseconds pass; heartbeats arrive, all other messages wait |
//! | `run 300` | the same, but all messages arrive and all disk jobs complete at once |
//! | `run to=1000` | the same, up to this moment of the cluster's life |
//! | `settle` | delivers all messages and completes all disk jobs; no time passes |
//! | `heartbeats` | delivers the heartbeats; no time passes |
//! | `deliver [1 2] [count]` | delivers waiting messages: all, or those from node 1 to node 2 |
//! | `drop 1 2 [count]` | loses waiting messages from node 1 to node 2 |
//! | `cut 1 2 [oneway=true]` | loses all messages between nodes 1 and 2, or from 1 to 2 alone |
//! | `isolate 1` | cuts node 1 off from all other nodes |
//! | `heal` | ends all cuts, with new links |
//! | `persist 1 [count]` | completes disk jobs of node 1, all or the oldest ones |
//! | `stall 1`, `unstall 1` | node 1's disk jobs wait for `persist`, or do no longer |
//! | `propose 1 x=1 …`, `read 1 x` | node 1's clients set x, and read it |
//! | `cancel 1 2` | node 1's client cancels its request n1#2 |
//! | `crash 1`, `restart 1` | ends node 1's process; starts the next one from the disk |
//! | `crash 1 keep=true` | messages on their way to node 1 reach its next process |
//! | `wipe 1` | empties the directory of a node that is down |
//! | `gone 1 3` | node 1 learns that node 3's port refuses connections |
//! | `link 1 3` | node 1 has a new link to node 3 |
//! | `snapshot 1 [fail=true]` | the image that node 1 requested is durable |
//! | `arrive 1` | with `images_by_hand=true`: the image that came to node 1 is durable there |
//! | `sent 3 1 [ok=false]` | node 3 has sent the image for node 1, or could not |
//! | `stop 1`, `disk-full 1 true` | tells node 1 to stop; tells it that its disk is full |
//! | `stamp 1 x=1 y` | node 1's client sets x and deletes y in one eventual request |
//! | `cancel-stamp 1 2` | node 1's client cancels its eventual request n1~2 |
//! | `get 1 x` | an eventual read at node 1 |
//! | `skew 1 3000` | node 1's wall clock is 3000 ms ahead from now on |
//! | `corrupt 1 x=9` | changes x in node 1's store, as a memory error would |
//! | `stores [1]` | shows the stores |
//! | `outbox [1]` | shows the outboxes, their copies on disk, and the versions drained |
//! | `status [1]`, `waiting` | shows the nodes; shows the messages on their way |

use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use goldenscript::{ArgumentConsumer, Command, Context};
use nodesync::replica::{Alarm, Input, Settings};
use nodesync::service::{Request, RequestHandle};
use nodesync::types::Command::Set;
use nodesync::types::{Entry, NodeId, Payload, RequestId, When};

use super::Cluster;
use super::cluster::START;
use super::network::Freight;
use super::process::Process;
use super::show;

pub type Outcome = Result<(), Box<dyn Error>>;

impl goldenscript::Runner for Cluster {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = Args(command.consume_args());
        match command.name.as_str() {
            "cluster" => self.found(&mut args)?,
            "disk" => self.set_disk(&mut args)?,
            "tick" => self.pass(Duration::from_millis(args.take()?), false),
            "run" => {
                let moment = args.0.take_key("to").map(str::parse).transpose()?;
                let time = match moment {
                    Some(ms) => (START + Duration::from_millis(ms)).since(self.now),
                    None => Duration::from_millis(args.take()?),
                };
                self.pass(time, true);
            }
            "settle" => self.settle(true),
            "heartbeats" => self.settle(false),
            "deliver" => self.deliver(&mut args)?,
            "drop" => {
                let (from, to) = (args.node()?, args.node()?);
                for _ in 0..args.maybe()?.unwrap_or(usize::MAX) {
                    let Some(_) = self.network.take((from, to)) else { break };
                }
            }
            "propose" | "read" | "cancel" => self.client(&command.name, &mut args)?,
            "stamp" | "cancel-stamp" | "get" | "skew" | "corrupt" | "stores" | "outbox" => {
                self.eventual(&command.name, &mut args)?;
            }
            "status" => self.show_status(args.maybe()?.map(NodeId)),
            "waiting" => self.show_waiting(),
            "cut" | "isolate" | "heal" => self.links(&command.name, &mut args)?,
            name => self.one_node(name, &mut args)?,
        }
        args.0.reject_next()?;
        let mut output = std::mem::take(&mut self.transcript).join("\n");
        if !output.is_empty() {
            output.push('\n');
        }
        Ok(output)
    }

    fn end_command(&mut self, _: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        for (id, node) in &self.nodes {
            let Some(Process { shell, .. }) = &node.process else { continue };
            shell.replica().check().map_err(|broken| format!("n{id}: {broken}"))?;
            // The tables of waiting requests agree (`service/completion.rs`).
            let is_write = |handle: &&RequestHandle| matches!(handle, RequestHandle::Write(_));
            if shell.replica().status().pending.0 > shell.waiting().filter(is_write).count() {
                return Err(format!("n{id}: a proposal pends for which no client waits").into());
            }
        }
        Ok(String::new())
    }
}

/// A command's arguments.
pub struct Args<'a>(pub ArgumentConsumer<'a>);

impl Args<'_> {
    pub fn maybe<T: FromStr>(&mut self) -> Result<Option<T>, Box<dyn Error>>
    where
        T::Err: Error + 'static,
    {
        Ok(self.0.next_pos().map(str::parse).transpose()?)
    }

    pub fn take<T: FromStr>(&mut self) -> Result<T, Box<dyn Error>>
    where
        T::Err: Error + 'static,
    {
        self.maybe()?.ok_or_else(|| "an argument is missing".into())
    }

    pub fn node(&mut self) -> Result<NodeId, Box<dyn Error>> {
        self.take().map(NodeId)
    }

    pub fn key<T: FromStr>(&mut self, name: &str, default: T) -> Result<T, Box<dyn Error>>
    where
        T::Err: Error + 'static,
    {
        Ok(self.0.take_key(name).map(str::parse).transpose()?.unwrap_or(default))
    }
}

impl Cluster {
    fn found(&mut self, args: &mut Args<'_>) -> Outcome {
        let count: u32 = args.key("nodes", 3)?;
        let blank = args.key("blank", false)?;
        *self = Cluster { now: START, ..Cluster::default() };
        self.disks_by_hand = args.key("disks_by_hand", false)?;
        self.images_by_hand = args.key("images_by_hand", false)?;
        self.show_heartbeats = args.key("show_heartbeats", false)?;
        self.bytes_max = args.key("bytes_max", 1 << 20)?;
        let members: Vec<NodeId> = (1..=count).map(NodeId).collect();
        let mut settings = Settings::new(NodeId(0), members.clone());
        settings.window.messages_max = args.key("window", settings.window.messages_max)?;
        settings.pending_bytes_max = args.key("pending", settings.pending_bytes_max)?;
        settings.snapshot_log_bytes = args.key("image_after", settings.snapshot_log_bytes)?;
        settings.backlog_bytes_max = args.key("backlog", settings.backlog_bytes_max)?;
        let horizon = args.key("horizon", settings.tombstone_horizon.as_secs())?;
        settings.tombstone_horizon = Duration::from_secs(horizon);
        self.show_quorum = args.key("show_quorum", false)?;
        settings.log_retain_bytes = args.key("retain", settings.log_retain_bytes)?;
        for id in members {
            self.add(Settings { id, ..settings.clone() }, blank);
        }
        for id in (1..=count).map(NodeId) {
            self.start(id);
        }
        Ok(())
    }

    fn set_disk(&mut self, args: &mut Args<'_>) -> Outcome {
        let id = args.node()?;
        let disk = &mut self.node(id).disk;
        disk.hard.term = args.key("term", 0)?;
        let vote: u32 = args.key("vote", 0)?;
        disk.hard.vote = (vote > 0).then_some(NodeId(vote));
        disk.entries.clear();
        while let Some(entry) = args.0.next_pos() {
            let (index, term) = entry.split_once('@').ok_or("an entry is written index@term")?;
            let (index, term) = (index.parse()?, term.parse()?);
            disk.entries.push(Entry { index, term, payload: Payload::Noop });
        }
        self.start(id);
        Ok(())
    }

    fn deliver(&mut self, args: &mut Args<'_>) -> Outcome {
        let only = match args.maybe()? {
            Some(from) => Some((NodeId(from), args.node()?)),
            None => None,
        };
        let count_max = args.maybe()?.unwrap_or(usize::MAX);
        for (pair, count) in self.network.waiting() {
            if only.is_some_and(|only| only != pair) {
                continue;
            }
            for _ in 0..count.min(count_max) {
                let Some(freight) = self.network.take(pair) else { break };
                self.receive(pair.0, pair.1, freight);
            }
        }
        Ok(())
    }

    /// Makes every detector hear all live nodes now.
    fn keep_alive(&mut self) {
        let up: Vec<NodeId> = self.nodes.keys().copied().filter(|id| self.is_up(*id)).collect();
        for process in self.nodes.values_mut().filter_map(|node| node.process.as_mut()) {
            for id in &up {
                process.detector.heard(self.now, *id);
            }
        }
    }

    fn client(&mut self, name: &str, args: &mut Args<'_>) -> Outcome {
        let id = args.node()?;
        match name {
            "propose" => {
                while let Some((key, value)) = args.0.next_key() {
                    let (key, value) = (key.as_bytes(), value.as_bytes());
                    let mut commands = Vec::new();
                    Set { key, value, when: When::Always, get: false }.encode(&mut commands);
                    self.ask(id, Request::Write(commands.into()), "");
                }
            }
            "read" => {
                let key: String = args.take()?;
                self.ask(id, Request::Read, &key);
            }
            _ => {
                let (seq, boot) = (args.take()?, self.node(id).settings.boot);
                self.cancel(id, RequestHandle::Write(RequestId { node: id, boot, seq }));
            }
        }
        Ok(())
    }

    fn links(&mut self, name: &str, args: &mut Args<'_>) -> Outcome {
        match name {
            "cut" => {
                let (a, b) = (args.node()?, args.node()?);
                self.network.cut(a, b);
                if !args.key("oneway", false)? {
                    self.network.cut(b, a);
                }
            }
            "isolate" => {
                let id = args.node()?;
                for peer in self.nodes.keys().copied().filter(|peer| *peer != id) {
                    self.network.cut(id, peer);
                    self.network.cut(peer, id);
                }
            }
            _ => {
                for (a, b) in self.network.heal() {
                    self.connect(a, b);
                }
            }
        }
        Ok(())
    }

    /// Gives both nodes of a pair a new link to the other.
    fn connect(&mut self, a: NodeId, b: NodeId) {
        if self.is_up(a) && self.is_up(b) {
            self.step(a, Input::LinkUp(b));
            self.step(b, Input::LinkUp(a));
        }
    }

    fn one_node(&mut self, name: &str, args: &mut Args<'_>) -> Outcome {
        let id = args.node()?;
        match name {
            "campaign" => {
                self.now = self.now.max(self.replica(id).deadline(Alarm::Election));
                self.keep_alive();
                self.step(id, Input::Alarm(Alarm::Election));
            }
            "persist" => {
                for _ in 0..args.maybe()?.unwrap_or(usize::MAX) {
                    if !self.persist(id) {
                        break;
                    }
                }
            }
            "crash" => self.crash(id, args.key("keep", false)?),
            "arrive" => self.arrive(id),
            "restart" => {
                self.start(id);
                for peer in self.nodes.keys().copied().collect::<Vec<_>>() {
                    if peer != id {
                        self.connect(id, peer);
                    }
                }
            }
            "wipe" => {
                let disk = &mut self.node(id).disk;
                let incarnation = disk.incarnation + 100;
                *disk = super::disk::Disk { incarnation, ..Default::default() };
            }
            "stall" => self.node(id).stalled = true,
            "unstall" => {
                self.node(id).stalled = false;
                while self.persist(id) {}
            }
            "gone" => self.step(id, Input::PeerGone(NodeId(args.take()?))),
            "link" => self.step(id, Input::LinkUp(NodeId(args.take()?))),
            "snapshot" => self.finish_image(id, args.key("fail", false)?, args.key("bytes", 0)?)?,
            "sent" => {
                let (to, sent) = (args.node()?, args.key("ok", true)?);
                self.step(id, Input::SnapshotSent { to, sent });
            }
            "stop" => self.step(id, Input::Stop),
            "disk-full" => self.step(id, Input::DiskFull(args.take()?)),
            _ => return Err(format!("there is no command {name}").into()),
        }
        Ok(())
    }

    fn finish_image(&mut self, id: NodeId, fail: bool, bytes: u64) -> Outcome {
        let image = self.process(id).image.take().ok_or("no image was requested")?;
        if fail {
            self.step(id, Input::SnapshotFailed);
        } else {
            let meta = image.meta();
            self.node(id).disk.images.insert(meta, image);
            self.step(id, Input::SnapshotTaken { meta, bytes });
        }
        Ok(())
    }

    fn show_status(&mut self, only: Option<NodeId>) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            if only.is_some_and(|only| only != id) {
                continue;
            }
            if !self.is_up(id) {
                self.say(id, "down");
                continue;
            }
            let status = self.replica(id).status();
            let leader = status.leader.map_or("none".to_owned(), |leader| format!("n{leader}"));
            let mut line = format!(
                "{} t{} leader={leader} commit={} durable={} last={}",
                status.role.as_str(),
                status.term,
                status.commit,
                status.durable,
                status.last
            );
            if status.snapshot > 0 {
                line += &format!(" snapshot={}", status.snapshot);
            }
            if status.pending.0 > 0 {
                line += &format!(" pending={}", status.pending.0);
            }
            for peer in status.peers {
                if let Some((matched, state)) = peer.progress {
                    line += &format!(" n{}:{matched} {state}", peer.id);
                }
            }
            self.say(id, line);
        }
    }

    fn show_waiting(&mut self) {
        for ((from, to), count) in self.network.waiting() {
            let mut shown = Vec::new();
            for _ in 0..count {
                let Some(freight) = self.network.take((from, to)) else { break };
                shown.push(match &freight {
                    Freight::Message(envelope) => show::message(&envelope.message),
                    Freight::Image(image) => format!("Image {}", show::meta(&image.meta())),
                });
                self.network.send((from, to), freight);
            }
            self.transcript.push(format!("n{from}→n{to}: {}", shown.join(" | ")));
        }
    }
}
