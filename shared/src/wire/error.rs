//! What is wrong with bytes that a peer has sent. Any of these ends the connection.

/// The peer's bytes are no message of ZEO's protocol.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WireError {
    /// A message is announced that is longer than the peer may send now.
    #[error("the peer announced a message of {length} bytes; {body_max} are allowed")]
    FrameTooLong {
        /// What was announced.
        length: u32,
        /// What is allowed.
        body_max: u32,
    },
    /// A message without a body.
    #[error("the peer sent an empty message")]
    EmptyFrame,
    /// The first message is not the name of a protocol that we speak.
    #[error("bad handshake: the peer speaks neither Z5 nor M5")]
    Handshake,
    /// The message ends within a value.
    #[error("the peer's message ends within {0}")]
    Truncated(&'static str),
    /// Bytes follow the message within its frame.
    #[error("the peer's message is followed by {0} more bytes in its frame")]
    Trailing(usize),
    /// The peer uses something that no ZEO message needs.
    #[error("the peer's message has {0}, which no message of ZEO has")]
    Forbidden(&'static str),
    /// A pickle names something that is not data.
    #[error("the peer's pickle names {0:?}; nothing is imported")]
    Global(String),
    /// A value breaks its own encoding.
    #[error("the peer's message is malformed: {0}")]
    Malformed(&'static str),
    /// More nesting, more values or more memo entries than any message of ZEO has.
    #[error("the peer's message exceeds {0}")]
    Limit(&'static str),
    /// A method that no ZEO server has.
    #[error("the peer called the unknown method {0:?}")]
    UnknownMethod(String),
    /// A method was called with other arguments than it takes.
    #[error("the peer called {method} with a wrong {argument}")]
    Argument {
        /// Which method.
        method: &'static str,
        /// What is wrong.
        argument: &'static str,
    },
}
