//! The network: each pair of nodes has a line for messages and one for heartbeats, first in, first
//! out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use nodesync::replica::Envelope;
use nodesync::store::Image;
use nodesync::types::NodeId;

/// A message or an image on its way.
#[derive(Clone, Debug)]
pub enum Freight {
    Message(Envelope),
    Image(Box<Image>),
}

type Pair = (NodeId, NodeId);

#[derive(Debug, Default)]
pub struct Network {
    messages: BTreeMap<Pair, VecDeque<Freight>>,
    heartbeats: BTreeMap<Pair, VecDeque<Envelope>>,
    cut: BTreeSet<Pair>,
}

impl Network {
    /// Puts freight on its way. Returns false if the line is cut: the freight is lost.
    pub fn send(&mut self, pair: Pair, freight: Freight) -> bool {
        let open = !self.cut.contains(&pair);
        if open {
            self.messages.entry(pair).or_default().push_back(freight);
        }
        open
    }

    pub fn send_heartbeat(&mut self, heartbeat: Envelope) -> bool {
        let pair = (heartbeat.from, heartbeat.to);
        let open = !self.cut.contains(&pair);
        if open {
            self.heartbeats.entry(pair).or_default().push_back(heartbeat);
        }
        open
    }

    /// The lines that hold messages, in order, with the number of messages on each.
    pub fn waiting(&self) -> Vec<(Pair, usize)> {
        let full = self.messages.iter().filter(|(_, line)| !line.is_empty());
        full.map(|(pair, line)| (*pair, line.len())).collect()
    }

    pub fn take(&mut self, pair: Pair) -> Option<Freight> {
        self.messages.get_mut(&pair)?.pop_front()
    }

    pub fn take_heartbeat(&mut self) -> Option<Envelope> {
        self.heartbeats.values_mut().find_map(VecDeque::pop_front)
    }

    pub fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cut.insert((from, to));
        self.clear(|pair| pair == (from, to));
    }

    /// Opens all lines. Returns the pairs of nodes between which one was cut.
    pub fn heal(&mut self) -> BTreeSet<Pair> {
        let cut = std::mem::take(&mut self.cut);
        cut.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect()
    }

    /// Loses the messages and heartbeats on some lines.
    pub fn clear(&mut self, lost: impl Fn(Pair) -> bool) {
        self.messages.retain(|pair, _| !lost(*pair));
        self.heartbeats.retain(|pair, _| !lost(*pair));
    }
}
