//! Servers that break the rules: an error ends the session, and nothing of it reaches the cache.

use super::*;

/// Every call that has an answer, and what is asked for it.
fn questions() -> Vec<Request<'static>> {
    let (oid, tid) = (Oid(1), Tid(1));
    let id = request::TransactionId(1);
    vec![
        Request::GetInfo,
        Request::LastTransaction,
        Request::GetInvalidations { tid },
        Request::NewOids { count: 3 },
        Request::LoadSerial { oid, serial: tid },
        Request::GetTid { oid },
        Request::History { oid, count: 3 },
        Request::RecordIternext { from: None },
        Request::UndoLog { first: 0, last: 5 },
        Request::UndoInfo { first: 0, last: 5, filter: None },
        Request::ServerStatus,
        Request::Vote { id },
        Request::TpcFinish { id },
        Request::IteratorStart { start: None, stop: None },
        Request::IteratorNext { iterator: 1 },
        Request::IteratorRecordStart { iterator: 1, tid },
        Request::IteratorRecordNext { iterator: 1 },
    ]
}

#[test]
fn an_answer_of_the_wrong_form_ends_the_session_and_names_the_call() {
    let wrong = [
        Value::Float(0.5),
        Value::Str("text".into()),
        Value::Tuple(vec![Value::None; 7]),
        Value::List(vec![Value::Int(3)]),
        Value::Dict(vec![(text("key"), Value::None)]),
    ];
    for codec in CODECS {
        for (request, value) in
            questions().iter().flat_map(|request| wrong.iter().map(move |value| (request, value)))
        {
            let takes_any_dict = matches!(request, Request::ServerStatus | Request::GetInfo);
            let takes_text = matches!(request, Request::LoadSerial { .. });
            let is_fine = (takes_any_dict && matches!(value, Value::Dict(_)))
                || (takes_text && matches!(value, Value::Str(_)));
            let mut talk = Talk::ready(codec, 5);
            talk.ask(Question::Call(request.clone()), 0);
            let name = request.name();
            match talk.hear(talk.sent().reply(3, value)) {
                Err(SessionError::WrongForm { call }) => assert_eq!(call, name),
                other => assert!(is_fine, "{name}: {value:?} gives {other:?}"),
            }
            // Whoever waits hears of it, one way or the other.
            talk.session.abandon(&ClientError::Closed);
            assert_eq!(talk.answers().len(), 1, "{name}: {value:?}");
        }
    }
}

#[test]
fn an_answer_of_the_form_of_a_load_is_none_to_other_calls() {
    for codec in CODECS {
        for request in questions() {
            let mut talk = Talk::ready(codec, 5);
            talk.ask(Question::Call(request.clone()), 0);
            let mut sent = talk.sent();
            let id = MessageId::int(codec, 3);
            reply::load_reply(codec, &id, b"data", Tid(1), None, &mut sent.bytes);
            let heard = talk.hear(sent);
            assert!(heard.is_err(), "{}: {heard:?}", request.name());
            talk.session.abandon(&ClientError::Closed);
            assert_eq!(talk.answers().len(), 1, "{}", request.name());
        }
    }
}

#[test]
fn what_nobody_asked_for_ends_the_session() {
    for codec in CODECS {
        let new = || Sent::new(codec);
        let cases = [
            new().reply(77, &Value::None),
            new().reply(0, &Value::None),
            new().error(77, &ErrorReply::exception("no")),
            new().load(9, Tid::MAX, (b"data", 4, None)),
            new().load_none(9, Tid::MAX),
            new().load_error(9, Tid::MAX),
            // The right object, as of another moment.
            new().load(1, Tid(5), (b"data", 4, None)),
        ];
        for sent in cases {
            let mut talk = Talk::ready(codec, 5);
            talk.load(1, Tid::MAX, 0);
            let heard = talk.hear(sent);
            assert!(matches!(heard, Err(SessionError::NotAsked { .. })), "{heard:?}");
            assert!(talk.answers().is_empty());
            assert_eq!((talk.cached(1), talk.cached(9)), (None, None));
        }
        let mut talk = Talk::ready(codec, 5);
        talk.load(1, Tid::MAX, 0);
        let once = || Sent::new(codec).load(1, Tid::MAX, (b"data", 4, None));
        talk.hear(once()).unwrap();
        assert!(talk.hear(once()).is_err(), "one question has one answer");
    }
}

#[test]
fn a_revision_that_cannot_be_the_one_that_was_asked_for_ends_the_session() {
    let cases = [
        (Tid(5), (5, None)),
        (Tid(5), (6, None)),
        // It was over before that moment, or before it began.
        (Tid(5), (2, Some(4))),
        (Tid(5), (4, Some(4))),
        (Tid(5), (4, Some(1))),
        (Tid::MAX, (u64::MAX, None)),
    ];
    for (before, (serial, end)) in cases {
        let mut talk = Talk::ready(Codec::Msgpack, 5);
        talk.load(1, before, 0);
        let heard = talk.hear(talk.sent().load(1, before, (b"data", serial, end)));
        assert!(matches!(heard, Err(SessionError::WrongForm { .. })), "{heard:?}");
        assert_eq!(talk.cached(1), None);
        talk.session.abandon(&ClientError::Closed);
        assert_eq!(talk.answers().len(), 1);
    }
}

/// Bodies that are no message.
fn garbage(codec: Codec) -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> =
        vec![vec![0], vec![0xc1], b"HTTP/1.1 400 Bad Request".to_vec(), vec![0xff; 300]];
    match codec {
        Codec::Msgpack => {
            // Nesting without end, and lengths that are only told.
            bodies.push(vec![0x91; 100_000]);
            bodies.push(vec![0x94, 3, 0, 0xa6, b'.', b'r', b'e', b'p', b'l', b'y', 0xdd]);
            bodies.push(b"\x94\x03\x00\xa6.reply\xdd\xff\xff\xff\xff".to_vec());
            bodies.push(b"\x94\x03\x00\xa6.reply\xc6\xff\xff\xff\xff".to_vec());
            bodies.push(b"\x94\x03\x00\xa6.reply\xdf\xff\xff\xff\xff".to_vec());
        }
        Codec::Pickle => {
            bodies.push([&b"\x80\x03"[..], &vec![b'('; 100_000], b"."].concat());
            bodies.push([&b"\x80\x03"[..], &vec![b']'; 100_000], b"."].concat());
            bodies.push(b"\x80\x03(K\x03K\0X\x06\0\0\0.replyB\xff\xff\xff\xff".to_vec());
            // What would run with Python's own unpickler.
            bodies.push(
                b"\x80\x03(K\x03K\0X\x06\0\0\0.replycos\nsystem\nX\x02\0\0\0id\x85Rt.".to_vec(),
            );
            bodies.push(b"\x80\x03(K\x03K\0X\x06\0\0\0.replyc__builtin__\neval\n)\x81t.".to_vec());
        }
    }
    bodies
}

#[test]
fn garbage_ends_the_session_whenever_it_comes() {
    for codec in CODECS {
        for body in garbage(codec) {
            for point in 0..5 {
                let mut talk = Talk::new(codec);
                if 0 < point {
                    talk.hear(talk.sent().greeting()).unwrap();
                }
                if 1 < point {
                    talk.hear(talk.sent().reply(1, &tid(5))).unwrap();
                }
                if 2 < point {
                    talk.session.verify().unwrap();
                }
                if 3 < point {
                    talk.hear(talk.sent().reply(2, &info())).unwrap();
                    talk.load(1, Tid::MAX, 0);
                    talk.ask(Question::Call(Request::Ping), 1);
                }
                assert!(talk.hear(talk.sent().raw(&body)).is_err(), "at {point}: {body:?}");
                talk.session.abandon(&ClientError::Closed);
                assert_eq!(talk.answers().len(), if point == 4 { 2 } else { 0 });
            }
        }
    }
}

#[test]
fn a_frame_that_is_empty_or_too_long_is_refused_by_its_length() {
    for length in [0, wire::FRAME_MAX + 1, 1 << 31, u32::MAX] {
        let mut talk = Talk::ready(Codec::Msgpack, 5);
        let mut sent = talk.sent();
        sent.bytes.extend_from_slice(&length.to_be_bytes());
        assert!(talk.hear(sent).is_err(), "{length}");
    }
    // A greeting has two bytes: nobody waits for a long one.
    let mut talk = Talk::new(Codec::Msgpack);
    let mut sent = talk.sent();
    sent.bytes.extend_from_slice(&(wire::FRAME_BEFORE_REGISTER_MAX + 1).to_be_bytes());
    assert!(talk.hear(sent).is_err());
}

#[test]
fn a_told_length_reserves_nothing_and_a_long_message_gives_its_memory_back() {
    let mut talk = Talk::ready(Codec::Msgpack, 5);
    let room = talk.inbound.space().len();
    let mut sent = talk.sent();
    sent.bytes.extend_from_slice(&wire::FRAME_MAX.to_be_bytes());
    talk.hear(sent).unwrap();
    assert_eq!(talk.inbound.space().len(), room - 4);

    let mut talk = Talk::ready(Codec::Msgpack, 5);
    talk.load(1, Tid::MAX, 0);
    let data = vec![b'x'; 3 << 20];
    let sent = talk.sent().load(1, Tid::MAX, (&data, 4, None));
    for part in sent.bytes.chunks(10_000) {
        talk.session.receive_from(&mut talk.inbound, part).unwrap();
    }
    let (0, Answer::Revision(Some(revision))) = talk.answer() else { panic!("no revision") };
    assert_eq!(revision.data, data);
    assert_eq!(talk.inbound.space().len(), room);
}

#[test]
fn notices_of_no_meaning_are_passed_over_and_those_of_the_wrong_form_end_the_session() {
    let nothing = [
        ("info", Value::Tuple(vec![])),
        ("info", Value::Tuple(vec![Value::Int(3)])),
        ("info", Value::None),
        ("info", Value::Tuple(vec![Value::Dict(vec![(text("length"), text("many"))])])),
        ("serialnos", Value::Tuple(vec![Value::None])),
        ("system", Value::Tuple(vec![text("id")])),
        ("receiveBlobChunk", Value::Tuple(vec![eight(1), eight(2), bytes(b"chunk")])),
    ];
    for codec in CODECS {
        for (name, args) in &nothing {
            let mut talk = Talk::ready(codec, 5);
            talk.hear(talk.sent().notice(name, args)).unwrap();
            assert_eq!((talk.last(), talk.view.info().unwrap().length), (5, 2));
        }
        let changed = Value::Dict(vec![(text("length"), Value::Int(9))]);
        let mut talk = Talk::ready(codec, 5);
        talk.hear(talk.sent().notice("info", &Value::Tuple(vec![changed]))).unwrap();
        assert_eq!(talk.view.info().unwrap().length, 9);
        let wrong = [
            ("receiveBlobStart", Value::Tuple(vec![])),
            ("receiveBlobChunk", Value::Tuple(vec![Value::Int(1), Value::Int(2)])),
            ("invalidateTransaction", Value::Tuple(vec![])),
            ("invalidateTransaction", Value::Tuple(vec![tid(6), Value::Int(1)])),
            ("invalidateTransaction", Value::Tuple(vec![bytes(b"6"), Value::List(vec![])])),
            (
                "invalidateTransaction",
                Value::Tuple(vec![tid(6), Value::List(vec![bytes(b"short")])]),
            ),
        ];
        for (name, args) in &wrong {
            let mut talk = Talk::ready(codec, 5);
            assert!(talk.hear(talk.sent().notice(name, args)).is_err(), "{name} {args:?}");
            assert_eq!(talk.last(), 5);
        }
    }
}

#[test]
fn an_exception_of_any_class_is_an_error_of_its_call_alone() {
    let of = |class: &'static str, args| ErrorReply { class, args };
    let cases = [
        of("os.system", Value::Tuple(vec![text("id")])),
        of("", Value::None),
        of("ZODB.POSException.POSKeyError", Value::Int(5)),
        of("ZODB.POSException.ConflictError", Value::Dict(vec![(text("oid"), Value::Int(1))])),
        of("ZODB.POSException.ReadOnlyError", Value::Tuple(vec![Value::Tuple(vec![])])),
    ];
    for codec in CODECS {
        for error in &cases {
            for request in questions() {
                let mut talk = Talk::ready(codec, 5);
                talk.ask(Question::Call(request), 0);
                talk.hear(talk.sent().error(3, error)).unwrap();
                let answers = talk.answers();
                let [(0, Err(ClientError::Server(told)))] = &answers[..] else {
                    panic!("{answers:?}");
                };
                assert_eq!(told.class, error.class);
                talk.load(1, Tid::MAX, 1);
                talk.hear(talk.sent().load(1, Tid::MAX, (b"data", 4, None))).unwrap();
                assert_eq!(talk.answer(), (1, revision(b"data", 4, None)));
            }
        }
    }
}

#[test]
fn a_commit_that_the_server_does_not_know_changes_nothing() {
    for codec in CODECS {
        let mut talk = Talk::ready(codec, 5);
        talk.ask(finish(&[(1, b"mine")], &[]), 0);
        talk.hear(talk.sent().reply(3, &Value::None)).unwrap();
        let answers = talk.answers();
        let [(0, Err(ClientError::Server(error)))] = &answers[..] else { panic!("{answers:?}") };
        assert!(error.is_transaction_error());
        assert_eq!((talk.last(), talk.cached(1)), (5, None));
    }
}
