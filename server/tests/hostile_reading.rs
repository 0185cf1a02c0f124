//! Clients that ask for too much, or read too little: answers are cut, errors are told or the
//! connection ends, and a well-behaved client beside it goes on.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may say so")]

mod support;

use std::collections::HashSet;

use support::house::{House, MINE, SHORT, framed, is_nothing, message, pick, refused};
use support::{Heard, begin};
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::Codec;
use zeoring_shared::wire::MessageId;
use zeoring_shared::wire::request::{Call, Request, TransactionId, encode_call};
use zeoring_shared::wire::value::Value;

const CODECS: [Codec; 2] = [Codec::Pickle, Codec::Msgpack];

/// Stores an object of that many bytes.
fn store_large(house: &House, bytes: usize) {
    let mut client = house.client(Codec::Pickle);
    client.store(1, &[(Oid(MINE), Tid::ZERO, &vec![b'x'; bytes])]);
    client.commit(1);
}

/// Many loads of one object, as bytes.
fn loads(codec: Codec, count: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in 0..count {
        let request = Request::LoadBefore { oid: Oid(MINE), before: Tid::MAX };
        let call = Call { id: MessageId::int(codec, number), oneway: false, request };
        encode_call(codec, &call, &mut bytes);
    }
    bytes
}

fn list(heard: Heard) -> Vec<Value<'static>> {
    match heard {
        Heard::Reply(_, Value::List(values) | Value::Tuple(values)) => values,
        other => panic!("{other:?} is no list"),
    }
}

#[test]
fn a_message_has_to_come_to_its_end_and_not_byte_by_byte() {
    let mut house = House::with(|settings| settings.tuning.progress_timeout = SHORT);
    for codec in CODECS {
        // Silence within a message, which began right behind the registration or later.
        let mut client = house.greeted(codec);
        let register = message(
            codec,
            false,
            "register",
            pick(codec, b"\x92\xa11\xc2", b"X\x01\0\0\x001\x89\x86"),
        );
        client.send(&[&register[..], b"\0\0"].concat());
        client.is_closed();
        let mut client = house.client(codec);
        client.send(b"\0\0\x01\0half a message");
        client.is_closed();
        house.neighbour.goes_on();
        // A few bytes now and then.
        let mut client = house.client(codec);
        client.send(b"\x01\0\0\0");
        client.is_closed_while_sending(b"x");
        house.neighbour.goes_on();
        // Silence between messages is nobody's business: this one outlasts those before.
        let mut quiet = house.client(codec);
        let mut slow = house.client(codec);
        slow.send(b"\0");
        slow.is_closed();
        assert!(is_nothing(&quiet.call(Request::Ping)));
        house.neighbour.goes_on();
    }
}

#[test]
fn whoever_asks_and_does_not_read_is_not_listened_to_until_it_does() {
    const LOADS: u32 = 2000;
    let mut house = House::new();
    store_large(&house, 100_000);
    for codec in CODECS {
        let before = house.neighbour.status("loads");
        let mut client = house.client(codec);
        client.send(&loads(codec, LOADS));
        for _ in 0..20 {
            house.neighbour.goes_on();
        }
        let (Value::Int(before), Value::Int(after)) = (before, house.neighbour.status("loads"))
        else {
            panic!("loads are counted");
        };
        assert!(after - before < i64::from(LOADS) / 2, "{} were made", after - before);
        for number in 0..LOADS {
            loop {
                match client.hear().unwrap() {
                    Heard::Load(id, data, ..) => {
                        assert_eq!((id, data.len()), (MessageId::int(codec, number), 100_000));
                        break;
                    }
                    Heard::Invalidate(..) => {}
                    other => panic!("{other:?} is no answer to a load"),
                }
            }
        }
        house.neighbour.goes_on();
    }
}

#[test]
fn whoever_asks_faster_than_it_reads_is_answered_whole_once_it_reads() {
    const LOADS: u32 = 6000;
    const AHEAD: u32 = 2000;
    let house = House::new();
    let mut client = house.client(Codec::Msgpack);
    let data = vec![b'x'; 10_000];
    client.store(1, &[(Oid(MINE), Tid::ZERO, &data)]);
    let serial = client.commit(1);
    let mut asker = client.twin();
    let (told, ahead) = std::sync::mpsc::channel();
    let asking = std::thread::spawn(move || {
        for number in 0..LOADS {
            if number == AHEAD {
                told.send(()).unwrap();
            }
            let id = MessageId::int(Codec::Msgpack, number);
            let request = Request::LoadBefore { oid: Oid(MINE), before: Tid::MAX };
            let mut bytes = Vec::new();
            encode_call(Codec::Msgpack, &Call { id, oneway: false, request }, &mut bytes);
            std::io::Write::write_all(&mut asker, &bytes).unwrap();
        }
    });
    // Twenty megabytes wait, more than sockets hold: the server has stopped to take requests.
    ahead.recv().unwrap();
    let mut owed: HashSet<MessageId> =
        (0..LOADS).map(|number| MessageId::int(Codec::Msgpack, number)).collect();
    while !owed.is_empty() {
        match client.hear().unwrap() {
            Heard::Load(id, found, at, None) => {
                assert!(owed.remove(&id), "{id:?} was answered twice");
                assert!(found == data && at == serial);
            }
            Heard::Notice(_) => {}
            other => panic!("{other:?}"),
        }
    }
    asking.join().unwrap();
}

#[test]
fn whoever_never_reads_is_closed_after_a_while() {
    let mut house = House::with(|settings| settings.tuning.progress_timeout = SHORT);
    store_large(&house, 100_000);
    for codec in CODECS {
        let mut client = house.client(codec);
        client.send(&loads(codec, 2000));
        house.neighbour.wait_for_connections(1);
        house.neighbour.goes_on();
        drop(client);
    }
}

#[test]
fn whoever_never_reads_is_closed_when_too_much_waits_for_it() {
    const OBJECTS: u64 = 5000;
    let mut house = House::with(|settings| settings.tuning.output_bytes_max = 1_400_000);
    store_large(&house, 100_000);
    for codec in CODECS {
        let mut client = house.client(codec);
        client.send(&loads(codec, 2000));
        // What it would be told of others' commits comes on top.
        let mut writer = house.client(codec);
        let mut serial = Tid::ZERO;
        while house.neighbour.status("connections") != Value::Int(2) {
            let mut bytes = Vec::new();
            for oid in 0..OBJECTS {
                let request = Request::Storea {
                    oid: Oid(2000 + oid + if codec == Codec::Pickle { 0 } else { OBJECTS }),
                    serial,
                    data: b"d".into(),
                    id: TransactionId(1),
                };
                let call = Call { id: MessageId::int(codec, 0), oneway: true, request };
                encode_call(codec, &call, &mut bytes);
            }
            writer.tell(begin(1));
            writer.send(&bytes);
            serial = writer.commit(1);
        }
        drop(writer);
        house.neighbour.wait_for_connections(1);
        house.neighbour.client.heard.clear();
        house.neighbour.goes_on();
    }
}

#[test]
fn a_connection_has_few_iterators_and_none_that_it_did_not_open() {
    let mut house = House::new();
    store_large(&house, 10);
    for codec in CODECS {
        let mut client = house.client(codec);
        let start = || Request::IteratorStart { start: None, stop: None };
        let number = |heard| match heard {
            Heard::Reply(_, Value::Int(number)) => number,
            other => panic!("{other:?} is no iterator"),
        };
        let first = number(client.call(start()));
        let error = "KeyError";
        for iterator in [-1, first + 1, i64::MAX, i64::MIN] {
            let next = Request::IteratorNext { iterator };
            assert_eq!(refused(client.call(next), house.path()), error);
            let next = Request::IteratorRecordNext { iterator };
            assert_eq!(refused(client.call(next), house.path()), error);
            let records = Request::IteratorRecordStart { iterator, tid: Tid::ZERO };
            assert_eq!(refused(client.call(records), house.path()), error);
        }
        // Records of a transaction that the iterator does not stand at.
        let early = Request::IteratorRecordStart { iterator: first, tid: Tid(1) };
        assert_eq!(refused(client.call(early), house.path()), error);
        let transaction = list(client.call(Request::IteratorNext { iterator: first }));
        let Value::Bytes(found) = &transaction[0] else {
            panic!("a transaction begins with its tid");
        };
        let found = Tid::from_bytes((**found).try_into().unwrap());
        let other = Request::IteratorRecordStart { iterator: first, tid: found.next() };
        assert_eq!(refused(client.call(other), house.path()), "Exception");
        let records = Request::IteratorRecordStart { iterator: first, tid: found };
        let records = number(client.call(records));
        let mixed = Request::IteratorNext { iterator: records };
        assert_eq!(refused(client.call(mixed), house.path()), error);
        let mixed = Request::IteratorRecordNext { iterator: first };
        assert_eq!(refused(client.call(mixed), house.path()), error);
        // Two are open; thirty more may be.
        let mut open: Vec<_> = (2..32).map(|_| number(client.call(start()))).collect();
        for _ in 0..2000 {
            assert_eq!(refused(client.call(start()), house.path()), "StorageError");
        }
        open.extend([-1, i64::MAX]);
        client.tell(Request::IteratorGc { iterators: open });
        number(client.call(start()));
        client.tell(Request::IteratorGc { iterators: vec![7; 60_000] });
        client.is_closed();
        house.neighbour.goes_on();
    }
}

#[test]
fn no_count_is_too_large_to_be_asked_for() {
    let mut house = House::new();
    store_large(&house, 10);
    for codec in CODECS {
        let mut client = house.client(codec);
        let counts =
            [(0, 1_000_000_000), (0, i64::MIN), (i64::MAX, i64::MIN), (i64::MIN, i64::MAX)];
        for (first, last) in counts {
            let log = list(client.call(Request::UndoLog { first, last }));
            assert!(first <= 0 || log.is_empty());
            list(client.call(Request::UndoInfo { first, last, filter: None }));
        }
        for count in [1_000_000_000, i64::MAX, 0, i64::MIN] {
            let history = Request::History { oid: Oid(MINE), count };
            assert_eq!(list(client.call(history)).len(), usize::from(0 < count));
        }
        for since in [Tid::ZERO, Tid(1)] {
            let invalidations = client.call(Request::GetInvalidations { tid: since });
            assert!(is_nothing(&invalidations), "{invalidations:?}: too old");
        }
        for since in [Tid::MAX, Tid(u64::MAX)] {
            let invalidations = list(client.call(Request::GetInvalidations { tid: since }));
            assert_eq!(invalidations.len(), 2);
        }
        for oid in [Oid(77), Oid(u64::MAX)] {
            let error = "POSKeyError";
            for before in [Tid::ZERO, Tid::MAX, Tid(u64::MAX)] {
                assert_eq!(refused(client.load(oid, before), house.path()), error);
                let serial = Request::LoadSerial { oid, serial: before };
                assert_eq!(refused(client.call(serial), house.path()), error);
            }
            assert_eq!(refused(client.call(Request::GetTid { oid }), house.path()), error);
            let history = Request::History { oid, count: 1 };
            assert_eq!(refused(client.call(history), house.path()), error);
        }
        let past = Request::RecordIternext { from: Some(Oid(u64::MAX)) };
        assert_eq!(refused(client.call(past), house.path()), "ValueError");
        let text = |text: String| Value::Str(text.into());
        let many = (0..100).map(|n| (text(n.to_string()), Value::Int(n))).collect();
        let nested = vec![(text("user_name".into()), Value::Tuple(vec![Value::None; 60_000]))];
        for filter in [Value::Int(7), Value::Dict(many), Value::Dict(nested)] {
            let info = Request::UndoInfo { first: 0, last: -1, filter: Some(filter) };
            assert_eq!(refused(client.call(info), house.path()), "TypeError");
        }
        house.neighbour.goes_on();
    }
}

#[test]
fn answers_that_would_be_huge_are_cut() {
    const COMMITS: usize = 120;
    let mut house = House::new();
    let mut client = house.client(Codec::Msgpack);
    let long = vec![b't'; 65_535];
    let mut serial = Tid::ZERO;
    for id in 1..=COMMITS as u64 {
        client.tell(Request::TpcBegin {
            id: TransactionId(id),
            user: (&long).into(),
            description: (&long).into(),
            extension: (&long).into(),
            tid: None,
            status: b' ',
        });
        client.tell(support::house::storea(MINE, serial, b"d", id));
        serial = client.commit(id);
    }
    let log = list(client.call(Request::UndoLog { first: 0, last: i64::MAX }));
    assert!(!log.is_empty() && log.len() < COMMITS, "{} entries", log.len());
    let history = list(client.call(Request::History { oid: Oid(MINE), count: i64::MAX }));
    assert!(!history.is_empty() && history.len() < COMMITS, "{} entries", history.len());
    let next = list(client.call(Request::UndoLog { first: log.len() as i64, last: i64::MAX }));
    assert!(!next.is_empty(), "what was cut off can be asked for");
    house.neighbour.goes_on();
}

#[test]
fn questions_without_end_wait_in_the_socket() {
    const QUESTIONS: u32 = 5000;
    let mut house = House::new();
    for codec in CODECS {
        let mut client = house.client(codec);
        let mut bytes = Vec::new();
        for number in 0..QUESTIONS {
            let request = Request::UndoLog { first: 0, last: -20 };
            let call = Call { id: MessageId::int(codec, number), oneway: false, request };
            encode_call(codec, &call, &mut bytes);
        }
        client.send(&bytes);
        house.neighbour.goes_on();
        for number in 0..QUESTIONS {
            loop {
                match client.hear().unwrap() {
                    Heard::Reply(id, _) => {
                        assert_eq!(id, MessageId::int(codec, number));
                        break;
                    }
                    Heard::Invalidate(..) => {}
                    other => panic!("{other:?} is no undo log"),
                }
            }
        }
        // Some more, and gone before they are answered.
        client.send(&bytes);
        drop(client);
        house.neighbour.wait_for_connections(1);
        house.neighbour.goes_on();
    }
}

#[test]
fn the_same_id_may_be_used_again_and_is_only_an_echo() {
    let mut house = House::new();
    for codec in CODECS {
        let mut client = house.client(codec);
        let ids: [&[u8]; 4] = match codec {
            Codec::Msgpack => [b"\x07", b"\xd1\xff\0", b"\xa3abc", b"\x92\x01\x92\xc0\xc4\x01x"],
            Codec::Pickle => {
                [b"K\x07", b"J\0\xff\xff\xff", b"X\x03\0\0\0abc", b"K\x01NC\x01x\x86\x86"]
            }
        };
        for id in ids {
            let body = match codec {
                Codec::Msgpack => [b"\x94", id, b"\xc2\xa4ping\x90"].concat(),
                Codec::Pickle => [b"\x80\x03(", id, b"\x89X\x04\0\0\0ping)t."].concat(),
            };
            for _ in 0..3 {
                client.send(&framed(&body));
            }
            for _ in 0..3 {
                let Some(Heard::Reply(heard, Value::None)) = client.hear() else {
                    panic!("a ping is answered");
                };
                assert_eq!(heard.as_bytes(), id);
            }
        }
        house.neighbour.goes_on();
    }
}

#[test]
fn a_storm_of_packs_to_all_times_is_one_pack_after_another() {
    let mut house = House::new();
    for codec in CODECS {
        let mut client = house.client(codec);
        for _ in 0..50 {
            for time in [0.0, -1.0, 1e9, 4e9, 1e300, f64::NAN, f64::INFINITY] {
                let ids = [true, false].map(|wait| client.ask(Request::Pack { time, wait }));
                for id in ids {
                    let heard = client.answer(&id);
                    if !is_nothing(&heard) {
                        // There is no root, so a pack would take everything away.
                        let class = refused(heard, house.path());
                        assert!(["KeyError", "FileStorageError"].contains(&&*class), "{class}");
                    }
                }
            }
            client.heard.clear();
        }
        house.neighbour.client.heard.clear();
        house.neighbour.goes_on();
    }
}

#[test]
fn what_is_not_built_is_an_error_or_ends_the_connection() {
    let mut house = House::new();
    for codec in CODECS {
        let mut client = house.client(codec);
        let send = Request::SendBlob { oid: Oid(MINE), serial: Tid::ZERO };
        assert_eq!(refused(client.call(send), house.path()), "StorageError");
        assert_eq!(refused(client.call(Request::NewOid), house.path()), "AttributeError");
        client.tell(Request::StoreBlobStart);
        client.is_closed();
        house.neighbour.goes_on();
    }
}
