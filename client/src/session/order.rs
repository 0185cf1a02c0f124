//! What a caller hands to a connection: bytes that are already encoded, and a question.

use std::fmt;

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::request::{Call, Request, TransactionId, encode_call};
use zeoring_shared::wire::{Codec, MessageId};

use crate::blob::Receiving;

/// Names one connection among all that a client has had. What was begun on one cannot go on on
/// another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Epoch(pub u32);

/// Something for a connection to send.
#[derive(Debug)]
pub struct Order {
    /// The connection that this belongs to; `None` for any.
    pub epoch: Option<Epoch>,
    /// Frames of calls without an answer, which leave before the question.
    pub frames: Vec<u8>,
    /// What is asked.
    pub question: Question,
}

/// What a caller wants to know.
#[derive(Debug)]
pub enum Question {
    /// Nothing: the frames are all.
    Nothing,
    /// One object.
    Load {
        /// The object.
        oid: Oid,
        /// Its newest revision older than this.
        before: Tid,
    },
    /// Many objects as of one moment.
    Loads {
        /// The objects.
        oids: Vec<Oid>,
        /// Their newest revisions older than this.
        before: Tid,
    },
    /// The commit of a transaction that was voted.
    Finish(Box<Finish>),
    /// A blob's file.
    Blob {
        /// The object.
        oid: Oid,
        /// The blob's revision.
        serial: Tid,
        /// Where its bytes go.
        into: Receiving,
    },
    /// The answer to any other call.
    Call(Request<'static>),
}

/// The end of a transaction, and what the caches make of it.
pub struct Finish {
    /// The transaction.
    pub id: TransactionId,
    /// The states that were committed as they were sent.
    pub stored: Vec<(Oid, Bytes)>,
    /// Other objects that it wrote.
    pub others: Vec<Oid>,
    /// Runs before anybody can see that the transaction was committed.
    pub then: Option<Box<dyn FnOnce(Tid) + Send>>,
}

impl Order {
    /// A question that any connection may answer.
    pub fn any(question: Question) -> Self {
        Self { epoch: None, frames: Vec::new(), question }
    }
}

impl Question {
    /// The call that is made, as the server names it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "calls without an answer",
            Self::Load { .. } | Self::Loads { .. } => "loadBefore",
            Self::Finish(_) => "tpc_finish",
            Self::Blob { .. } => "sendBlob",
            Self::Call(request) => request.name(),
        }
    }
}

impl fmt::Debug for Finish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Finish({:?}, {} stored)", self.id, self.stored.len())
    }
}

/// Appends the frame of a call that has no answer: [`Order::frames`] are such.
pub fn encode_one_way(codec: Codec, request: Request<'_>, out: &mut Vec<u8>) {
    let call = Call { id: MessageId::int(codec, 0), oneway: true, request };
    encode_call(codec, &call, out);
}
