//! Ports for the servers that a tool starts: the nodes of a temporary cluster, and the systems that
//! the benches compare them with.

use std::io;

use socket2::{Domain, Socket, Type};

/// A reserved port of 127.0.0.1: bound, not listening. The system gives the port to no other
/// socket, but a server that reuses addresses (SO_REUSEADDR), as ours does, can bind it and listen.
#[derive(Debug)]
pub struct Port {
    /// The number of the port.
    pub number: u16,
    _hold: Socket,
}

impl Port {
    /// Reserves `count` ports, in ascending order.
    ///
    /// # Errors
    /// If the system has no free port.
    pub fn reserve(count: usize) -> io::Result<Vec<Port>> {
        let mut ports = (0..count).map(|_| Port::take()).collect::<io::Result<Vec<Port>>>()?;
        ports.sort_by_key(|port| port.number);
        Ok(ports)
    }

    fn take() -> io::Result<Port> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        let any: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
        socket.bind(&any.into())?;
        let address = socket.local_addr()?.as_socket();
        let number = address.map(|address| address.port());
        number
            .map(|number| Port { number, _hold: socket })
            .ok_or_else(|| io::Error::other("a socket without a port"))
    }
}
