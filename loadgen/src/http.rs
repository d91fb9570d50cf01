//! HTTP/1.x as a client speaks it: request bytes out, responses in. No I/O.

mod request;
mod response;

pub use request::{RequestError, RequestSpec, Target};
pub use response::{BadResponse, Eof, MAX_HEAD, Parser};
