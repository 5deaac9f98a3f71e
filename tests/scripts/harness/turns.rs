//! A node's turns: a step of its shell, then the decisions of that step, carried out as the threads
//! of a node do. The lines of a turn come in a fixed order: events, decisions in the shell's order,
//! answers of the turn, work of the apply thread.

use nodesync::replica::{Envelope, Event, Input, Message, Pull};
use nodesync::service::{
    AfterStep, Answer, Answers, ApplyWork, Consequence, Failure, Request, RequestHandle, Taken,
    consequence, own_request,
};
use nodesync::store::Applied;
use nodesync::testing::{Decision, Decisions};
use nodesync::types::{Command, Entry, NodeId, Outcome};

use super::Cluster;
use super::network::Freight;
use super::show;

impl Cluster {
    /// Steps a node's replica and carries out the effects.
    pub fn step(&mut self, id: NodeId, input: Input) {
        let now = self.now;
        let shell = &mut self.process(id).shell;
        shell.begin_turn();
        shell.step(now, input);
        self.finish_turn(id);
    }

    /// Makes a request for a client of a node.
    pub fn ask(&mut self, id: NodeId, request: Request, subject: &str) {
        let now = self.now;
        let process = self.process(id);
        let handle = process.shell.ask(now, request, process.clients.next_reply_to());
        process.clients.asked.push((handle, subject.to_owned()));
        self.finish_turn(id);
    }

    /// Cancels a client's request.
    pub fn cancel(&mut self, id: NodeId, handle: RequestHandle) {
        let now = self.now;
        let answer = match self.process(id).shell.cancel(now, handle) {
            Some(Answer::Unserved(unserved)) => show::unserved(unserved),
            _ => "no client waits for it".to_owned(),
        };
        self.say(id, format!("cancels {}: {answer}", show::handle(handle, "")));
        self.finish_turn(id);
    }

    /// An image from a peer is verified and durable on this node.
    pub fn arrive(&mut self, id: NodeId) {
        let arriving = self.process(id).arriving.take();
        let (from, image) = arriving.expect("an image has come");
        self.say(id, format!("has the image {} of n{from}", show::meta(&image.meta())));
        self.node(id).disk.images.insert(image.meta(), image.clone());
        let now = self.now;
        self.process(id).shell.snapshot_arrived(now, from, Box::new(image));
        self.finish_turn(id);
    }

    fn finish_turn(&mut self, id: NodeId) {
        let (mut decisions, mut after) = (Decisions::default(), AfterStep::default());
        self.process(id).shell.route(&mut decisions, &mut after);
        let failure = after.failure.take();
        if let Some(Failure::Broken(invariant)) = failure {
            panic!("n{id} found a broken invariant: {invariant}");
        }
        // Events come first: they are the reasons for the lines below them.
        for event in &after.events {
            let of_quorum = matches!(event, Event::QuorumLost { .. } | Event::QuorumBack);
            if !of_quorum || self.show_quorum {
                self.say(id, show::event(event));
            }
        }
        for decision in decisions.0 {
            match decision {
                Decision::Persist(job) => {
                    if !job.records.is_empty() {
                        let records = show::list(job.records.iter().map(show::record));
                        self.say(id, format!("writes {records}"));
                    }
                    self.process(id).jobs.push_back(job);
                }
                Decision::Post(envelope) => self.post(envelope),
                Decision::Pull(peer) => self.pull(id, peer),
                Decision::Apply(work) => self.process(id).apply_queue.push_back(work),
            }
        }
        // The rest of the turn comes before the apply thread's work: of the orders that two threads
        // can take, a transcript shows one.
        self.complete(id, after);
        let mut inputs = Vec::new();
        while let Some(work) = self.process(id).apply_queue.pop_front() {
            self.apply(id, work, &mut inputs);
        }
        inputs.into_iter().for_each(|input| self.step(id, input));
        if let Some(Failure::Diverged(index)) = failure {
            self.say(id, format!("differs from the others at {index} and stops"));
            return self.crash(id, false);
        }
        if self.is_up(id) && !self.disk_waits(id) {
            while self.persist(id) {}
        }
    }

    /// Puts stamped writes into the overlay, then shows the answers of the turn.
    fn complete(&mut self, id: NodeId, after: AfterStep) {
        for Taken { writes, reply_to, .. } in &after.taken {
            let writes = show::writes(writes);
            match reply_to {
                // The answer's line shows the writes, because the answer itself does not hold them.
                Some(reply_to) => {
                    self.process(id).clients.asked[reply_to.ticket as usize].1 = writes;
                }
                None => self.say(id, format!("holds {writes}")),
            }
        }
        after.complete(&self.process(id).writer.store());
        self.show_answers(id);
    }

    fn show_answers(&mut self, id: NodeId) {
        for (ticket, answer) in self.process(id).clients.take_answers() {
            let (handle, subject) = self.process(id).clients.asked[ticket as usize].clone();
            let name = show::handle(handle, &subject);
            let line = match answer {
                // Scripts propose SET alone, whose outcome is always the same.
                Answer::Outcomes(_) => format!("answers {name}: done"),
                Answer::Stamped { .. } => format!("answers {name}: stamped {subject}"),
                Answer::MayRead => {
                    let store = self.process(id).writer.store();
                    let value = match store.read(&Command::Get { key: subject.as_bytes() }) {
                        Outcome::Value(value) => {
                            format!("{subject}={}", String::from_utf8_lossy(&value))
                        }
                        _ => "nothing".to_owned(),
                    };
                    format!("answers {name} at {}: {value}", store.applied())
                }
                Answer::Unserved(unserved) => format!("answers {name}: {unserved}"),
            };
            self.say(id, line);
        }
    }

    /// The apply thread does one piece of its work. `inputs` are for the replica.
    fn apply(&mut self, id: NodeId, work: ApplyWork, inputs: &mut Vec<Input>) {
        let (now, mut answers) = (self.now, Answers::default());
        match work {
            ApplyWork::Entries(entries) => {
                entries.iter().for_each(|entry| self.apply_entry(id, entry, inputs));
            }
            ApplyWork::Read(index, reply_to) => {
                self.process(id).parked_reads.park(now, index, reply_to, &mut answers);
            }
            ApplyWork::Restore(image) => {
                self.say(id, format!("restores the image {}", show::meta(&image.meta())));
                let process = self.process(id);
                drop(process.writer.restore(*image));
                let (latest, requests) = (process.writer.latest(), process.writer.requests());
                process.shell.restored(latest, |id| requests.contains(id), &mut answers);
            }
            ApplyWork::Snapshot(meta) => {
                let process = self.process(id);
                let image = process.writer.image();
                assert_eq!(image.meta(), meta, "the image is of the index that the replica wants");
                process.image = Some(image);
                self.say(id, format!("takes an image of {}", show::meta(&meta)));
            }
        }
        let process = self.process(id);
        process.parked_reads.wake(process.writer.applied().index, &mut answers);
        answers.deliver();
        self.show_answers(id);
    }

    fn apply_entry(&mut self, id: NodeId, entry: &Entry, inputs: &mut Vec<Input>) {
        let boot = self.node(id).settings.boot;
        let applied = self.process(id).writer.apply(entry, true).expect("entries come in order");
        let is_copy = matches!(applied, Applied::Duplicate | Applied::Stale);
        let does = if is_copy { "drops the copy" } else { "applies" };
        self.say(id, format!("{does} {}", show::entry(entry)));
        // The client waits at the node that proposed its request: only that node answers.
        let own = own_request(entry, id, boot);
        match consequence(entry.index, own, applied).expect("no two processes of one node") {
            Some(Consequence::Outcomes(request, outcomes)) => {
                let mut answers = Answers::default();
                self.process(id).shell.applied([(request, outcomes)], &mut answers);
                answers.deliver();
                self.show_answers(id);
            }
            Some(Consequence::Tell(input)) => inputs.push(input),
            None => {}
        }
    }

    /// Completes the oldest disk job. False if there is none.
    pub fn persist(&mut self, id: NodeId) -> bool {
        let by_hand = self.disk_waits(id);
        let node = self.node(id);
        let job = node.process.as_mut().and_then(|process| process.jobs.pop_front());
        let Some(job) = job else { return false };
        job.records.iter().cloned().for_each(|record| node.disk.write(record));
        if by_hand {
            let records = show::list(job.records.iter().map(show::record));
            self.say(id, format!("has durably {records}"));
        }
        // Votes and acknowledgements leave only now (Raft, figure 2: stable storage first).
        for envelope in job.after {
            self.post(envelope);
        }
        self.step(id, Input::Persisted(job.number));
        true
    }

    fn disk_waits(&self, id: NodeId) -> bool {
        self.disks_by_hand || self.nodes[&id].stalled
    }

    /// Sends all that a replica has for a peer, as the peer's replication thread does.
    fn pull(&mut self, id: NodeId, peer: NodeId) {
        // There is no link to a node that is down, so nothing is taken from the replica.
        if !self.is_up(peer) {
            return;
        }
        let (now, bytes_max) = (self.now, self.bytes_max);
        while let Some(pull) = self.process(id).shell.pull(now, peer, bytes_max) {
            match pull {
                Pull::Message(envelope) => self.post(envelope),
                Pull::Snapshot(meta) => {
                    let image = Box::new(self.node(id).disk.images[&meta].clone());
                    let open = self.network.send((id, peer), Freight::Image(image));
                    let lost = if open { "" } else { " (lost)" };
                    let line = format!("n{id}→n{peer} Image {}{lost}", show::meta(&meta));
                    self.transcript.push(line);
                }
            }
        }
    }

    /// Puts a message on its way, if its receiver is up.
    fn post(&mut self, envelope: Envelope) {
        if !self.is_up(envelope.to) {
            return;
        }
        let line = show::envelope(&envelope);
        let pair = (envelope.from, envelope.to);
        let (open, is_shown) = match &envelope.message {
            Message::Heartbeat(heartbeat) => {
                self.process(envelope.from).last_heartbeat = Some(heartbeat.clone());
                (self.network.send_heartbeat(envelope), self.show_heartbeats)
            }
            _ => (self.network.send(pair, Freight::Message(envelope)), true),
        };
        if is_shown {
            self.transcript.push(format!("{line}{}", if open { "" } else { " (lost)" }));
        }
    }
}
