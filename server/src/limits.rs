//! The server's limits and habits, as every reactor keeps them.

use std::time::Duration;

use zeoring_shared::wire::Codec;

/// What no peer may exceed, and how the server treats them all.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The codec that is announced; the client's answer decides.
    pub codec: Codec,
    /// Whether all registrations are read-only.
    pub read_only: bool,
    /// How long a voted transaction may hold its locks.
    pub transaction_timeout: Option<Duration>,
    /// How old a client's last transaction may be for the data file to be searched for what
    /// happened since.
    pub invalidation_age: Option<Duration>,
    /// Connections at once, on all reactors.
    pub connections_max: usize,
    /// Bytes of a message, after registration.
    pub frame_max: u32,
    /// How long a peer may take to shake hands and register.
    pub handshake_timeout: Duration,
    /// How long a peer may take over one message, or not read what it is sent.
    pub progress_timeout: Duration,
    /// Bytes that may wait for a peer to read them; with more the connection is closed.
    pub output_max: usize,
    /// Bytes of one transaction, its list of operations included.
    pub transaction_max: u64,
}

impl Limits {
    /// Bytes that wait for a peer, from which on its requests wait, too.
    pub const OUTPUT_PAUSE: usize = 1024 * 1024;

    /// Bytes of an unfinished message that count as progress: with fewer, a peer's time runs on.
    pub const PROGRESS_LEAST: usize = 64 * 1024;

    /// How far in the future a tid may be that a client brings.
    pub const TID_AHEAD_MAX: Duration = Duration::from_secs(3600);

    /// Calls of one connection that may be under way; more wait in the socket.
    pub const CALLS_MAX: usize = 1024;
}
