//! Times of the machine itself for the two parts of a strong write: a sync of its disk, and round
//! trips over loopback.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Size of the log's record of one write with a 16-byte key and a 64-byte value.
pub const SYNC_BYTES: usize = 176;
/// Approximate size of a message between two nodes about one write.
pub const MESSAGE_BYTES: usize = 100;
/// Size of the file: that of a segment of the log. A sync of a small new file can wait for the file
/// system's journal, for milliseconds; a write into an existing log does not.
const FILE_BYTES: usize = 16 << 20;
const SYNCS: usize = 1000;
const ROUND_TRIPS: usize = 2000;
/// Iterations that do not count: they meet cold caches and a thread that has just started.
const WARM_UP: usize = 50;

/// Times of single syncs and round trips.
#[derive(Debug, Default)]
pub struct Machine {
    syncs: Vec<Duration>,
    round_trips: Vec<Duration>,
}

impl Machine {
    /// Adds `SYNCS` syncs and `ROUND_TRIPS` round trips; the file lies in `dir`.
    pub fn measure(&mut self, dir: &Path) -> io::Result<()> {
        syncs(&dir.join("sync"), &mut self.syncs)?;
        round_trips(&mut self.round_trips)
    }

    /// Median sync and median round trip, in milliseconds; `None` if there are none.
    pub fn medians(&self) -> Option<(f64, f64)> {
        Some((median_ms(&self.syncs)?, median_ms(&self.round_trips)?))
    }
}

fn median_ms(times: &[Duration]) -> Option<f64> {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).map(|time| time.as_secs_f64() * 1000.0)
}

/// Writes one record behind the other into a file filled with zeros, as the log does, and syncs
/// after each.
fn syncs(path: &Path, times: &mut Vec<Duration>) -> io::Result<()> {
    let count = WARM_UP + SYNCS;
    std::fs::write(path, vec![0; FILE_BYTES])?;
    let file: File = OpenOptions::new().write(true).open(path)?;
    file.sync_all()?;
    for nth in 0..count {
        let started = Instant::now();
        file.write_all_at(&[b'x'; SYNC_BYTES], (nth * SYNC_BYTES) as u64)?;
        file.sync_data()?;
        if nth >= WARM_UP {
            times.push(started.elapsed());
        }
    }
    std::fs::remove_file(path)
}

/// Sends a message over one connection to a thread that sends it back.
fn round_trips(times: &mut Vec<Duration>) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut stream = TcpStream::connect(listener.local_addr()?)?;
    stream.set_nodelay(true)?;
    let (mut other, _) = listener.accept()?;
    other.set_nodelay(true)?;
    let echo = thread::spawn(move || {
        let mut message = [0; MESSAGE_BYTES];
        while other.read_exact(&mut message).and_then(|()| other.write_all(&message)).is_ok() {}
    });
    let mut message = [b'x'; MESSAGE_BYTES];
    for nth in 0..WARM_UP + ROUND_TRIPS {
        let started = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        if nth >= WARM_UP {
            times.push(started.elapsed());
        }
    }
    drop(stream);
    echo.join().map_err(|_| io::Error::other("the echo thread panicked"))
}
