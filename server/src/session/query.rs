//! Questions that may have to wait for the disk: asked by a session, answered by a clerk.

use std::collections::HashMap;

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::pickle;
use zeoring_shared::wire::reply::ErrorReply;
use zeoring_shared::wire::request::base64_of_tid;
use zeoring_shared::wire::value::Value;

use super::refusal;
use crate::service::Service;
use crate::storage::{Metadata, RecordCursor, TransactionCursor, UndoEntry};

/// Iterators that one connection may have open. Each is a position and a bound, so the limit is
/// there for the client that forgets to close them.
const ITERATORS_MAX: usize = 32;

/// Iterators that one call may collect: many more than there can be.
pub(super) const GARBAGE_MAX: usize = 1024;

/// Entries, and elements of a path, that a filter of undo logs may have: it may have to wait.
const FILTER_MAX: usize = 64;

/// Entries that one undo log, or one history, may have: more are cut off.
const ENTRIES_MAX: usize = 65_536;

/// What a client may ask that a clerk answers.
#[derive(Debug)]
pub enum Question {
    /// `loadSerial`
    LoadSerial {
        /// Which object.
        oid: Oid,
        /// Which revision.
        serial: Tid,
    },
    /// `getTid`
    Serial {
        /// Which object.
        oid: Oid,
    },
    /// `history`
    History {
        /// Which object.
        oid: Oid,
        /// Entries at most.
        count: i64,
    },
    /// `record_iternext`
    RecordNext {
        /// The smallest oid that counts.
        from: Oid,
    },
    /// `undoLog`, and `undoInfo` with a filter
    UndoLog {
        /// Entries to skip.
        first: i64,
        /// Where to stop; negative, how many there may be.
        last: i64,
        /// What every entry must have.
        filter: Vec<(Value<'static>, Value<'static>)>,
    },
    /// `getInvalidations` of a client that has been away for long
    Invalidations {
        /// The last transaction that the client knows.
        since: Tid,
    },
    /// `iterator_start`
    IteratorStart {
        /// The first transaction wanted.
        start: Tid,
        /// The last transaction wanted.
        stop: Tid,
    },
    /// `iterator_next`
    IteratorNext {
        /// Which iterator.
        iterator: i64,
    },
    /// `iterator_record_start`
    RecordsStart {
        /// The iterator that found the transaction.
        iterator: i64,
        /// The transaction that it must have found last.
        tid: Tid,
    },
    /// `iterator_record_next`
    RecordsNext {
        /// Which iterator.
        iterator: i64,
    },
    /// `iterator_gc`
    Forget {
        /// Iterators that the client has no use for.
        iterators: Vec<i64>,
    },
}

/// The open iterators of a connection. They travel with its questions.
#[derive(Debug, Default)]
pub struct Iterators {
    last: i64,
    open: HashMap<i64, Iterator>,
}

#[derive(Debug)]
enum Iterator {
    Transactions { cursor: Box<dyn TransactionCursor>, last: Option<Tid> },
    Records(Box<dyn RecordCursor>),
}

type Answer = Result<Value<'static>, ErrorReply>;

impl Question {
    /// Answers as if no transaction later than `visible` existed. May wait for the disk.
    ///
    /// # Errors
    ///
    /// What the client is told instead.
    pub fn answer(self, service: &Service, visible: Tid, iterators: &mut Iterators) -> Answer {
        let storage = &service.storage;
        let refuse = |error| refusal::of(&error);
        match self {
            Self::LoadSerial { oid, serial } => {
                storage.load_serial(oid, serial, visible).map(bytes).map_err(refuse)
            }
            Self::Serial { oid } => {
                storage.serial(oid, visible).map(|tid| tid_value(tid)).map_err(refuse)
            }
            Self::History { oid, count } => {
                let count = usize::try_from(count).unwrap_or(0).min(ENTRIES_MAX);
                let entries = storage.history(oid, count, visible).map_err(refuse)?;
                Ok(Value::List(
                    entries
                        .into_iter()
                        .map(|entry| {
                            let known = [
                                ("tid", tid_value(entry.tid)),
                                ("size", Value::Int(entry.size as i64)),
                            ];
                            description(known, entry.tid, entry.metadata, Extension::First)
                        })
                        .collect(),
                ))
            }
            Self::RecordNext { from } => {
                let record = storage.record_next(from, visible).map_err(refuse)?;
                let Some(record) = record else {
                    // The two sentences of a BTree's `minKey`, which clients may know.
                    let text = match storage.object_count() {
                        0 => "empty tree",
                        _ => "no key satisfies the conditions",
                    };
                    return Err(ErrorReply::value_error(text));
                };
                let next = record.next.map_or(Value::None, oid_value);
                Ok(Value::Tuple(vec![
                    oid_value(record.oid),
                    tid_value(record.serial),
                    bytes(record.data),
                    next,
                ]))
            }
            Self::UndoLog { first, last, filter } => {
                let last = if last < 0 { first.saturating_sub(last) } else { last };
                let skip = usize::try_from(first).unwrap_or(0);
                let count = usize::try_from(last.saturating_sub(first)).unwrap_or(0);
                let wanted = |entry: &UndoEntry| {
                    if filter.is_empty() {
                        return true;
                    }
                    let Value::Dict(entry) = undo_entry(entry.clone()) else {
                        return false;
                    };
                    filter.iter().all(|(key, value)| {
                        entry.iter().any(|(name, found)| same(name, key) && fits(found, value))
                    })
                };
                let entries = storage
                    .undo_log(skip, count.min(ENTRIES_MAX), &wanted, visible)
                    .map_err(refuse)?;
                Ok(Value::List(entries.into_iter().map(undo_entry).collect()))
            }
            Self::Invalidations { since } => {
                let mut cursor = storage.transactions(since.next(), visible);
                let mut oids = std::collections::BTreeSet::new();
                let mut latest = None;
                while let Some(transaction) = cursor.next_transaction().map_err(refuse)? {
                    latest = Some(transaction.tid);
                    let mut records = cursor.records();
                    while let Some(record) = records.next_record().map_err(refuse)? {
                        oids.insert(record.oid);
                    }
                }
                Ok(latest.map_or(Value::None, |tid| invalidations(tid, oids)))
            }
            Self::IteratorStart { start, stop } => {
                let cursor = storage.transactions(start, stop.min(visible));
                iterators.open(Iterator::Transactions { cursor, last: None })
            }
            Self::IteratorNext { iterator } => iterators.next_transaction(iterator),
            Self::RecordsStart { iterator, tid } => iterators.records(iterator, tid),
            Self::RecordsNext { iterator } => iterators.next_record(iterator),
            Self::Forget { iterators: ids } => {
                ids.iter().for_each(|id| drop(iterators.open.remove(id)));
                Ok(Value::None)
            }
        }
    }
}

impl Iterators {
    fn open(&mut self, iterator: Iterator) -> Answer {
        if ITERATORS_MAX <= self.open.len() {
            let text = format!(
                "a connection may have {ITERATORS_MAX} iterators; exhaust or collect some first"
            );
            return Err(ErrorReply::storage_error(&text));
        }
        let id = self.last;
        self.last += 1;
        self.open.insert(id, iterator);
        Ok(Value::Int(id))
    }

    fn next_transaction(&mut self, id: i64) -> Answer {
        let Some(Iterator::Transactions { cursor, last }) = self.open.get_mut(&id) else {
            return Err(ErrorReply::key_error(id));
        };
        let Some(found) = cursor.next_transaction().map_err(|error| refusal::of(&error))? else {
            self.open.remove(&id);
            return Ok(Value::None);
        };
        *last = Some(found.tid);
        let extension = pickle::decode_stored(&found.metadata.extension).map(Value::into_owned);
        Ok(Value::Tuple(vec![
            tid_value(found.tid),
            Value::Str(String::from(char::from(found.status)).into()),
            bytes(found.metadata.user),
            bytes(found.metadata.description),
            extension.unwrap_or(Value::Dict(Vec::new())),
        ]))
    }

    fn records(&mut self, id: i64, tid: Tid) -> Answer {
        let records = match self.open.get(&id) {
            Some(Iterator::Transactions { cursor, last: Some(last) }) if *last == tid => {
                cursor.records()
            }
            Some(Iterator::Transactions { last: Some(_), .. }) => {
                let text = format!("Out-of-order request for record iterator of transaction {tid}");
                return Err(ErrorReply::exception(&text));
            }
            _ => return Err(ErrorReply::key_error(id)),
        };
        self.open(Iterator::Records(records))
    }

    fn next_record(&mut self, id: i64) -> Answer {
        let Some(Iterator::Records(cursor)) = self.open.get_mut(&id) else {
            return Err(ErrorReply::key_error(id));
        };
        let Some(found) = cursor.next_record().map_err(|error| refusal::of(&error))? else {
            self.open.remove(&id);
            return Ok(Value::None);
        };
        Ok(Value::Tuple(vec![
            oid_value(found.oid),
            tid_value(found.tid),
            found.data.map_or(Value::None, bytes),
            found.data_tid.map_or(Value::None, tid_value),
        ]))
    }
}

/// Whether the extension's entries count before or after what the storage itself knows.
enum Extension {
    /// `history`: what the storage knows replaces entries of the extension.
    First,
    /// `undoLog`: entries of the extension replace what the storage knows.
    Last,
}

/// A dictionary about a transaction, with its extension merged in (`FileStorage.history`,
/// `UndoSearch._readnext`).
fn description<const KNOWN: usize>(
    known: [(&'static str, Value<'static>); KNOWN],
    tid: Tid,
    metadata: Metadata,
    extension: Extension,
) -> Value<'static> {
    let common = [
        ("time", Value::Float(tid.seconds_since_1970())),
        ("user_name", bytes(metadata.user)),
        ("description", bytes(metadata.description)),
    ];
    let known = known.into_iter().chain(common);
    let known: Vec<_> = known.map(|(key, value)| (Value::Str(key.into()), value)).collect();
    let stored = match pickle::decode_stored(&metadata.extension).map(Value::into_owned) {
        Ok(Value::Dict(entries)) => entries,
        // Python serves such a transaction with an empty extension, too.
        _ => Vec::new(),
    };
    let (mut merged, over) = match extension {
        Extension::First => (stored, known),
        Extension::Last => (known, stored),
    };
    for (key, value) in over {
        match merged.iter_mut().find(|(name, _)| *name == key) {
            Some(entry) => entry.1 = value,
            None => merged.push((key, value)),
        }
    }
    Value::Dict(merged)
}

fn undo_entry(entry: UndoEntry) -> Value<'static> {
    let id = base64_of_tid(entry.tid);
    let known =
        [("id", Value::Bytes(id.into_bytes().into())), ("size", Value::Int(entry.size as i64))];
    description(known, entry.tid, entry.metadata, Extension::Last)
}

/// The answer to `getInvalidations`.
pub(super) fn invalidations(tid: Tid, oids: impl IntoIterator<Item = Oid>) -> Value<'static> {
    let oids = oids.into_iter().map(oid_value).collect();
    Value::Tuple(vec![tid_value(tid), Value::List(oids)])
}

/// An oid as it stands in replies.
pub(super) fn oid_value(oid: Oid) -> Value<'static> {
    Value::Bytes(oid.to_bytes().to_vec().into())
}

/// A tid as it stands in replies.
pub(super) fn tid_value(tid: Tid) -> Value<'static> {
    Value::Bytes(tid.to_bytes().to_vec().into())
}

fn bytes(bytes: Bytes) -> Value<'static> {
    Value::Bytes(Vec::from(bytes).into())
}

/// Text and bytes that say the same count as the same: what a client filters by is text, what a
/// data file holds is bytes. Numbers are compared as Python does: `True` is 1, and 1 is 1.0.
fn same(one: &Value<'_>, other: &Value<'_>) -> bool {
    match ((text_of(one), text_of(other)), (number_of(one), number_of(other))) {
        ((Some(one), Some(other)), _) => one == other,
        (_, (Some(one), Some(other))) => one == other,
        _ => one == other,
    }
}

fn number_of(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::Int(number) => Some(*number as f64),
        Value::Unsigned(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        _ => None,
    }
}

fn text_of<'a>(value: &'a Value<'_>) -> Option<&'a [u8]> {
    match value {
        Value::Bytes(bytes) => Some(bytes),
        Value::Str(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// Whether undo logs can be filtered so: entries of plain values, and not many.
pub(super) fn is_filter(filter: &[(Value<'_>, Value<'_>)]) -> bool {
    let is_plain = |value: &Value<'_>| match value {
        Value::Tuple(_) | Value::List(_) | Value::Dict(_) => false,
        Value::Prefix { path, .. } => path.len() <= FILTER_MAX,
        _ => true,
    };
    filter.len() <= FILTER_MAX && filter.iter().all(|(key, value)| is_plain(key) && is_plain(value))
}

/// Whether an entry's value is what a filter wants: equal, or below a `ZopeUndo.Prefix`.
///
/// A user's name may follow the path after a blank, and does not count (`ZopeUndo/Prefix.py`).
fn fits(found: &Value<'_>, wanted: &Value<'_>) -> bool {
    let Value::Prefix { length, path } = wanted else {
        return same(found, wanted);
    };
    let Some(found) = text_of(found) else {
        return false;
    };
    let last = found.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let blank = found[last..].iter().rposition(|byte| *byte == b' ');
    let found = blank.map_or(found, |blank| &found[..last + blank]);
    let length = usize::try_from(*length).unwrap_or(0);
    let found = found.split(|byte| *byte == b'/').take(length);
    found.eq(path.iter().map(String::as_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_fits_a_path_and_what_lies_below_it_in_text_and_in_bytes() {
        let prefix = Value::Prefix { length: 3, path: ["", "a", "b"].map(str::to_owned).to_vec() };
        let cases = [
            ("/a/b", true),
            ("/a/b/c", true),
            ("/a/b jim", true),
            ("/a", false),
            ("/a/bc", false),
            ("", false),
        ];
        for (path, expected) in cases {
            assert_eq!(fits(&Value::Str(path.into()), &prefix), expected, "{path}");
            let path = path.as_bytes().to_vec();
            assert_eq!(fits(&Value::Bytes(path.into()), &prefix), expected);
        }
    }
}
