//! The async twin: a front end on tokio's multi-threaded runtime, over the same node as the other
//! two. One task serves each connection. The session, the store and the core are the node's own
//! ([`ExternalClient`]), so only the way to wait for bytes and answers differs.
//!
//! It is meant to be as good as the runtime allows: as many workers as cores, no Nagle delay, one
//! buffer for each direction that is read into and written from in place, no channel and no
//! allocation for an answer, a task that is woken only if it waits, and a timer that is set once
//! for many requests.
//!
//! Left out: an orderly end. The bench kills the process.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use clap::Parser;
use nodesync::config::{Config, NodeArgs};
use nodesync::node::{ExternalClient, ExternalNext, Node, Stop};
use nodesync::service::{Answer, Inbox, Ticket};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Sleep, sleep_until};

const BACKLOG: u32 = 1024;

/// Runs a node with these arguments; the twin serves it on a port of its own.
pub fn run(port: u16, words: &[String]) -> Result<(), String> {
    let words = std::iter::once("nodesync").chain(words.iter().map(String::as_str));
    let args = NodeArgs::try_parse_from(words).map_err(|error| error.to_string())?;
    let config = Config::new(args)?;
    let node = Node::start(config, Arc::new(Stop::default())).map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(accept(port, &node)).map_err(|error| error.to_string())
}

async fn accept(port: u16, node: &Node) -> io::Result<()> {
    let listener = listen(port)?;
    loop {
        let (stream, address) = listener.accept().await?;
        stream.set_nodelay(true)?;
        if let Some(external_client) = node.external_client(address) {
            let connection = Connection { stream, external_client, inbox: Arc::default() };
            // A client that disconnects in the middle of a request is no error.
            tokio::spawn(async { connection.run().await.unwrap_or_default() });
        }
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], port)))?;
    socket.listen(BACKLOG)
}

/// Connection of one client.
struct Connection {
    stream: TcpStream,
    external_client: ExternalClient,
    inbox: Arc<TaskInbox>,
}

impl Connection {
    async fn run(self) -> io::Result<()> {
        let Connection { mut stream, mut external_client, inbox } = self;
        let core_inbox: Arc<dyn Inbox> = Arc::<TaskInbox>::clone(&inbox);
        let mut timer = Timer::new();
        loop {
            let step = external_client.step(&core_inbox);
            if let ExternalNext::Answer(deadline) = step {
                let (ticket, answer) = match inbox.wait(deadline, &mut timer).await {
                    Some(answered) => answered,
                    None if external_client.cancel() => continue,
                    None => inbox.wait_without_end().await,
                };
                external_client.answered(ticket, answer);
                continue;
            }
            if !external_client.output().is_empty() {
                stream.write_all(external_client.output()).await?;
                external_client.output().clear();
            }
            match step {
                ExternalNext::Close => return stream.shutdown().await,
                ExternalNext::Read => match stream.read(external_client.space()).await? {
                    0 => return Ok(()),
                    len => external_client.filled(len),
                },
                ExternalNext::Flush | ExternalNext::Answer(_) => {}
            }
        }
    }
}

/// Inbox of one task.
#[derive(Default)]
struct TaskInbox(Mutex<InboxState>);

#[derive(Default)]
struct InboxState {
    answer: Option<(Ticket, Answer)>,
    /// Waker of the task, if it sleeps.
    sleeper: Option<Waker>,
}

impl Inbox for TaskInbox {
    fn put(&self, ticket: Ticket, answer: Answer) -> bool {
        let mut state = self.0.lock();
        state.answer = Some((ticket, answer));
        state.sleeper.is_some()
    }

    fn wake(&self) {
        let sleeper = self.0.lock().sleeper.take();
        if let Some(task) = sleeper {
            task.wake();
        }
    }
}

impl TaskInbox {
    /// Waits for the answer until `deadline`.
    async fn wait(&self, deadline: Instant, timer: &mut Timer) -> Option<(Ticket, Answer)> {
        poll_fn(|context| match self.poll(context) {
            Poll::Ready(answered) => Poll::Ready(Some(answered)),
            Poll::Pending => timer.poll(context, deadline).map(|()| None),
        })
        .await
    }

    /// Waits for an answer that is certain to come.
    async fn wait_without_end(&self) -> (Ticket, Answer) {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&self, context: &Context<'_>) -> Poll<(Ticket, Answer)> {
        let mut state = self.0.lock();
        if let Some(answered) = state.answer.take() {
            state.sleeper = None;
            return Poll::Ready(answered);
        }
        let task = context.waker();
        match &mut state.sleeper {
            Some(known) => known.clone_from(task),
            none => *none = Some(task.clone()),
        }
        Poll::Pending
    }
}

/// Timer for all requests of a connection. It is not reset for each of them: when it fires, it
/// compares the time with the deadline of the current request.
struct Timer(Pin<Box<Sleep>>);

impl Timer {
    /// Timer that fires at its first poll.
    fn new() -> Timer {
        Timer(Box::pin(sleep_until(Instant::now().into())))
    }

    /// Ready once `deadline` has passed. A deadline is never earlier than the one before it.
    fn poll(&mut self, context: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        while self.0.as_mut().poll(context).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(deadline.into());
        }
        Poll::Pending
    }
}
