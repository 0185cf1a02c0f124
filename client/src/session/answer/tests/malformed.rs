//! Answers that no server should give: each is refused, whatever it is.

use zeoring_shared::wire::request::TransactionId;

use super::*;

fn eight() -> Value<'static> {
    b(&[7; 8])
}

fn seven() -> Value<'static> {
    b(&[7; 7])
}

fn tuple<const N: usize>(items: [Value<'static>; N]) -> Value<'static> {
    Value::Tuple(items.into())
}

fn dict<const N: usize>(entries: [(&'static str, Value<'static>); N]) -> Value<'static> {
    Value::Dict(entries.into_iter().map(|(key, value)| (s(key), value)).collect())
}

/// The dictionary `whole` without a key, or with another value for it.
fn but(whole: &Value<'static>, key: &str, value: Option<Value<'static>>) -> Value<'static> {
    let Value::Dict(entries) = whole else { panic!("a dictionary is taken apart") };
    let mut entries = entries.clone();
    entries.retain(|(name, _)| !read::is_key(name, key));
    entries.extend(value.map(|value| (Value::Str(key.to_owned().into()), value)));
    Value::Dict(entries)
}

/// Kinds of which every answer will do.
const ANYTHING: [Kind; 4] = [Kind::SendBlob, Kind::Pack, Kind::Ping, Kind::Abort];

#[test]
fn a_value_of_another_type_is_no_answer() {
    let odd = [
        Value::Bool(true),
        Value::Float(1.5),
        Value::Unsigned(u64::MAX),
        s("12345678"),
        seven(),
        tuple([Value::None]),
        tuple([s("12345678"), eight()]),
        Value::List(vec![tuple([])]),
        Value::Prefix { length: 0, path: vec![] },
        Value::UndoError { reason: "".into(), oid: None },
    ];
    for kind in KINDS.into_iter().filter(|kind| !ANYTHING.contains(kind)) {
        for value in &odd {
            let fits = match kind {
                Kind::LoadSerial => matches!(value, Value::Bytes(_)),
                Kind::Iterator | Kind::RecordIterator => matches!(value, Value::Bool(_)),
                _ => false,
            };
            assert_eq!(kind.read(value).is_some(), fits, "{value:?} as {kind:?}");
        }
    }
}

#[test]
fn none_is_an_answer_only_where_it_means_something() {
    let may_be_none = [
        Kind::Register,
        Kind::LastTransaction,
        Kind::Load,
        Kind::Invalidations,
        Kind::NextTransaction,
        Kind::NextRecord,
        Kind::Finish,
    ];
    for kind in KINDS.into_iter().filter(|kind| !ANYTHING.contains(kind)) {
        assert_eq!(kind.read(&Value::None).is_some(), may_be_none.contains(&kind), "{kind:?}");
    }
}

#[test]
fn a_sequence_with_a_wrong_part_is_no_answer() {
    let extension = || dict([("a", Value::None)]);
    let oids = || Value::List(vec![eight(), eight()]);
    let serials = |serials| Value::List(vec![dict([("oid", eight()), ("serials", serials)])]);
    let right = [
        (Kind::NewOids, oids()),
        (Kind::Vote, oids()),
        (Kind::Vote, serials(tuple([eight(), eight()]))),
        (Kind::Invalidations, tuple([eight(), oids()])),
        (Kind::CurrentRecord, tuple([eight(), eight(), b(b""), Value::None])),
        (Kind::NextRecord, tuple([eight(), eight(), Value::None, eight()])),
        (Kind::NextTransaction, tuple([eight(), s("p"), s("u"), b(b"d"), extension()])),
        (Kind::NextTransaction, tuple([eight(), b(b" "), b(b"u"), s("d"), b(b"stored")])),
        (Kind::NextTransaction, tuple([eight(), s(" "), s("u"), s("d"), Value::None])),
    ];
    for (kind, value) in right {
        assert!(kind.read(&value).is_some(), "{value:?} as {kind:?}");
        let Some(items) = read::sequence(&value).map(<[_]>::to_vec) else { unreachable!() };
        // An odd value for each part, and a part too many or too few where their number is fixed.
        for at in 0..items.len() {
            for odd in [Value::Float(0.5), tuple([seven()]), Value::Int(-1)] {
                let mut wrong = items.clone();
                wrong[at] = odd;
                let wrong = Value::Tuple(wrong);
                assert_eq!(kind.read(&wrong), None, "{wrong:?} as {kind:?}");
            }
        }
        if !matches!(kind, Kind::NewOids | Kind::Vote) {
            let more = Value::Tuple([&items[..], &[Value::None]].concat());
            let fewer = Value::Tuple(items[..items.len() - 1].to_vec());
            assert_eq!(kind.read(&more), None, "{more:?} as {kind:?}");
            assert_eq!(kind.read(&fewer), None, "{fewer:?} as {kind:?}");
        }
    }
    let wrong = [
        (Kind::Vote, serials(tuple([eight()]))),
        (Kind::Vote, serials(tuple([eight(), seven()]))),
        (Kind::Vote, Value::List(vec![dict([("oid", eight())])])),
        (Kind::Vote, Value::List(vec![eight(), dict([])])),
        (Kind::NextTransaction, tuple([eight(), s("  "), s(""), s(""), dict([])])),
        (Kind::NextTransaction, tuple([eight(), s("é"), s(""), s(""), dict([])])),
    ];
    for (kind, value) in wrong {
        assert_eq!(kind.read(&value), None, "{value:?} as {kind:?}");
    }
}

#[test]
fn a_dictionary_with_a_wrong_entry_is_no_answer() {
    let past = dict([
        ("tid", eight()),
        ("time", Value::Int(5)),
        ("user_name", s("u")),
        ("description", b(b"d")),
        ("size", Value::Unsigned(9)),
    ]);
    let of_past = |entry| Value::List(vec![past.clone(), entry]);
    assert!(Kind::History.read(&of_past(past.clone())).is_some());
    for key in ["tid", "time", "user_name", "description", "size"] {
        for value in [None, Some(Value::None), Some(tuple([])), Some(dict([]))] {
            let wrong = of_past(but(&past, key, value));
            assert_eq!(Kind::History.read(&wrong), None, "{wrong:?}");
        }
    }
    let negative = of_past(but(&past, "size", Some(Value::Int(-1))));
    assert_eq!(Kind::History.read(&negative), None);

    let status = dict([("loads", Value::Int(1)), ("last-transaction", b(b"000000000000000f"))]);
    let Some(Ok(Answer::Status(read))) = Kind::Status.read(&status) else { unreachable!() };
    assert_eq!((read.loads, read.last_transaction), (1, Some(Tid(15))));
    let wrong = [
        ("loads", s("1")),
        ("loads", Value::Int(-1)),
        ("conflicts", Value::Float(1.0)),
        ("start", Value::Int(1)),
        ("lock_time", s("noon")),
        ("timeout-thread-is-alive", eight()),
        ("last-transaction", eight()),
        ("last-transaction", s("00000000000000f")),
        ("last-transaction", s("+00000000000000f")),
        ("last-transaction", s("00000000000000éf")),
    ];
    for (key, value) in wrong {
        let wrong = but(&status, key, Some(value));
        assert_eq!(Kind::Status.read(&wrong), None, "{wrong:?}");
    }

    let info = dict([("name", s("x")), ("supportsUndo", Value::Int(1))]);
    assert!(Kind::Info.read(&info).is_some());
    let named = |value| but(&info, "interfaces", Some(value));
    let wrong = [but(&info, "name", None), named(Value::Int(1)), named(tuple([s("IStorage")]))];
    for wrong in wrong {
        assert_eq!(Kind::Info.read(&wrong), None, "{wrong:?}");
    }
}

#[test]
fn an_undo_log_keeps_what_it_can_name() {
    let read = |id| match Kind::UndoLog.read(&Value::List(vec![dict([("id", id)])])) {
        Some(Ok(Answer::UndoLog(log))) => log.into_iter().map(|entry| entry.id).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    for id in [Value::None, eight(), s(""), b(b"BAAAAAAAAAE"), s("BAAAAAAAAA*=")] {
        assert_eq!(read(id), []);
    }
    for id in [b(b"BAAAAAAAAAE="), s("BAAAAAAAAAE="), b(b"BAAAAAAAAAE=\n")] {
        assert_eq!(read(id), [t(1)]);
    }
    let nameless = Value::List(vec![dict([("time", Value::Float(1.0))])]);
    assert_eq!(Kind::UndoLog.read(&nameless), None);
}

#[test]
fn a_server_may_tell_more_of_its_state_and_watch_for_time_outs() {
    let told = dict([
        ("timeout-thread-is-alive", Value::Bool(true)),
        ("lock_time", Value::Float(2.5)),
        ("uring", dict([("depth", Value::Int(64))])),
    ]);
    let Some(Ok(Answer::Status(status))) = Kind::Status.read(&told) else { unreachable!() };
    assert_eq!(status.timeout_thread_is_alive, Some(true));
    assert_eq!(status.lock_time_s, Some(2.5));
    assert_eq!(status.others, [("uring".to_owned(), dict([("depth", Value::Int(64))]))]);
}

#[test]
fn only_loads_and_lists_of_oids_may_have_the_shape_of_a_load() {
    let oids = vec![Oid(1), Oid(2), Oid(3)];
    for kind in KINDS {
        let expected = match kind {
            Kind::Load => Some(Answer::Revision(Some(Revision {
                data: Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 1]),
                serial: Tid(2),
                end: Some(Tid(3)),
            }))),
            Kind::NewOids => Some(Answer::Oids(oids.clone())),
            Kind::Vote => Some(Answer::Verdict(Verdict::Accepted(oids.clone()))),
            _ => None,
        };
        assert_eq!(kind.read_load(&[0, 0, 0, 0, 0, 0, 0, 1], Tid(2), Some(Tid(3))), expected);
    }
    for kind in [Kind::NewOids, Kind::Vote] {
        assert_eq!(kind.read_load(&[1; 8], Tid(2), None), None, "two oids and nothing");
        assert_eq!(kind.read_load(&[1; 7], Tid(2), Some(Tid(3))), None, "an oid that is short");
    }
}

#[test]
fn an_answer_with_a_damaged_byte_is_read_or_refused() {
    for line in stock() {
        for at in 0..line.body.len() {
            for mask in [0x01, 0x80, 0xff] {
                let mut body = line.body.clone();
                body[at] ^= mask;
                // Whatever comes of it, it comes: the test is that nothing panics.
                match decode_from_server(line.codec, &body) {
                    Ok(FromServer::Load { data, serial, end, .. }) => {
                        drop(line.kind.read_load(data, serial, end));
                    }
                    Ok(FromServer::Reply { value, .. }) => drop(line.kind.read(&value)),
                    Ok(FromServer::Error { class, args, .. }) => {
                        drop(line.kind.read_error(&class, &args));
                    }
                    Ok(FromServer::Invalidate { .. } | FromServer::Notice { .. }) | Err(_) => {}
                }
            }
        }
    }
}

#[test]
fn a_request_waits_for_the_answer_of_its_own_method() {
    let (id, oid, tid) = (TransactionId(1), Oid(1), Tid(1));
    let requests = [
        Request::Register { storage: "1".into(), read_only: false },
        Request::LoadBefore { oid, before: tid },
        Request::LoadSerial { oid, serial: tid },
        Request::GetTid { oid },
        Request::LastTransaction,
        Request::NewOids { count: 1 },
        Request::NewOid,
        Request::GetInfo,
        Request::ServerStatus,
        Request::GetInvalidations { tid },
        Request::History { oid, count: 1 },
        Request::UndoLog { first: 0, last: -1 },
        Request::UndoInfo { first: 0, last: -1, filter: None },
        Request::RecordIternext { from: None },
        Request::IteratorStart { start: None, stop: None },
        Request::IteratorNext { iterator: 1 },
        Request::IteratorRecordStart { iterator: 1, tid },
        Request::IteratorRecordNext { iterator: 1 },
        Request::SendBlob { oid, serial: tid },
        Request::Pack { time: 0.0, wait: true },
        Request::Ping,
        Request::Vote { id },
        Request::TpcFinish { id },
        Request::TpcAbort { id },
    ];
    let kinds = requests.each_ref().map(Kind::of);
    assert_eq!(kinds, KINDS);
    for (request, kind) in requests.iter().zip(kinds) {
        assert_eq!(kind.name(), request.name());
    }
}

#[test]
#[should_panic(expected = "storeBlobStart has no answer")]
fn a_request_without_an_answer_is_not_waited_for() {
    Kind::of(&Request::StoreBlobStart);
}
