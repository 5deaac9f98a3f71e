//! Rounds: joins what several clients of one loop ask for at the same time. All writes of a round
//! become at most one batch, all eventual writes one stamping, all reads one ReadIndex. They are
//! asked for in one step, and each answer is split among its clients again. (A batch that gets too
//! long is followed by another one.)
//!
//! Joining is sound. The requests of a round are all under way at the same time, so linearizability
//! lets them take effect in any order, at one moment too. A batch keeps each client's commands
//! together and in order, and the log applies a batch once or not at all.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::completion::{Answer, Inbox, ReplyTo, Share, Ticket};
use super::shell::{Request, RequestHandle};
use crate::clock::Now;
use crate::protocol::Limits;
use crate::types::Write;

/// Lists of members that are kept for later rounds.
const SPARE_MAX: usize = 8;

/// A client of the loop, and the number of outcomes in an answer that are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The client's place in the loop.
    pub client: usize,
    /// The commands, or eventual writes, that it has asked for.
    pub count: usize,
}

/// An answer with the clients that it belongs to.
#[derive(Debug)]
#[must_use = "its clients wait"]
pub struct Settled {
    members: Vec<Member>,
    answer: Answer,
}

impl Settled {
    /// Gives each client its share, in the order in which the requests were joined. Returns the
    /// list of members for [`Rounds::reuse`].
    pub fn share_out(self, mut tell: impl FnMut(usize, Share<'_>)) -> Vec<Member> {
        let Settled { members, answer } = self;
        match answer {
            Answer::Outcomes(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                for &Member { client, count } in &members {
                    tell(client, Share::Outcomes(outcomes.by_ref().take(count).collect()));
                }
            }
            Answer::Stamped { existed, by } => {
                let mut rest = &existed[..];
                for &Member { client, count } in &members {
                    let (existed, others) = rest.split_at(count.min(rest.len()));
                    rest = others;
                    tell(client, Share::Stamped { existed, by });
                }
            }
            Answer::MayRead => {
                members.iter().for_each(|member| tell(member.client, Share::MayRead));
            }
            Answer::Unserved(unserved) => {
                members.iter().for_each(|member| tell(member.client, Share::Unserved(unserved)));
            }
        }
        members
    }

    /// The answer for all of them together.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }
}

/// Requests of several clients, joined.
#[derive(Debug)]
enum Joined {
    /// Encoded commands.
    Batch {
        parts: Vec<Bytes>,
        bytes: usize,
        commands: usize,
    },
    /// Eventual writes.
    Stamp {
        writes: Vec<Write>,
        bytes: usize,
    },
    Read,
}

#[derive(Debug)]
struct Gathered {
    joined: Joined,
    members: Vec<Member>,
}

/// A request that was asked for.
#[derive(Debug)]
struct Waiting {
    handle: RequestHandle,
    members: Vec<Member>,
    deadline: Now,
}

/// The requests of one loop's clients.
pub struct Rounds {
    inbox: Arc<dyn Inbox>,
    gathered: Vec<Gathered>,
    /// By ticket, from `first` on; `None` once the request has its answer.
    waiting: VecDeque<Option<Waiting>>,
    first: Ticket,
    timeout: Duration,
    bytes_max: usize,
    commands_max: usize,
    spare: Vec<Vec<Member>>,
}

impl Rounds {
    /// Rounds without a request yet. Answers will go to `inbox`.
    pub fn new(inbox: Arc<dyn Inbox>, timeout: Duration, limits: &Limits) -> Rounds {
        Rounds {
            inbox,
            gathered: Vec::new(),
            waiting: VecDeque::new(),
            first: 0,
            timeout,
            bytes_max: limits.batch_bytes_max,
            commands_max: limits.batch_commands_max,
            spare: Vec::new(),
        }
    }

    /// Takes a client's request into the round. `commands` is the number of outcomes that a
    /// [`Request::Write`] must bring.
    pub fn join(&mut self, client: usize, request: Request, commands: usize) {
        match request {
            Request::Write(bytes) => self.join_batch(Member { client, count: commands }, bytes),
            Request::Stamp(writes) => self.join_stamp(client, writes),
            Request::Read => {
                let member = Member { client, count: 0 };
                let is_read = |gathered: &&mut Gathered| matches!(gathered.joined, Joined::Read);
                match self.gathered.iter_mut().find(is_read) {
                    // One ReadIndex serves every read that waits when it begins (thesis §6.4).
                    Some(gathered) => gathered.members.push(member),
                    None => self.begin(Joined::Read, member),
                }
            }
        }
    }

    fn join_batch(&mut self, member: Member, more: Bytes) {
        for gathered in self.gathered.iter_mut().rev() {
            let Joined::Batch { parts, bytes, commands } = &mut gathered.joined else { continue };
            // Only the latest batch is tried: one that had no room before will hardly get any.
            if *bytes + more.len() > self.bytes_max || *commands + member.count > self.commands_max
            {
                break;
            }
            *bytes += more.len();
            *commands += member.count;
            parts.push(more);
            gathered.members.push(member);
            return;
        }
        let (bytes, commands) = (more.len(), member.count);
        self.begin(Joined::Batch { parts: vec![more], bytes, commands }, member);
    }

    fn join_stamp(&mut self, client: usize, mut more: Vec<Write>) {
        let member = Member { client, count: more.len() };
        let len = more.iter().map(Write::encoded_len).sum::<usize>();
        for gathered in self.gathered.iter_mut().rev() {
            let Joined::Stamp { writes, bytes } = &mut gathered.joined else { continue };
            if *bytes + len > self.bytes_max || writes.len() + more.len() > self.commands_max {
                break;
            }
            *bytes += len;
            writes.append(&mut more);
            gathered.members.push(member);
            return;
        }
        self.begin(Joined::Stamp { writes: more, bytes: len }, member);
    }

    fn begin(&mut self, joined: Joined, member: Member) {
        let mut members = self.spare.pop().unwrap_or_default();
        members.push(member);
        self.gathered.push(Gathered { joined, members });
    }

    /// True if there is something to ask for.
    pub fn has_gathered(&self) -> bool {
        !self.gathered.is_empty()
    }

    /// Asks for everything that has gathered. `ask` passes the requests to the shell in one turn
    /// and returns their handles in the same order.
    pub fn ask(
        &mut self,
        now: Now,
        ask: impl FnOnce(Vec<(Request, ReplyTo)>) -> Vec<RequestHandle>,
    ) {
        if self.gathered.is_empty() {
            return;
        }
        let deadline = now + self.timeout;
        let tickets = self.first + self.waiting.len() as Ticket..;
        let (mut requests, mut lists) = (Vec::new(), Vec::new());
        for (ticket, Gathered { joined, members }) in tickets.zip(self.gathered.drain(..)) {
            let request = match joined {
                Joined::Batch { mut parts, .. } if parts.len() == 1 => {
                    Request::Write(parts.pop().unwrap_or_default())
                }
                Joined::Batch { parts, .. } => Request::Write(parts.concat().into()),
                Joined::Stamp { writes, .. } => Request::Stamp(writes),
                Joined::Read => Request::Read,
            };
            requests.push((request, ReplyTo { inbox: Arc::clone(&self.inbox), ticket, deadline }));
            lists.push(members);
        }
        // Answers may be in the inbox before `ask` returns. Nothing is lost: this thread alone
        // takes them out, and knows their tickets by then.
        let handles = ask(requests);
        debug_assert_eq!(handles.len(), lists.len());
        let waiting = handles.into_iter().zip(lists);
        let waiting = waiting.map(|(handle, members)| Some(Waiting { handle, members, deadline }));
        self.waiting.extend(waiting);
    }

    /// Takes an answer from the inbox. `None` if its request was cancelled.
    pub fn answered(&mut self, ticket: Ticket, answer: Answer) -> Option<Settled> {
        let at = usize::try_from(ticket.checked_sub(self.first)?).ok()?;
        let Waiting { members, .. } = self.waiting.get_mut(at)?.take()?;
        self.forget_answered();
        Some(Settled { members, answer })
    }

    /// Cancels the requests whose time is over at `now`, each by `cancel`.
    pub fn cancel_overdue(
        &mut self,
        now: Now,
        mut cancel: impl FnMut(RequestHandle) -> Option<Answer>,
    ) -> Vec<Settled> {
        let mut settled = Vec::new();
        for slot in &mut self.waiting {
            let Some(Waiting { handle, deadline, .. }) = slot else { continue };
            // Tickets and deadlines grow together.
            if *deadline > now {
                break;
            }
            // `None`: another answer is on its way to the inbox.
            if let Some(answer) = cancel(*handle)
                && let Some(Waiting { members, .. }) = slot.take()
            {
                settled.push(Settled { members, answer });
            }
        }
        self.forget_answered();
        settled
    }

    /// The earliest deadline of a request that waits.
    pub fn deadline(&self) -> Option<Now> {
        self.waiting.iter().flatten().next().map(|waiting| waiting.deadline)
    }

    /// Keeps the memory of a list that [`Settled::share_out`] has returned.
    pub fn reuse(&mut self, mut members: Vec<Member>) {
        if self.spare.len() < SPARE_MAX {
            members.clear();
            self.spare.push(members);
        }
    }

    fn forget_answered(&mut self) {
        while self.waiting.pop_front_if(|waiting| waiting.is_none()).is_some() {
            self.first += 1;
        }
    }
}
