//! Load generator for etcd, with as much gRPC as Put, Range, Txn and Status need.
//!
//! gRPC is HTTP/2 with five bytes before each message, and a status behind the answer. Messages are
//! encoded and decoded by hand: their fields are few, and etcd's `rpc.proto` fixes their numbers
//! for ever. A request is a stream of its own, so that many clients can share a connection, as in
//! etcd's own client.
//!
//! It counts as `nodesync bench` does. Latency lasts from before a request is sent until its whole
//! answer has arrived. Operations that start in the measured time count, and throughput is their
//! number divided by the time to the last of their answers. One thread runs all clients, as there.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use hdrhistogram::Histogram;
use http::{HeaderMap, Request};
use nodesync::rng::Rng;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::load::{Case, KEYS, SIZE, Sample, Span};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// Puts in one transaction: etcd's own limit.
const PUTS_OF_TXN: usize = 128;
/// Transactions in flight while keys are written before the load.
const TXNS: usize = 8;
/// Time limit of an answer; only a dead server takes longer.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes that may arrive before the server waits for an acknowledgement.
const WINDOW: u32 = 1 << 20;

/// True if the node leads.
pub fn leads(port: u16) -> Result<bool, String> {
    block_on(async move {
        let status = connect(port).await?.call(STATUS, &[]).await?;
        // StatusResponse: header = 1 with member_id = 2; leader = 4.
        let own = message(&status, 1).and_then(|header| number(header, 2));
        let leader = number(&status, 4).filter(|leader| *leader != 0);
        Ok(own.is_some() && own == leader)
    })
}

/// Writes every key once.
pub fn preload(port: u16) -> Result<(), String> {
    block_on(async move {
        let connection = connect(port).await?;
        let mut tasks = JoinSet::new();
        for nth in 0..TXNS {
            let mut connection = connection.clone();
            tasks.spawn(async move {
                let starts = (0..KEYS).step_by(PUTS_OF_TXN).skip(nth).step_by(TXNS);
                for start in starts {
                    let end = KEYS.min(start + PUTS_OF_TXN as u64);
                    connection.call(TXN, &txn(start..end)).await?;
                }
                Ok::<(), String>(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(|error| error.to_string())??;
        }
        Ok(())
    })
}

/// Runs a case; the first error ends it.
pub fn measure(port: u16, case: Case, span: Span) -> Result<Sample, String> {
    block_on(async move {
        let mut connections = Vec::new();
        for _ in 0..case.connections {
            connections.push(connect(port).await?);
        }
        let starts = Instant::now() + span.warm_up;
        let ends = starts + span.measured;
        let mut tasks = JoinSet::new();
        for nth in 0..case.clients {
            let connection = connections[nth % connections.len()].clone();
            let rng = Rng::new(nth as u64);
            tasks.spawn(client(connection, rng, case.get, starts, ends));
        }
        let (mut latencies, mut last) = (histogram(), starts);
        while let Some(done) = tasks.join_next().await {
            let (own, own_last) = done.map_err(|error| error.to_string())??;
            latencies.add(own).map_err(|error| error.to_string())?;
            last = last.max(own_last);
        }
        let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e6;
        let per_second = latencies.len() as f64 / (last - starts).as_secs_f64();
        Ok(Sample { per_second, p50: at(0.5), p99: at(0.99) })
    })
}

/// Latencies in nanoseconds, and the time of the last answer.
type Counted = (Histogram<u64>, Instant);

/// Runs one client, one request after the other.
async fn client(
    mut connection: Connection,
    mut rng: Rng,
    get: bool,
    starts: Instant,
    ends: Instant,
) -> Result<Counted, String> {
    let (mut latencies, mut last) = (histogram(), starts);
    loop {
        let key = key(rng.below(KEYS));
        let started = Instant::now();
        if started >= ends {
            return Ok((latencies, last));
        }
        let (path, request) = if get { (RANGE, range(&key)) } else { (PUT, put(&key)) };
        let answer = connection.call(path, &request).await?;
        // RangeResponse: kvs = 2.
        if get && message(&answer, 2).is_none() {
            return Err("a key that was written is not there".into());
        }
        if started >= starts {
            last = Instant::now();
            latencies.saturating_record((last - started).as_nanos() as u64);
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LIMIT.as_nanos() as u64, 3).expect("the limits are in order")
}

fn block_on<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(work)
}

/// Connection, or a share of one.
#[derive(Clone)]
struct Connection {
    streams: SendRequest<Bytes>,
    address: String,
}

async fn connect(port: u16) -> Result<Connection, String> {
    let address = format!("127.0.0.1:{port}");
    let tcp = TcpStream::connect(&address).await.map_err(|error| format!("{address}: {error}"))?;
    tcp.set_nodelay(true).map_err(|error| error.to_string())?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let hello = timeout(LIMIT, builder.handshake(tcp)).await.map_err(|_| "no HTTP/2")?;
    let (streams, connection) = hello.map_err(|error| error.to_string())?;
    // This task moves the bytes of all streams. Each stream reports an error of the connection
    // itself.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(Connection { streams, address })
}

impl Connection {
    /// Sends one request, and returns its answer.
    async fn call(&mut self, path: &str, request: &[u8]) -> Result<Bytes, String> {
        match timeout(LIMIT, self.exchange(path, request)).await {
            Ok(Ok(answer)) => answer.map_err(|text| format!("{path}: {text}")),
            Ok(Err(error)) => Err(format!("{path}: {error}")),
            Err(_) => Err(format!("{path}: no answer within {LIMIT:?}")),
        }
    }

    /// Exchanges a request for an answer. The outer error is HTTP/2's, the inner one gRPC's.
    async fn exchange(
        &mut self,
        path: &str,
        request: &[u8],
    ) -> Result<Result<Bytes, String>, h2::Error> {
        let head = Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("an address and a path make a URI");
        let mut streams = self.streams.clone().ready().await?;
        let (response, mut body) = streams.send_request(head, false)?;
        body.send_data(framed(request), true)?;
        let response = response.await?;
        if response.status() != 200 {
            return Ok(Err(format!("HTTP status {}", response.status())));
        }
        let (head, mut body) = response.into_parts();
        let mut answer = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            answer.put(chunk);
        }
        let trailers = body.trailers().await?.unwrap_or(head.headers);
        Ok(status(&trailers).and_then(|()| unframed(answer.freeze())))
    }
}

fn status(trailers: &HeaderMap) -> Result<(), String> {
    let text = |name| trailers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        Some("0") => Ok(()),
        code => Err(format!("gRPC status {code:?}, {:?}", text("grpc-message"))),
    }
}

/// Puts five bytes before a message: not compressed, and its length.
fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.len());
    out.put_u8(0);
    out.put_u32(message.len() as u32);
    out.put_slice(message);
    out.freeze()
}

fn unframed(answer: Bytes) -> Result<Bytes, String> {
    let length = match *answer {
        [0, a, b, c, d, ..] => u32::from_be_bytes([a, b, c, d]) as usize,
        _ => return Err("an answer without its five bytes".into()),
    };
    if answer.len() != 5 + length {
        return Err(format!("{} bytes that say they are {length}", answer.len()));
    }
    Ok(answer.slice(5..))
}

/// Key with this number, as `nodesync bench` names it.
fn key(number: u64) -> Vec<u8> {
    format!("key:{number:012}").into_bytes()
}

/// Encodes a PutRequest: key = 1, value = 2.
fn put(key: &[u8]) -> Vec<u8> {
    let mut request = Vec::with_capacity(key.len() + SIZE + 8);
    put_bytes(1, key, &mut request);
    put_bytes(2, &[b'x'; SIZE], &mut request);
    request
}

/// Encodes a RangeRequest: key = 1. The read is linearizable, as serializable = 7 is not set.
fn range(key: &[u8]) -> Vec<u8> {
    let mut request = Vec::with_capacity(key.len() + 2);
    put_bytes(1, key, &mut request);
    request
}

/// Encodes a TxnRequest: success = 2, a list of RequestOp: request_put = 2.
fn txn(keys: std::ops::Range<u64>) -> Vec<u8> {
    let mut request = Vec::new();
    for number in keys {
        let mut operation = Vec::new();
        put_bytes(2, &put(&key(number)), &mut operation);
        put_bytes(2, &operation, &mut request);
    }
    request
}

fn put_bytes(field: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(field << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
}

/// Value of a field.
#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn message(bytes: &[u8], field: u64) -> Option<&[u8]> {
    match find(bytes, field)? {
        Value::Bytes(bytes) => Some(bytes),
        Value::Number(_) => None,
    }
}

fn number(bytes: &[u8], field: u64) -> Option<u64> {
    match find(bytes, field)? {
        Value::Number(number) => Some(number),
        Value::Bytes(_) => None,
    }
}

/// First field with this number; `None` also if the message is malformed.
fn find(mut bytes: &[u8], field: u64) -> Option<Value<'_>> {
    loop {
        let tag = varint(&mut bytes)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            2 => Value::Bytes(varint(&mut bytes).and_then(|len| take(&mut bytes, len))?),
            1 => Value::Bytes(take(&mut bytes, 8)?),
            5 => Value::Bytes(take(&mut bytes, 4)?),
            _ => return None,
        };
        if tag >> 3 == field {
            return Some(value);
        }
    }
}

fn take<'a>(bytes: &mut &'a [u8], count: u64) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(count).ok()?)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
