//! Clients without manners: they vanish in the middle of a request, ask for more than they read,
//! connect and say nothing, or claim to be a peer and fall silent. What they want is no matter, but
//! it must cost nobody else anything, and nothing for good.

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

/// The counter that they increment.
pub const COUNTER: &str = "rude:counter";

/// A key that should hold a large value: it is asked for and not read.
pub const LARGE: &str = "rude:large";

/// What all of them have done.
#[derive(Debug, Default)]
pub struct Deeds {
    stop: AtomicBool,
    /// Connections that were made.
    pub connections: AtomicU64,
    /// Increments of [`COUNTER`] that were sent, perhaps not whole …
    pub asked: AtomicU64,
    /// … and that were acknowledged.
    pub acknowledged: AtomicU64,
}

/// A crowd at work. Ends with its value.
#[derive(Debug)]
pub struct Crowd {
    /// See there.
    pub deeds: Arc<Deeds>,
    workers: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// Lets `count` of them loose on these ports. Each connection lasts no longer than `hold`.
    pub fn start(count: u64, ports: &[u16], hold: Duration) -> Crowd {
        let deeds = Arc::<Deeds>::default();
        let worker = |seed| {
            let (deeds, ports) = (Arc::clone(&deeds), ports.to_vec());
            std::thread::spawn(move || {
                let mut rng = Rng::new(seed);
                while !deeds.stop.load(Ordering::Relaxed) {
                    let port = ports[rng.below(ports.len() as u64) as usize];
                    // Whatever becomes of a connection: there will be another.
                    let _ = misbehave(&deeds, port, hold, &mut rng);
                    std::thread::sleep(hold.mul_f64(rng.below(50) as f64 / 100.0));
                }
            })
        };
        Crowd { workers: (0..count).map(worker).collect(), deeds }
    }

    /// Waits until they all have gone.
    pub fn finish(mut self) -> Arc<Deeds> {
        self.end();
        Arc::clone(&self.deeds)
    }

    fn end(&mut self) {
        self.deeds.stop.store(true, Ordering::Relaxed);
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

/// Keeps a connection for a while, but not beyond the end.
fn hold_on(deeds: &Deeds, hold: Duration, rng: &mut Rng) {
    let end = Instant::now() + hold.mul_f64(rng.below(100) as f64 / 100.0);
    while Instant::now() < end && !deeds.stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(5).min(hold));
    }
}

/// One connection.
fn misbehave(deeds: &Deeds, port: u16, hold: Duration, rng: &mut Rng) -> io::Result<()> {
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let limit = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_write_timeout(Some(limit))?;
    stream.set_read_timeout(Some(limit))?;
    deeds.connections.fetch_add(1, Ordering::Relaxed);
    if rng.below(2) == 0 {
        // Its end will be a reset.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    match rng.below(6) {
        0 => hold_on(deeds, hold, rng),
        1 => {
            stream.write_all(&[handshake::MAGIC_BYTE])?;
            hold_on(deeds, hold, rng);
        }
        2 => {
            let asked = request(&["GET", LARGE]).repeat(100);
            stream.write_all(&asked)?;
            hold_on(deeds, hold, rng);
        }
        3 => {
            // The rest of a long value never comes.
            stream.write_all(b"*3\r\n$3\r\nSET\r\n$9\r\nrude:long\r\n$1000000\r\n")?;
            stream.write_all(&vec![7; rng.below(100_000) as usize])?;
            hold_on(deeds, hold, rng);
        }
        kind => {
            let count = 1 + rng.below(50);
            deeds.asked.fetch_add(count, Ordering::Relaxed);
            let asked = request(&["INCR", COUNTER]).repeat(count as usize);
            if kind == 4 {
                // Cut off at any byte, and nobody there for the replies.
                return stream.write_all(&asked[..rng.below(asked.len() as u64) as usize]);
            }
            stream.write_all(&asked)?;
            stream.shutdown(Shutdown::Write)?;
            let mut replies = Vec::new();
            let read = stream.read_to_end(&mut replies);
            let done = replies.iter().filter(|byte| **byte == b':').count();
            deeds.acknowledged.fetch_add(done as u64, Ordering::Relaxed);
            read?;
        }
    }
    Ok(())
}
