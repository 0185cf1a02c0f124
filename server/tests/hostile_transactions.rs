//! Transactions that no client of ZEO would make, and what becomes of them: an error is told or
//! the connection ends, locks are free, and a well-behaved client beside it goes on.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may say so")]

mod support;

use std::time::Duration;

use support::house::{
    House, MINE, SHORT, abort, finish, framed, is_nothing, refused, storea, vote, voted,
};
use support::{Client, Heard, Running, SlowDisk, begin, settings, tid};
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::Machine;
use zeoring_shared::wire::request::{Call, Request, TransactionId, encode_call};
use zeoring_shared::wire::value::Value;
use zeoring_shared::wire::{Codec, MessageId};

const CODECS: [Codec; 2] = [Codec::Pickle, Codec::Msgpack];

/// The tid of a time that is so many seconds after now.
fn ahead(seconds: u64) -> Tid {
    Tid::at(Machine::real().clock.since_1970() + Duration::from_secs(seconds))
}

fn begin_at(id: u64, wanted: Tid) -> Request<'static> {
    let Request::TpcBegin { id, user, description, extension, status, .. } = begin(id) else {
        unreachable!("that is what begins");
    };
    Request::TpcBegin { id, user, description, extension, tid: Some(wanted), status }
}

fn restorea(oid: u64, serial: Tid, id: u64) -> Request<'static> {
    let id = TransactionId(id);
    Request::Restorea { oid: Oid(oid), serial, data: Some(b"d".into()), previous: None, id }
}

/// Everything that writes.
fn writes(id: u64) -> Vec<Request<'static>> {
    let (oid, serial, transaction) = (Oid(MINE), Tid::ZERO, TransactionId(id));
    vec![
        begin(id),
        storea(MINE, serial, b"d", id),
        restorea(MINE, serial, id),
        Request::DeleteObject { oid, serial, id: transaction },
        Request::CheckCurrentSerial { oid, serial, id: transaction },
        Request::Undoa { tid: Tid(1), id: transaction },
        Request::StoreBlobStart,
        Request::StoreBlobChunk { chunk: b"d".into() },
        Request::StoreBlobEnd { oid, serial, data: b"d".into(), id: transaction },
        Request::StoreBlobShared {
            oid,
            serial,
            data: b"d".into(),
            filename: "../../x.tmp".into(),
            id: transaction,
        },
    ]
}

#[test]
fn whoever_registered_for_reading_cannot_write() {
    let mut house = House::new();
    for codec in CODECS {
        let reader = |house: &House| {
            let mut client = house.greeted(codec);
            tid(&client.call(Request::Register { storage: "1".into(), read_only: true }));
            client
        };
        // What wants no reply ends the connection.
        for write in writes(1) {
            let mut client = reader(&house);
            client.tell(write);
            client.is_closed();
        }
        let mut client = reader(&house);
        for write in writes(1).into_iter().take(6) {
            assert_eq!(refused(client.call(write), house.path()), "ReadOnlyError");
        }
        for write in [vote(1), finish(1), Request::NewOids { count: 1 }] {
            assert_eq!(refused(client.call(write), house.path()), "ReadOnlyError");
        }
        assert!(is_nothing(&client.call(Request::Ping)), "it may go on reading");
        house.neighbour.goes_on();
    }
}

#[test]
fn what_belongs_to_no_transaction_ends_the_connection() {
    let mut house = House::new();
    for codec in CODECS {
        for write in writes(1).into_iter().skip(1) {
            let mut without = house.client(codec);
            without.tell(write.clone());
            without.is_closed();
            let mut other = house.client(codec);
            other.tell(begin(2));
            other.tell(write.clone());
            other.is_closed();
            let mut late = house.client(codec);
            voted(&mut late, 1);
            late.tell(write);
            late.is_closed();
        }
        let active = house.neighbour.status("active_txns");
        assert_eq!(active, Value::Int(0));
        house.neighbour.goes_on();
    }
}

#[test]
fn steps_out_of_order_are_errors_and_leave_the_transaction_as_it_is() {
    let mut house = House::new();
    for codec in CODECS {
        let mut client = house.client(codec);
        let error = "StorageTransactionError";
        assert_eq!(refused(client.call(vote(1)), house.path()), error, "vote without a begin");
        assert_eq!(refused(client.call(finish(1)), house.path()), error, "finish without a begin");
        assert!(is_nothing(&client.call(abort(1))), "abort without a begin");
        client.store(1, &[(Oid(MINE), Tid::ZERO, b"mine")]);
        assert_eq!(refused(client.call(finish(1)), house.path()), error, "finish without a vote");
        assert_eq!(refused(client.call(vote(2)), house.path()), error, "vote for another");
        assert!(is_nothing(&client.call(abort(2))), "abort of another");
        client.tell(begin(1));
        let heard = client.call(vote(1));
        assert!(matches!(heard, Heard::Reply(..)), "the same begin again: {heard:?}");
        assert_eq!(refused(client.call(vote(1)), house.path()), error, "a second vote");
        assert_eq!(refused(client.call(finish(2)), house.path()), error, "finish of another");
        assert!(is_nothing(&client.call(abort(1))));
        assert!(is_nothing(&client.call(abort(1))), "a second abort");
        assert_eq!(refused(client.call(finish(1)), house.path()), error, "finish after abort");
        house.neighbour.goes_on();
        voted(&mut client, 3);
        client.tell(begin(4));
        client.is_closed();
        house.neighbour.goes_on();
    }
}

#[test]
fn whoever_waits_for_locks_cannot_vote_again_or_finish_and_can_go() {
    let mut house = House::new();
    for codec in CODECS {
        let mut first = house.client(codec);
        voted(&mut first, 1);
        let mut second = house.client(codec);
        second.store(2, &[(Oid(MINE), Tid::ZERO, b"theirs")]);
        let waiting = second.ask(vote(2));
        house.neighbour.wait_for_status("waiting", &Value::Int(1));
        let error = "StorageTransactionError";
        assert_eq!(refused(second.call(vote(2)), house.path()), error);
        assert_eq!(refused(second.call(finish(2)), house.path()), error);
        // Three more wait, and leave in different ways.
        let mut aborts = house.client(codec);
        let mut goes = house.client(codec);
        let mut rambles = house.client(codec);
        for client in [&mut aborts, &mut goes, &mut rambles] {
            client.store(3, &[(Oid(MINE), Tid::ZERO, b"theirs")]);
            client.ask(vote(3));
        }
        house.neighbour.wait_for_status("waiting", &Value::Int(4));
        assert!(is_nothing(&aborts.call(abort(3))));
        drop(goes);
        rambles.send(b"\0\0\0\0");
        rambles.is_closed();
        house.neighbour.wait_for_status("waiting", &Value::Int(1));
        drop(first);
        let heard = second.answer(&waiting);
        assert!(matches!(heard, Heard::Reply(..)), "{heard:?}");
        assert!(is_nothing(&second.call(abort(2))));
        house.neighbour.goes_on();
    }
}

#[test]
fn whoever_votes_and_does_not_finish_is_closed_and_the_next_may_go() {
    let mut house = House::with(|settings| settings.transaction_timeout = Some(SHORT));
    for codec in CODECS {
        let mut silent = house.client(codec);
        voted(&mut silent, 1);
        let mut next = house.client(codec);
        next.store(2, &[(Oid(MINE), Tid::ZERO, b"theirs")]);
        let heard = next.call(vote(2));
        assert!(matches!(heard, Heard::Reply(..)), "{heard:?}");
        silent.is_closed();
        // Signs of life are no finish.
        let alive: &[u8] = match codec {
            Codec::Msgpack => b"\x94\xff\0\xa6.reply\xc0",
            Codec::Pickle => b"\x80\x03(J\xff\xff\xff\xffK\0X\x06\0\0\0.replyNt.",
        };
        next.is_closed_while_sending(&framed(alive));
        house.neighbour.goes_on();
    }
}

#[test]
fn whoever_votes_for_the_same_conflict_again_and_again_is_closed_in_time() {
    let mut house = House::with(|settings| settings.transaction_timeout = Some(SHORT));
    let mut writer = house.client(Codec::Pickle);
    writer.store(1, &[(Oid(MINE), Tid::ZERO, b"first")]);
    writer.commit(1);
    let mut client = house.client(Codec::Msgpack);
    client.store(1, &[(Oid(MINE), Tid::ZERO, b"never resolved")]);
    let answer = client.call(vote(1));
    assert!(matches!(answer, Heard::Reply(..)), "{answer:?}");
    // Each vote finds the conflict anew, until the time from the first one is over.
    let mut bytes = Vec::new();
    let id = MessageId::int(Codec::Msgpack, 9);
    let call = Call { id, oneway: false, request: vote(1) };
    encode_call(Codec::Msgpack, &call, &mut bytes);
    client.is_closed_while_sending(&bytes);
    house.neighbour.goes_on();
}

#[test]
fn whoever_goes_at_any_step_leaves_nothing_behind() {
    let (machine, gate) = SlowDisk::machine();
    let mut house = House::on(&machine, |_| {});
    let mut client = house.client(Codec::Pickle);
    client.store(1, &[(Oid(MINE), Tid::ZERO, b"d")]);
    let committed = client.commit(1);
    for codec in CODECS {
        // Each step, and whether a clerk then reads for it.
        let undo = |id| Request::Undoa { tid: committed, id: TransactionId(id) };
        let steps: [(&str, &[Request<'_>], bool); 6] = [
            ("begin", &[begin(2)], false),
            ("store", &[begin(2), storea(MINE, committed, b"e", 2)], false),
            ("vote", &[begin(2), storea(MINE, committed, b"e", 2), vote(2)], false),
            ("a cold vote", &[begin(2), storea(MINE, committed, b"e", 2), vote(2)], true),
            ("a cold undo", &[begin(2), undo(2), vote(2)], true),
            ("a cold undo log", &[begin(2), Request::UndoLog { first: 0, last: 9 }], true),
        ];
        for (name, requests, cold) in steps {
            let mut client = house.client(codec);
            if cold {
                gate.hold(1);
            }
            for request in requests {
                if matches!(request, Request::Vote { .. } | Request::UndoLog { .. }) {
                    client.ask(request.clone());
                } else {
                    client.tell(request.clone());
                }
            }
            if cold {
                gate.wait_for(1);
            }
            drop(client);
            house.neighbour.wait_for_status("active_txns", &Value::Int(0));
            house.neighbour.wait_for_status("lock_time", &Value::None);
            gate.open();
            house.neighbour.goes_on();
            let heard = house.client(codec).load(Oid(MINE), Tid::MAX);
            assert!(matches!(heard, Heard::Load(_, _, serial, _) if serial == committed), "{name}");
        }
    }
}

#[test]
fn votes_for_what_is_not_there_are_errors_that_end_the_transaction() {
    let mut house = House::new();
    let id = TransactionId(1);
    let (oid, serial) = (Oid(MINE), Tid(7));
    let restore = Request::Restorea { oid, serial, data: None, previous: Some(serial), id };
    let operations = [
        (Request::Undoa { tid: Tid(7), id }, "UndoError"),
        (Request::Undoa { tid: Tid(u64::MAX), id }, "UndoError"),
        (Request::DeleteObject { oid, serial, id }, "POSKeyError"),
        (Request::CheckCurrentSerial { oid, serial, id }, "POSKeyError"),
        (restore, "UndoError"),
    ];
    for codec in CODECS {
        for (operation, class) in &operations {
            let mut client = house.client(codec);
            client.tell(begin(1));
            client.tell(operation.clone());
            assert_eq!(refused(client.call(vote(1)), house.path()), *class);
            let error = "StorageTransactionError";
            assert_eq!(refused(client.call(finish(1)), house.path()), error);
            assert!(is_nothing(&client.call(abort(1))));
            house.neighbour.goes_on();
        }
        // Everything at once, without waiting for anything.
        let mut client = house.client(codec);
        for id in 1..200 {
            client.tell(begin(id));
            client.tell(Request::Undoa { tid: Tid(id), id: TransactionId(id) });
            client.ask(vote(id));
            client.ask(finish(id));
            client.ask(abort(id));
        }
        assert!(is_nothing(&client.call(Request::Ping)));
        house.neighbour.goes_on();
    }
}

#[test]
fn tids_that_are_not_later_or_far_ahead_are_refused_at_the_vote() {
    let mut house = House::new();
    for codec in CODECS {
        let mut client = house.client(codec);
        let last = tid(&client.call(Request::LastTransaction));
        let refusals = [Tid::ZERO, Tid(1), last, ahead(3700), Tid::MAX, Tid(u64::MAX)];
        for (id, wanted) in (1..).zip(refusals) {
            client.tell(begin_at(id, wanted));
            client.tell(storea(MINE, Tid::ZERO, b"d", id));
            assert_eq!(refused(client.call(vote(id)), house.path()), "StorageError", "{wanted}");
            house.neighbour.goes_on();
        }
        // A record cannot be later than its transaction.
        for (id, wanted) in [(11, None), (12, Some(ahead(60)))] {
            client.tell(wanted.map_or(begin(id), |wanted| begin_at(id, wanted)));
            client.tell(restorea(MINE, Tid(u64::MAX), id));
            assert_eq!(refused(client.call(vote(id)), house.path()), "StorageError");
            house.neighbour.goes_on();
        }
    }
    let mut client = house.client(Codec::Pickle);
    let wanted = ahead(3000);
    client.tell(begin_at(20, wanted));
    client.tell(restorea(MINE, wanted, 20));
    assert_eq!(client.commit(20), wanted, "within an hour");
    house.neighbour.goes_on();
    let last = tid(&client.call(Request::LastTransaction));
    assert!(wanted < last, "tids rise");
    let House { server, folder, .. } = house;
    server.stop();
    Running::start(&settings(folder.path()), &Machine::real()).stop();
}

#[test]
fn a_transaction_of_too_many_bytes_or_operations_ends_the_connection() {
    const LIMIT: u64 = 1 << 20;
    let mut house = House::with(|settings| settings.tuning.transaction_bytes_max = LIMIT);
    let oid = Oid(MINE);
    for codec in CODECS {
        let data = vec![b'd'; 100_000];
        let id = TransactionId(1);
        let operations: [Request<'_>; 5] = [
            storea(MINE, Tid::ZERO, &data, 1),
            storea(MINE, Tid::ZERO, b"", 1),
            Request::DeleteObject { oid, serial: Tid::ZERO, id },
            Request::CheckCurrentSerial { oid, serial: Tid::ZERO, id },
            Request::Undoa { tid: Tid(1), id },
        ];
        for operation in operations {
            let mut client = house.client(codec);
            client.tell(begin(1));
            let mut bytes = Vec::new();
            let call = Call { id: MessageId::int(codec, 0), oneway: true, request: operation };
            for _ in 0..100 {
                encode_call(codec, &call, &mut bytes);
            }
            let mut sent = 0;
            while client.try_send(&bytes).is_ok() {
                sent += 100;
                assert!(sent <= 2 * LIMIT, "the server takes {sent} of {}", call.request.name());
            }
            house.neighbour.goes_on();
        }
    }
    let mut client = house.client(Codec::Pickle);
    client.store(1, &[(oid, Tid::ZERO, &vec![b'd'; LIMIT as usize - 1000])]);
    client.commit(1);
    house.neighbour.goes_on();
}

#[test]
fn no_oid_that_a_client_invents_stops_new_ones() {
    let mut house = House::new();
    let new_oids = |client: &mut Client, count| match client.call(Request::NewOids { count }) {
        Heard::Reply(_, Value::List(oids) | Value::Tuple(oids)) => oids.len(),
        other => panic!("{other:?} are no oids"),
    };
    let mut serial = Tid::ZERO;
    for codec in CODECS {
        let mut client = house.client(codec);
        for (count, given) in [(1_000_000, 100), (i64::MAX, 100), (0, 1), (i64::MIN, 1), (7, 7)] {
            assert_eq!(new_oids(&mut client, count), given);
        }
        client.store(1, &[(Oid(u64::MAX), serial, b"d"), (Oid(u64::MAX - 1), serial, b"d")]);
        serial = client.commit(1);
        assert_eq!(new_oids(&mut client, 100), 100);
        house.neighbour.goes_on();
    }
    let House { server, folder, .. } = house;
    server.stop();
    let server = Running::start(&settings(folder.path()), &Machine::real());
    let mut client = server.client(Codec::Pickle);
    assert_eq!(new_oids(&mut client, 100), 100);
    server.neighbour(Codec::Pickle).goes_on();
}

#[test]
fn whoever_finishes_and_goes_leaves_no_room_for_a_flood() {
    const MOST: usize = 4;
    let (machine, gate) = SlowDisk::slow_to_sync();
    let mut house = House::on(&machine, |settings| {
        settings.tuning.connections_max = MOST.try_into().unwrap();
    });
    gate.hold(1);
    let mut client = house.client(Codec::Pickle);
    client.store(1, &[(Oid(MINE), Tid::ZERO, b"d")]);
    client.call(vote(1));
    client.ask(finish(1));
    gate.wait_for(1);
    drop(client);
    // Nothing is written now, and every one of these leaves an order behind.
    let count = 5 * MOST as u64;
    for number in 1..=count {
        house.neighbour.wait_for_connections(1);
        let mut client = house.client(Codec::Pickle);
        client.store(1, &[(Oid(MINE + number), Tid::ZERO, b"d")]);
        client.call(vote(1));
        client.ask(finish(1));
    }
    house.neighbour.wait_for_connections(1);
    gate.open();
    house.neighbour.wait_for_status("commits", &Value::Int(count as i64 + 2));
    house.neighbour.goes_on();
}

#[test]
fn conflicts_with_more_data_than_may_wait_are_not_sent_back() {
    let mut house = House::with(|settings| settings.tuning.output_bytes_max = 1 << 20);
    let mut client = house.client(Codec::Msgpack);
    let data = vec![b'd'; 200_000];
    let all = |serial| -> Vec<_> { (0..8).map(|n| (Oid(MINE + n), serial, &data[..])).collect() };
    client.store(1, &all(Tid::ZERO));
    client.commit(1);
    client.store(2, &all(Tid(1)));
    assert_eq!(refused(client.call(vote(2)), house.path()), "ConflictError");
    house.neighbour.goes_on();
    client.store(3, &all(Tid(1))[..2]);
    let heard = client.call(vote(3));
    let Heard::Reply(_, Value::Tuple(conflicts)) = &heard else {
        panic!("{heard:?} is no list of conflicts");
    };
    assert_eq!(conflicts.len(), 2, "few are the client's to resolve");
    // It keeps its locks until it has resolved them, or gives up.
    assert!(is_nothing(&client.call(abort(3))));
    house.neighbour.goes_on();
}
