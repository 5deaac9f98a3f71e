//! `--io threads`: a pool thread that reads from one client, does what its desk asks for, and
//! writes the replies. It waits for its client, then for its outcomes, and owns nothing else.
//!
//! A client that does not read its replies stops being read (the write blocks), and is closed when
//! it has taken nothing for a while.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use crate::node::Shared;
use crate::node::clients::waiter::{Answer, Waiter};
use crate::node::clients::{FIRST_BYTE_TIMEOUT, LINGER, WRITE_TIMEOUT, admit, is_crowded, is_peer};
use crate::node::core::Request;
use crate::node::info::{WAIT_STEP, Wait};
use crate::node::peers::receiver;
use crate::service::driver::{Desk, Next};

/// Serves whoever has connected, until either side has had enough.
pub fn serve(shared: &Shared, stream: TcpStream, address: SocketAddr) {
    let stream = Arc::new(stream);
    let _registered = shared.stop.register(&stream);
    let mut stream = &*stream;
    if is_crowded(shared) {
        let _ = stream.set_read_timeout(Some(FIRST_BYTE_TIMEOUT));
    }
    let Ok(Some(is_peer)) = is_peer(|first| stream.peek(first)) else { return };
    if is_peer {
        return receiver::serve(shared, stream, address);
    }
    let Some(desk) = admit(shared, &mut stream, address) else {
        let _ = close_gently(&mut stream);
        return;
    };
    let id = desk.client.id;
    let mut driver = Driver { shared, desk, waiter: Arc::default() };
    let ready = stream.set_read_timeout(None);
    let ready = ready.and_then(|()| stream.set_write_timeout(Some(WRITE_TIMEOUT)));
    if let Err(error) = ready.and_then(|()| driver.run(&mut stream)) {
        log::debug!(target: "NodeSync", "Client {address}: {error}");
    }
    shared.clients.leave(id);
}

/// A desk with the thread that serves it.
struct Driver<'a> {
    shared: &'a Shared,
    desk: Desk,
    waiter: Arc<Waiter>,
}

impl Driver<'_> {
    fn run(&mut self, stream: &mut &TcpStream) -> io::Result<()> {
        loop {
            let len = match stream.read(self.desk.space()) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.desk.filled(len);
            let busy = self.shared.clients.busy();
            let open = self.work_off(stream)?;
            self.flush(stream)?;
            drop(busy);
            self.desk.publish();
            if !open {
                return close_gently(stream);
            }
        }
    }

    /// Does all that the bytes at hand ask for. False if the connection is to be closed.
    fn work_off(&mut self, stream: &mut &TcpStream) -> io::Result<bool> {
        loop {
            match self.desk.next(self.shared) {
                Next::Read => return Ok(true),
                Next::Close => return Ok(false),
                Next::Yield if self.shared.stop.is_set() => return Ok(false),
                Next::Yield => {}
                Next::Flush => self.flush(stream)?,
                Next::Ask(request) => self.ask(request),
                Next::Wait(wait) => {
                    let holding = self.wait(&wait);
                    self.desk.waited(holding);
                }
            }
        }
    }

    fn ask(&mut self, request: Request) {
        let Driver { shared, desk, waiter } = self;
        let deadline = Instant::now() + shared.config.request_timeout;
        let (answer, stamper) = shared.core.ask_and_wait(request, waiter, deadline);
        match answer {
            Answer::Outcomes(outcomes) => desk.wrote(shared, outcomes),
            Answer::Stamped(writes) => desk.accepted(&shared.store.put_overlay(&writes), stamper),
            Answer::MayRead => desk.may_read(shared),
            Answer::Unserved(unserved) => desk.unserved(shared, unserved),
        }
    }

    fn wait(&self, wait: &Wait) -> i64 {
        loop {
            let answer = wait.answer(self.shared);
            if answer.is_some() || self.shared.stop.wait_for(WAIT_STEP) {
                return answer.unwrap_or_else(|| wait.holding(self.shared));
            }
        }
    }

    fn flush(&mut self, stream: &mut &TcpStream) -> io::Result<()> {
        let output = self.desk.output();
        if !output.is_empty() {
            stream.write_all(output)?;
            output.clear();
        }
        Ok(())
    }
}

/// See [`LINGER`].
fn close_gently(stream: &mut &TcpStream) -> io::Result<()> {
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.set_read_timeout(Some(LINGER))?;
    let (mut rest, mut left) = ([0; 4096], 64);
    while left > 0 && matches!(stream.read(&mut rest), Ok(len) if len > 0) {
        left -= 1;
    }
    Ok(())
}
