//! `--io threads`: a pool thread that reads from one client, follows its driver, and writes the
//! replies. It waits for its client, then for the answer to its request, and for nothing else.
//!
//! A client that does not read its replies is not read from either, because the write blocks. It is
//! closed when it has taken no byte for [`WRITE_TIMEOUT`].

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use super::connection::{FIRST_BYTE_TIMEOUT, LINGER, WRITE_TIMEOUT, admit, is_crowded, is_peer};
use super::registry::ConnectedClient;
use super::view::ClientView;
use super::waiter::Waiter;
use crate::node::peers::receiver;
use crate::node::shared::Shared;
use crate::service::{Next, NodeView, Request, SessionDriver, WAIT_STEP, Wait};

/// The bound on reads from a closing connection.
const LINGER_READS: u32 = 64;

/// Serves a client or a peer until either side ends the connection.
pub fn serve(shared: &Shared, stream: TcpStream, address: SocketAddr) {
    let stream = Arc::new(stream);
    // So that a stop frees this thread from a read or a write.
    let _registered = shared.stop.register(&stream);
    let mut stream = &*stream;
    if is_crowded(shared) {
        let _ = stream.set_read_timeout(Some(FIRST_BYTE_TIMEOUT));
    }
    let Ok(Some(is_peer)) = is_peer(|first| stream.peek(first)) else { return };
    if is_peer {
        return receiver::serve(shared, stream, address);
    }
    let Some((client, driver)) = admit(shared, &mut stream, address) else {
        let _ = close_gently(&mut stream);
        return;
    };
    let mut thread = ClientThread { shared, client: &client, driver, waiter: Arc::default() };
    let ready = stream.set_read_timeout(None);
    let ready = ready.and_then(|()| stream.set_write_timeout(Some(WRITE_TIMEOUT)));
    if let Err(error) = ready.and_then(|()| thread.run(&mut stream)) {
        log::debug!(target: "NodeSync", "Client {address}: {error}");
    }
    shared.clients.leave(client.id);
}

/// A client with the thread that serves it.
struct ClientThread<'a> {
    shared: &'a Shared,
    client: &'a ConnectedClient,
    driver: SessionDriver,
    waiter: Arc<Waiter>,
}

impl ClientThread<'_> {
    fn run(&mut self, stream: &mut &TcpStream) -> io::Result<()> {
        loop {
            let len = match stream.read(self.driver.space()) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.driver.filled(len);
            // A stop waits for busy clients, until their replies are written.
            let busy = self.shared.clients.busy();
            let is_open = self.execute(stream)?;
            self.flush(stream)?;
            drop(busy);
            self.client.publish(self.driver.profile());
            if !is_open {
                return close_gently(stream);
            }
        }
    }

    /// Executes all commands that have arrived. False if the connection is to be closed.
    fn execute(&mut self, stream: &mut &TcpStream) -> io::Result<bool> {
        let view = ClientView { shared: self.shared, client: self.client };
        loop {
            match self.driver.next(&view) {
                Next::Read => return Ok(true),
                Next::Close => return Ok(false),
                // Other clients have threads of their own, so there is no need to yield. But a stop
                // must not wait for a client that goes on for ever.
                Next::Yield if self.shared.stop.is_set() => return Ok(false),
                Next::Yield => {}
                Next::Flush => self.flush(stream)?,
                // The same for a pipeline that goes on asking: its answers are no longer certain.
                Next::Ask(_) if self.shared.stop.is_set() => return Ok(false),
                Next::Ask(request) => self.ask(&view, request),
                Next::Wait(wait) => {
                    let holding = self.wait(&view, &wait);
                    self.driver.finish_wait(holding);
                }
            }
        }
    }

    fn ask(&mut self, view: &ClientView<'_>, request: Request) {
        let deadline = view.now() + self.shared.config.request_timeout;
        let mut answer = self.shared.core.ask_and_wait(request, &self.waiter, deadline);
        self.driver.complete(view, answer.as_share());
    }

    fn wait(&self, view: &ClientView<'_>, wait: &Wait) -> i64 {
        loop {
            let status = view.status();
            let result = wait.result(view.now(), &status);
            // A stop ends WAIT early, with the number of nodes known so far.
            if result.is_some() || self.shared.stop.wait_for(WAIT_STEP) {
                return result.unwrap_or_else(|| wait.holding(&status));
            }
        }
    }

    fn flush(&mut self, stream: &mut &TcpStream) -> io::Result<()> {
        let output = self.driver.output();
        if !output.is_empty() {
            stream.write_all(output)?;
            output.clear();
        }
        Ok(())
    }
}

/// Closes so that the client can still read its last replies, see [`LINGER`].
fn close_gently(stream: &mut &TcpStream) -> io::Result<()> {
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.set_read_timeout(Some(LINGER))?;
    let (mut rest, mut left) = ([0; 4096], LINGER_READS);
    while left > 0 && matches!(stream.read(&mut rest), Ok(len) if len > 0) {
        left -= 1;
    }
    Ok(())
}
