//! The outbound link to one peer.
//!
//! A message is *posted* under the core's lock. After the unlock, the thread that has posted it
//! *flushes* the link: it writes the message straight to the socket. That spares every write the
//! wake-up of another thread. No thread waits while it flushes. If another thread is flushing the
//! link, that thread takes the new messages along. If the socket is full, or a snapshot is to be
//! sent, the thread that owns the link (`sender.rs`) takes over.
//!
//! **Order.** Posted messages leave in the order of their posting, pulled messages in the order of
//! their pulling, and no message that is posted after a pull overtakes the messages of that pull.
//! The reverse is not promised. A flush takes the posted messages first and then pulls. A message
//! that is posted between these two leaves behind the pulled ones, though they may have been
//! decided later. Raft needs no more: the replica takes messages in any order (§5.3 compares the
//! logs again; the simulator shuffles them), so order only spares repetitions.
//!
//! **Locks.** The lock of `output` is the right to write to the socket. Its holder takes the core's
//! lock, to pull, and the lock of the posted messages. A message is posted under the core's lock.
//! So the order is output, core, posted. A thread that holds the core's lock never takes the
//! output, and only the link's own thread waits for it; all others try it.
//!
//! **No message is left behind.** `wanted` says that something was posted, or is to be pulled,
//! since messages were last gathered. Two races could lose a wake-up:
//!
//! *A flush ends as a message comes.* The poster stores `wanted = true`, then tries the output. The
//! flushing thread unlocks the output, then loads `wanted`. Each writes one place and reads the
//! other's (store buffering). With a sequentially consistent fence between the two on both sides,
//! at least one of them sees the other's write: either the poster finds the output free, or the
//! flushing thread finds `wanted` set and goes on.
//!
//! *A flush gathers as a message comes.* The poster stores the message, then `wanted = true`. The
//! flushing thread stores `wanted = false`, then loads the messages. If its `false` overwrites the
//! `true`, it must see the message, because no other thread will look for it. The poster's store is
//! a release, and the flushing thread has a fence between its store and its load.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::output::LinkOutput;
use crate::replica::{Envelope, Pull};
use crate::wire::encode;

/// Bytes that are written without the link's own thread. More is bulk, and left to that thread.
const DIRECT_BYTES: usize = 256 << 10;

/// The number of rounds in which a flush takes along messages that others have posted meanwhile.
/// Without a bound, a client's thread on a busy node could go on for others without end, while its
/// own client waits. After that many rounds the link's thread takes over.
const TURNS_MAX: usize = 8;

/// Bytes of entries or proposals in one message.
pub const MESSAGE_BYTES: usize = 1 << 20;

/// A note to the thread that owns the link.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkNote {
    /// There is work that is left to this thread.
    Work,
    /// The peer has connected to this node: if there is no stream, try to connect now.
    Reconnect,
    /// End.
    Stop,
}

/// The outbound link to one peer, shared by all threads that send to it.
pub struct PeerLink {
    posted: Mutex<Posted>,
    /// The core may have something to pull.
    pull: AtomicBool,
    /// Something was posted, or is to be pulled, since messages were last gathered.
    wanted: AtomicBool,
    output: Mutex<LinkOutput>,
    notes: Sender<LinkNote>,
    /// A [`LinkNote::Work`] is under way: a second one would say the same.
    noted: AtomicBool,
}

/// Messages that are not gathered yet.
#[derive(Default)]
struct Posted {
    /// There is a stream. Without one no message is kept: it would be out of date when there is
    /// one.
    is_up: bool,
    envelopes: Vec<Envelope>,
}

impl PeerLink {
    /// A link without a stream, whose thread reads the other end of `notes`.
    pub fn new(notes: Sender<LinkNote>) -> PeerLink {
        PeerLink {
            posted: Mutex::default(),
            pull: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            output: Mutex::default(),
            notes,
            noted: AtomicBool::new(false),
        }
    }

    /// Sends a note to the link's thread.
    pub fn note(&self, note: LinkNote) {
        // Fails only if that thread has ended, and then the node stops.
        let _ = self.notes.send(note);
    }

    /// Keeps a message to be written; without a stream the message is lost. [`PeerLink::flush`]
    /// must follow.
    pub fn post(&self, envelope: Envelope) {
        let mut posted = self.posted.lock();
        if posted.is_up {
            posted.envelopes.push(envelope);
            drop(posted);
            // Release: a thread that reads `true` sees the message.
            self.wanted.store(true, Ordering::Release);
        }
    }

    /// Marks that the core has something to pull. [`PeerLink::flush`] or [`PeerLink::wake_thread`]
    /// must follow.
    pub fn want_pull(&self) {
        // `pull` before `wanted`: `gather` clears them in the opposite order.
        self.pull.store(true, Ordering::Release);
        self.wanted.store(true, Ordering::Release);
    }

    /// Writes all messages, unless another thread is flushing: then that thread does. `pull` asks
    /// the core for a message of about that many bytes at most.
    pub fn flush(&self, mut pull: impl FnMut(usize) -> Option<Pull>) {
        for _ in 0..TURNS_MAX {
            // The first race above. In the first round this is the poster's fence, between `wanted
            // = true` and the try of the output. In later rounds it is the flushing thread's fence,
            // between the unlock of the output and the load of `wanted`.
            fence(Ordering::SeqCst);
            if !self.wanted.load(Ordering::Acquire) {
                return;
            }
            // Another thread is flushing. It loads `wanted` after its unlock, and goes on.
            let Some(mut output) = self.output.try_lock() else { return };
            // Without a stream nothing can be written. Posted messages are not kept then, and the
            // link's thread pulls once it has connected.
            if !output.has_stream() {
                return;
            }
            if !output.needs_thread() {
                let is_more = self.gather(&mut output, DIRECT_BYTES, &mut pull);
                output.write_at_once();
                if !is_more && !output.needs_thread() {
                    continue;
                }
            }
            // A full socket, a snapshot or bulk: going on would mean to wait.
            drop(output);
            break;
        }
        self.wake_thread();
    }

    /// Leaves all messages to the link's thread.
    pub fn wake_thread(&self) {
        // If a note is under way, its receiver clears `noted` before it gathers, in `work`. So it
        // will gather every message that was posted before this swap.
        if !self.noted.swap(true, Ordering::AcqRel) {
            self.note(LinkNote::Work);
        }
    }

    /// Moves posted and pulled messages into the output, up to about `bytes_max`. True if there may
    /// be more.
    fn gather(
        &self,
        output: &mut LinkOutput,
        bytes_max: usize,
        pull: &mut impl FnMut(usize) -> Option<Pull>,
    ) -> bool {
        // The second race above. `wanted` is cleared before the messages are taken: a message that
        // comes later sets it again. It is a swap, because that acquires the `true` that it
        // replaces: with it come the message and the `pull` that `post` and `want_pull` released
        // before. The fence keeps the two loads below behind it.
        self.wanted.swap(false, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        for envelope in self.posted.lock().envelopes.drain(..) {
            encode(&envelope, &mut output.out);
        }
        if !self.pull.swap(false, Ordering::AcqRel) {
            return false;
        }
        while let Some(pulled) = pull(MESSAGE_BYTES.min(bytes_max)) {
            output.put(pulled);
            if output.out.len() >= bytes_max {
                // The core may have more, so `pull` and `wanted` are set again.
                self.want_pull();
                return true;
            }
        }
        false
    }

    /// Begins to use a stream that is connected. For the link's thread.
    pub fn connected(&self, stream: &Arc<TcpStream>) {
        *self.output.lock() = LinkOutput::new(stream);
        // Only now: a message that is kept must find a stream.
        *self.posted.lock() = Posted { is_up: true, envelopes: Vec::new() };
        // Wishes to pull were not served while there was no stream.
        self.want_pull();
    }

    /// Forgets a stream that is lost, and all bytes and messages for it. Returns true if a snapshot
    /// was on its way. For the link's thread.
    pub fn lost(&self) -> bool {
        *self.posted.lock() = Posted::default();
        let output = std::mem::take(&mut *self.output.lock());
        output.has_image()
    }

    /// For the link's thread: gathers messages and does `work` with them, until nothing is left.
    /// `work` may wait for the peer.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn work(
        &self,
        mut pull: impl FnMut(usize) -> Option<Pull>,
        mut work: impl FnMut(&mut LinkOutput) -> io::Result<()>,
    ) -> io::Result<()> {
        // Before messages are gathered, see `wake_thread`. The fence in `gather` keeps that order.
        self.noted.swap(false, Ordering::AcqRel);
        loop {
            let mut output = self.output.lock();
            self.gather(&mut output, MESSAGE_BYTES, &mut pull);
            work(&mut output)?;
            let has_more = output.needs_thread();
            drop(output);
            // The first race above, from the flushing thread's side: unlock, fence, load. Its
            // partner is the fence in `flush` of a poster that finds the output locked.
            fence(Ordering::SeqCst);
            if !has_more && !self.wanted.load(Ordering::Acquire) {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::Read;
    use std::net::TcpListener;
    use std::thread::scope;

    use crossbeam_channel::unbounded;
    use socket2::SockRef;

    use super::*;
    use crate::node::tests::time::in_time;
    use crate::replica::Message;
    use crate::rng::Rng;
    use crate::types::NodeId;
    use crate::wire::{Frame, FrameReader};

    const THREADS: u64 = 16;
    const EACH: u64 = 2;
    const ROUNDS: u64 = 400;

    /// A message that carries its thread and its number among that thread's messages.
    fn message(thread: u64, number: u64) -> Envelope {
        let message = Message::ReadIndex { position: number };
        Envelope { from: NodeId(1), to: NodeId(2), term: thread, message }
    }

    /// Both ends of a connection with small buffers, so that writes often block.
    fn narrow() -> (Arc<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        SockRef::from(&near).set_send_buffer_size(16 << 10).unwrap();
        SockRef::from(&far).set_recv_buffer_size(16 << 10).unwrap();
        (Arc::new(near), far)
    }

    /// Reads `count` messages, now and then with a pause.
    fn read(far: &mut TcpStream, count: u64, rng: &mut Rng) -> Vec<(u64, u64)> {
        let (mut frames, mut got) = (FrameReader::new(1 << 20, &[]), Vec::new());
        while (got.len() as u64) < count {
            if rng.below(50) == 0 {
                std::thread::sleep(std::time::Duration::from_micros(rng.below(500)));
            }
            let len = far.read(frames.space()).unwrap();
            assert!(len > 0, "{} of {count}", got.len());
            frames.filled(len);
            while let Some(frame) = frames.next().unwrap() {
                let Frame::Message(thread, Message::ReadIndex { position }) = frame else {
                    panic!("another message")
                };
                got.push((thread, position));
            }
        }
        got
    }

    /// Stands for the core: messages to be pulled.
    type FakeCore = Mutex<VecDeque<Envelope>>;

    /// Sends one thread's messages of a round. An even thread posts them, an odd one leaves them in
    /// the core to be pulled.
    fn talk(link: &PeerLink, core: &FakeCore, thread: u64, round: u64) {
        let mut rng = Rng::new(thread + THREADS * round);
        for number in EACH * round..EACH * (round + 1) {
            let posted = thread.is_multiple_of(2);
            if posted {
                link.post(message(thread, number));
            } else {
                core.lock().push_back(message(thread, number));
                link.want_pull();
            }
            match rng.below(3) {
                0 if !posted => link.wake_thread(),
                _ => link.flush(|_| core.lock().pop_front().map(Pull::Message)),
            }
        }
    }

    #[test]
    fn every_posted_or_pulled_message_is_written_once_and_in_order() {
        let got = in_time("all is written", || {
            let (notes, work) = unbounded();
            let (link, core) = (PeerLink::new(notes), FakeCore::default());
            let (near, mut far) = narrow();
            link.connected(&near);
            scope(|scope| {
                scope.spawn(|| {
                    while work.recv().unwrap() == LinkNote::Work {
                        let pull = |_| core.lock().pop_front().map(Pull::Message);
                        link.work(pull, LinkOutput::write).unwrap();
                    }
                });
                let (mut got, mut rng) = (Vec::new(), Rng::new(7));
                for round in 0..ROUNDS {
                    for thread in 0..THREADS {
                        let (link, core) = (&link, &core);
                        scope.spawn(move || talk(link, core, thread, round));
                    }
                    // After the last message of a round no other event would make a thread look
                    // again: a lost wake-up would show here.
                    got.extend(read(&mut far, THREADS * EACH, &mut rng));
                    assert!(work.len() <= 1, "notes pile up: {}", work.len());
                }
                link.note(LinkNote::Stop);
                got
            })
        });
        for thread in 0..THREADS {
            let own = got.iter().filter(|(from, _)| *from == thread).map(|(_, number)| *number);
            assert!(own.eq(0..EACH * ROUNDS), "thread {thread}");
        }
    }

    #[test]
    fn a_message_that_is_posted_during_a_flush_is_written_by_that_flush() {
        let got = in_time("it is written", || {
            let (notes, _work) = unbounded();
            let (link, (near, mut far)) = (PeerLink::new(notes), narrow());
            link.connected(&near);
            let mut posted = false;
            link.flush(|_| {
                if !std::mem::replace(&mut posted, true) {
                    link.post(message(1, 1));
                    link.flush(|_| None);
                }
                None
            });
            read(&mut far, 1, &mut Rng::new(1))
        });
        assert_eq!(got, [(1, 1)]);
    }

    #[test]
    fn no_message_of_an_earlier_stream_is_written_to_a_new_one() {
        let (notes, _work) = unbounded();
        let link = PeerLink::new(notes);
        link.post(message(1, 1));
        link.connected(&narrow().0);
        link.post(message(1, 2));
        assert!(!link.lost());
        let (near, mut far) = narrow();
        link.connected(&near);
        link.post(message(1, 3));
        link.flush(|_| None);
        assert_eq!(read(&mut far, 1, &mut Rng::new(1)), [(1, 3)]);
    }
}
