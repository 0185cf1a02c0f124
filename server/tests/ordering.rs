//! In which order a connection hears of things: the scenarios of `docs/ordering.md`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may say so")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use support::{Client, Heard, Running, SlowDisk, begin, settings, tid};
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::Machine;
use zeoring_shared::wire::Codec;
use zeoring_shared::wire::request::{Request, TransactionId};
use zeoring_shared::wire::value::Value;

const O: Oid = Oid(1);
const CODECS: [Codec; 2] = [Codec::Pickle, Codec::Msgpack];

fn running() -> (tempfile::TempDir, Running) {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::start(&settings(folder.path()), &Machine::real());
    (folder, server)
}

/// The serial, end and data of a load's answer.
fn revision(heard: Heard) -> (Vec<u8>, Tid, Option<Tid>) {
    match heard {
        Heard::Load(_, data, serial, end) => (data, serial, end),
        other => panic!("{other:?} is no revision"),
    }
}

#[test]
fn a_cold_load_that_a_commit_overtakes_says_so() {
    for (codec, current) in CODECS.into_iter().flat_map(|codec| [(codec, true), (codec, false)]) {
        let folder = tempfile::tempdir().unwrap();
        let (machine, gate) = SlowDisk::machine();
        let server = Running::start(&settings(folder.path()), &machine);
        let mut writer = server.client(codec);
        writer.store(1, &[(O, Tid::ZERO, b"old")]);
        let first = writer.commit(1);
        let mut reader = server.client(codec);
        let before = if current { Tid::MAX } else { first.next() };
        gate.hold(1);
        let load = reader.ask(Request::LoadBefore { oid: O, before });
        gate.wait_for(1);
        writer.store(2, &[(O, first, b"new")]);
        let second = writer.commit(2);
        assert_eq!(reader.hear(), Some(Heard::Invalidate(second, vec![O])));
        gate.open();
        let (data, serial, end) = revision(reader.answer(&load));
        if current {
            assert_eq!((&*data, serial, end), (&b"new"[..], second, None));
        } else {
            assert_eq!((&*data, serial, end), (&b"old"[..], first, Some(second)));
        }
    }
}

#[test]
fn many_cold_loads_are_all_answered_whatever_is_committed_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, gate) = SlowDisk::machine();
    let server = Running::start(&settings(folder.path()), &machine);
    let mut writer = server.client(Codec::Msgpack);
    let objects: Vec<Oid> = (1..=600).map(Oid).collect();
    let large = vec![b'x'; 100_000];
    let data = |oid: Oid| if oid.0.is_multiple_of(50) { &large[..] } else { b"small" };
    let stores: Vec<_> = objects.iter().map(|oid| (*oid, Tid::ZERO, data(*oid))).collect();
    writer.store(1, &stores);
    let first = writer.commit(1);
    let mut reader = server.client(Codec::Msgpack);
    gate.hold(2);
    let loads: Vec<_> = objects
        .iter()
        .map(|oid| reader.ask(Request::LoadBefore { oid: *oid, before: first.next() }))
        .collect();
    gate.wait_for(2);
    writer.store(2, &[(O, first, b"new"), (Oid(50), first, b"new")]);
    let second = writer.commit(2);
    gate.open();
    for (oid, load) in objects.iter().zip(loads) {
        let (found, serial, end) = revision(reader.answer(&load));
        assert_eq!((&*found, serial), (data(*oid), first));
        assert!(end.is_none() || end == Some(second) && [1, 50].contains(&oid.0), "{oid}: {end:?}");
    }
}

/// What a committer has committed, and what it was told of others.
type Story = (Vec<Tid>, Vec<(Tid, Vec<Oid>)>);

/// One thread commits to its own object again and again; `seen` follows what everybody may know.
fn commit_many(client: &mut Client, oid: Oid, count: u64, seen: impl Fn(Tid)) -> Vec<Tid> {
    let mut serial = Tid::ZERO;
    let mut tids = Vec::new();
    for number in 1..=count {
        client.store(number, &[(oid, serial, &number.to_be_bytes())]);
        serial = client.commit(number);
        seen(serial);
        tids.push(serial);
    }
    tids
}

#[test]
fn every_connection_hears_of_every_commit_once_and_in_order() {
    const COMMITTERS: u64 = 4;
    const COMMITS: u64 = 150;
    let (_folder, server) = running();
    let mut observer = server.client(Codec::Pickle);
    // All are registered before the first commits.
    let clients: Vec<_> =
        (0..COMMITTERS).map(|number| server.client(CODECS[number as usize % 2])).collect();
    let stories: Vec<Story> = thread::scope(|scope| {
        let committers: Vec<_> = (1..=COMMITTERS)
            .zip(clients)
            .map(|(number, mut client)| {
                scope.spawn(move || {
                    let own = commit_many(&mut client, Oid(number), COMMITS, |_| ());
                    // Everything that was committed before this answer was told before it.
                    client.call(Request::Ping);
                    let mut story = Vec::new();
                    for heard in client.heard.drain(..) {
                        if let Heard::Invalidate(tid, oids) = heard {
                            story.push((tid, oids));
                        }
                    }
                    (own, story)
                })
            })
            .collect();
        committers.into_iter().map(|committer| committer.join().unwrap()).collect()
    });
    let mut truth = BTreeMap::new();
    for (number, (own, _)) in (1..).zip(&stories) {
        truth.extend(own.iter().map(|tid| (*tid, vec![Oid(number)])));
    }
    assert_eq!(truth.len() as u64, COMMITTERS * COMMITS);
    let mut told = Vec::new();
    while told.len() < truth.len() {
        match observer.hear() {
            Some(Heard::Invalidate(tid, oids)) => told.push((tid, oids)),
            other => panic!("{other:?}"),
        }
    }
    assert!(told.iter().cloned().eq(truth.clone()), "the observer hears everything in order");
    for (own, story) in stories {
        assert!(story.is_sorted_by(|one, other| one.0 < other.0));
        let until = story.last().map(|(tid, _)| *tid).max(own.last().copied()).unwrap();
        let others = truth.iter().filter(|(tid, _)| **tid <= until && !own.contains(tid));
        assert!(story.iter().map(|(tid, oids)| (tid, oids)).eq(others), "all but its own");
    }
}

#[test]
fn a_committers_own_answer_stands_where_its_invalidation_would() {
    let (_folder, server) = running();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut other = server.client(Codec::Msgpack);
        let done = &done;
        scope.spawn(move || {
            let mut serial = Tid::ZERO;
            for number in 1.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                other.store(number, &[(Oid(2), serial, b"other")]);
                serial = other.commit(number);
            }
        });
        let mut client = server.client(Codec::Pickle);
        let mut serial = Tid::ZERO;
        let mut last = Tid::ZERO;
        for number in 1..=200 {
            client.store(number, &[(O, serial, b"own")]);
            let vote = client.call(Request::Vote { id: TransactionId(number) });
            assert!(matches!(vote, Heard::Reply(..)), "{vote:?}");
            let finish = client.ask(Request::TpcFinish { id: TransactionId(number) });
            loop {
                let now = match client.hear().unwrap() {
                    Heard::Invalidate(tid, _) => tid,
                    Heard::Notice(_) => continue,
                    reply @ Heard::Reply(..) => {
                        assert!(matches!(&reply, Heard::Reply(id, _) if *id == finish));
                        serial = tid(&reply);
                        serial
                    }
                    other => panic!("{other:?}"),
                };
                assert!(last < now, "{now} came after {last}");
                last = now;
                if now == serial {
                    break;
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn no_reply_shows_a_commit_before_its_invalidation_and_none_hides_one_after_it() {
    let (_folder, server) = running();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut writer = server.client(Codec::Msgpack);
        let done = &done;
        scope.spawn(move || {
            commit_many(&mut writer, O, 400, |_| ());
            done.store(true, Ordering::Relaxed);
        });
        for codec in CODECS {
            let mut reader = server.client(codec);
            scope.spawn(move || {
                let mut told = reader.last;
                while !done.load(Ordering::Relaxed) {
                    let load = reader.ask(Request::LoadBefore { oid: O, before: Tid::MAX });
                    let last = reader.ask(Request::LastTransaction);
                    let mut answers = 0;
                    while answers < 2 {
                        match reader.hear().unwrap() {
                            Heard::Invalidate(tid, _) => told = tid,
                            Heard::Load(id, _, serial, end) => {
                                assert_eq!(id, load);
                                assert_eq!((serial, end), (told, None), "current means as told");
                                answers += 1;
                            }
                            // The object is not there before the first commit.
                            Heard::Error(id, ..) => {
                                assert_eq!((id, told), (load.clone(), Tid::ZERO));
                                answers += 1;
                            }
                            reply @ Heard::Reply(..) => {
                                assert!(matches!(&reply, Heard::Reply(id, _) if *id == last));
                                assert_eq!(tid(&reply), told);
                                answers += 1;
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                }
            });
        }
    });
}

#[test]
fn a_current_reply_never_follows_the_invalidation_that_ends_it() {
    let (_folder, server) = running();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut writer = server.client(Codec::Msgpack);
        let done = &done;
        scope.spawn(move || {
            commit_many(&mut writer, O, 400, |_| ());
            done.store(true, Ordering::Relaxed);
        });
        let mut reader = server.client(Codec::Pickle);
        let mut invalid = Tid::ZERO;
        while !done.load(Ordering::Relaxed) {
            // As ZODB loads: before the transaction that follows the last that it was told of.
            let before = invalid.next();
            let load = reader.ask(Request::LoadBefore { oid: O, before });
            loop {
                match reader.hear().unwrap() {
                    Heard::Invalidate(tid, _) => invalid = tid,
                    Heard::Load(id, _, serial, end) => {
                        assert_eq!(id, load);
                        assert!(serial < before);
                        let current = end.is_none();
                        assert!(!current || invalid <= serial, "{serial} was ended by {invalid}");
                        break;
                    }
                    Heard::Error(..) | Heard::Reply(..) => break,
                    other => panic!("{other:?}"),
                }
            }
        }
    });
}

#[test]
fn registration_leaves_no_gap_and_no_overlap() {
    let (_folder, server) = running();
    let done = AtomicBool::new(false);
    let truth = thread::scope(|scope| {
        let mut writer = server.client(Codec::Msgpack);
        let done = &done;
        let committer = scope.spawn(move || {
            let tids = commit_many(&mut writer, O, 300, |_| ());
            done.store(true, Ordering::Relaxed);
            tids
        });
        let mut stories = Vec::new();
        while !done.load(Ordering::Relaxed) {
            let mut client = server.client(CODECS[stories.len() % 2]);
            let mut story = vec![client.last];
            while story.len() < 4 && !done.load(Ordering::Relaxed) {
                client.call(Request::Ping);
                let told = client.heard.drain(..).map(|heard| match heard {
                    Heard::Invalidate(tid, _) => tid,
                    other => panic!("{other:?}"),
                });
                story.extend(told);
            }
            stories.push(story);
        }
        let truth = committer.join().unwrap();
        for story in stories {
            let first = story[0];
            let later = truth.iter().copied().filter(|tid| first < *tid);
            let told = story[1..].iter().copied();
            assert!(told.clone().eq(later.take(told.len())), "{story:?}");
        }
        truth
    });
    assert_eq!(truth.len(), 300);
}

#[test]
fn a_list_of_invalidations_and_what_is_told_later_leave_no_gap() {
    let (_folder, server) = running();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut writer = server.client(Codec::Msgpack);
        let done = &done;
        let committer = scope.spawn(move || {
            let tids = commit_many(&mut writer, O, 300, |_| ());
            done.store(true, Ordering::Relaxed);
            tids
        });
        let mut stories = Vec::new();
        let mut client = server.client(Codec::Pickle);
        while !done.load(Ordering::Relaxed) {
            let known = client.last;
            let list = client.ask(Request::GetInvalidations { tid: known });
            let mut told_before = Vec::new();
            let latest = loop {
                match client.hear().unwrap() {
                    Heard::Invalidate(tid, _) => told_before.push(tid),
                    Heard::Reply(id, Value::Tuple(answer)) if id == list => {
                        let Value::Bytes(latest) = &answer[0] else { panic!("{answer:?}") };
                        break Tid::from_bytes(latest.as_ref().try_into().unwrap());
                    }
                    // The list does not reach back so far: the client would start afresh.
                    Heard::Reply(_, Value::None) => {
                        break told_before.last().copied().unwrap_or(known);
                    }
                    other => panic!("{other:?}"),
                }
            };
            assert!(told_before.iter().all(|tid| *tid <= latest), "told, but not in the list");
            client.call(Request::Ping);
            let after: Vec<_> = client
                .heard
                .drain(..)
                .map(|heard| match heard {
                    Heard::Invalidate(tid, _) => tid,
                    other => panic!("{other:?}"),
                })
                .collect();
            client.last = after.last().copied().unwrap_or(latest);
            stories.push((latest, after));
        }
        let truth = committer.join().unwrap();
        for (latest, after) in stories.into_iter().filter(|(latest, _)| *latest != Tid::ZERO) {
            let later = truth.iter().copied().filter(|tid| latest < *tid).take(after.len());
            assert!(later.eq(after.iter().copied()), "{latest} {after:?}");
        }
    });
}

#[test]
fn what_one_client_was_told_every_client_can_load() {
    let (_folder, server) = running();
    let known = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (known, done) = (&known, &done);
        let mut writer = server.client(Codec::Msgpack);
        scope.spawn(move || {
            commit_many(&mut writer, O, 400, |tid| known.store(tid.0, Ordering::SeqCst));
            done.store(true, Ordering::Relaxed);
        });
        // Neighbours have different reactors.
        for _ in 0..2 {
            let mut reader = server.client(Codec::Pickle);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let known = Tid(known.load(Ordering::SeqCst));
                    if known != Tid::ZERO {
                        let (_, serial, _) = revision(reader.load(O, Tid::MAX));
                        assert!(known <= serial, "{known} was answered, {serial} is shown");
                    }
                }
            });
        }
    });
}

#[test]
fn a_vote_names_every_object_that_undoing_writes() {
    let (_folder, server) = running();
    let mut client = server.client(Codec::Pickle);
    client.store(1, &[(O, Tid::ZERO, b"one"), (Oid(2), Tid::ZERO, b"two")]);
    let first = client.commit(1);
    client.store(2, &[(O, first, b"uno"), (Oid(2), first, b"due")]);
    let second = client.commit(2);
    client.tell(begin(3));
    client.tell(Request::Undoa { tid: second, id: TransactionId(3) });
    let vote = client.call(Request::Vote { id: TransactionId(3) });
    let Heard::Reply(_, Value::List(chosen) | Value::Tuple(chosen)) = vote else {
        panic!("{vote:?}");
    };
    let oids = [O, Oid(2)].map(|oid| Value::Bytes(oid.to_bytes().to_vec().into()));
    assert!(chosen.len() == 2 && oids.iter().all(|oid| chosen.contains(oid)), "{chosen:?}");
    let third = tid(&client.call(Request::TpcFinish { id: TransactionId(3) }));
    assert_eq!(revision(client.load(O, Tid::MAX)), (b"one".to_vec(), third, None));
}

/// What a client does before it goes.
type Scene = fn(&mut Client);

const SCENES: [(&str, Scene); 5] = [
    ("begun", |client| client.tell(begin(1))),
    ("stored", |client| client.store(1, &[(O, Tid::ZERO, b"lost")])),
    ("voting", |client| {
        client.store(1, &[(O, Tid::ZERO, b"lost")]);
        client.ask(Request::Vote { id: TransactionId(1) });
    }),
    ("voted", |client| {
        client.store(1, &[(O, Tid::ZERO, b"lost")]);
        client.call(Request::Vote { id: TransactionId(1) });
    }),
    ("undoing", |client| {
        client.tell(begin(1));
        client.tell(Request::Undoa { tid: Tid(1), id: TransactionId(1) });
        client.ask(Request::Vote { id: TransactionId(1) });
    }),
];

#[test]
fn whenever_a_client_goes_the_next_one_can_commit() {
    let (_folder, server) = running();
    for (number, (name, scene)) in (1..).zip(SCENES) {
        let mut leaver = server.client(Codec::Pickle);
        scene(&mut leaver);
        let mut waiter = server.client(Codec::Msgpack);
        // It may have to stand in line behind the one that goes.
        waiter.store(1, &[(O, Tid::ZERO, b"waits")]);
        let vote = waiter.ask(Request::Vote { id: TransactionId(1) });
        drop(leaver);
        let answer = waiter.answer(&vote);
        assert!(matches!(answer, Heard::Reply(..)), "{name}: {answer:?}");
        waiter.call(Request::TpcAbort { id: TransactionId(1) });
        let mut next = server.client(Codec::Pickle);
        next.store(1, &[(Oid(100 + number), Tid::ZERO, b"kept")]);
        next.commit(1);
    }
    let mut leaver = server.client(Codec::Pickle);
    leaver.store(1, &[(O, Tid::ZERO, b"in line, then finished, then gone")]);
    leaver.call(Request::Vote { id: TransactionId(1) });
    leaver.ask(Request::TpcFinish { id: TransactionId(1) });
    drop(leaver);
    let mut next = server.client(Codec::Pickle);
    next.store(1, &[(O, Tid::ZERO, b"conflicts or not")]);
    let vote = next.call(Request::Vote { id: TransactionId(1) });
    assert!(matches!(vote, Heard::Reply(..)), "{vote:?}");
}

#[test]
fn one_in_line_that_goes_does_not_keep_those_behind_it_waiting() {
    let (_folder, server) = running();
    let mut holder = server.client(Codec::Pickle);
    holder.store(1, &[(O, Tid::ZERO, b"held")]);
    holder.call(Request::Vote { id: TransactionId(1) });
    let mut leaver = server.client(Codec::Pickle);
    leaver.store(1, &[(O, Tid::ZERO, b"gone"), (Oid(2), Tid::ZERO, b"gone")]);
    leaver.ask(Request::Vote { id: TransactionId(1) });
    leaver.call(Request::Ping);
    let mut behind = server.client(Codec::Msgpack);
    behind.store(1, &[(Oid(2), Tid::ZERO, b"kept")]);
    let vote = behind.ask(Request::Vote { id: TransactionId(1) });
    drop(leaver);
    assert!(matches!(behind.answer(&vote), Heard::Reply(..)));
    holder.call(Request::TpcFinish { id: TransactionId(1) });
}

#[test]
fn garbage_after_a_vote_frees_the_locks() {
    let (_folder, server) = running();
    let mut garbler = server.client(Codec::Pickle);
    garbler.store(1, &[(O, Tid::ZERO, b"lost")]);
    garbler.call(Request::Vote { id: TransactionId(1) });
    let mut waiter = server.client(Codec::Pickle);
    waiter.store(1, &[(O, Tid::ZERO, b"kept")]);
    let vote = waiter.ask(Request::Vote { id: TransactionId(1) });
    garbler.send(b"\0\0\0\x04junk");
    assert_eq!(garbler.hear(), None, "the server closes");
    assert!(matches!(waiter.answer(&vote), Heard::Reply(..)));
    tid(&waiter.call(Request::TpcFinish { id: TransactionId(1) }));
}

#[test]
fn disjoint_transactions_vote_side_by_side_and_conflicting_ones_in_turn() {
    let (_folder, server) = running();
    let mut one = server.client(Codec::Pickle);
    one.store(1, &[(O, Tid::ZERO, b"one")]);
    one.call(Request::Vote { id: TransactionId(1) });
    let mut two = server.client(Codec::Msgpack);
    two.store(1, &[(Oid(2), Tid::ZERO, b"two")]);
    let second = two.commit(1);
    let mut three = server.client(Codec::Msgpack);
    three.store(1, &[(O, Tid::ZERO, b"three")]);
    let vote = three.ask(Request::Vote { id: TransactionId(1) });
    let first = tid(&one.call(Request::TpcFinish { id: TransactionId(1) }));
    assert!(second < first);
    let answer = three.answer(&vote);
    let Heard::Reply(_, Value::List(conflicts) | Value::Tuple(conflicts)) = answer else {
        panic!("{answer:?}");
    };
    let [Value::Dict(conflict)] = &conflicts[..] else { panic!("{conflicts:?}") };
    let serials = vec![first, Tid::ZERO].into_iter();
    let serials = serials.map(|tid| Value::Bytes(tid.to_bytes().to_vec().into())).collect();
    let wanted = (Value::Str("serials".into()), Value::Tuple(serials));
    assert!(conflict.contains(&wanted), "{conflict:?}");
    // The client resolves, and votes again.
    three.tell(Request::Storea { oid: O, serial: first, data: b"3".into(), id: TransactionId(1) });
    let third = three.commit(1);
    assert_eq!(revision(one.load(O, Tid::MAX)), (b"3".to_vec(), third, None));
}
