//! Messages as stock ZEO 6.2 writes them (`src/wire/golden.txt`), and as we do.
//!
//! A line of that file is `C|S codec name hex`: who sent it (client or server), and the message
//! without its frame's length.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may say so")]

use proptest::prelude::*;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::frame::split_frame;
use zeoring_shared::wire::reply::{
    self, ErrorReply, FromServer, decode_from_server, invalidate_transaction, load_reply, notice,
};
use zeoring_shared::wire::request::{
    Call, Incoming, Request, TransactionId, decode_call, encode_call,
};
use zeoring_shared::wire::value::Value;
use zeoring_shared::wire::{Codec, MessageId, msgpack};

const CODECS: [Codec; 2] = [Codec::Pickle, Codec::Msgpack];

const O: Oid = Oid(5);
const T: Tid = Tid(0x0300_0000_0000_0011);
const LATER: Tid = Tid(0x0300_0000_0000_0012);
const ID: TransactionId = TransactionId(0x7f01_2345_6789);

struct Golden {
    from_client: bool,
    codec: Codec,
    name: &'static str,
    body: Vec<u8>,
}

fn golden() -> Vec<Golden> {
    let lines = include_str!("../src/wire/golden.txt").lines();
    lines
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let [side, codec, name, hex] = words[..] else {
                panic!("{line:?} has four words");
            };
            let digits = (0..hex.len()).step_by(2);
            Golden {
                from_client: side == "C",
                codec: if codec == "Z5" { Codec::Pickle } else { Codec::Msgpack },
                name,
                body: digits.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect(),
            }
        })
        .collect()
}

fn golden_from_server(codec: Codec) -> Vec<Vec<u8>> {
    let wanted = |line: &Golden| !line.from_client && line.codec == codec;
    golden().into_iter().filter(wanted).map(|line| line.body).collect()
}

/// What the lines of a client mean, in their order; the same for both codecs.
fn meanings(codec: Codec) -> Vec<(&'static str, Request<'static>)> {
    let text = |text: &'static str| Value::Str(text.into());
    let filter = |value| Some(Value::Dict(vec![(text("user_name"), value)]));
    let begin = |id, extension: &'static [u8], tid, status| Request::TpcBegin {
        id,
        user: b"u".into(),
        description: b"d".into(),
        extension: extension.into(),
        tid,
        status,
    };
    let long = || vec![b'x'; 300].into();
    let mut meanings = vec![
        ("load id", Request::LoadBefore { oid: O, before: Tid::MAX }),
        ("1", Request::Register { storage: "1".into(), read_only: false }),
        ("2", Request::Register { storage: "1".into(), read_only: false }),
        ("3", Request::GetInfo),
        ("4", Request::LastTransaction),
        ("5", Request::GetInvalidations { tid: T }),
        ("6", Request::NewOids { count: 100 }),
        ("7", Request::NewOids { count: 100 }),
        ("8", Request::LoadSerial { oid: O, serial: T }),
        ("9", Request::GetTid { oid: O }),
        ("10", Request::History { oid: O, count: 1 }),
        ("11", Request::History { oid: O, count: 3 }),
        ("12", Request::RecordIternext { from: None }),
        ("13", Request::RecordIternext { from: Some(O) }),
        ("14", Request::UndoLog { first: 0, last: -20 }),
        ("15", Request::UndoInfo { first: 0, last: -20, filter: None }),
        (
            "16",
            Request::UndoInfo { first: 0, last: -20, filter: filter(Value::Bytes(b"x".into())) },
        ),
        ("17", Request::Pack { time: 1.5, wait: true }),
        ("18", Request::Ping),
        ("19", Request::ServerStatus),
        ("oneway", Request::SetClientLabel { label: "me".into() }),
        ("oneway", begin(ID, b"", None, b' ')),
        (
            "oneway",
            begin(
                TransactionId(-5_i64 as u64),
                b"\x80\x03}(X\x01\0\0\0aK\x01X\x01\0\0\0bX\x01\0\0\0xu.",
                Some(T),
                b'p',
            ),
        ),
        ("oneway", Request::Storea { oid: O, serial: T, data: b"data".into(), id: ID }),
        ("oneway", Request::Storea { oid: O, serial: T, data: long(), id: ID }),
        ("oneway", Request::DeleteObject { oid: O, serial: T, id: ID }),
        ("oneway", Request::CheckCurrentSerial { oid: O, serial: T, id: ID }),
        ("oneway", Request::Restorea { oid: O, serial: T, data: None, previous: None, id: ID }),
        (
            "oneway",
            Request::Restorea {
                oid: O,
                serial: T,
                data: Some(b"d".into()),
                previous: Some(LATER),
                id: ID,
            },
        ),
        ("oneway", Request::Undoa { tid: Tid(17), id: ID }),
        ("oneway", Request::StoreBlobStart),
        ("oneway", Request::StoreBlobChunk { chunk: b"chunk".into() }),
        ("oneway", Request::StoreBlobEnd { oid: O, serial: T, data: b"d".into(), id: ID }),
        (
            "oneway",
            Request::StoreBlobShared {
                oid: O,
                serial: T,
                data: b"d".into(),
                filename: "x.tmp".into(),
                id: ID,
            },
        ),
        ("34", Request::SendBlob { oid: O, serial: T }),
        ("35", Request::Vote { id: ID }),
        ("36", Request::TpcFinish { id: ID }),
        ("37", Request::TpcAbort { id: ID }),
        ("38", Request::IteratorStart { start: None, stop: None }),
        ("39", Request::IteratorStart { start: Some(T), stop: Some(LATER) }),
        ("40", Request::IteratorNext { iterator: 1 }),
        ("41", Request::IteratorRecordStart { iterator: 1, tid: T }),
        ("42", Request::IteratorRecordNext { iterator: 1 }),
        ("oneway", Request::IteratorGc { iterators: vec![1, 2] }),
        ("44", Request::NewOid),
    ];
    if codec == Codec::Pickle {
        let path = ["", "a", "b"].map(str::to_owned).to_vec();
        let filter = filter(Value::Prefix { length: 3, path });
        meanings.push(("9", Request::UndoInfo { first: 0, last: -20, filter }));
    }
    meanings
}

/// The id that stock's client has for its number: the shortest form.
fn stock_id(codec: Codec, id: &str) -> Vec<u8> {
    match (id, codec) {
        ("load id", codec) => MessageId::load(codec, O, Tid::MAX).as_bytes().to_vec(),
        ("oneway", codec) => stock_id(codec, "0"),
        (number, Codec::Msgpack) => vec![number.parse().unwrap()],
        (number, Codec::Pickle) => vec![b'K', number.parse().unwrap()],
    }
}

#[test]
fn every_message_of_a_stock_client_means_what_it_should_and_echoes_its_id() {
    for codec in CODECS {
        let lines: Vec<_> = golden()
            .into_iter()
            .filter(|line| line.from_client && line.codec == codec && line.name != ".reply")
            .collect();
        let meanings = meanings(codec);
        assert_eq!(lines.len(), meanings.len());
        for (line, (id, request)) in lines.iter().zip(&meanings) {
            let Incoming::Call(call) = decode_call(codec, &line.body).unwrap() else {
                panic!("{} is a call", line.name);
            };
            assert_eq!(&call.request, request);
            assert_eq!(call.request.name(), line.name);
            assert_eq!(call.oneway, *id == "oneway", "{}", line.name);
            assert_eq!(call.id.as_bytes(), stock_id(codec, id), "{}", line.name);
        }
    }
}

#[test]
fn a_sign_of_life_is_no_reply() {
    let lines = golden();
    let lines: Vec<_> = lines.iter().filter(|line| line.from_client).collect();
    let alive = lines.iter().filter(|line| line.name == ".reply");
    assert_eq!(
        alive.map(|line| decode_call(line.codec, &line.body)).collect::<Vec<_>>(),
        [Ok(Incoming::KeepAlive), Ok(Incoming::KeepAlive)]
    );
}

#[test]
fn no_message_is_whole_before_its_last_byte_nor_with_one_more() {
    for line in golden() {
        let read = |body: &[u8]| {
            if line.from_client {
                decode_call(line.codec, body).map(drop)
            } else {
                decode_from_server(line.codec, body).map(drop)
            }
        };
        read(&line.body).unwrap();
        for cut in 0..line.body.len() {
            assert!(read(&line.body[..cut]).is_err(), "{} cut at {cut}", line.name);
        }
        let longer = [&line.body[..], b"\0"].concat();
        assert!(read(&longer).is_err(), "{} with one more", line.name);
    }
}

/// A frame's only body.
fn body_of(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    let frame = split_frame(&out, u32::MAX).unwrap().expect("the frame is whole");
    assert!(frame.rest.is_empty());
    frame.body.to_vec()
}

#[test]
fn a_client_of_ours_says_what_the_server_reads() {
    for codec in CODECS {
        for (id, request) in meanings(codec) {
            let call = Call {
                id: if id == "load id" {
                    MessageId::load(codec, O, Tid::MAX)
                } else {
                    MessageId::int(codec, 7)
                },
                oneway: id == "oneway",
                request,
            };
            let body = body_of(|out| encode_call(codec, &call, out));
            assert_eq!(decode_call(codec, &body), Ok(Incoming::Call(call)));
        }
    }
}

/// Stock's bytes for what our encoder is given here, in the order of the golden lines; `None` where
/// ours differ on purpose, or stock's line cannot be made by a constructor.
fn ours(codec: Codec) -> Vec<Option<Vec<u8>>> {
    let load = MessageId::load(codec, O, Tid::MAX);
    let seven = short_id(codec, 7);
    let reply = |value| body_of(|out| reply::reply(codec, &seven, &value, out));
    let error = |error| body_of(|out| reply::error_reply(codec, &seven, &error, out));
    let invalidate = |oids: &[Oid]| body_of(|out| invalidate_transaction(codec, T, oids, out));
    let text = |text: &'static str| Value::Str(text.into());
    let oid = || Value::Bytes(O.to_bytes().to_vec().into());
    let tid = || Value::Bytes(T.to_bytes().to_vec().into());
    let info = vec![(text("length"), Value::Int(1)), (text("size"), Value::Int(2))];
    let chunk = Value::Tuple(vec![oid(), tid(), Value::Bytes(b"c".into())]);
    vec![
        Some(body_of(|out| load_reply(codec, &load, b"data", T, Some(LATER), out))),
        Some(body_of(|out| load_reply(codec, &load, &[b'x'; 300], T, None, out))),
        Some(body_of(|out| reply::reply(codec, &load, &Value::None, out))),
        Some(invalidate(&[])),
        Some(invalidate(&[O])),
        Some(invalidate(&[O, O])),
        Some(body_of(|out| notice(codec, "info", &Value::Tuple(vec![Value::Dict(info)]), out))),
        Some(body_of(|out| notice(codec, "receiveBlobChunk", &chunk, out))),
        Some(reply(Value::List(vec![oid(), oid()]))),
        Some(reply(Value::Int(-300))),
        Some(reply(Value::Int(1 << 40))),
        Some(reply(Value::Int(-(1 << 40)))),
        Some(reply(Value::Int(-33))),
        Some(error(ErrorReply::pos_key_error(O))),
        Some(error(ErrorReply::read_only())),
        Some(error(ErrorReply::transaction_error(None, ID))),
        Some(error(ErrorReply::conflict(O, T, LATER))),
        // A message of the storage's own.
        None,
        Some(error(ErrorReply::read_conflict(O, T, LATER))),
        // Stock's constructor puts its arguments into the wrong attributes, and clients look at
        // `_errs` alone.
        None,
        Some(error(ErrorReply::undo_error("r", Some(O)))),
        Some(error(ErrorReply::undo_error("r", None))),
        Some(error(ErrorReply::value_error("unknown storage: x"))),
        Some(error(ErrorReply::key_error(3))),
    ]
}

/// The id that stock uses for a small number.
fn short_id(codec: Codec, number: u8) -> MessageId {
    let ping = match codec {
        Codec::Msgpack => [&b"\x94"[..], &[number], b"\xc2\xa4ping\x90"].concat(),
        Codec::Pickle => [&b"\x80\x03(K"[..], &[number], b"\x89X\x04\0\0\0ping)t."].concat(),
    };
    let Incoming::Call(Call { id, request: Request::Ping, .. }) =
        decode_call(codec, &ping).unwrap()
    else {
        panic!("a ping is a call");
    };
    id
}

#[test]
fn what_the_server_says_has_the_bytes_that_stock_has_for_it() {
    for codec in CODECS {
        let (stock, ours) = (golden_from_server(codec), ours(codec));
        assert_eq!(stock.len(), ours.len());
        for (number, (stock, ours)) in stock.iter().zip(ours).enumerate() {
            if let Some(ours) = ours {
                assert_eq!(&ours, stock, "server line {number} in {codec:?}");
            }
        }
    }
}

#[test]
fn what_the_server_says_is_what_a_client_of_ours_hears() {
    let undone = [(O, "some reason"), (Oid(6), "another")];
    let errors = [
        ErrorReply::pos_key_error(O),
        ErrorReply::read_only(),
        ErrorReply::transaction_error(Some(TransactionId(u64::MAX)), ID),
        ErrorReply::transaction_text("Already voting (locked)"),
        ErrorReply::conflict(O, T, LATER),
        ErrorReply::read_conflict(O, T, LATER),
        ErrorReply::undo_error("r", None),
        ErrorReply::multiple_undo(&undone),
        ErrorReply::value_error("v"),
        ErrorReply::type_error("t"),
        ErrorReply::key_error(-1),
        ErrorReply::attribute_error("new_oid"),
        ErrorReply::exception("e"),
        ErrorReply::storage_error("s"),
    ];
    for codec in CODECS {
        let id = MessageId::int(codec, u32::MAX);
        for error in &errors {
            let body = body_of(|out| reply::error_reply(codec, &id, error, out));
            let FromServer::Error { id: heard, class, args } =
                decode_from_server(codec, &body).unwrap()
            else {
                panic!("{error:?} is an error");
            };
            assert_eq!((heard, &*class), (id.clone(), error.class));
            // msgpack has one kind of sequence, and says an exception as class and attributes.
            let expected = match codec {
                Codec::Pickle => error.args.clone(),
                Codec::Msgpack => as_heard_in_msgpack(&error.args),
            };
            assert_eq!(args, expected);
        }
        for oids in [&[][..], &[O], &[O, Oid(6), Oid(u64::MAX)]] {
            let body = body_of(|out| invalidate_transaction(codec, T, oids, out));
            let heard = decode_from_server(codec, &body).unwrap();
            assert_eq!(heard, FromServer::Invalidate { tid: T, oids: oids.to_vec() });
        }
        for length in [0, 1, 255, 256, 65_535, 65_536, 70_000] {
            for (id, end) in [
                (MessageId::load(codec, O, T), None),
                (MessageId::load(codec, O, T), Some(LATER)),
                (short_id(codec, 7), None),
                (MessageId::int(codec, 77), Some(LATER)),
            ] {
                let data = vec![b'x'; length];
                let body = body_of(|out| load_reply(codec, &id, &data, T, end, out));
                let heard = decode_from_server(codec, &body).unwrap();
                assert_eq!(heard, FromServer::Load { id, data: &data, serial: T, end });
            }
        }
    }
}

fn as_heard_in_msgpack(value: &Value<'static>) -> Value<'static> {
    let mut bytes = Vec::new();
    msgpack::encode(value, &mut bytes);
    msgpack::decode(&bytes).unwrap().into_owned()
}

/// Message ids of every form that a client might choose, encoded.
fn ids(codec: Codec) -> Vec<Vec<u8>> {
    let load = MessageId::load(codec, O, T).as_bytes().to_vec();
    let int = MessageId::int(codec, 1 << 31).as_bytes().to_vec();
    let more: &[&[u8]] = match codec {
        Codec::Msgpack => &[
            b"\x07",
            b"\xcc\xff",
            b"\xcd\xff\xff",
            b"\xce\xff\xff\xff\xff",
            b"\xcf\0\0\0\x01\0\0\0\0",
            b"\xe0",
            b"\xd1\x80\0",
            b"\xa3abc",
            b"\xc4\x03abc",
            b"\xc0",
            b"\xc3",
            b"\xcb\0\0\0\0\0\0\0\0",
            b"\x90",
            b"\x92\x01\x92\x02\xa1x",
            b"\x92\xc4\x08abcdefgh\xc4\x07abcdefg",
            b"\xd9\x29a long id that has more bytes than a load",
            b"\x81\xa1k\x01",
        ],
        Codec::Pickle => &[
            b"K\x07",
            b"M\xff\xff",
            b"J\xff\xff\xff\x7f",
            b"J\xff\xff\xff\xfe",
            b"\x8a\x06\0\0\0\0\0\x01",
            b"I7\n",
            b"L7L\n",
            b"X\x03\0\0\0abc",
            b"\x8c\x03abc",
            b"C\x03abc",
            b"B\x03\0\0\0abc",
            b"N",
            b"\x88",
            b"G\0\0\0\0\0\0\0\0",
            b")",
            b"K\x01K\x02X\x01\0\0\0x\x86\x86",
            b"(K\x01K\x02K\x03K\x04t",
            b"C\x08abcdefghC\x07abcdefg\x86",
            b"X\x29\0\0\0a long id that has more bytes than a load",
            b"}X\x01\0\0\0kK\x01s",
        ],
    };
    let more = more.iter().map(|id| id.to_vec());
    more.chain([load, int]).collect()
}

#[test]
fn loads_mean_the_same_in_the_form_that_is_known_by_its_shape_and_in_any_other() {
    for codec in CODECS {
        for id in ids(codec) {
            let (o, t) = (O.to_bytes(), T.to_bytes());
            let wordings: Vec<Vec<u8>> = match codec {
                Codec::Msgpack => vec![
                    [b"\x94", &id[..], b"\xc2\xaaloadBefore\x92\xc4\x08", &o, b"\xc4\x08", &t]
                        .concat(),
                    [b"\x94", &id[..], b"\xc2\xd9\x0aloadBefore\x92\xc4\x08", &o, b"\xc4\x08", &t]
                        .concat(),
                    [
                        b"\xdc\0\x04",
                        &id[..],
                        b"\0\xaaloadBefore\x92\xc5\0\x08",
                        &o,
                        b"\xc4\x08",
                        &t,
                    ]
                    .concat(),
                ],
                Codec::Pickle => vec![
                    [
                        b"\x80\x03(",
                        &id[..],
                        b"\x89X\x0a\0\0\0loadBeforeC\x08",
                        &o,
                        b"C\x08",
                        &t,
                        b"\x86t.",
                    ]
                    .concat(),
                    [
                        b"\x80\x04(",
                        &id[..],
                        b"\x89\x8c\x0aloadBeforeC\x08",
                        &o,
                        b"C\x08",
                        &t,
                        b"\x86t.",
                    ]
                    .concat(),
                    [b"(", &id[..], b"K\0X\x0a\0\0\0loadBefore(C\x08", &o, b"C\x08", &t, b"tt."]
                        .concat(),
                    [
                        b"\x80\x03(",
                        &id[..],
                        b"\x89X\x0a\0\0\0loadBeforeq\x01C\x08",
                        &o,
                        b"q\x02C\x08",
                        &t,
                        b"q\x03\x86q\x04t.",
                    ]
                    .concat(),
                ],
            };
            for body in wordings {
                let Incoming::Call(call) = decode_call(codec, &body).unwrap() else {
                    panic!("{body:?} is a call");
                };
                assert_eq!(call.request, Request::LoadBefore { oid: O, before: T });
                assert_eq!((call.oneway, call.id.as_bytes()), (false, &id[..]));
            }
        }
    }
}

#[test]
fn answers_to_loads_mean_the_same_in_the_form_that_is_known_by_its_shape_and_in_any_other() {
    for codec in CODECS {
        for id in ids(codec) {
            let t = T.to_bytes();
            let (known, other) = match codec {
                Codec::Msgpack => (
                    [b"\x94", &id[..], b"\0\xa6.reply\x93\xc4\x01d\xc4\x08", &t, b"\xc0"].concat(),
                    [b"\x94", &id[..], b"\0\xd9\x06.reply\x93\xc4\x01d\xc4\x08", &t, b"\xc0"]
                        .concat(),
                ),
                Codec::Pickle => (
                    [b"\x80\x03(", &id[..], b"K\0X\x06\0\0\0.replyC\x01dC\x08", &t, b"N\x87t."]
                        .concat(),
                    [b"\x80\x03(", &id[..], b"K\0\x8c\x06.replyC\x01dC\x08", &t, b"N\x87t."]
                        .concat(),
                ),
            };
            let value = Value::Tuple(vec![
                Value::Bytes(b"d".into()),
                Value::Bytes(t.to_vec().into()),
                Value::None,
            ]);
            let FromServer::Reply { id: heard, value: general } =
                decode_from_server(codec, &other).unwrap()
            else {
                panic!("that form is read as any other reply");
            };
            assert_eq!((heard.as_bytes(), general), (&id[..], value.clone()));
            match decode_from_server(codec, &known).unwrap() {
                FromServer::Load { id: heard, data, serial, end } => {
                    assert_eq!(
                        (heard.as_bytes(), data, serial, end),
                        (&id[..], &b"d"[..], T, None)
                    );
                }
                FromServer::Reply { id: heard, value: general } => {
                    assert_eq!((heard.as_bytes(), general), (&id[..], value));
                }
                other => panic!("{other:?} is no answer"),
            }
        }
    }
}

#[test]
fn ids_that_break_their_encoding_are_refused_in_the_form_that_is_known_by_its_shape_too() {
    let t = T.to_bytes();
    // The second part of a load's id claims to be text, and is not UTF-8.
    let id = [b"\x92\xc4\x08", &t[..], b"\xa9\xff", &[0xff; 8]].concat();
    let call = [b"\x94", &id[..], b"\xc2\xaaloadBefore\x92\xc4\x08", &t, b"\xc4\x08", &t].concat();
    assert!(decode_call(Codec::Msgpack, &call).is_err());
    let reply = [b"\x94", &id[..], b"\0\xa6.reply\x93\xc4\x01d\xc4\x08", &t, b"\xc0"].concat();
    assert!(decode_from_server(Codec::Msgpack, &reply).is_err());
    let id = [b"\x8a\x14", &[0x7f; 20][..]].concat();
    let reply =
        [b"\x80\x03(", &id[..], b"K\0X\x06\0\0\0.replyC\x01dC\x08", &t, b"N\x87t."].concat();
    assert!(decode_from_server(Codec::Pickle, &reply).is_err());
}

proptest! {
    /// A message of stock ZEO with some bytes changed is read or refused, and nothing else.
    #[test]
    fn damaged_messages_do_no_harm(
        line in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let lines = golden();
        let line = line.get(&lines);
        let mut body = line.body.clone();
        for (place, byte) in &damage {
            let place = place.index(body.len());
            body[place] = *byte;
        }
        for codec in CODECS {
            drop(decode_call(codec, &body));
            drop(decode_from_server(codec, &body));
        }
    }

    /// An exchange of one call: whatever is not refused says itself again.
    #[test]
    fn a_call_that_was_read_is_written_and_read_as_the_same(
        line in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let lines = golden();
        let line = line.get(&lines);
        let mut body = line.body.clone();
        let place = place.index(body.len());
        body[place] = byte;
        if let Ok(Incoming::Call(call)) = decode_call(line.codec, &body) {
            let again = body_of(|out| encode_call(line.codec, &call, out));
            let heard = decode_call(line.codec, &again);
            let is_nan = matches!(call.request, Request::Pack { time, .. } if time.is_nan());
            if !is_nan {
                prop_assert_eq!(heard, Ok(Incoming::Call(call)));
            }
        }
    }
}
