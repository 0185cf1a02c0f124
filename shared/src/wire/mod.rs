//! ZEO's protocol, version 5: bytes to typed messages and back, for both ends. Does no I/O.
//!
//! ```text
//!   frame      | length u32 | body |
//!   body       (id, flag, name, arguments)          as msgpack (M5) or as a pickle (Z5)
//!   flag       0: a call that wants a reply, or a reply   1: a call that wants none   2: an error
//! ```
//!
//! Every length is checked against the bytes that are there, nothing is reserved for a length that
//! was only told, and a pickle can make data only: no name in it is ever imported.

pub mod error;
pub mod frame;
pub mod handshake;
pub mod id;
pub mod msgpack;
pub mod pickle;
pub mod refusal;
pub mod reply;
pub mod request;
pub mod value;

pub use error::WireError;
pub use id::MessageId;

/// How messages are encoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Codec {
    /// Pickles of protocol 3 (`Z5`).
    Pickle,
    /// MessagePack (`M5`).
    Msgpack,
}

/// The longest message of a registered peer, in bytes, if nothing else is configured.
pub const FRAME_MAX: u32 = 256 * 1024 * 1024;

/// The longest message before registration, in bytes: greetings are short.
pub const FRAME_BEFORE_REGISTER_MAX: u32 = 64 * 1024;

/// How deep values may be nested in each other.
pub const DEPTH_MAX: usize = 16;

/// How many values one message may have: it bounds the memory that a small message can ask for.
pub const NODES_MAX: usize = 65_536;
