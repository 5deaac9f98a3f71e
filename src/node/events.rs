//! The node's log lines for what the replica found worth telling.

use super::stop::Fatal;
use crate::replica::{Cause, Event};
use crate::service::Failure;

/// The error that ends a node after a failure of its replica.
pub fn fatal(failure: &Failure) -> Fatal {
    match failure {
        Failure::Broken(invariant) => Fatal::Bug(format!("broken invariant: {invariant}")),
        Failure::Diverged(index) => Fatal::Data(format!(
            "the state of this node at index {index} differs from that of the other members: its \
             memory or its disk cannot be trusted. Move its data directory away and start it with \
             an empty one, so that it learns from its peers"
        )),
    }
}

/// Writes what the replica found worth telling.
pub fn log(event: &Event) {
    match event {
        Event::Campaign { term, cause } => {
            log::info!(target: "ELECTION", "Standing for term {term}: {}", cause.as_str());
        }
        Event::Leader { leader, term } => {
            log::info!(target: "ELECTION", "New leader elected: {leader} (term {term})");
        }
        Event::SteppedDown(cause) => {
            let level =
                if *cause == Cause::NewerTerm { log::Level::Info } else { log::Level::Warn };
            log::log!(target: "ELECTION", level, "No longer leader: {}", cause.as_str());
        }
        Event::Transfer { to } => {
            log::info!(target: "ELECTION", "Handing the leadership to {to}");
        }
        Event::TransferFailed { to } => {
            log::warn!(target: "ELECTION", "{to} did not take the leadership over in time");
        }
        Event::Founded => log::info!(target: "NodeSync", "All members met: the cluster is founded"),
        Event::CatchingUp => log::warn!(
            target: "NodeSync",
            "This directory is new to a cluster that exists: catching up before taking part"
        ),
        Event::QuorumLost { stamper } => log::warn!(
            target: "FAILURE",
            "Fewer nodes than a majority are alive: strong commands are refused, {stamper} takes \
             eventual writes"
        ),
        Event::QuorumBack => {
            log::info!(target: "RECOVERED", "A majority is alive again");
        }
        Event::ClockJumped { by } => log::error!(
            target: "FAILURE",
            "The clock of this machine has jumped by {} ms, more than --max-clock-offset: not \
             believed, as no majority of nodes confirms it",
            by / 1000
        ),
        Event::ClockDoubted { members } => log::error!(
            target: "FAILURE",
            "The clocks of {members} other members differ from this node's by more than \
             --max-clock-offset: it takes no eventual writes until they agree"
        ),
        Event::ClockBehind => log::error!(
            target: "FAILURE",
            "Versions lie ahead of this node's clock by more than --max-clock-offset: it takes no \
             eventual writes until the clock has caught up"
        ),
        Event::FutureWrites { from, ahead } => log::error!(
            target: "FAILURE",
            "{from} sends eventual writes from {} ms ahead of this node's clock, more than \
             --max-clock-offset: not taken until the clocks agree",
            ahead / 1000
        ),
        Event::CaughtUp => log::info!(target: "NodeSync", "Caught up: a full member again"),
    }
}
