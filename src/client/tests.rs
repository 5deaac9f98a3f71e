//! The client against servers that send the bytes of a test.

use std::net::TcpListener;

use super::*;

/// A client of a server that reads once, sends these bytes, and closes.
fn client_of(answer: &'static [u8], options: &Options) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        // In two pieces, so that every reply is cut.
        let (first, second) = answer.split_at(answer.len() / 2);
        let _ = stream.write_all(first).and_then(|()| stream.write_all(second));
    });
    Client::connect(&address, options).unwrap()
}

fn call(answer: &'static [u8]) -> Result<Reply, Error> {
    client_of(answer, &Options::default()).call(&["PING"])
}

#[test]
fn replies_of_both_versions_are_understood() {
    let cases: [(&[u8], Reply); 12] = [
        (b"+OK\r\n", Reply::Simple("OK".into())),
        (b"-ERR no\r\n", Reply::Error("ERR no".into())),
        (b":-7\r\n", Reply::Integer(-7)),
        (b"$3\r\na\nb\r\n", Reply::Bulk(b"a\nb".into())),
        (b"$-1\r\n", Reply::Nil),
        (b"_\r\n", Reply::Nil),
        (b"*2\r\n:1\r\n*0\r\n", Reply::Array(vec![Reply::Integer(1), Reply::Array(vec![])])),
        (b"%1\r\n+k\r\n#t\r\n", {
            Reply::Map(vec![(Reply::Simple("k".into()), Reply::Boolean(true))])
        }),
        (b"~1\r\n,1.5\r\n", Reply::Array(vec![Reply::Double(1.5)])),
        (b"=7\r\ntxt:abc\r\n", Reply::Bulk(b"abc".into())),
        (b"!5\r\nERR x\r\n", Reply::Error("ERR x".into())),
        (b"(123\r\n", Reply::BigNumber("123".into())),
    ];
    for (bytes, reply) in cases {
        assert_eq!(call(bytes).unwrap(), reply, "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn malformed_replies_and_absurd_lengths_are_lost_replies() {
    let cases: [&[u8]; 9] = [
        b"",
        b"?\r\n",
        b"\r\n",
        b":x\r\n",
        b"$99999999999999\r\n",
        b"$-2\r\n",
        b"*99999999999999\r\n",
        b"%9223372036854775807\r\n",
        b"$1\r\nabc\r\n",
    ];
    for bytes in cases {
        assert!(matches!(call(bytes), Err(Error::Lost(_))), "{bytes:?}");
    }
    let deep: &[u8] = b"*1\r\n".repeat(100).leak();
    assert!(matches!(call(deep), Err(Error::Lost(error)) if error.to_string().contains("deep")));
}

#[test]
fn unsent_requests_and_lost_replies_are_distinguished() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let refused = Client::connect(&closed, &Options::default());
    assert!(matches!(refused, Err(Error::NotSent(_))), "{refused:?}");
    let mut client = client_of(b"+OK\r\n", &Options::default());
    assert!(client.call(&["SET", "k", "v"]).unwrap().is_ok());
    let end = client.receive();
    assert!(matches!(end, Err(Error::Lost(_))), "{end:?}");
    let after = client.call(&["GET", "k"]);
    assert!(matches!(after, Err(Error::NotSent(_))), "{after:?}");
}

#[test]
fn a_silent_node_costs_no_more_than_the_time_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let timeout = Duration::from_millis(50);
    let options = Options { timeout, ..Options::default() };
    let lost = Client::connect(&address, &options).unwrap().call(&["PING"]);
    assert!(matches!(lost, Err(Error::Lost(e)) if e.kind() == ErrorKind::TimedOut));
}

#[test]
fn a_refused_password_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"-WRONGPASS no\r\n");
    });
    let options = Options { password: Some("x".into()), ..Options::default() };
    let refused = Client::connect(&address, &options);
    assert!(matches!(refused, Err(Error::Refused(text)) if text == "WRONGPASS no"));
}
