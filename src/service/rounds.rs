//! What the clients of a loop ask of the core. All that a round of them has brought becomes at most
//! one batch, one handful of eventual writes and one ReadIndex, asked for in one step; each answer
//! is then shared out. (A batch that gets too long is followed by another one.)
//!
//! Joining is sound: the requests of a round are all under way at the same time, so they may be
//! done in any order, at once, and what must not be done twice is done once or not at all together.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::node::clients::waiter::{Answer, Asker, Inbox, Ticket};
use crate::node::core::{Asked, Core, Open, Request};
use crate::protocol::Limits;
use crate::types::{NodeId, Write};

/// A client, by its place in the loop, and its share: how many commands or writes are its own.
pub type Member = (usize, usize);

/// What is shared out, and among whom.
pub struct Settled {
    /// The clients, in the order of their shares.
    pub members: Vec<Member>,
    /// For all of them together.
    pub answer: Answer,
    /// Who has stamped eventual writes, if that is known.
    pub stamper: Option<NodeId>,
}

/// Requests of several clients, joined.
enum Joined {
    /// Encoded commands, and how many bytes and commands they are.
    Batch(Vec<Bytes>, usize, usize),
    /// Writes, and how many bytes they are.
    Stamp(Vec<Write>, usize),
    Read,
}

struct Gathered {
    joined: Joined,
    members: Vec<Member>,
}

/// Requests that were asked for, and wait for an answer.
struct Waiting {
    open: Open,
    members: Vec<Member>,
    deadline: Instant,
}

/// See the module.
pub struct Rounds {
    inbox: Arc<dyn Inbox>,
    gathered: Vec<Gathered>,
    /// By ticket, from `first` on; `None` if it has its answer.
    waiting: VecDeque<Option<Waiting>>,
    first: Ticket,
    timeout: Duration,
    bytes_max: usize,
    commands_max: usize,
    /// Lists of members, to be used again.
    spare: Vec<Vec<Member>>,
}

impl Rounds {
    /// Nothing is asked for yet. Answers will go to `inbox`.
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

    /// Takes a client's request into the round. A batch is made of so many commands.
    pub fn join(&mut self, client: usize, request: Request, commands: usize) {
        match request {
            Request::Write(bytes) => self.join_batch((client, commands), bytes),
            Request::Stamp(writes) => self.join_accept(client, writes),
            Request::Read => {
                let read = |gathered: &&mut Gathered| matches!(gathered.joined, Joined::Read);
                match self.gathered.iter_mut().find(read) {
                    Some(gathered) => gathered.members.push((client, 0)),
                    None => self.begin(Joined::Read, (client, 0)),
                }
            }
        }
    }

    fn join_batch(&mut self, member: Member, more: Bytes) {
        // Only the latest is looked at: one that had no room will hardly get any.
        for gathered in self.gathered.iter_mut().rev() {
            let Joined::Batch(parts, bytes, commands) = &mut gathered.joined else { continue };
            if *bytes + more.len() > self.bytes_max || *commands + member.1 > self.commands_max {
                break;
            }
            *bytes += more.len();
            *commands += member.1;
            parts.push(more);
            gathered.members.push(member);
            return;
        }
        let len = more.len();
        self.begin(Joined::Batch(vec![more], len, member.1), member);
    }

    fn join_accept(&mut self, client: usize, mut more: Vec<Write>) {
        let member = (client, more.len());
        let len = more.iter().map(Write::encoded_len).sum::<usize>();
        for gathered in self.gathered.iter_mut().rev() {
            let Joined::Stamp(writes, bytes) = &mut gathered.joined else { continue };
            if *bytes + len > self.bytes_max || writes.len() + more.len() > self.commands_max {
                break;
            }
            *bytes += len;
            writes.append(&mut more);
            gathered.members.push(member);
            return;
        }
        self.begin(Joined::Stamp(more, len), member);
    }

    fn begin(&mut self, joined: Joined, member: Member) {
        let mut members = self.spare.pop().unwrap_or_default();
        members.push(member);
        self.gathered.push(Gathered { joined, members });
    }

    /// True if something has to be asked for.
    pub fn has_gathered(&self) -> bool {
        !self.gathered.is_empty()
    }

    /// Asks the core for all that has gathered. What is answered at once is returned.
    pub fn ask(&mut self, core: &Core) -> Vec<Settled> {
        let mut settled = Vec::new();
        if self.gathered.is_empty() {
            return settled;
        }
        let deadline = Instant::now() + self.timeout;
        let tickets = self.first + self.waiting.len() as Ticket..;
        let (mut requests, mut lists) = (Vec::new(), Vec::new());
        for (ticket, Gathered { joined, members }) in tickets.zip(self.gathered.drain(..)) {
            let request = match joined {
                Joined::Batch(mut parts, _, _) if parts.len() == 1 => {
                    Request::Write(parts.pop().unwrap_or_default())
                }
                Joined::Batch(parts, _, _) => Request::Write(parts.concat().into()),
                Joined::Stamp(writes, _) => Request::Stamp(writes),
                Joined::Read => Request::Read,
            };
            requests.push((request, Asker { inbox: Arc::clone(&self.inbox), ticket, deadline }));
            lists.push(members);
        }
        let (waiting, mut lists) = (&mut self.waiting, lists.into_iter());
        core.ask(requests, |Asked { open, stamper, stamped }| {
            let members = lists.next().unwrap_or_default();
            waiting.push_back(match stamped {
                Some(writes) => {
                    let answer = Answer::Stamped(writes);
                    settled.push(Settled { members, answer, stamper });
                    None
                }
                None => Some(Waiting { open, members, deadline }),
            });
        });
        self.forget_answered();
        settled
    }

    /// An answer has come. `None` if nobody waits for it any more.
    pub fn answered(&mut self, core: &Core, ticket: Ticket, answer: Answer) -> Option<Settled> {
        let at = usize::try_from(ticket.checked_sub(self.first)?).ok()?;
        let Waiting { members, .. } = self.waiting.get_mut(at)?.take()?;
        self.forget_answered();
        let stamper = core.stamped_by(&answer);
        Some(Settled { members, answer, stamper })
    }

    /// Gives up what has waited for too long.
    pub fn cancel(&mut self, core: &Core, now: Instant) -> Vec<Settled> {
        let mut settled = Vec::new();
        for waiting in &mut self.waiting {
            let Some(Waiting { open, deadline, .. }) = waiting else { continue };
            if *deadline > now {
                break;
            }
            // Without an answer from here, another one is on its way.
            if let Some(answer) = core.cancel(*open)
                && let Some(Waiting { members, .. }) = waiting.take()
            {
                settled.push(Settled { members, answer, stamper: None });
            }
        }
        self.forget_answered();
        settled
    }

    /// When something will have waited for too long.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().flatten().next().map(|waiting| waiting.deadline)
    }

    /// Takes a list back that is not needed any more.
    pub fn reuse(&mut self, mut members: Vec<Member>) {
        const SPARE_MAX: usize = 8;
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
