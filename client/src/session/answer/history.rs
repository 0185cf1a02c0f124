//! What was committed when, by whom: of one object (`history`), and of all (`undoLog`, `undoInfo`).
//!
//! The server mixes the extension of a transaction into the dictionary that describes it. In a
//! history, the description wins over keys of the same name; in an undo log, the extension does
//! (`ZODB/FileStorage/FileStorage.py`: `history`, `UndoSearch`). So whoever commits decides what an
//! undo log says of it, and nothing there is taken for granted.

use zeoring_shared::ids::Tid;
use zeoring_shared::wire::request::tid_of_base64;
use zeoring_shared::wire::value::Value;

use super::read;

/// One revision in the history of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryEntry {
    /// The transaction that wrote it.
    pub tid: Tid,
    /// When, in seconds since 1970.
    pub time_s: f64,
    /// Who committed it.
    pub user: Vec<u8>,
    /// What it was about.
    pub description: Vec<u8>,
    /// Bytes of the record's data; 0 where the data file refers to an older record instead.
    pub size: u64,
    /// What else the application told about the transaction, in the server's order.
    pub extension: Vec<(Value<'static>, Value<'static>)>,
}

/// A transaction that can perhaps be undone.
#[derive(Clone, Debug, PartialEq)]
pub struct UndoEntry {
    /// The transaction. On the wire it is text in base64.
    pub id: Tid,
    /// When it was committed, in seconds since 1970.
    pub time_s: f64,
    /// Who committed it.
    pub user: Vec<u8>,
    /// What it was about.
    pub description: Vec<u8>,
    /// Bytes of its header, records and trailer in the data file, where the server says so.
    pub size: Option<u64>,
    /// What else the application told about it, in the server's order. Where it told a `time`,
    /// `size`, `user_name` or `description` of another type than those have, the field says what
    /// the id says, or nothing, and the value is here.
    pub extension: Vec<(Value<'static>, Value<'static>)>,
}

pub(super) fn history_entry(value: &Value<'_>) -> Option<HistoryEntry> {
    const KEYS: [&str; 5] = ["tid", "time", "user_name", "description", "size"];
    let entries = read::entries(value)?;
    Some(HistoryEntry {
        tid: read::tid(read::find(entries, "tid")?)?,
        time_s: read::seconds(read::find(entries, "time")?)?,
        user: read::text(read::find(entries, "user_name")?)?,
        description: read::text(read::find(entries, "description")?)?,
        size: read::count(read::find(entries, "size")?)?,
        extension: read::others(entries, &KEYS),
    })
}

/// Reads an undo log. An entry whose extension has a value of its own for the id names no
/// transaction, so nobody could undo it: it is left out.
pub(super) fn undo_log(value: &Value<'_>) -> Option<Vec<UndoEntry>> {
    let entries: Vec<_> = read::all(value, undo_entry)?;
    Some(entries.into_iter().flatten().collect())
}

fn undo_entry(value: &Value<'_>) -> Option<Option<UndoEntry>> {
    let entries = read::entries(value)?;
    let Some(id) = read::text(read::find(entries, "id")?).and_then(|id| tid_of_base64(&id)) else {
        return Some(None);
    };
    let mut known = vec!["id"];
    let time_s = take(entries, "time", read::seconds, &mut known);
    let user = take(entries, "user_name", read::text, &mut known);
    let description = take(entries, "description", read::text, &mut known);
    let size = take(entries, "size", read::count, &mut known);
    Some(Some(UndoEntry {
        id,
        time_s: time_s.unwrap_or_else(|| id.seconds_since_1970()),
        user: user.unwrap_or_default(),
        description: description.unwrap_or_default(),
        size,
        extension: read::others(entries, &known),
    }))
}

/// Reads a field whose value the extension may have overwritten. Its key joins `known` if not.
fn take<T>(
    entries: read::Entries<'_, '_>,
    key: &'static str,
    form: impl Fn(&Value<'_>) -> Option<T>,
    known: &mut Vec<&'static str>,
) -> Option<T> {
    let field = form(read::find(entries, key)?)?;
    known.push(key);
    Some(field)
}
