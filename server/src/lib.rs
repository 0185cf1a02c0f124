//! zeoring-server: ZEO's server on io_uring, as a library for the binary and for tests.
//!
//! [`server::Server`] starts and stops it; `ARCHITECTURE.md` tells the rest.
#![forbid(unsafe_code)]

pub mod address;
pub mod commit;
pub mod config;
pub mod log;
pub mod pid;
pub mod signals;
pub mod storage;
