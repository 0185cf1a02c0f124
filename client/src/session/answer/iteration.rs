//! What walks over a storage give: its transactions, the records of each, and all current records.

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::pickle;
use zeoring_shared::wire::value::Value;

use super::read;

/// A transaction, as `iterator_next` gives it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TransactionEntry {
    /// The transaction.
    pub tid: Tid,
    /// Its status in the data file: a space, or `p` once a pack has been there.
    pub status: u8,
    /// Who committed it.
    pub user: Vec<u8>,
    /// What it was about.
    pub description: Vec<u8>,
    /// What else the application told, as a data file stores it: nothing, or the pickle of a
    /// dictionary. The server sends the dictionary, so this pickle of it may have other bytes than
    /// the server's file, and msgpack makes its lists tuples.
    pub extension: Vec<u8>,
}

/// A record of a transaction, as `iterator_record_next` gives it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecordEntry {
    /// The object.
    pub oid: Oid,
    /// The transaction.
    pub tid: Tid,
    /// The object's state; `None` if the transaction deleted it, or undid its creation.
    pub data: Option<Bytes>,
    /// The transaction whose record has the data, where this one only refers to it: after an undo,
    /// for example.
    pub data_tid: Option<Tid>,
}

/// An object's current record, as `record_iternext` gives it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CurrentRecord {
    /// The object.
    pub oid: Oid,
    /// The transaction that wrote the record.
    pub tid: Tid,
    /// The object's state.
    pub data: Bytes,
    /// Where to go on; `None` after the last object.
    pub next: Option<Oid>,
}

pub(super) fn transaction_entry(value: &Value<'_>) -> Option<TransactionEntry> {
    let [tid, status, user, description, extension] = read::sequence(value)? else { return None };
    let [status] = read::text(status)?[..] else { return None };
    Some(TransactionEntry {
        tid: read::tid(tid)?,
        status,
        user: read::text(user)?,
        description: read::text(description)?,
        extension: stored_extension(extension)?,
    })
}

/// An extension as a data file stores it.
fn stored_extension(value: &Value<'_>) -> Option<Vec<u8>> {
    match value {
        Value::None => Some(Vec::new()),
        Value::Bytes(stored) => Some(stored.to_vec()),
        Value::Dict(entries) if entries.is_empty() => Some(Vec::new()),
        Value::Dict(_) => {
            let mut stored = Vec::new();
            pickle::encode(value, &mut stored);
            Some(stored)
        }
        _ => None,
    }
}

pub(super) fn record_entry(value: &Value<'_>) -> Option<RecordEntry> {
    let [oid, tid, data, data_tid] = read::sequence(value)? else { return None };
    Some(RecordEntry {
        oid: read::oid(oid)?,
        tid: read::tid(tid)?,
        data: read::optional(data, read::data)?,
        data_tid: read::optional(data_tid, read::tid)?,
    })
}

pub(super) fn current_record(value: &Value<'_>) -> Option<CurrentRecord> {
    let [oid, tid, data, next] = read::sequence(value)? else { return None };
    Some(CurrentRecord {
        oid: read::oid(oid)?,
        tid: read::tid(tid)?,
        data: read::data(data)?,
        next: read::optional(next, read::oid)?,
    })
}
