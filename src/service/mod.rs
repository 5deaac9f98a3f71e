//! Between session and replica.

pub mod driver;
pub mod rounds;
