//! What one thread may tell another.
//!
//! The variants of [`Note`] are all that a reactor is ever told by others; what reactors tell the
//! commit thread and the clerks stands beside those threads.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::ring::{Full, Mailbox};
use zeoring_shared::uring::Token;
use zeoring_shared::wire::MessageId;
use zeoring_shared::wire::reply::ErrorReply;
use zeoring_shared::wire::value::Value;

use crate::commit::draft::Draft;
use crate::session::query::Iterators;
use crate::storage::{Checked, StorageError, View};

/// Commits that may wait in a reactor's inbox: with that many, commit threads wait.
const COMMITS_IN_INBOX_MAX: usize = 1024;

/// Places in a reactor's inbox.
///
/// A connection may be told at once that it is accepted, that its locks are granted or its
/// transaction checked, how its commit went, and the answer to its question; reads by clerks have
/// their own bound; storages are at most as many as the slack for commits that came at once, and
/// for packs that end, of which each has one under way.
pub fn inbox_slots(connections_max: usize, reads_max: usize) -> usize {
    const STORAGES_MAX: usize = 256;
    4 * connections_max + reads_max + COMMITS_IN_INBOX_MAX + 2 * STORAGES_MAX
}

/// Which connection: its reactor, its place there, and which tenant of that place.
///
/// ```text
///   | reactor 8 bits | generation 32 bits | slot 24 bits |
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ConnectionId(pub u64);

/// Which transaction: the connection it came over, and which of that connection's.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Ticket {
    /// Where it came from, and where the outcome goes.
    pub connection: ConnectionId,
    /// Counts the connection's transactions.
    pub number: u32,
}

/// What a reactor may be told.
#[derive(Debug)]
pub enum Note {
    /// A connection was accepted, and is this reactor's.
    Accepted {
        /// The socket.
        socket: OwnedFd,
        /// Where it comes from.
        peer: Peer,
    },
    /// A transaction is durable and published.
    Committed(Arc<Committed>),
    /// A transaction that waited has its objects locked.
    Granted(Ticket),
    /// A transaction could not be written.
    CommitFailed {
        /// Which.
        ticket: Ticket,
        /// What its client is told.
        error: ErrorReply,
    },
    /// A clerk has found what undoing would write.
    FoundUndoOids {
        /// Which transaction asked.
        ticket: Ticket,
        /// The objects to lock.
        oids: Result<Vec<Oid>, StorageError>,
    },
    /// A clerk has checked a transaction.
    Checked {
        /// Which.
        ticket: Ticket,
        /// What the client had sent.
        draft: Box<Draft>,
        /// What is to be written, or why not.
        outcome: Result<Checked, StorageError>,
    },
    /// A clerk has answered a question.
    Answered {
        /// Whose question it was.
        connection: ConnectionId,
        /// Which of its calls; `None` if it expects no reply.
        id: Option<MessageId>,
        /// The answer.
        outcome: Result<Value<'static>, ErrorReply>,
        /// The connection's iterators, which the clerk had.
        iterators: Box<Iterators>,
    },
    /// A clerk has read what the ring could not.
    WasRead {
        /// The reader's token.
        token: Token,
        /// The bytes: fewer than wanted at the end of the file.
        bytes: std::io::Result<Vec<u8>>,
    },
    /// A packed file is in place. Told between two commits: all later ones are in the view.
    Succeeded {
        /// Of which storage, by its place in the configuration.
        storage: usize,
        /// What loads are to be answered from.
        view: Arc<dyn View>,
    },
    /// A pack has ended, well or not.
    Packed(Arc<Packed>),
    /// The server stops: close every connection and end.
    Stop,
}

/// A transaction that everybody may know of.
#[derive(Debug)]
pub struct Committed {
    /// Which storage, by its place in the configuration.
    pub storage: usize,
    /// The transaction.
    pub tid: Tid,
    /// Every object that it wrote, each once.
    pub oids: Vec<Oid>,
    /// Who committed it.
    pub ticket: Ticket,
    /// Objects in the storage after it.
    pub object_count: u64,
    /// Size of the storage after it, in bytes.
    pub size: u64,
}

/// The end of a pack.
#[derive(Debug)]
pub struct Packed {
    /// Of which storage, by its place in the configuration.
    pub storage: usize,
    /// Who waits for it, and the id of the call.
    pub asker: Option<(ConnectionId, MessageId)>,
    /// Objects and bytes in the storage after it; or what its client is told.
    pub outcome: Result<(u64, u64), ErrorReply>,
}

/// The other end of a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Peer {
    /// A TCP address.
    Tcp(SocketAddr),
    /// Someone on this machine.
    Unix,
}

/// The inboxes of all reactors.
#[derive(Clone, Debug)]
pub struct Post(Arc<Vec<Mailbox<Note>>>);

impl ConnectionId {
    const SLOT_BITS: u32 = 24;
    const GENERATION_BITS: u32 = 32;

    /// Connections that one reactor can tell apart.
    pub const SLOTS_MAX: usize = 1 << Self::SLOT_BITS;

    /// Puts the three parts together.
    pub fn new(reactor: usize, generation: u32, slot: usize) -> Self {
        assert!(reactor < 256 && slot < Self::SLOTS_MAX, "limits are checked before");
        let (reactor, slot) = (reactor as u64, slot as u64);
        Self((reactor << Self::GENERATION_BITS | u64::from(generation)) << Self::SLOT_BITS | slot)
    }

    /// Which reactor the connection belongs to.
    pub fn reactor(self) -> usize {
        (self.0 >> (Self::GENERATION_BITS + Self::SLOT_BITS)) as usize
    }

    /// Its place there.
    pub fn slot(self) -> usize {
        self.0 as usize & (Self::SLOTS_MAX - 1)
    }
}

impl Post {
    /// The inboxes, in the order of the reactors.
    pub fn new(inboxes: Vec<Mailbox<Note>>) -> Self {
        Self(Arc::new(inboxes))
    }

    /// How many reactors there are.
    pub fn reactor_count(&self) -> usize {
        self.0.len()
    }

    /// The inbox of one reactor.
    pub fn inbox(&self, reactor: usize) -> &Mailbox<Note> {
        &self.0[reactor]
    }

    /// Tells a reactor something. There is room for all that can be under way at once.
    pub fn tell(&self, reactor: usize, mut note: Note) {
        while let Err(Full(back)) = self.0[reactor].leave(note) {
            debug_assert!(false, "an inbox has a place for everything that is under way");
            note = back;
            std::thread::yield_now();
        }
    }

    /// Tells a reactor of a commit, or of what lies between two commits, after waiting until its
    /// inbox has room for one.
    ///
    /// Only commit threads wait here, and no reactor waits for them: commits may be many, and must
    /// not take the places of what [`Post::tell`] brings.
    pub fn tell_in_turn(&self, reactor: usize, note: Note) {
        while COMMITS_IN_INBOX_MAX <= self.0[reactor].len() {
            std::thread::yield_now();
        }
        self.tell(reactor, note);
    }
}

impl std::fmt::Display for Peer {
    /// As ZEO's log has it: `host:port`, or nothing for a Unix socket.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(SocketAddr::V4(address)) => write!(f, "{address}"),
            Self::Tcp(SocketAddr::V6(address)) => write!(f, "{}:{}", address.ip(), address.port()),
            Self::Unix => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_id_gives_its_parts_back() {
        for (reactor, generation, slot) in [(0, 0, 0), (255, u32::MAX, (1 << 24) - 1), (3, 7, 11)] {
            let id = ConnectionId::new(reactor, generation, slot);
            assert_eq!((id.reactor(), id.slot()), (reactor, slot));
        }
    }
}
