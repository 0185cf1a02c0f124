//! What can go wrong with a call, sorted by who can do something about it.

use std::io;
use std::time::Duration;

use zeoring_shared::ids::Oid;
use zeoring_shared::wire::WireError;
use zeoring_shared::wire::value::Value;

use crate::address::Address;
use crate::session::SessionError;

/// Why a call gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made: nobody listens there, or not yet.
    #[error("cannot connect to {address}")]
    Connect {
        /// The address that was tried.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// The server answered with an exception. The connection goes on.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The object was there, but no revision of it is as old as was asked for.
    #[error("object {oid} has no such revision")]
    NoRevision {
        /// The object that was asked for.
        oid: Oid,
    },
    /// No answer came in time. The connection goes on, and a late answer is dropped; whether the
    /// call took effect is not known.
    #[error("no answer to {call} within {deadline:?}")]
    Deadline {
        /// The call, by its name on the wire.
        call: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// The connection broke during this call. Whether the call took effect is not known.
    #[error("the connection to the server broke")]
    Broken(#[source] io::Error),
    /// The server sent what this client cannot make sense of; the connection was given up.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The connection ended in an earlier call. Connect again.
    #[error("the connection has ended; connect again")]
    Ended,
}

/// An exception that the server raised instead of a result.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{class}: {message}")]
pub struct ServerError {
    /// The Python class, with its module: `ZODB.POSException.POSKeyError`.
    pub class: String,
    /// What the exception says, for people.
    pub message: String,
    /// The object that it is about, where it says so.
    pub oid: Option<Oid>,
}

impl ServerError {
    /// Whether the object that was asked for does not exist (`POSKeyError`).
    pub fn is_missing_object(&self) -> bool {
        self.class == "ZODB.POSException.POSKeyError"
    }

    /// Whether the storage takes no writes, or not from this client.
    pub fn is_read_only(&self) -> bool {
        self.class == "ZODB.POSException.ReadOnlyError"
    }

    /// Reads what follows the class in an error reply: the exception's arguments, or its
    /// attributes as a dictionary.
    pub(crate) fn new(class: &str, args: &Value<'_>) -> Self {
        let (message, oid) = match args {
            Value::Dict(items) => {
                let find = |key| crate::session::answer::find(items, key);
                (find("message").map_or_else(String::new, text), find("oid").and_then(as_oid))
            }
            Value::Tuple(args) | Value::List(args) => {
                let texts: Vec<String> = args.iter().map(text).collect();
                (texts.join(", "), args.first().and_then(as_oid))
            }
            other => (text(other), None),
        };
        let oid = oid.filter(|_| class.starts_with("ZODB.POSException."));
        Self { class: class.to_owned(), message, oid }
    }
}

fn as_oid(value: &Value<'_>) -> Option<Oid> {
    let Value::Bytes(bytes) = value else { return None };
    Some(Oid::from_bytes(bytes.as_ref().try_into().ok()?))
}

/// An argument of an exception as people read it; ids in hexadecimal.
fn text(value: &Value<'_>) -> String {
    match value {
        Value::Str(text) => text.to_string(),
        Value::Bytes(bytes) => match as_oid(value) {
            Some(oid) => oid.to_string(),
            None => String::from_utf8_lossy(bytes).into_owned(),
        },
        Value::Int(number) => number.to_string(),
        other => format!("{other:?}"),
    }
}

/// The protocol errors, so that `?` takes them.
impl From<WireError> for ClientError {
    fn from(error: WireError) -> Self {
        Self::Session(SessionError::Wire(error))
    }
}
