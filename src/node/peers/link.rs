//! The way to one peer. Messages are posted under the core's lock, and written after it is released
//! by whoever has posted them, straight to the socket: that spares the wake-up of a thread on the
//! way of every write. Nobody waits there. If somebody else is at it, that one goes on with what
//! has come; and what would block, or takes long (snapshots), is left to the thread that owns the
//! link (`replication.rs`).
//!
//! Messages leave in the order in which they were posted, what is pulled leaves in the order in
//! which it was pulled, and nothing that is posted after a pull overtakes what that has brought.
//! The reverse is not promised: what is posted while somebody is between emptying the mail and
//! pulling leaves behind what is pulled then, though that may have been decided later. The replica
//! has no need of more: it takes messages in any order (the simulator shuffles them), so order only
//! spares it to ask again.

use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_channel::Sender;
use parking_lot::Mutex;
use rustix::net::{SendFlags, send};

use crate::node::workers::snapshot::Outgoing;
use crate::replica::{Envelope, Pull};
use crate::types::SnapshotMeta;
use crate::wire::encode;

/// Bytes that are written without the link's own thread; what the core has beyond that is bulk.
const DIRECT_BYTES: usize = 256 << 10;

/// How often one who posts goes on with what others have posted meanwhile.
const TURNS_MAX: usize = 8;

/// Bytes of entries or proposals in one message.
pub const MESSAGE_BYTES: usize = 1 << 20;

/// The size up to which the buffer is kept.
const KEEP_BYTES: usize = 2 << 20;

/// A send that neither waits nor raises a signal. Apple's systems have no such flag; there the Rust
/// runtime ignores SIGPIPE.
#[cfg(not(target_vendor = "apple"))]
const AT_ONCE: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
#[cfg(target_vendor = "apple")]
const AT_ONCE: SendFlags = SendFlags::DONTWAIT;

/// A note to the thread that owns the link.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkNote {
    /// There is something that only it can do.
    Work,
    /// The peer is there: try to connect now, if there is no link.
    Reconnect,
    /// End.
    Stop,
}

/// See the module.
pub struct Link {
    mail: Mutex<Mail>,
    /// The core may have something to pull.
    pull: AtomicBool,
    /// Something was posted, or is to be pulled, since the line was last looked after.
    wanted: AtomicBool,
    line: Mutex<Line>,
    notes: Sender<LinkNote>,
    /// A note of work is under way.
    noted: AtomicBool,
}

#[derive(Default)]
struct Mail {
    /// Without a stream nothing is kept: it would be out of date when there is one.
    up: bool,
    envelopes: Vec<Envelope>,
}

/// The stream, and what is on its way into it. Who holds its lock has the right to write.
#[derive(Default)]
pub struct Line {
    stream: Option<Arc<TcpStream>>,
    /// The bytes that are to be written.
    pub out: Vec<u8>,
    /// The snapshot that is to be sent, …
    pub image_wanted: Option<SnapshotMeta>,
    /// … and the one that is being sent, in the term in which that began.
    pub image: Option<(u64, Outgoing)>,
}

impl Line {
    /// True if the link's own thread has something to do.
    fn needs_thread(&self) -> bool {
        !self.out.is_empty() || self.image.is_some() || self.image_wanted.is_some()
    }

    /// Puts what was pulled where it belongs.
    fn put(&mut self, pulled: Pull) {
        match pulled {
            Pull::Message(envelope) => encode(&envelope, &mut self.out),
            Pull::Snapshot(meta) => self.image_wanted = Some(meta),
        }
    }

    /// Writes all that is there, however long that takes.
    pub fn write(&mut self) -> io::Result<()> {
        if let Some(stream) = self.stream.as_ref().filter(|_| !self.out.is_empty()) {
            (&**stream).write_all(&self.out)?;
        }
        self.written();
        Ok(())
    }

    /// Writes what the system takes at once. An error is left for the thread to find.
    fn write_at_once(&mut self) {
        let Some(stream) = &self.stream else { return };
        let mut at = 0;
        while at < self.out.len() {
            match send(stream, &self.out[at..], AT_ONCE) {
                Ok(len) => at += len,
                Err(error) if io::Error::from(error).kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.out.drain(..at);
                    return;
                }
            }
        }
        self.written();
    }

    fn written(&mut self) {
        self.out.clear();
        self.out.shrink_to(KEEP_BYTES);
    }
}

impl Link {
    /// A link without a stream, whose thread reads the other end of `notes`.
    pub fn new(notes: Sender<LinkNote>) -> Link {
        Link {
            mail: Mutex::default(),
            pull: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            line: Mutex::default(),
            notes,
            noted: AtomicBool::new(false),
        }
    }

    /// Tells the thread something.
    pub fn note(&self, note: LinkNote) {
        // The receiver is gone only when the node has stopped.
        let _ = self.notes.send(note);
    }

    /// Keeps a message to be written. [`Link::drive`] must follow.
    pub fn post(&self, envelope: Envelope) {
        let mut mail = self.mail.lock();
        if mail.up {
            mail.envelopes.push(envelope);
            drop(mail);
            self.wanted.store(true, Ordering::Release);
        }
    }

    /// Takes note that the core has something to pull. [`Link::drive`] must follow, or
    /// [`Link::have_worked`].
    pub fn want_pull(&self) {
        self.pull.store(true, Ordering::Release);
        self.wanted.store(true, Ordering::Release);
    }

    /// Writes what is wanted, unless somebody is at it, who then does. `pull` asks the core.
    pub fn drive(&self, mut pull: impl FnMut(usize) -> Option<Pull>) {
        for _ in 0..TURNS_MAX {
            // Either the one who has the line sees what was wanted before this, or the line is
            // found free here.
            fence(Ordering::SeqCst);
            if !self.wanted.load(Ordering::Acquire) {
                return;
            }
            let Some(mut line) = self.line.try_lock() else { return };
            if line.stream.is_none() {
                return;
            }
            if !line.needs_thread() {
                let rest = self.gather(&mut line, DIRECT_BYTES, &mut pull);
                line.write_at_once();
                if !rest && !line.needs_thread() {
                    continue;
                }
            }
            drop(line);
            break;
        }
        self.have_worked();
    }

    /// Leaves what is wanted to the link's thread.
    pub fn have_worked(&self) {
        if !self.noted.swap(true, Ordering::AcqRel) {
            self.note(LinkNote::Work);
        }
    }

    /// Fills the line with what is wanted, up to about `bytes_max`. True if there may be more.
    fn gather(
        &self,
        line: &mut Line,
        bytes_max: usize,
        pull: &mut impl FnMut(usize) -> Option<Pull>,
    ) -> bool {
        self.wanted.store(false, Ordering::Release);
        fence(Ordering::SeqCst);
        for envelope in self.mail.lock().envelopes.drain(..) {
            encode(&envelope, &mut line.out);
        }
        if !self.pull.swap(false, Ordering::AcqRel) {
            return false;
        }
        while let Some(pulled) = pull(MESSAGE_BYTES.min(bytes_max)) {
            line.put(pulled);
            if line.out.len() >= bytes_max {
                self.want_pull();
                return true;
            }
        }
        false
    }

    /// There is a stream now.
    pub fn connected(&self, stream: &Arc<TcpStream>) {
        *self.line.lock() = Line { stream: Some(Arc::clone(stream)), ..Line::default() };
        *self.mail.lock() = Mail { up: true, envelopes: Vec::new() };
        // What was to be pulled while there was no link still is.
        self.want_pull();
    }

    /// The stream is lost; returns true if a snapshot was on its way.
    pub fn lost(&self) -> bool {
        *self.mail.lock() = Mail::default();
        let line = std::mem::take(&mut *self.line.lock());
        line.image.is_some() || line.image_wanted.is_some()
    }

    /// For the thread: does `work` with the line, with all that is wanted in it, again and again
    /// until nothing is left to be done; waits for nobody but the peer.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn work(
        &self,
        mut pull: impl FnMut(usize) -> Option<Pull>,
        mut work: impl FnMut(&mut Line) -> io::Result<()>,
    ) -> io::Result<()> {
        self.noted.store(false, Ordering::Release);
        loop {
            let mut line = self.line.lock();
            self.gather(&mut line, MESSAGE_BYTES, &mut pull);
            work(&mut line)?;
            let more = line.needs_thread();
            drop(line);
            fence(Ordering::SeqCst);
            if !more && !self.wanted.load(Ordering::Acquire) {
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
    use crate::node::tests::in_time;
    use crate::replica::Message;
    use crate::rng::Rng;
    use crate::types::NodeId;
    use crate::wire::{Frame, FrameReader};

    const THREADS: u64 = 16;
    const EACH: u64 = 2;
    const ROUNDS: u64 = 400;

    /// A message that says who has sent it, and how many before it.
    fn message(thread: u64, number: u64) -> Envelope {
        let message = Message::ReadIndex { position: number };
        Envelope { from: NodeId(1), to: NodeId(2), term: thread, message }
    }

    /// Both ends of a connection that holds little, so that writing often blocks.
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

    /// What the core would have: each thread's latest.
    type Core = Mutex<VecDeque<Envelope>>;

    /// Posts or leaves in the core what each thread has to say, and has it written.
    fn talk(link: &Link, core: &Core, thread: u64, round: u64) {
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
                0 if !posted => link.have_worked(),
                _ => link.drive(|_| core.lock().pop_front().map(Pull::Message)),
            }
        }
    }

    #[test]
    fn whatever_is_posted_or_to_be_pulled_is_written_once_and_in_order() {
        let got = in_time("all is written", || {
            let (notes, work) = unbounded();
            let (link, core) = (Link::new(notes), Core::default());
            let (near, mut far) = narrow();
            link.connected(&near);
            scope(|scope| {
                scope.spawn(|| {
                    while work.recv().unwrap() == LinkNote::Work {
                        let pull = |_| core.lock().pop_front().map(Pull::Message);
                        link.work(pull, Line::write).unwrap();
                    }
                });
                let (mut got, mut rng) = (Vec::new(), Rng::new(7));
                for round in 0..ROUNDS {
                    for thread in 0..THREADS {
                        let (link, core) = (&link, &core);
                        scope.spawn(move || talk(link, core, thread, round));
                    }
                    // Each round has a last message, after which nobody looks again.
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
    fn what_is_posted_while_somebody_writes_is_written_by_that_one() {
        let got = in_time("it is written", || {
            let (notes, _work) = unbounded();
            let (link, (near, mut far)) = (Link::new(notes), narrow());
            link.connected(&near);
            let mut posted = false;
            link.drive(|_| {
                if !std::mem::replace(&mut posted, true) {
                    link.post(message(1, 1));
                    link.drive(|_| None);
                }
                None
            });
            read(&mut far, 1, &mut Rng::new(1))
        });
        assert_eq!(got, [(1, 1)]);
    }

    #[test]
    fn nothing_from_an_earlier_link_goes_out_on_a_new_one() {
        let (notes, _work) = unbounded();
        let link = Link::new(notes);
        link.post(message(1, 1));
        link.connected(&narrow().0);
        link.post(message(1, 2));
        assert!(!link.lost());
        let (near, mut far) = narrow();
        link.connected(&near);
        link.post(message(1, 3));
        link.drive(|_| None);
        assert_eq!(read(&mut far, 1, &mut Rng::new(1)), [(1, 3)]);
    }
}
