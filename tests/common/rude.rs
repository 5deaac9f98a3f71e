//! Misbehaving clients: they vanish in the middle of a request, request more than they read,
//! connect and stay silent, or claim to be a peer and fall silent. Their own requests need not
//! succeed, but they must not disturb other clients or cost the node anything for good.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nodesync::rng::Rng;
use nodesync::wire::handshake;
use socket2::SockRef;

use super::client::request;

/// Counter that the crowd increments.
pub const COUNTER: &str = "rude:counter";

/// Key that should hold a large value: the crowd requests it and does not read the replies.
pub const LARGE: &str = "rude:large";

/// Counts over all connections of a crowd.
#[derive(Debug, Default)]
pub struct CrowdCounts {
    stop: AtomicBool,
    /// Connections that were made.
    pub connections: AtomicU64,
    /// Increments of [`COUNTER`] that were sent; the last of a connection may be cut off.
    pub sent: AtomicU64,
    /// Increments that were acknowledged.
    pub acknowledged: AtomicU64,
}

/// Crowd of misbehaving clients at work; it ends when the value is dropped.
#[derive(Debug)]
pub struct Crowd {
    /// Counts so far.
    pub counts: Arc<CrowdCounts>,
    workers: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// Starts `count` clients on these ports. Each connection lasts no longer than `hold`.
    pub fn start(count: u64, ports: &[u16], hold: Duration) -> Crowd {
        let counts = Arc::<CrowdCounts>::default();
        let worker = |seed| {
            let (counts, ports) = (Arc::clone(&counts), ports.to_vec());
            std::thread::spawn(move || {
                let mut rng = Rng::new(seed);
                while !counts.stop.load(Ordering::Relaxed) {
                    let port = ports[rng.below(ports.len() as u64) as usize];
                    // An error ends this connection only; the next one follows.
                    let _ = misbehave(&counts, port, hold, &mut rng);
                    std::thread::sleep(hold.mul_f64(rng.below(50) as f64 / 100.0));
                }
            })
        };
        Crowd { workers: (0..count).map(worker).collect(), counts }
    }

    /// Waits until all clients have ended.
    pub fn finish(mut self) -> Arc<CrowdCounts> {
        self.end();
        Arc::clone(&self.counts)
    }

    fn end(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            let ended = worker.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.end();
    }
}

/// Holds a connection open for a random part of `hold`, or until the crowd ends.
fn hold_open(counts: &CrowdCounts, hold: Duration, rng: &mut Rng) {
    let end = Instant::now() + hold.mul_f64(rng.below(100) as f64 / 100.0);
    while Instant::now() < end && !counts.stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(5).min(hold));
    }
}

/// Makes one connection and misbehaves in a randomly chosen way.
fn misbehave(counts: &CrowdCounts, port: u16, hold: Duration, rng: &mut Rng) -> io::Result<()> {
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let limit = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_write_timeout(Some(limit))?;
    stream.set_read_timeout(Some(limit))?;
    counts.connections.fetch_add(1, Ordering::Relaxed);
    if rng.below(2) == 0 {
        // This connection ends with a reset.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    match rng.below(6) {
        0 => hold_open(counts, hold, rng),
        1 => {
            stream.write_all(&[handshake::MAGIC_BYTE])?;
            hold_open(counts, hold, rng);
        }
        2 => {
            let requests = request(&["GET", LARGE]).repeat(100);
            stream.write_all(&requests)?;
            hold_open(counts, hold, rng);
        }
        3 => {
            // The rest of the long value never follows.
            stream.write_all(b"*3\r\n$3\r\nSET\r\n$9\r\nrude:long\r\n$1000000\r\n")?;
            stream.write_all(&vec![7; rng.below(100_000) as usize])?;
            hold_open(counts, hold, rng);
        }
        kind => {
            let count = 1 + rng.below(50);
            counts.sent.fetch_add(count, Ordering::Relaxed);
            let requests = request(&["INCR", COUNTER]).repeat(count as usize);
            if kind == 4 {
                // Cut off at a random byte; the replies are never read.
                return stream.write_all(&requests[..rng.below(requests.len() as u64) as usize]);
            }
            stream.write_all(&requests)?;
            stream.shutdown(Shutdown::Write)?;
            let mut replies = Vec::new();
            let read = stream.read_to_end(&mut replies);
            let done = replies.iter().filter(|byte| **byte == b':').count();
            counts.acknowledged.fetch_add(done as u64, Ordering::Relaxed);
            read?;
        }
    }
    Ok(())
}
