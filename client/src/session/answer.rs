//! Results of calls as types, read from what the server sends. A value of the wrong form is an
//! error of the server.

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::value::Value;

use crate::error::ServerError;

/// One state of an object, and how long it was the current one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Revision {
    /// The record: two pickles, which this client does not read.
    pub data: Bytes,
    /// The transaction that wrote it.
    pub serial: Tid,
    /// The transaction that wrote the next revision; `None` while this is the current one.
    pub end: Option<Tid>,
}

/// An object that a transaction may not write, because another wrote it first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Conflict {
    /// The object.
    pub oid: Oid,
    /// The transaction that wrote it meanwhile.
    pub committed: Tid,
    /// The revision that the refused state was made from.
    pub read: Tid,
    /// The refused state, where the server sends it back to be resolved.
    pub data: Option<Bytes>,
}

/// What a storage is and can do: `get_info` of ZEO.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Info {
    /// The storage's name, usually the path of its data file.
    pub name: String,
    /// How many objects it has.
    pub length: i64,
    /// Its size in bytes.
    pub size: i64,
    /// Whether transactions can be undone.
    pub supports_undo: bool,
    /// The interfaces it provides: `ZODB.interfaces.IStorage` and so on, in the server's order.
    pub interfaces: Vec<String>,
}

/// What a vote came to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It can be finished. The server wrote something else than was sent for these objects, so
    /// what is cached of them is not what was committed.
    Accepted(Vec<Oid>),
    /// Nothing is locked; the transaction goes on if each of these is stored again, resolved.
    Conflicts(Vec<Conflict>),
    /// The server has dropped the transaction over this conflict.
    Refused(Conflict),
}

/// The result of a call. Which variant depends on the call alone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// Of a load: `None` when the object has no revision as old as that.
    Revision(Option<Revision>),
    /// Of `lastTransaction` and `tpc_finish`.
    Tid(Tid),
    /// Of `new_oids`.
    Oids(Vec<Oid>),
    /// Of `get_info`.
    Info(Info),
    /// Of `vote`.
    Verdict(Verdict),
    /// Of a call without a result.
    Done,
}

/// What kind of answer a call waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Register,
    Load,
    LastTransaction,
    NewOids,
    Info,
    Ping,
    Vote,
    Finish,
    Abort,
}

impl Kind {
    /// The call as the server knows it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Load => "loadBefore",
            Self::LastTransaction => "lastTransaction",
            Self::NewOids => "new_oids",
            Self::Info => "get_info",
            Self::Ping => "ping",
            Self::Vote => "vote",
            Self::Finish => "tpc_finish",
            Self::Abort => "tpc_abort",
        }
    }

    /// Reads the result of such a call; `None` when it has not the right form.
    pub(super) fn read(self, value: &Value<'_>) -> Option<Answer> {
        match self {
            // Revisions come as loads, so here the server says that there is none.
            Self::Load => matches!(value, Value::None).then_some(Answer::Revision(None)),
            // A server may leave the last tid out of its answer to `register`.
            Self::Register if matches!(value, Value::None) => Some(Answer::Tid(Tid::ZERO)),
            Self::Register | Self::LastTransaction | Self::Finish => Some(Answer::Tid(tid(value)?)),
            Self::NewOids => {
                Some(Answer::Oids(sequence(value)?.iter().map(oid).collect::<Option<_>>()?))
            }
            Self::Info => Some(Answer::Info(info(value)?)),
            Self::Vote => Some(Answer::Verdict(verdict(value)?)),
            Self::Ping | Self::Abort => Some(Answer::Done),
        }
    }

    /// Reads an exception as the result of such a call: a conflict is one, all others are errors.
    pub(super) fn read_error(self, class: &str, args: &Value<'_>) -> Result<Answer, ServerError> {
        const CONFLICTS: [&str; 2] =
            ["ZODB.POSException.ConflictError", "ZODB.POSException.ReadConflictError"];
        if let (Self::Vote, true, Value::Dict(items)) = (self, CONFLICTS.contains(&class), args)
            && let Some(conflict) = conflict(items)
        {
            return Ok(Answer::Verdict(Verdict::Refused(conflict)));
        }
        Err(ServerError::new(class, args))
    }
}

/// The value under a key that is a string.
pub(crate) fn find<'v, 'a>(
    items: &'v [(Value<'a>, Value<'a>)],
    key: &str,
) -> Option<&'v Value<'a>> {
    let is_key = |name: &Value<'_>| matches!(name, Value::Str(name) if name == key);
    items.iter().find_map(|(name, value)| is_key(name).then_some(value))
}

fn verdict(value: &Value<'_>) -> Option<Verdict> {
    let items = sequence(value)?;
    let has_conflicts = matches!(items.first(), Some(Value::Dict(_)));
    if !has_conflicts {
        return Some(Verdict::Accepted(items.iter().map(oid).collect::<Option<_>>()?));
    }
    let one = |item: &Value<'_>| {
        let Value::Dict(items) = item else { return None };
        conflict(items)
    };
    Some(Verdict::Conflicts(items.iter().map(one).collect::<Option<_>>()?))
}

fn conflict(items: &[(Value<'_>, Value<'_>)]) -> Option<Conflict> {
    let [committed, read] = sequence(find(items, "serials")?)? else { return None };
    let data = match find(items, "data") {
        Some(Value::Bytes(data)) => Some(Bytes::copy_from_slice(data)),
        _ => None,
    };
    Some(Conflict {
        oid: oid(find(items, "oid")?)?,
        committed: tid(committed)?,
        read: tid(read)?,
        data,
    })
}

fn info(value: &Value<'_>) -> Option<Info> {
    let Value::Dict(items) = value else { return None };
    let number = |key| match find(items, key) {
        Some(Value::Int(number)) => *number,
        _ => 0,
    };
    let Some(Value::Str(name)) = find(items, "name") else { return None };
    let interfaces = find(items, "interfaces").and_then(sequence).unwrap_or_default();
    let dotted = |pair: &Value<'_>| match sequence(pair)? {
        [Value::Str(module), Value::Str(name)] => Some(format!("{module}.{name}")),
        _ => None,
    };
    Some(Info {
        name: name.to_string(),
        length: number("length"),
        size: number("size"),
        supports_undo: matches!(
            find(items, "supportsUndo"),
            Some(Value::Bool(true) | Value::Int(1))
        ),
        interfaces: interfaces.iter().map(dotted).collect::<Option<_>>()?,
    })
}

fn sequence<'v, 'a>(value: &'v Value<'a>) -> Option<&'v [Value<'a>]> {
    match value {
        Value::Tuple(items) | Value::List(items) => Some(items),
        _ => None,
    }
}

fn eight_bytes(value: &Value<'_>) -> Option<[u8; 8]> {
    let Value::Bytes(bytes) = value else { return None };
    bytes.as_ref().try_into().ok()
}

fn oid(value: &Value<'_>) -> Option<Oid> {
    eight_bytes(value).map(Oid::from_bytes)
}

fn tid(value: &Value<'_>) -> Option<Tid> {
    eight_bytes(value).map(Tid::from_bytes)
}
