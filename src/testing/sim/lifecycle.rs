//! The life of a process: it starts from its disk, ends in several ways, and is started again.

use std::time::Duration;

use crate::replica::{Input, Settings};
use crate::store::Writer;
use crate::testing::sim::cluster::{SKEW_MICROS, SimNode, World};
use crate::testing::sim::disk::{Death, Unfinished, Unreadable};
use crate::testing::sim::events::SimEvent;
use crate::testing::sim::process::Process;
use crate::wal::WalError;

impl World {
    /// A process begins, with the content of its node's disk.
    pub fn start(&mut self, node: usize) {
        if self.nodes[node].process.is_some() {
            return;
        }
        let id = self.nodes[node].id;
        let (log_id, segment_bytes) = (self.nodes[node].incarnation, self.plan.segment_bytes);
        let interrupted = self.interrupt_start(node);
        let (mut recovered, image) = match self.nodes[node].disk.open(log_id, segment_bytes) {
            Ok(found) => found,
            // The power has failed once more, while the node recovered.
            Err(_) if interrupted => {
                self.die(node, Death::PowerCut);
                return self.start_again(node, 1_000);
            }
            Err(why) => return self.cannot_start(node, &why),
        };
        // The start has ended before the moment for which its interruption was planned.
        self.nodes[node].disk.files.kill();
        self.nodes[node].rotten.clear();
        self.check_found(node);
        let Some(incarnation) = self.claim(node) else { return };
        self.spoil_recovered(node, &mut recovered);
        let digest = self.digest_at(recovered.snapshot.index);
        let mut writer = Writer::new();
        if let Some(image) = image {
            writer.restore(self.spoil_image(image));
        }
        writer.store().put_overlay(&recovered.held);
        recovered.clock = recovered.clock.max(writer.latest());
        self.note_durable(node);
        self.note_start(node);
        if !self.calm && self.rng.chance(1, 4) {
            // The machine has restarted as well, and has set its clock.
            self.set_clock(node, SKEW_MICROS);
        }
        self.nodes[node].boot += 1 + self.rng.below(3);
        let boot = self.nodes[node].boot;
        let settings = Settings {
            id,
            members: self.nodes.iter().map(|node| node.id).collect(),
            boot,
            incarnation,
            wall_micros: self.wall(node),
            ..self.plan.settings.clone()
        };
        let handed = recovered.snapshot.index;
        let last = recovered.entries.last().map_or(handed, |entry| entry.index);
        let what = || format!("STARTS boot {boot}, {:?}, {handed}..{last}", recovered.hard);
        self.note(node, [1, boot, handed], what);
        let (now, rng) = (self.local(node), self.rng.fork());
        let process = Process::new(now, settings, recovered, writer, digest, &self.plan, rng);
        self.nodes[node].process = Some(process);
        for peer in (0..self.nodes.len()).filter(|&peer| peer != node) {
            let at = self.now + Duration::from_micros(self.rng.below(2_000));
            self.schedule(at, SimEvent::Connect { from: node, to: peer, life: boot });
        }
        self.want_spare(node);
        self.schedule_timers(node);
    }

    /// The incarnation of the node's directory, by which its peers know it. The first record of a
    /// new log claims the directory. `None` if the disk fails, and with it the start.
    fn claim(&mut self, node: usize) -> Option<u64> {
        let machine = &mut self.nodes[node];
        // The directory had a log and has none: to its peers it is another directory.
        if machine.has_log && machine.disk.is_new() {
            return Some(self.rng.bits());
        }
        if machine.disk.is_new() && machine.disk.begin_log().is_err() {
            self.die(node, Death::Killed);
            self.start_again(node, 1_000);
            return None;
        }
        machine.has_log = true;
        Some(machine.incarnation)
    }

    /// A node refuses its directory: the operator's part.
    fn cannot_start(&mut self, node: usize, why: &Unreadable) {
        let id = self.nodes[node].id;
        self.note(node, [22, 0, 0], || format!("CANNOT START: {why}"));
        match why {
            // If a file is rotten, records may be missing: a rotten last batch looks like a torn
            // write, if no later segment has begun.
            Unreadable::Forgotten(how) if !self.is_rotten(node) => {
                let how = format!("{id}: {how}");
                self.fail("what was synced is found again, and nothing else", how);
            }
            // An I/O error passes: try again.
            Unreadable::Log(WalError::Io(_)) => {
                self.die(node, Death::Killed);
                self.start_again(node, 1_000);
            }
            // Bits have flipped, and the node has noticed. It starts again with an empty directory.
            _ if self.is_rotten(node) => {
                self.die(node, Death::Killed);
                self.wipe(node);
                self.start_again(node, 1_000);
            }
            _ => self.fail("what was written can be read", format!("{id}: {why}")),
        }
    }

    /// True if the disk still has a file in which a bit has flipped.
    fn is_rotten(&self, node: usize) -> bool {
        let SimNode { disk, rotten, .. } = &self.nodes[node];
        rotten.iter().any(|name| disk.has(name))
    }

    /// The process dies, in the middle of whatever its threads are doing.
    pub fn die(&mut self, node: usize, death: Death) {
        let process = self.nodes[node].process.take();
        let (mut unfinished, rest) = match process {
            Some(mut process) => {
                self.note(node, [2, process.life, 0], || format!("DIES: {death:?}"));
                (process.storage.unfinished(), Some(process))
            }
            None => (Unfinished::default(), None),
        };
        // After kill -9 the system may have been given none of the unfinished work.
        if death == Death::Killed && self.rng.chance(1, 2) {
            unfinished = Unfinished::default();
        }
        if rest.is_some() {
            self.forget_deferred(node);
            self.links_of_the_dead(node);
            self.connections_of_the_dead(node);
        }
        self.nodes[node].disk.die(death, &mut self.rng, unfinished, rest);
    }

    /// The process exits by itself, because of `why`.
    pub fn exit(&mut self, node: usize, why: &str) {
        self.note(node, [23, 0, 0], || format!("EXITS: {why}"));
        self.die(node, Death::Killed);
        self.note_loss(node, false);
        self.start_again(node, 1_000);
    }

    /// The node is started within `millis`.
    pub fn start_again(&mut self, node: usize, millis: u64) {
        let at = self.soon(millis);
        self.schedule(at, SimEvent::Start(node));
    }

    /// The process is asked to stop: it hands over the leadership and finishes what is under way.
    pub fn stop(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node].process else { return };
        if std::mem::replace(&mut process.stopping, true) {
            return;
        }
        let life = process.life;
        self.schedule(self.now, SimEvent::StopCheck { node, life, patience: 50 });
        self.step(node, vec![Input::Stop]);
    }

    /// A stopping process checks whether it has finished. When its patience is over it ends anyway.
    pub fn stop_check(&mut self, node: usize, patience: u32) {
        let Some(process) = &self.nodes[node].process else { return };
        let idle = process.shell.is_idle();
        if patience > 0 && !idle {
            let (life, patience) = (process.life, patience - 1);
            let at = self.now + Duration::from_millis(20);
            return self.schedule(at, SimEvent::StopCheck { node, life, patience });
        }
        let process = self.nodes[node].process.take();
        self.note(node, [25, 0, 0], || "STOPS".to_owned());
        self.forget_deferred(node);
        self.links_of_the_dead(node);
        self.connections_of_the_dead(node);
        drop(process);
        if let Err(error) = self.nodes[node].disk.close() {
            self.note(node, [26, 0, 0], || format!("the log was not closed cleanly: {error}"));
        }
        self.note_loss(node, false);
        self.start_again(node, 2_000);
    }
}
