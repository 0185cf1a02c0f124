//! Sessions against bytes as a server writes them, cut wherever it hurts.

use zeoring_shared::wire::reply::ErrorReply;
use zeoring_shared::wire::request::Incoming;
use zeoring_shared::wire::value::Value;

use super::*;

const LAST: Tid = Tid(0x0400_0000_0000_0000);

/// What a server sends, written with the server's half of the codec.
#[derive(Default)]
struct Sent(Vec<u8>);

impl Sent {
    fn greeting() -> Self {
        let mut sent = Self::default();
        wire::handshake::announce(Codec::Msgpack, &mut sent.0);
        sent.reply(1, &bytes(LAST.to_bytes()))
    }

    fn reply(mut self, id: u32, value: &Value<'_>) -> Self {
        wire::reply::reply(CODEC, &MessageId::int(CODEC, id), value, &mut self.0);
        self
    }

    fn load(mut self, oid: u64, revision: Option<&Revision>) -> Self {
        let id = MessageId::load(CODEC, Oid(oid), Tid::MAX);
        match revision {
            Some(Revision { data, serial, end }) => {
                wire::reply::load_reply(CODEC, &id, data, *serial, *end, &mut self.0);
            }
            None => wire::reply::reply(CODEC, &id, &Value::None, &mut self.0),
        }
        self
    }

    fn error(mut self, id: &MessageId, class: &'static str, args: Value<'static>) -> Self {
        wire::reply::error_reply(CODEC, id, &ErrorReply { class, args }, &mut self.0);
        self
    }

    fn invalidation(mut self, invalidation: &Invalidation) -> Self {
        wire::reply::invalidate_transaction(
            CODEC,
            invalidation.tid,
            &invalidation.oids,
            &mut self.0,
        );
        self
    }
}

fn bytes(eight: [u8; 8]) -> Value<'static> {
    Value::Bytes(eight.to_vec().into())
}

fn text(text: &'static str) -> Value<'static> {
    Value::Str(text.into())
}

/// Gives a session `input` in pieces of at most `piece` bytes, as if the socket had no more.
fn feed(session: &mut Session, input: &[u8], piece: usize) -> Result<Vec<Event>, SessionError> {
    let mut events = Vec::new();
    for part in input.chunks(piece) {
        let space = session.space();
        space[..part.len()].copy_from_slice(part);
        session.receive(part.len())?;
        events.extend(std::iter::from_fn(|| session.poll()));
    }
    Ok(events)
}

/// A session that is registered and has nothing more to send.
fn open() -> Session {
    let mut session = Session::new("1", false);
    let events = feed(&mut session, &Sent::greeting().0, usize::MAX).unwrap();
    assert_eq!(events, [Event::Registered(Ok(LAST))]);
    session.sent(session.output().len());
    session
}

fn revision(data: &'static [u8], end: Option<Tid>) -> Revision {
    Revision { data: Bytes::from_static(data), serial: Tid(3), end }
}

/// The names of the calls in what a client sent.
fn calls(mut output: &[u8]) -> Vec<&'static str> {
    let mut names = Vec::new();
    while let Some(frame) = wire::frame::split_frame(output, wire::FRAME_MAX).unwrap() {
        output = frame.rest;
        let Incoming::Call(call) = wire::request::decode_call(CODEC, frame.body).unwrap() else {
            continue;
        };
        names.push(call.request.name());
    }
    assert!(output.is_empty());
    names
}

#[test]
fn wherever_the_servers_bytes_are_cut_the_events_are_the_same() {
    let missing = MessageId::load(CODEC, Oid(3), Tid::MAX);
    let others = Invalidation { tid: Tid(9), oids: vec![Oid(1), Oid(2)] };
    let current = revision(b"one", None);
    let sent = Sent::default()
        .load(1, Some(&current))
        .invalidation(&others)
        .error(&missing, "ZODB.POSException.POSKeyError", Value::Tuple(vec![bytes([0; 8])]))
        .load(2, None)
        .reply(2, &Value::List(vec![bytes([7; 8]), bytes([8; 8])]))
        .reply(3, &Value::None);
    let absent = ServerError {
        class: "ZODB.POSException.POSKeyError".into(),
        message: "0000000000000000".into(),
        oid: Some(Oid(0)),
    };
    for piece in 1..=sent.0.len() {
        let mut session = Session::new("1", false);
        let registered = feed(&mut session, &Sent::greeting().0, piece).unwrap();
        assert_eq!(registered, [Event::Registered(Ok(LAST))], "in pieces of {piece}");
        let loads = [1, 2, 3].map(|oid| session.load_before(Oid(oid), Tid::MAX));
        let oids = session.new_oids(2);
        let ping = session.ping();
        let fresh = vec![Oid::from_bytes([7; 8]), Oid::from_bytes([8; 8])];
        let expected = [
            Event::Answered(loads[0], Ok(Answer::Revision(Some(current.clone())))),
            Event::Answered(loads[2], Err(absent.clone())),
            Event::Answered(loads[1], Ok(Answer::Revision(None))),
            Event::Answered(oids, Ok(Answer::Oids(fresh))),
            Event::Answered(ping, Ok(Answer::Done)),
        ];
        assert_eq!(feed(&mut session, &sent.0, piece).unwrap(), expected, "in pieces of {piece}");
        let heard = Invalidated::Transactions(vec![others.clone()]);
        assert_eq!(session.take_invalidations(), heard, "in pieces of {piece}");
        assert!(!session.is_waiting());
    }
}

#[test]
fn whatever_a_server_announces_it_is_answered_in_msgpack() {
    for announced in [Codec::Pickle, Codec::Msgpack] {
        let mut greeting = Vec::new();
        wire::handshake::announce(announced, &mut greeting);
        let mut session = Session::new("main", true);
        assert_eq!(session.output(), b"", "the server speaks first");
        feed(&mut session, &greeting, usize::MAX).unwrap();
        let answer = wire::frame::split_frame(session.output(), 64).unwrap().unwrap();
        assert_eq!(answer.body, b"M5");
        let register = wire::frame::split_frame(answer.rest, wire::FRAME_MAX).unwrap().unwrap();
        let Ok(Incoming::Call(call)) = wire::request::decode_call(CODEC, register.body) else {
            panic!("a call follows the answer");
        };
        let Request::Register { storage, read_only } = call.request else {
            panic!("a client registers first");
        };
        assert_eq!((&*storage, read_only), ("main", true));
    }
}

#[test]
fn a_server_may_refuse_to_register_us() {
    let mut greeting = Vec::new();
    wire::handshake::announce(CODEC, &mut greeting);
    let id = MessageId::int(CODEC, 1);
    let class = "ZODB.POSException.ReadOnlyError";
    let sent = Sent(greeting).error(&id, class, Value::Tuple(vec![]));
    let events = feed(&mut Session::new("1", false), &sent.0, usize::MAX).unwrap();
    let [Event::Registered(Err(error))] = events.as_slice() else { panic!("{events:?}") };
    assert!(error.is_read_only());
}

#[test]
fn equal_loads_are_sent_once_and_answered_to_each() {
    let mut session = open();
    let tickets = [5, 6, 5, 5].map(|oid| session.load_before(Oid(oid), Tid::MAX));
    assert_eq!(calls(session.output()), ["loadBefore", "loadBefore"]);
    let current = revision(b"five", Some(Tid(8)));
    let sent = Sent::default().load(5, Some(&current));
    let events = feed(&mut session, &sent.0, usize::MAX).unwrap();
    let mut answered: Vec<Ticket> = Vec::new();
    for event in events {
        let Event::Answered(ticket, Ok(Answer::Revision(Some(revision)))) = event else {
            panic!("{event:?}");
        };
        assert_eq!(revision, current);
        answered.push(ticket);
    }
    answered.sort();
    assert_eq!(answered, [tickets[0], tickets[2], tickets[3]]);
    // The same load after its answer is a new one.
    session.load_before(Oid(5), Tid::MAX);
    assert_eq!(calls(session.output()).len(), 3);
}

#[test]
fn output_that_leaves_in_pieces_is_complete_and_in_order() {
    for piece in 1..60 {
        let mut session = open();
        let id = TransactionId(4);
        session.begin(id, &Description::default());
        session.store(id, Oid(1), Tid::ZERO, b"state");
        session.delete(id, Oid(2), Tid(3));
        session.check(id, Oid(3), Tid(3));
        session.vote(id);
        session.finish(id);
        session.abort(id);
        let mut gone = Vec::new();
        while !session.output().is_empty() {
            let count = piece.min(session.output().len());
            gone.extend_from_slice(&session.output()[..count]);
            session.sent(count);
        }
        let expected = [
            "tpc_begin",
            "storea",
            "deleteObject",
            "checkCurrentSerialInTransaction",
            "vote",
            "tpc_finish",
            "tpc_abort",
        ];
        assert_eq!(calls(&gone), expected, "in pieces of {piece}");
    }
}

#[test]
fn conflicts_are_results_however_the_server_tells_them() {
    let conflict = Conflict { oid: Oid(4), committed: Tid(7), read: Tid(6), data: None };
    let serials = Value::Tuple(vec![bytes(Tid(7).to_bytes()), bytes(Tid(6).to_bytes())]);
    let told = vec![(text("oid"), bytes(Oid(4).to_bytes())), (text("serials"), serials)];
    let mut with_data = told.clone();
    with_data.push((text("data"), Value::Bytes(b"state".to_vec().into())));
    let offered = Conflict { data: Some(Bytes::from_static(b"state")), ..conflict.clone() };
    let class = "ZODB.POSException.ReadConflictError";
    // The first call of an open session has the number 2: 1 was `register`.
    let second = MessageId::int(CODEC, 2);
    let cases = [
        (Sent::default().reply(2, &Value::List(vec![])), Verdict::Accepted(vec![])),
        (
            Sent::default().reply(2, &Value::List(vec![bytes(Oid(4).to_bytes())])),
            Verdict::Accepted(vec![Oid(4)]),
        ),
        (
            Sent::default().reply(2, &Value::List(vec![Value::Dict(with_data)])),
            Verdict::Conflicts(vec![offered]),
        ),
        (Sent::default().error(&second, class, Value::Dict(told)), Verdict::Refused(conflict)),
    ];
    for (sent, verdict) in cases {
        let mut session = open();
        let vote = session.vote(TransactionId(1));
        let events = feed(&mut session, &sent.0, usize::MAX).unwrap();
        assert_eq!(events, [Event::Answered(vote, Ok(Answer::Verdict(verdict)))]);
    }
}

#[test]
fn what_a_storage_is_comes_with_its_interfaces() {
    let mut session = open();
    let ticket = session.info();
    let interface = Value::Tuple(vec![text("ZODB.interfaces"), text("IStorage")]);
    let value = Value::Dict(vec![
        (text("length"), Value::Int(2)),
        (text("size"), Value::Int(300)),
        (text("name"), text("Data.fs")),
        (text("supportsUndo"), Value::Bool(true)),
        (text("interfaces"), Value::Tuple(vec![interface])),
    ]);
    let events = feed(&mut session, &Sent::default().reply(2, &value).0, 7).unwrap();
    let info = Info {
        name: "Data.fs".into(),
        length: 2,
        size: 300,
        supports_undo: true,
        interfaces: vec!["ZODB.interfaces.IStorage".into()],
    };
    assert_eq!(events, [Event::Answered(ticket, Ok(Answer::Info(info)))]);
}

#[test]
fn a_server_that_breaks_the_rules_ends_the_session() {
    let cases = [
        ("an answer that nobody asked for", Sent::default().reply(77, &Value::None)),
        ("a tid that is a number", Sent::default().reply(2, &Value::Int(4))),
        ("a tid that is too short", Sent::default().reply(2, &Value::Bytes(vec![1].into()))),
        ("no message at all", Sent(vec![0, 0, 0, 1, 0xc1])),
        ("an empty frame", Sent(vec![0; 4])),
        ("a frame that is too long", Sent(vec![0xff; 4])),
    ];
    for (what, sent) in cases {
        let mut session = open();
        session.last_transaction();
        assert!(feed(&mut session, &sent.0, usize::MAX).is_err(), "{what}");
    }
    let greeting = [&[0, 0, 0, 2][..], b"Z4"].concat();
    assert!(feed(&mut Session::new("1", false), &greeting, usize::MAX).is_err(), "old protocol");
}

#[test]
fn a_long_message_fits_and_a_told_length_reserves_nothing() {
    let mut session = open();
    let ticket = session.load_before(Oid(1), Tid::MAX);
    let before = session.space().len();
    let told = (wire::FRAME_MAX - 1).to_be_bytes();
    assert_eq!(feed(&mut session, &told[..3], 1).unwrap(), []);
    assert_eq!(session.space().len(), before - 3);

    let mut session = open();
    assert_eq!(session.load_before(Oid(1), Tid::MAX), ticket);
    let data = Bytes::from(vec![b'x'; 3 << 20]);
    let long = Revision { data, serial: Tid(3), end: None };
    let events = feed(&mut session, &Sent::default().load(1, Some(&long)).0, 10_000).unwrap();
    assert_eq!(events, [Event::Answered(ticket, Ok(Answer::Revision(Some(long))))]);
    assert_eq!(session.space().len(), before, "the long buffer is given back");
}
