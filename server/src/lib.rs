//! zeoring-server: ZEO's server on io_uring, as a library for the binary and for tests.
//!
//! [`server::Server`] starts and stops it; `ARCHITECTURE.md` tells the rest.
#![forbid(unsafe_code)]

pub mod address;
pub mod clerk;
pub mod commit;
pub mod config;
pub mod connection;
pub mod limits;
pub mod log;
pub mod note;
pub mod packing;
pub mod pid;
pub mod reactor;
pub mod reader;
pub mod server;
pub mod service;
pub mod session;
pub mod signals;
pub mod storage;
