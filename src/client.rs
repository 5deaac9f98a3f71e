//! A small blocking client of one node: RESP over one connection, one reply for each request.
