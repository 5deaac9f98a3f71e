//! The node's words for the reports of its replica: each [`Event`] becomes a line of the log, and
//! each [`Failure`] the [`Fatal`] that ends the process.

use super::stop::Fatal;
use crate::replica::{Cause, Event};
use crate::service::Failure;

/// The error that ends a node after this failure of its replica.
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

/// Writes the log line of an event.
pub fn log(event: &Event) {
    match event {
        Event::Campaign { term, cause } => {
            log::info!(target: "ELECTION", "Campaigning for term {term}: {}", cause.as_str());
        }
        Event::Leader { leader, term } => {
            log::info!(target: "ELECTION", "New leader elected: {leader} (term {term})");
        }
        Event::SteppedDown(cause) => {
            // A newer term is the ordinary end of a leadership (§5.1); all other causes are
            // trouble.
            let level =
                if *cause == Cause::NewerTerm { log::Level::Info } else { log::Level::Warn };
            log::log!(target: "ELECTION", level, "Stepped down as leader: {}", cause.as_str());
        }
        Event::Transfer { to } => {
            log::info!(target: "ELECTION", "Handing the leadership to {to}");
        }
        Event::TransferFailed { to } => {
            log::warn!(target: "ELECTION", "{to} did not take over the leadership in time");
        }
        Event::Founded => {
            log::info!(target: "NodeSync", "All members have answered: the cluster is founded");
        }
        Event::CatchingUp => log::warn!(
            target: "NodeSync",
            "This data directory is new, but its cluster is not: catching up before taking part"
        ),
        Event::QuorumLost { stamper } => log::warn!(
            target: "FAILURE",
            "No majority of the members is alive: strong commands are refused, {stamper} takes \
             eventual writes"
        ),
        Event::QuorumBack => {
            log::info!(target: "RECOVERED", "A majority of the members is alive again");
        }
        Event::ClockJumped { by } => log::error!(
            target: "FAILURE",
            "The clock of this machine has jumped by {} ms, more than --max-clock-offset: the jump \
             is ignored, because no majority of the members confirms it",
            by / 1000
        ),
        Event::ClockDoubted { members } => log::error!(
            target: "FAILURE",
            "The clocks of {members} other members differ from this node's clock by more than \
             --max-clock-offset: this node takes no eventual writes until they agree"
        ),
        Event::ClockBehind => log::error!(
            target: "FAILURE",
            "Versions are ahead of this node's clock by more than --max-clock-offset: this node \
             takes no eventual writes until its clock has caught up"
        ),
        Event::FutureWrites { from, ahead } => log::error!(
            target: "FAILURE",
            "Eventual writes from {from} are {} ms ahead of this node's clock, more than \
             --max-clock-offset: they are refused until the clocks agree",
            ahead / 1000
        ),
        Event::CaughtUp => log::info!(target: "NodeSync", "Caught up: a full member again"),
    }
}
