//! What a storage is (`get_info`), and how its server is doing (`server_status`).

use zeoring_shared::ids::Tid;
use zeoring_shared::wire::value::Value;

use super::read;

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

/// What a server counts for a storage, since it started: `server_status` of ZEO. A number that a
/// server does not tell is 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Clients that are connected.
    pub connections: u64,
    /// Loads that were answered.
    pub loads: u64,
    /// Stores that were taken, in whatever became of their transactions.
    pub stores: u64,
    /// Transactions that were committed.
    pub commits: u64,
    /// Transactions that were aborted.
    pub aborts: u64,
    /// Transactions that are under way.
    pub active_transactions: u64,
    /// Transactions that wait for the lock of the one that was voted.
    pub waiting: u64,
    /// Conflicts that were met.
    pub conflicts: u64,
    /// How many of those were resolved. The stock server leaves this at 0.
    pub conflicts_resolved: u64,
    /// When the server started: as C's `ctime` writes it, in the server's time zone.
    pub start: String,
    /// Since when a transaction holds the lock, in seconds since 1970; `None` while none does.
    pub lock_time_s: Option<f64>,
    /// Whether what ends transactions that take too long is at work; `None` if the server lets them
    /// take as long as they like.
    pub timeout_thread_is_alive: Option<bool>,
    /// The storage's last transaction, where the server tells it.
    pub last_transaction: Option<Tid>,
    /// What else the server tells, in its order.
    pub others: Vec<(String, Value<'static>)>,
}

pub(super) fn info(value: &Value<'_>) -> Option<Info> {
    let entries = read::entries(value)?;
    let number = |key| read::find(entries, key).and_then(read::number).unwrap_or(0);
    let Some(Value::Str(name)) = read::find(entries, "name") else { return None };
    let dotted = |pair: &Value<'_>| match read::sequence(pair)? {
        [Value::Str(module), Value::Str(name)] => Some(format!("{module}.{name}")),
        _ => None,
    };
    Some(Info {
        name: name.to_string(),
        length: number("length"),
        size: number("size"),
        supports_undo: number("supportsUndo") != 0,
        interfaces: match read::find(entries, "interfaces") {
            Some(interfaces) => read::all(interfaces, dotted)?,
            None => Vec::new(),
        },
    })
}

pub(super) fn status(value: &Value<'_>) -> Option<Status> {
    const KEYS: [&str; 13] = [
        "connections",
        "loads",
        "stores",
        "commits",
        "aborts",
        "active_txns",
        "waiting",
        "conflicts",
        "conflicts_resolved",
        "start",
        "lock_time",
        "timeout-thread-is-alive",
        "last-transaction",
    ];
    let entries = read::entries(value)?;
    let find = |key| read::find(entries, key).unwrap_or(&Value::None);
    let count = |key| match find(key) {
        Value::None => Some(0),
        value => read::count(value),
    };
    let other = |(key, value): (Value<'static>, Value<'static>)| match key {
        Value::Str(key) => Some((key.into_owned(), value)),
        _ => None,
    };
    Some(Status {
        connections: count("connections")?,
        loads: count("loads")?,
        stores: count("stores")?,
        commits: count("commits")?,
        aborts: count("aborts")?,
        active_transactions: count("active_txns")?,
        waiting: count("waiting")?,
        conflicts: count("conflicts")?,
        conflicts_resolved: count("conflicts_resolved")?,
        start: match find("start") {
            Value::None => String::new(),
            Value::Str(start) => start.to_string(),
            _ => return None,
        },
        lock_time_s: read::optional(find("lock_time"), read::seconds)?,
        timeout_thread_is_alive: match find("timeout-thread-is-alive") {
            // What stands in for the thread where there is no limit (`ZEO/StorageServer.py`).
            Value::None | Value::Str(_) => None,
            value => Some(read::number(value)? != 0),
        },
        last_transaction: read::optional(find("last-transaction"), tid_of_hex)?,
        others: read::others(entries, &KEYS).into_iter().map(other).collect::<Option<_>>()?,
    })
}

fn tid_of_hex(value: &Value<'_>) -> Option<Tid> {
    let digits = read::text(value)?;
    if digits.len() != 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok().map(Tid)
}
