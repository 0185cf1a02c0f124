//! What can go wrong with a call, sorted by who can do something about it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use zeoring_shared::ids::Oid;
use zeoring_shared::wire::value::Value;

use crate::address::Address;
use crate::blob::BlobError;
use crate::cache::CacheError;
use crate::channel::ChannelError;
use crate::session::SessionError;
use crate::session::answer::read;
use crate::tls::TlsError;

/// Why a call gave no result.
///
/// Several callers may get the same error, so it can be cloned.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// There is no connection, and none came within [`Options::wait`](crate::Options::wait).
    #[error("no connection within {wait:?}: {}", list(reasons))]
    NotConnected {
        /// How long was waited.
        wait: Duration,
        /// What was last in the way, for each address that was tried.
        reasons: Vec<(Address, DialError)>,
    },
    /// The connection broke during this call. Whether the call took effect is not known; a load
    /// is asked again by itself.
    #[error("the connection to the server broke: {0}")]
    Disconnected(Arc<Broken>),
    /// The transaction was begun on a connection that has ended since; it left nothing behind.
    /// Begin again.
    #[error("the connection of this transaction has ended; begin it again")]
    TransactionLost,
    /// The server answered with an exception. The connection goes on.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The object was there, but no revision of it is as old as was asked for.
    #[error("object {oid} has no such revision")]
    NoRevision {
        /// The object that was asked for.
        oid: Oid,
    },
    /// No answer came in time. A late answer is dropped; whether the call took effect is not
    /// known.
    #[error("no answer to {call} within {deadline:?}")]
    Deadline {
        /// The call, by its name on the wire.
        call: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// Another transaction of this client has been under way for so long: a connection has one
    /// at a time.
    #[error("another transaction of this client has not ended within {deadline:?}")]
    Busy {
        /// How long was waited.
        deadline: Duration,
    },
    /// The connection takes no writes: the server is read-only, or this client asked for no more.
    #[error(
        "this connection is read-only; connect to a server that takes writes, with access to write"
    )]
    ReadOnly,
    /// A storage has no room for it.
    #[error("the {what} of the transaction has {length} bytes; a storage takes {length_max}")]
    TooLong {
        /// Which part of the description.
        what: &'static str,
        /// Its length, in bytes.
        length: usize,
        /// How much there is room for, in bytes.
        length_max: usize,
    },
    /// The client was closed.
    #[error("this client was closed")]
    Closed,
    /// This process is a fork of the one that made the client: the connection is the other's.
    #[error("this process was forked from the one that made this client: make a new one here")]
    Forked,
    /// The cache's file cannot be used.
    #[error(transparent)]
    Cache(Arc<CacheError>),
    /// A blob's file could not be written or read.
    #[error(transparent)]
    Blob(Arc<BlobError>),
    /// The settings for encryption cannot be used.
    #[error(transparent)]
    Tls(Arc<TlsError>),
    /// The client was made without what this call needs.
    #[error("{0}")]
    NotConfigured(&'static str),
    /// The ring of the client's thread cannot be had.
    #[error("no io_uring for the client's thread: {0}")]
    NoRing(String),
}

/// What ended a connection.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The socket: the other end went away, or the way to it is cut.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// The server sent what this client cannot make sense of.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// What came is not what TLS allows.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A commit was not answered, and only the end of its connection settles it.
    #[error("a commit was not answered in time")]
    CommitInDoubt,
    /// A server that takes writes was found.
    #[error("a server that takes writes was found")]
    Upgraded,
}

/// Why a connection could not be made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody listens there, or not yet.
    #[error("{0}")]
    Connect(Arc<io::Error>),
    /// It answers, but not as this client can use.
    #[error("{0}")]
    Broken(Arc<Broken>),
    /// It does not take us.
    #[error("{0}")]
    Refused(ServerError),
    /// The settings for encryption cannot be used with it.
    #[error("{0}")]
    Tls(Arc<TlsError>),
    /// It did not answer in time.
    #[error("no answer in time")]
    Silent,
}

fn list(reasons: &[(Address, DialError)]) -> String {
    if reasons.is_empty() {
        return "no server has answered yet".to_owned();
    }
    let told = reasons.iter().map(|(address, reason)| format!("{address}: {reason}"));
    told.collect::<Vec<_>>().join("; ")
}

impl From<Broken> for ClientError {
    fn from(broken: Broken) -> Self {
        Self::Disconnected(Arc::new(broken))
    }
}

impl From<CacheError> for ClientError {
    fn from(error: CacheError) -> Self {
        Self::Cache(Arc::new(error))
    }
}

impl From<BlobError> for ClientError {
    fn from(error: BlobError) -> Self {
        Self::Blob(Arc::new(error))
    }
}

impl From<TlsError> for ClientError {
    fn from(error: TlsError) -> Self {
        Self::Tls(Arc::new(error))
    }
}

/// An exception that the server raised instead of a result.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{class}: {message}")]
pub struct ServerError {
    /// The Python class, with its module: `ZODB.POSException.POSKeyError`.
    pub class: String,
    /// What the exception says, for people.
    pub message: String,
    /// The object that it is about, where it says so.
    pub oid: Option<Oid>,
    /// What the server sent to make the exception from: its arguments as a tuple, or its attributes
    /// as a dictionary with strings for keys, as the class would have it. In msgpack an exception
    /// within is a tuple of its class's name and the same.
    pub args: Value<'static>,
}

impl ServerError {
    /// Whether the object that was asked for does not exist, or not any more, or not its blob
    /// (`POSKeyError`).
    pub fn is_missing_object(&self) -> bool {
        self.is_one_of(&["POSKeyError"])
    }

    /// Whether the storage takes no writes, or not from this client (`ReadOnlyError`).
    pub fn is_read_only(&self) -> bool {
        self.is_one_of(&["ReadOnlyError"])
    }

    /// Whether another transaction came first (`ConflictError` and what is derived from it): the
    /// same work may succeed if it is done anew.
    pub fn is_conflict(&self) -> bool {
        self.is_one_of(&["ConflictError", "ReadConflictError", "BTreesConflictError"])
    }

    /// Whether something cannot be undone, or not now (`UndoError`, `MultipleUndoErrors`).
    pub fn is_undo_error(&self) -> bool {
        self.is_one_of(&["UndoError", "MultipleUndoErrors"])
    }

    /// Whether the call does not fit the state of the connection's transaction: it is not the one
    /// that is open, or it is being voted already (`StorageTransactionError`).
    pub fn is_transaction_error(&self) -> bool {
        self.is_one_of(&["StorageTransactionError"])
    }

    fn is_one_of(&self, names: &[&str]) -> bool {
        self.class.strip_prefix(MODULE).is_some_and(|name| names.contains(&name))
    }

    /// What stands for the `None` with which a server answers `tpc_finish` of a transaction that it
    /// does not know.
    pub(crate) fn unknown_transaction() -> Self {
        const MESSAGE: &str = "the server knows no such transaction";
        Self {
            class: format!("{MODULE}StorageTransactionError"),
            message: MESSAGE.to_owned(),
            oid: None,
            args: Value::Tuple(vec![Value::Str(MESSAGE.into())]),
        }
    }

    /// Reads what follows the class in an error reply: the exception's arguments, or its
    /// attributes as a dictionary.
    pub(crate) fn new(class: &str, args: &Value<'_>) -> Self {
        let (message, oid) = match args {
            Value::Dict(attributes) => of_attributes(attributes),
            Value::Tuple(args) | Value::List(args) => {
                (texts(args), args.iter().find_map(read::oid))
            }
            other => (text(other), None),
        };
        let oid = oid.filter(|_| class.starts_with(MODULE));
        Self { class: class.to_owned(), message, oid, args: args.clone().into_owned() }
    }
}

/// Where ZODB's exceptions are.
const MODULE: &str = "ZODB.POSException.";

/// The message and the object of an exception that comes as its attributes.
fn of_attributes(attributes: &[(Value<'_>, Value<'_>)]) -> (String, Option<Oid>) {
    let find = |key| read::find(attributes, key);
    // Each of several errors is a pair: which object, and why. Their own `_reason` and `_oid` are
    // one such pair, whatever the names say (`ZODB/POSException.py`, `MultipleUndoErrors`).
    if let Some(errors) = find("_errs").and_then(read::sequence) {
        let first = errors.first().and_then(read::sequence).and_then(|pair| pair.first());
        return (texts(errors), first.and_then(read::oid));
    }
    let message = ["message", "_reason", "reason"].into_iter().find_map(find);
    let oid = ["oid", "_oid"].into_iter().find_map(find);
    (message.map_or_else(String::new, text), oid.and_then(read::oid))
}

fn texts(values: &[Value<'_>]) -> String {
    values.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// A part of an exception as people read it; ids in hexadecimal.
fn text(value: &Value<'_>) -> String {
    match value {
        Value::Str(text) => text.to_string(),
        Value::Bytes(bytes) => match read::oid(value) {
            Some(oid) => oid.to_string(),
            None => String::from_utf8_lossy(bytes).into_owned(),
        },
        Value::Int(number) => number.to_string(),
        Value::None => "None".to_owned(),
        Value::UndoError { reason, .. } => reason.to_string(),
        // An exception within another, as msgpack has it.
        Value::Tuple(parts) => match &parts[..] {
            [Value::Str(_), Value::Dict(attributes)] => of_attributes(attributes).0,
            [of, why] => format!("{}: {}", text(of), text(why)),
            parts => texts(parts),
        },
        other => format!("{other:?}"),
    }
}
