//! One running node: the real shell and store, with the queues of the disk and of the apply thread,
//! and the clients that wait for answers.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use nodesync::clock::Now;
use nodesync::replica::detector::FailureDetector;
use nodesync::replica::{Heartbeat, Recovered, Replica, Settings};
use nodesync::rng::Rng;
use nodesync::service::{
    Answer, ApplyWork, Inbox, ParkedReads, ReplyTo, RequestHandle, Shell, Ticket,
};
use nodesync::store::{Image, Writer};
use nodesync::testing::LogJob;
use nodesync::types::NodeId;
use parking_lot::Mutex;

/// The part of a node that a crash ends.
#[derive(Debug)]
pub struct Process {
    pub shell: Shell,
    pub writer: Writer,
    pub detector: FailureDetector,
    /// The queue of the disk.
    pub jobs: VecDeque<LogJob>,
    /// The queue of the apply thread.
    pub apply_queue: VecDeque<ApplyWork>,
    pub parked_reads: ParkedReads,
    pub clients: Clients,
    /// The image that the replica has requested, until a script says that it is durable.
    pub image: Option<Image>,
    /// The image that a peer has sent, not verified and durable yet.
    pub arriving: Option<(NodeId, Image)>,
    /// The latest heartbeat that it has sent.
    pub last_heartbeat: Option<Heartbeat>,
}

impl Process {
    /// A process that begins at `now` with the content of its disk. `writer` holds the image that
    /// the log on the disk follows.
    pub fn new(now: Now, settings: Settings, mut recovered: Recovered, writer: Writer) -> Process {
        writer.store().put_overlay(&recovered.held);
        recovered.clock = recovered.clock.max(writer.latest());
        let detector = FailureDetector::new(now, settings.election_timeout, settings.peers());
        let rng = Rng::new(u64::from(settings.id.0));
        Process {
            shell: Shell::new(Replica::new(now, settings, recovered, rng), writer.store()),
            writer,
            detector,
            jobs: VecDeque::new(),
            apply_queue: VecDeque::new(),
            parked_reads: ParkedReads::default(),
            clients: Clients::default(),
            image: None,
            arriving: None,
            last_heartbeat: None,
        }
    }
}

/// The clients of one process. Each of them has made one request, whose ticket is its position.
#[derive(Debug, Default)]
pub struct Clients {
    /// The requests. The text is the key of a read, or the writes of a stamp request once they have
    /// versions.
    pub asked: Vec<(RequestHandle, String)>,
    inbox: Arc<AnswerInbox>,
}

/// The inbox of all clients: keeps answers until the transcript shows them.
#[derive(Debug, Default)]
struct AnswerInbox(Mutex<Vec<(Ticket, Answer)>>);

impl Inbox for AnswerInbox {
    fn put(&self, ticket: Ticket, answer: Answer) -> bool {
        self.0.lock().push((ticket, answer));
        false
    }

    fn wake(&self) {}
}

impl Clients {
    /// The address of the next client. No client's patience ends: scripts cancel by command.
    pub fn next_reply_to(&self) -> ReplyTo {
        let inbox = Arc::clone(&self.inbox) as Arc<dyn Inbox>;
        ReplyTo { inbox, ticket: self.asked.len() as Ticket, deadline: Now(u64::MAX) }
    }

    /// The answers that have come since the last call.
    pub fn take_answers(&self) -> Vec<(Ticket, Answer)> {
        mem::take(&mut *self.inbox.0.lock())
    }
}
