//! Nodes for tests: started on a free port, asked without a socket.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;

use super::time::{SOON, eventually};
use crate::config::{Config, NodeArgs};
use crate::node::Node;
use crate::node::clients::Waiter;
use crate::node::core::Core;
use crate::node::shared::Shared;
use crate::service::{Answer, Request};
use crate::types::Unserved;

/// Starts a cluster of one node, on a free port, with these arguments.
pub fn start(dir: &Path, words: &[&str]) -> Node {
    start_as(config(dir, words))
}

/// The configuration of a node in `dir` with these arguments.
pub fn config(dir: &Path, words: &[&str]) -> Config {
    let args = ["nodesync", "1"].iter().chain(words).copied();
    let args = args.chain(["--dir", dir.to_str().unwrap()]);
    Config::new(NodeArgs::try_parse_from(args).unwrap()).unwrap()
}

/// Starts a node on a free port.
pub fn start_as(config: Config) -> Node {
    Node::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), config, Arc::default()).unwrap()
}

/// Makes a request and waits for its answer; `Err` if the request is not served.
pub fn ask(
    core: &Core,
    request: Request,
    waiter: &Arc<Waiter>,
    patience: Duration,
) -> Result<Answer, Unserved> {
    match core.ask_and_wait(request, waiter, core.now() + patience) {
        Answer::Unserved(unserved) => Err(unserved),
        answer => Ok(answer),
    }
}

/// Waits until the node serves a strong read, so it leads or follows a leader.
#[track_caller]
pub fn wait_until_it_serves(shared: &Shared) {
    let waiter = Arc::default();
    eventually("it serves", || ask(&shared.core, Request::Read, &waiter, SOON).is_ok());
}
