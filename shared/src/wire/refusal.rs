//! Exceptions as replies: a class, and its arguments or its attributes.
//!
//! A Python client makes the exceptions that it knows again, by class and arguments
//! (`ZEO/asyncio/client.py`, `exc_factories`); any other becomes a `ServerException`.

use super::request::TransactionId;
use super::value::Value;
use crate::ids::{Oid, Tid};

/// An exception for the client.
#[derive(Clone, Debug, PartialEq)]
pub struct ErrorReply {
    /// Module and name of the class.
    pub class: &'static str,
    /// The arguments, as a tuple; or the attributes, as a dictionary.
    pub args: Value<'static>,
}

impl ErrorReply {
    fn new(class: &'static str, args: Vec<Value<'static>>) -> Self {
        Self { class, args: Value::Tuple(args) }
    }

    fn with_text(class: &'static str, text: &str) -> Self {
        Self::new(class, vec![string(text)])
    }

    /// The object is not there.
    pub fn pos_key_error(oid: Oid) -> Self {
        Self::new("ZODB.POSException.POSKeyError", vec![bytes(oid.to_bytes())])
    }

    /// The storage, or this registration, cannot be written to.
    pub fn read_only() -> Self {
        Self::new("ZODB.POSException.ReadOnlyError", Vec::new())
    }

    /// Another transaction than the one asked for is the current one, or none is.
    pub fn transaction_error(current: Option<TransactionId>, asked: TransactionId) -> Self {
        let number =
            |id: TransactionId| i64::try_from(id.0).map_or(Value::Unsigned(id.0), Value::Int);
        let args = vec![current.map_or(Value::None, number), number(asked)];
        Self::new("ZODB.POSException.StorageTransactionError", args)
    }

    /// The transaction is in no state for that.
    pub fn transaction_text(text: &str) -> Self {
        Self::with_text("ZODB.POSException.StorageTransactionError", text)
    }

    /// Another transaction changed the object first.
    pub fn conflict(oid: Oid, committed: Tid, read: Tid) -> Self {
        let class = "ZODB.POSException.ConflictError";
        Self::conflict_of(class, "database conflict error", oid, committed, read)
    }

    /// Another transaction changed an object that this one has read.
    pub fn read_conflict(oid: Oid, committed: Tid, read: Tid) -> Self {
        let class = "ZODB.POSException.ReadConflictError";
        Self::conflict_of(class, "database read conflict error", oid, committed, read)
    }

    fn conflict_of(
        class: &'static str,
        message: &str,
        oid: Oid,
        committed: Tid,
        read: Tid,
    ) -> Self {
        let serials = Value::Tuple(vec![bytes(committed.to_bytes()), bytes(read.to_bytes())]);
        let attributes = [
            ("message", string(message)),
            ("oid", bytes(oid.to_bytes())),
            ("class_name", Value::None),
            ("serials", serials),
        ];
        Self { class, args: dict(attributes) }
    }

    /// A transaction cannot be undone.
    pub fn undo_error(reason: &str, oid: Option<Oid>) -> Self {
        let oid = oid.map_or(Value::None, |oid| bytes(oid.to_bytes()));
        let attributes = [("_reason", string(reason)), ("_oid", oid)];
        Self { class: "ZODB.POSException.UndoError", args: dict(attributes) }
    }

    /// Objects of a transaction cannot be undone.
    pub fn multiple_undo(failures: &[(Oid, &'static str)]) -> Self {
        let error = |(oid, reason): &(Oid, &'static str)| Value::UndoError {
            reason: (*reason).into(),
            oid: Some(oid.to_bytes()),
        };
        let failure =
            |failed: &(Oid, _)| Value::Tuple(vec![bytes(failed.0.to_bytes()), error(failed)]);
        // Python makes the exception from the first pair, as if it were a reason and an oid.
        let first = failures.first();
        let attributes = [
            ("_reason", first.map_or(Value::None, |(oid, _)| bytes(oid.to_bytes()))),
            ("_oid", first.map_or(Value::None, error)),
            ("_errs", Value::List(failures.iter().map(failure).collect())),
        ];
        Self { class: "ZODB.POSException.MultipleUndoErrors", args: dict(attributes) }
    }

    /// An argument has the right type and a wrong value.
    pub fn value_error(text: &str) -> Self {
        Self::with_text("builtins.ValueError", text)
    }

    /// An argument has a wrong type.
    pub fn type_error(text: &str) -> Self {
        Self::with_text("builtins.TypeError", text)
    }

    /// There is no such iterator.
    pub fn key_error(key: i64) -> Self {
        Self::new("builtins.KeyError", vec![Value::Int(key)])
    }

    /// A reference leads to an object that is not there.
    pub fn no_object(oid: Oid) -> Self {
        Self::new("builtins.KeyError", vec![bytes(oid.to_bytes())])
    }

    /// A FileStorage cannot do that, in its own words.
    pub fn file_storage_error(text: &str) -> Self {
        Self::with_text("ZODB.FileStorage.FileStorage.FileStorageError", text)
    }

    /// The storage has no such method.
    pub fn attribute_error(method: &str) -> Self {
        let text = format!("'ZEOStorage' object has no attribute '{method}'");
        Self::with_text("builtins.AttributeError", &text)
    }

    /// What no other class says better.
    pub fn exception(text: &str) -> Self {
        Self::with_text("builtins.Exception", text)
    }

    /// The storage cannot do that.
    pub fn storage_error(text: &str) -> Self {
        Self::with_text("ZODB.POSException.StorageError", text)
    }
}

fn string(text: &str) -> Value<'static> {
    Value::Str(text.to_owned().into())
}

fn bytes(bytes: [u8; 8]) -> Value<'static> {
    Value::Bytes(bytes.to_vec().into())
}

fn dict<const COUNT: usize>(entries: [(&'static str, Value<'static>); COUNT]) -> Value<'static> {
    Value::Dict(entries.map(|(key, value)| (Value::Str(key.into()), value)).into())
}
