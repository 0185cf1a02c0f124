//! Answers of the stock server, as types.
//!
//! `tests/stock.txt` has what ZEO 6.2 sent, in both codecs, for a storage with seven small
//! transactions whose tids were chosen, but for a path that was taken out of one error. A line is
//! `codec case method hex`: the message without its frame's length.

mod malformed;

use zeoring_shared::wire::reply::{FromServer, decode_from_server};
use zeoring_shared::wire::{Codec, pickle};

use super::*;

const KINDS: [Kind; 24] = [
    Kind::Register,
    Kind::Load,
    Kind::LoadSerial,
    Kind::GetTid,
    Kind::LastTransaction,
    Kind::NewOids,
    Kind::NewOid,
    Kind::Info,
    Kind::Status,
    Kind::Invalidations,
    Kind::History,
    Kind::UndoLog,
    Kind::UndoInfo,
    Kind::CurrentRecord,
    Kind::Iterator,
    Kind::NextTransaction,
    Kind::RecordIterator,
    Kind::NextRecord,
    Kind::SendBlob,
    Kind::Pack,
    Kind::Ping,
    Kind::Vote,
    Kind::Finish,
    Kind::Abort,
];

/// The minute of all tids, in seconds since 1970.
const TIME_S: f64 = 1_744_362_240.0;

struct Line {
    codec: Codec,
    case: &'static str,
    kind: Kind,
    body: Vec<u8>,
}

fn stock() -> Vec<Line> {
    let line = |line: &'static str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [codec, case, method, hex] = words[..] else { panic!("{line:?} has four words") };
        let digits = (0..hex.len()).step_by(2);
        Line {
            codec: if codec == "Z5" { Codec::Pickle } else { Codec::Msgpack },
            case,
            kind: KINDS.into_iter().find(|kind| kind.name() == method).expect("a kind of answer"),
            body: digits.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect(),
        }
    };
    include_str!("tests/stock.txt").lines().map(line).collect()
}

impl Line {
    /// What a session makes of the message.
    fn result(&self) -> Result<Answer, ServerError> {
        let read = match decode_from_server(self.codec, &self.body).unwrap() {
            FromServer::Load { data, serial, end, .. } => {
                self.kind.read_load(data, serial, end).map(Ok)
            }
            FromServer::Reply { value, .. } => self.kind.read(&value),
            FromServer::Error { class, args, .. } => Some(self.kind.read_error(&class, &args)),
            other => panic!("{other:?}"),
        };
        read.unwrap_or_else(|| panic!("{} has the wrong form in {:?}", self.case, self.codec))
    }
}

fn t(number: u64) -> Tid {
    Tid(0x0400_0000_0000_0000 + number)
}

/// A record of the captured storage: two pickles, of nothing and of a text.
fn record(text: &str) -> Bytes {
    let mut record = b"\x80\x03N.\x80\x03X".to_vec();
    record.extend((text.len() as u32).to_le_bytes());
    record.extend(text.as_bytes());
    record.extend(b"q\0.");
    record.into()
}

fn s(text: &'static str) -> Value<'static> {
    Value::Str(text.into())
}

fn b(bytes: &'static [u8]) -> Value<'static> {
    Value::Bytes(bytes.into())
}

fn extension() -> Vec<(Value<'static>, Value<'static>)> {
    vec![
        (s("request"), s("/x")),
        (s("n"), Value::Int(3)),
        (s("flag"), Value::Bool(true)),
        (s("f"), Value::Float(1.5)),
        (s("list"), Value::Tuple(vec![Value::Int(1), Value::Int(2)])),
        (s("none"), Value::None),
        (s("bytes"), b(b"\0\xff")),
    ]
}

fn past(tid: u64, user: &str, description: &str, size: u64) -> HistoryEntry {
    HistoryEntry {
        tid: t(tid),
        time_s: TIME_S,
        user: user.into(),
        description: description.into(),
        size,
        extension: Vec::new(),
    }
}

fn undoable(tid: u64, user: &str, description: &str, size: u64) -> UndoEntry {
    UndoEntry {
        id: t(tid),
        time_s: TIME_S,
        user: user.into(),
        description: description.into(),
        size: Some(size),
        extension: Vec::new(),
    }
}

fn revision(data: &str, serial: u64, end: Option<u64>) -> Answer {
    Answer::Revision(Some(Revision { data: record(data), serial: t(serial), end: end.map(t) }))
}

fn oids(oids: impl IntoIterator<Item = u64>) -> Vec<Oid> {
    oids.into_iter().map(Oid).collect()
}

fn status() -> Status {
    Status {
        connections: 2,
        loads: 0,
        stores: 8,
        commits: 7,
        aborts: 2,
        active_transactions: 0,
        waiting: 0,
        conflicts: 0,
        conflicts_resolved: 0,
        start: "Mon Nov 23 15:16:24 2026".into(),
        lock_time_s: None,
        timeout_thread_is_alive: None,
        last_transaction: Some(t(7)),
        others: vec![],
    }
}

fn info() -> Info {
    let zodb = [
        "IBlobStorageRestoreable",
        "IBlobStorage",
        "IStorageRestoreable",
        "IStorageIteration",
        "IStorageUndoable",
        "IStorageCurrentRecordIteration",
        "IExternalGC",
        "IStorage",
    ];
    let mut interfaces: Vec<String> =
        zodb.map(|interface| format!("ZODB.interfaces.{interface}")).into();
    interfaces.push("zope.interface.Interface".into());
    Info { name: "Data.fs".into(), length: 4, size: 1032, supports_undo: true, interfaces }
}

fn conflict(committed: u64, read: u64, data: Option<&str>) -> Conflict {
    Conflict {
        oid: Oid(0),
        committed: t(committed),
        read: t(read),
        data: data.map(record),
        read_data: None,
        committed_data: None,
    }
}

fn undo_log() -> Vec<UndoEntry> {
    // The newest of all, the seventh, has an extension with an `id`. That of the sixth overwrites
    // everything else.
    let overwritten = UndoEntry {
        size: None,
        extension: vec![
            (s("time"), s("noon")),
            (s("size"), s("big")),
            (s("description"), Value::Int(5)),
        ],
        ..undoable(6, "eve2", "", 0)
    };
    let extended = UndoEntry { extension: extension(), ..undoable(2, "böb", "second", 210) };
    vec![
        overwritten,
        undoable(5, "", "delete", 79),
        undoable(4, "", "", 143),
        undoable(3, "ann", "undo", 80),
        extended,
        undoable(1, "ann", "first", 150),
    ]
}

/// What a line means. Each codec asked for oids of its own, and finished its own transaction.
fn meaning(case: &str, codec: Codec) -> Answer {
    let is_pickle = codec == Codec::Pickle;
    let later = |msgpack: u64, pickle: u64| if is_pickle { pickle } else { msgpack };
    let transaction = |tid, user: &str, description: &str, extension| {
        let (user, description) = (user.into(), description.into());
        let entry = TransactionEntry { tid: t(tid), status: b' ', user, description, extension };
        Answer::TransactionEntry(Some(entry))
    };
    match case {
        "register-empty" => Answer::Tid(Tid::ZERO),
        "register" | "last" => Answer::Tid(t(7)),
        "get-tid" => Answer::Tid(t(3)),
        "finish" => Answer::Tid(t(later(9, 10))),
        "invalidated-empty" | "invalidated-too-old" => Answer::Invalidated(None),
        "invalidated" => Answer::Invalidated(Some((t(7), oids([3, 0, 2])))),
        "new-oids-1" => Answer::Oids(oids(later(4, 5)..=later(4, 5))),
        "new-oids-2" => Answer::Oids(oids(later(6, 8)..=later(7, 9))),
        "new-oids-3" => Answer::Oids(oids(later(10, 13)..=later(12, 15))),
        "new-oids-4" => Answer::Oids(oids(later(16, 20)..=later(19, 23))),
        "status" => Answer::Status(status()),
        "status-locked" => Answer::Status(Status {
            stores: 9,
            active_transactions: 1,
            lock_time_s: Some(1_795_446_984.221_496_8),
            ..status()
        }),
        "info" => Answer::Info(info()),
        "load-current" => revision("one", 3, None),
        "load-older" => revision("one", 1, Some(2)),
        "load-none" => Answer::Revision(None),
        "load-serial" => Answer::Data(record("two")),
        "history" => Answer::History(vec![
            past(3, "ann", "undo", 0),
            HistoryEntry { extension: extension(), ..past(2, "böb", "second", 17) },
            past(1, "ann", "first", 17),
        ]),
        "history-overwritten" => Answer::History(vec![
            HistoryEntry {
                extension: vec![(s("id"), Value::Int(7))],
                ..past(7, "eve", "overwrites", 19)
            },
            past(6, "eve", "overwrites", 19),
            past(1, "ann", "first", 18),
        ]),
        "record-first" => Answer::CurrentRecord(CurrentRecord {
            oid: Oid(0),
            tid: t(7),
            data: record("root3"),
            next: Some(Oid(1)),
        }),
        "record-last" => Answer::CurrentRecord(CurrentRecord {
            oid: Oid(3),
            tid: t(4),
            data: record("last"),
            next: None,
        }),
        "undo-log" => Answer::UndoLog(undo_log()),
        "undo-info" => Answer::UndoLog(vec![undo_log().swap_remove(4)]),
        "undo-info-empty" => Answer::UndoLog(vec![]),
        "iterator" => Answer::Iterator(0),
        "record-iterator" => Answer::Iterator(1),
        "transaction-extended" => {
            let mut stored = Vec::new();
            pickle::encode(&Value::Dict(extension()), &mut stored);
            transaction(2, "böb", "second", stored)
        }
        "transaction-plain" => transaction(3, "ann", "undo", vec![]),
        "transaction-end" => Answer::TransactionEntry(None),
        "record-undone" => Answer::RecordEntry(Some(RecordEntry {
            oid: Oid(1),
            tid: t(3),
            data: Some(record("one")),
            data_tid: Some(t(1)),
        })),
        "record-deleted" => Answer::RecordEntry(Some(RecordEntry {
            oid: Oid(2),
            tid: t(5),
            data: None,
            data_tid: None,
        })),
        "record-end" => Answer::RecordEntry(None),
        "vote-accepted" => Answer::Verdict(Verdict::Accepted(vec![])),
        "vote-undone" => Answer::Verdict(Verdict::Accepted(oids([1]))),
        "vote-three" => Answer::Verdict(Verdict::Accepted(oids([1, 2, 3]))),
        "vote-conflicts" => Answer::Verdict(Verdict::Conflicts(vec![conflict(2, 1, Some("x"))])),
        "vote-conflict" | "vote-check" => Answer::Verdict(Verdict::Refused(conflict(7, 6, None))),
        "ping" | "abort" | "pack" | "blob" => Answer::Done,
        other => panic!("{other} has no meaning here"),
    }
}

fn is_error(line: &Line) -> bool {
    line.case.starts_with("error-") || line.case == "finish-unknown"
}

#[test]
fn every_answer_of_the_stock_server_is_read_in_both_codecs() {
    for line in stock().iter().filter(|line| !is_error(line)) {
        let expected = Ok(meaning(line.case, line.codec));
        assert_eq!(line.result(), expected, "{} in {:?}", line.case, line.codec);
    }
}

#[test]
fn the_stock_server_was_asked_everything_but_what_it_does_not_have() {
    let lines = stock();
    for kind in KINDS {
        let answered = lines.iter().filter(|line| line.kind == kind && !is_error(line)).count();
        assert_eq!(answered == 0, kind == Kind::NewOid, "{} lines of {kind:?}", answered);
    }
}

#[test]
fn every_error_of_the_stock_server_says_what_it_is_about() {
    type Predicate = fn(&ServerError) -> bool;
    let neither: Predicate = |error| {
        !error.is_read_only()
            && !error.is_missing_object()
            && !error.is_undo_error()
            && !error.is_transaction_error()
            && !error.is_conflict()
    };
    let missing: Predicate = ServerError::is_missing_object;
    let undo: Predicate = ServerError::is_undo_error;
    let transaction: Predicate = ServerError::is_transaction_error;
    let followed = "0000000000000000: Can't undo an add transaction followed by conflicting \
                    transactions.";
    let cases: [(&str, &str, Option<u64>, Predicate); 12] = [
        ("error-read-only", "", None, ServerError::is_read_only),
        ("error-unknown-storage", "unknown storage: nope", None, neither),
        ("error-new-oid", "'ZEOStorage' object has no attribute 'new_oid'", None, neither),
        ("error-load", "0000000000000009", Some(9), missing),
        ("error-record-deleted", "0000000000000002", Some(2), missing),
        ("error-record-end", "no key satisfies the conditions", None, neither),
        ("error-vote-unknown", "None, 77", None, transaction),
        ("error-undo-several", followed, Some(0), undo),
        ("error-undo", "Invalid transaction id", None, undo),
        ("error-iterator", "0", None, neither),
        ("error-blob", "No blob file, 0000000000000001, 0400000000000008", Some(1), missing),
        ("finish-unknown", "the server knows no such transaction", None, transaction),
    ];
    for line in stock().iter().filter(|line| is_error(line)) {
        let (_, message, oid, is_it) =
            cases.iter().find(|(case, ..)| *case == line.case).expect("a case of each");
        let error = line.result().expect_err(line.case);
        assert_eq!((&*error.message, error.oid), (*message, oid.map(Oid)), "{}", line.case);
        assert!(is_it(&error), "{error:?}");
    }
}
