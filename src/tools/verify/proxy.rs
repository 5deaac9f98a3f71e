//! A TCP proxy for one link between two nodes, which can cut, stall or delay the link.
//!
//! One thread accepts; two threads for each connection copy bytes, one for each direction. They
//! wait in reads and on one condition variable, and end with their connection. Stalled bytes are
//! delivered after healing, as TCP does after a partition. A cut link closes all open connections
//! and every new one.
//!
//! Left out: loss, doubling and reordering of bytes, which TCP hides from programs. The simulator
//! does this to messages.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use socket2::SockRef;

/// Longest wait for a connection to a node on this machine.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Time after a failed accept (too many open files, say) before the next one.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// Size of the buffer for copying.
const PIECE_BYTES: usize = 64 << 10;

/// The behaviour of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkMode {
    /// Bytes pass.
    Pass,
    /// All connections are closed.
    Cut {
        /// True for a reset, false for an orderly close.
        reset: bool,
    },
    /// Bytes are held back, without a sign to either end.
    Stall {
        /// The direction from the node that dialled.
        forth: bool,
        /// The direction to it.
        back: bool,
    },
    /// Each piece of bytes passes after this time.
    Delay(Duration),
}

impl fmt::Display for LinkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkMode::Pass => f.write_str("pass"),
            LinkMode::Cut { reset: true } => f.write_str("reset"),
            LinkMode::Cut { reset: false } => f.write_str("closed"),
            LinkMode::Stall { forth: true, back: true } => f.write_str("silent"),
            LinkMode::Stall { forth: true, back: false } => {
                f.write_str("only the direction back passes")
            }
            LinkMode::Stall { .. } => f.write_str("only the direction forth passes"),
            LinkMode::Delay(by) => write!(f, "delayed by {} ms", by.as_millis()),
        }
    }
}

impl LinkMode {
    fn holds(self, forth: bool) -> bool {
        match self {
            LinkMode::Stall { forth: holds, .. } if forth => holds,
            LinkMode::Stall { back: holds, .. } if !forth => holds,
            _ => false,
        }
    }
}

/// The state that the threads of a link share.
#[derive(Debug)]
struct LinkShared {
    target: SocketAddr,
    state: Mutex<LinkState>,
    changed: Condvar,
}

#[derive(Debug)]
struct LinkState {
    mode: LinkMode,
    /// True once the link is dropped.
    is_over: bool,
    /// The number of the next connection.
    next: u64,
    /// The open connections by number, each with both sockets.
    open: Vec<(u64, [TcpStream; 2])>,
}

/// A link with its proxy.
#[derive(Debug)]
pub struct ProxiedLink {
    /// The port to dial instead of the target's.
    pub port: u16,
    shared: Arc<LinkShared>,
    acceptor: Option<JoinHandle<()>>,
}

impl ProxiedLink {
    /// A link to this port of this machine, on a free port.
    pub fn new(target: u16) -> io::Result<ProxiedLink> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(LinkShared {
            target: ([127, 0, 0, 1], target).into(),
            state: Mutex::new(LinkState {
                mode: LinkMode::Pass,
                is_over: false,
                next: 0,
                open: Vec::new(),
            }),
            changed: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        let acceptor = Some(std::thread::spawn(move || accept(&listener, &own)));
        Ok(ProxiedLink { port, shared, acceptor })
    }

    /// Sets the mode of the link, effective at once.
    pub fn set(&self, mode: LinkMode) {
        let mut state = self.shared.state.lock();
        state.mode = mode;
        if let LinkMode::Cut { reset } = mode {
            close_all(&mut state, reset);
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for ProxiedLink {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.is_over = true;
        close_all(&mut state, true);
        drop(state);
        self.shared.changed.notify_all();
        // A connection wakes the acceptor. If it fails, leave the thread rather than wait for ever.
        let own = ([127, 0, 0, 1], self.port).into();
        if TcpStream::connect_timeout(&own, DIAL_TIMEOUT).is_ok()
            && let Some(acceptor) = self.acceptor.take()
        {
            let _ = acceptor.join();
        }
    }
}

/// Closes all connections. Their copying threads see the end of their reads, and return.
fn close_all(state: &mut LinkState, reset: bool) {
    for (_, ends) in state.open.drain(..) {
        for end in &ends {
            if reset {
                // With a linger of zero the close of the last handle sends a reset.
                let _ = SockRef::from(end).set_linger(Some(Duration::ZERO));
            }
            let _ = end.shutdown(if reset { Shutdown::Read } else { Shutdown::Both });
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<LinkShared>) {
    loop {
        let accepted = listener.accept();
        if shared.state.lock().is_over {
            return;
        }
        let Ok((stream, _)) = accepted else {
            std::thread::sleep(ACCEPT_RETRY);
            continue;
        };
        // On a failure the dialler sees a closed connection, as with a node that is down.
        let _ = connect(shared, stream);
    }
}

fn connect(shared: &Arc<LinkShared>, near: TcpStream) -> io::Result<()> {
    SockRef::from(&near).set_linger(Some(Duration::ZERO))?;
    if matches!(shared.state.lock().mode, LinkMode::Cut { .. }) {
        return Ok(());
    }
    let far = TcpStream::connect_timeout(&shared.target, DIAL_TIMEOUT)?;
    SockRef::from(&near).set_linger(None)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ends = [near.try_clone()?, far.try_clone()?];
    let (far_back, near_back) = (far.try_clone()?, near.try_clone()?);
    let mut state = shared.state.lock();
    if state.is_over || matches!(state.mode, LinkMode::Cut { .. }) {
        return Ok(());
    }
    let number = state.next;
    state.next += 1;
    state.open.push((number, ends));
    drop(state);
    let (forth, back) = (Arc::clone(shared), Arc::clone(shared));
    std::thread::spawn(move || copy(&forth, number, true, near, far));
    std::thread::spawn(move || copy(&back, number, false, far_back, near_back));
    Ok(())
}

/// Copies in one direction until either end closes; then closes the whole connection, because nodes
/// never close one half.
fn copy(shared: &LinkShared, number: u64, forth: bool, mut from: TcpStream, mut to: TcpStream) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(len) = from.read(&mut piece) {
        if len == 0 || !shared.may_pass(number, forth) || to.write_all(&piece[..len]).is_err() {
            break;
        }
    }
    // A stalled link holds back the close, too.
    if shared.may_pass(number, forth) {
        shared.state.lock().open.retain(|(open, _)| *open != number);
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

impl LinkShared {
    /// Waits until a piece may pass. False if the link has closed the connection meanwhile.
    fn may_pass(&self, number: u64, forth: bool) -> bool {
        let mut state = self.state.lock();
        if let LinkMode::Delay(delay) = state.mode {
            drop(state);
            std::thread::sleep(delay);
            state = self.state.lock();
        }
        while state.mode.holds(forth) && !state.is_over && is_open(&state, number) {
            self.changed.wait(&mut state);
        }
        is_open(&state, number)
    }
}

fn is_open(state: &LinkState, number: u64) -> bool {
    state.open.iter().any(|(open, _)| *open == number)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(20);

    /// A link, and the two ends of a connection through it.
    fn linked() -> (ProxiedLink, TcpStream, TcpStream) {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = ProxiedLink::new(target.local_addr().unwrap().port()).unwrap();
        let near = TcpStream::connect(("127.0.0.1", link.port)).unwrap();
        let far = target.accept().unwrap().0;
        near.set_read_timeout(Some(LONG)).unwrap();
        far.set_read_timeout(Some(LONG)).unwrap();
        (link, near, far)
    }

    fn passes(from: &mut TcpStream, to: &mut TcpStream) {
        from.write_all(b"x").unwrap();
        to.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn bytes_pass_both_ways_and_a_close_reaches_the_other_end() {
        let (_link, mut near, mut far) = linked();
        passes(&mut near, &mut far);
        passes(&mut far, &mut near);
        drop(near);
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_stalled_direction_holds_back_until_it_is_healed() {
        let (link, mut near, mut far) = linked();
        passes(&mut near, &mut far);
        link.set(LinkMode::Stall { forth: true, back: false });
        passes(&mut far, &mut near);
        near.write_all(b"y").unwrap();
        far.set_read_timeout(Some(MOMENT)).unwrap();
        let held = far.read(&mut [0]).unwrap_err();
        assert!(matches!(held.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        far.set_read_timeout(Some(LONG)).unwrap();
        link.set(LinkMode::Pass);
        let mut byte = [0];
        far.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"y");
    }

    #[test]
    fn a_cut_closes_what_is_open_and_what_is_dialled() {
        for reset in [true, false] {
            let (link, mut near, mut far) = linked();
            passes(&mut near, &mut far);
            link.set(LinkMode::Cut { reset });
            for end in [&mut near, &mut far] {
                match end.read(&mut [0]) {
                    Ok(0) => assert!(!reset),
                    Err(error) => {
                        assert!(reset && error.kind() == ErrorKind::ConnectionReset, "{error}");
                    }
                    Ok(_) => panic!("a byte through a cut link"),
                }
            }
            let mut refused = TcpStream::connect(("127.0.0.1", link.port)).unwrap();
            refused.set_read_timeout(Some(LONG)).unwrap();
            assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)));
        }
    }
}
