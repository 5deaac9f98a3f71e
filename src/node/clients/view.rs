//! A client's view of this node, for its driver: the core and the store.

use std::sync::atomic::Ordering;

use super::registry::ConnectedClient;
use crate::clock::Now;
use crate::node::info;
use crate::node::shared::Shared;
use crate::protocol::{Profile, Question, Reply};
use crate::replica::Status;
use crate::service::{Kind, NodeView};
use crate::types::{Command, NodeId, Outcome, Rejected, Version};

/// The node as one client sees it.
pub struct ClientView<'a> {
    /// The node.
    pub shared: &'a Shared,
    /// The client.
    pub client: &'a ConnectedClient,
}

impl NodeView for ClientView<'_> {
    fn now(&self) -> Now {
        self.shared.clock.now()
    }

    fn leader(&self) -> Option<NodeId> {
        self.shared.core.leader()
    }

    fn status(&self) -> Status {
        self.shared.core.status()
    }

    fn read(&self, command: &Command<'_>) -> Outcome {
        self.shared.store.read(command)
    }

    fn read_local(&self, command: &Command<'_>) -> Outcome {
        self.shared.store.read_newest(command)
    }

    fn prefetch(&self, commands: &[u8]) {
        self.shared.store.prefetch_commands(commands);
    }

    fn undrained(&self, commands: &[u8]) -> (Vec<u8>, Version) {
        self.shared.store.undrained(commands)
    }

    fn trust(&self, version: Version) -> Result<(), Rejected> {
        self.shared.core.trust(version)
    }

    fn answer(&self, profile: &Profile, question: &Question) -> Reply {
        // CLIENT LIST shows this client as of this command.
        self.client.publish(profile);
        info::answer(self.shared, self.client.id, question)
    }

    fn count(&self, kind: Kind) {
        let clients = &self.shared.clients;
        let counter = match kind {
            Kind::Write => &clients.writes,
            Kind::Read => &clients.reads,
            Kind::Stamp => &clients.stamps,
            Kind::ReadLocal => &clients.local_reads,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
