//! What a vote comes to.

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::value::Value;

use super::read::{self, Entries};

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
    /// What revision `read` says; `None` where the storage does not have it any more, and in a
    /// [`Refused`](crate::Vote::Refused), which nobody can resolve.
    pub read_data: Option<Bytes>,
    /// What revision `committed` says; `None` as above.
    pub committed_data: Option<Bytes>,
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

pub(super) fn verdict(value: &Value<'_>) -> Option<Verdict> {
    let has_conflicts = matches!(read::sequence(value)?, [Value::Dict(_), ..]);
    if has_conflicts {
        let conflicts = read::all(value, |item| conflict(read::entries(item)?))?;
        return Some(Verdict::Conflicts(conflicts));
    }
    Some(Verdict::Accepted(read::all(value, read::oid)?))
}

pub(super) fn conflict(entries: Entries<'_, '_>) -> Option<Conflict> {
    let serials = read::sequence(read::find(entries, "serials")?)?;
    let [committed, base] = serials else { return None };
    Some(Conflict {
        oid: read::oid(read::find(entries, "oid")?)?,
        committed: read::tid(committed)?,
        read: read::tid(base)?,
        data: read::find(entries, "data").and_then(read::data),
        read_data: None,
        committed_data: None,
    })
}
