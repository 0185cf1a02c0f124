// Included once a driver by main.rs, which says what `Zeo`, `go!`, `breathe!` and `scenario!` are.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use zeoring_client::{ClientError, Description, Invalidated, Vote, Watcher};
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::value::Value;

use crate::peer::{Peer, changes, eight, entry, info};

const O: Oid = Oid(1);

/// Writes what tids it hears of.
#[derive(Default)]
struct Diary(Mutex<Vec<(u64, Vec<u64>)>>);

impl Watcher for Diary {
    fn invalidated(&self, tid: Tid, oids: &[Oid]) {
        self.0.lock().unwrap().push((tid.0, oids.iter().map(|oid| oid.0).collect()));
    }

    fn everything_invalidated(&self, until: Tid) {
        panic!("nothing of the history until {until} is lost");
    }
}

/// The tids that others committed, since the last time.
fn heard(client: &Zeo) -> Vec<u64> {
    match client.invalidations() {
        Invalidated::Transactions(list) => list.iter().map(|one| one.tid.0).collect(),
        Invalidated::Everything { until } => panic!("nothing until {until} is lost"),
    }
}

scenario!(a_late_current_answer_never_enters_the_cache {
    let peer = Peer::new(|door| {
        let mut wire = door.accept_new(5);
        let load = wire.expect("loadBefore");
        let late = wire.say().invalidation(6, &[1]).load(&load, (b"old", 4, None));
        wire.send(&late.bytes);
        let again = wire.expect("loadBefore");
        let said = wire.say().load(&again, (b"new", 6, None));
        wire.send(&said.bytes);
        // The cache has it now.
        wire.answer("ping", &Value::None);
        wire.stay();
    });
    let client = go!(Zeo::open(peer.options())).unwrap();
    for _ in 0..2 {
        let revision = go!(client.load(O)).unwrap();
        assert_eq!((&*revision.data, revision.serial, revision.end), (&b"new"[..], Tid(6), None));
    }
    go!(client.ping()).unwrap();
    assert_eq!((client.last_transaction(), heard(&client)), (Tid(6), vec![6]));
    drop(client);
    peer.join();
});

scenario!(a_late_answer_of_an_older_moment_is_given_and_not_remembered {
    let peer = Peer::new(|door| {
        let mut wire = door.accept_new(5);
        let load = wire.expect("loadBefore");
        let late = wire.say().invalidation(6, &[1]).load(&load, (b"old", 4, None));
        wire.send(&late.bytes);
        let current = wire.expect("loadBefore");
        let said = wire.say().load(&current, (b"new", 6, None));
        wire.send(&said.bytes);
        wire.stay();
    });
    let client = go!(Zeo::open(peer.options())).unwrap();
    let old = go!(client.load_before(O, Tid(6))).unwrap().unwrap();
    assert_eq!((&*old.data, old.serial), (&b"old"[..], Tid(4)));
    assert_eq!(&*go!(client.load(O)).unwrap().data, b"new");
    drop(client);
    peer.join();
});

scenario!(an_answer_and_the_invalidation_behind_it_leave_nothing_current {
    for byte_by_byte in [false, true] {
        let peer = Peer::new(move |door| {
            let mut wire = door.accept_new(5);
            let load = wire.expect("loadBefore");
            let both = wire.say().load(&load, (b"old", 4, None)).invalidation(6, &[1]);
            if byte_by_byte { wire.trickle(&both.bytes) } else { wire.send(&both.bytes) }
            wire.answer("ping", &Value::None);
            let again = wire.expect("loadBefore");
            let said = wire.say().load(&again, (b"new", 6, None));
            wire.send(&said.bytes);
            wire.stay();
        });
        let client = go!(Zeo::open(peer.options())).unwrap();
        assert_eq!(&*go!(client.load(O)).unwrap().data, b"old");
        go!(client.ping()).unwrap();
        assert_eq!(&*go!(client.load(O)).unwrap().data, b"new");
        assert_eq!(&*go!(client.load_before(O, Tid(6))).unwrap().unwrap().data, b"old");
        drop(client);
        peer.join();
    }
});

scenario!(an_own_commit_takes_its_place_between_two_others {
    for byte_by_byte in [false, true] {
        let peer = Peer::new(move |door| {
            let mut wire = door.accept_new(5);
            wire.answer("vote", &Value::List(vec![]));
            let finish = wire.expect("tpc_finish");
            let said = wire.say().invalidation(6, &[1, 2]).reply(&finish, &eight(7));
            let said = said.invalidation(8, &[2]);
            if byte_by_byte { wire.trickle(&said.bytes) } else { wire.send(&said.bytes) }
            // What was committed is remembered.
            wire.answer("ping", &Value::None);
            wire.stay();
        });
        let client = go!(Zeo::open(peer.options())).unwrap();
        let diary = Arc::new(Diary::default());
        client.watch(Arc::clone(&diary) as Arc<dyn Watcher>);
        let mut transaction = go!(client.begin(&Description::default())).unwrap();
        go!(transaction.store(O, Tid(4), b"mine")).unwrap();
        let Vote::Ready(voted) = go!(transaction.vote()).unwrap() else { panic!("it may") };
        assert_eq!(go!(voted.finish()).unwrap(), Tid(7));
        assert!(Tid(7) <= client.last_transaction());
        assert_eq!(diary.0.lock().unwrap()[0], (6, vec![1, 2]), "told before the commit is seen");
        go!(client.ping()).unwrap();
        let own = go!(client.load(O)).unwrap();
        assert_eq!((&*own.data, own.serial), (&b"mine"[..], Tid(7)));
        assert_eq!(*diary.0.lock().unwrap(), [(6, vec![1, 2]), (8, vec![2])]);
        assert_eq!((client.last_transaction(), heard(&client)), (Tid(8), vec![6, 8]));
        drop(client);
        peer.join();
    }
});

scenario!(what_the_server_wrote_otherwise_is_loaded_again {
    let peer = Peer::new(|door| {
        let mut wire = door.accept_new(5);
        wire.answer("vote", &Value::List(vec![eight(1)]));
        wire.answer("tpc_finish", &eight(6));
        let load = wire.expect("loadBefore");
        let said = wire.say().load(&load, (b"resolved", 6, None));
        wire.send(&said.bytes);
        wire.stay();
    });
    let client = go!(Zeo::open(peer.options())).unwrap();
    let mut transaction = go!(client.begin(&Description::default())).unwrap();
    go!(transaction.store(O, Tid(4), b"mine")).unwrap();
    let Vote::Ready(voted) = go!(transaction.vote()).unwrap() else { panic!("it may") };
    assert_eq!(voted.rewritten(), [O]);
    go!(voted.finish()).unwrap();
    assert_eq!(&*go!(client.load(O)).unwrap().data, b"resolved");
    drop(client);
    peer.join();
});

scenario!(an_invalidation_during_the_comparison_is_not_lost {
    for place in 0..4 {
        let peer = Peer::new(move |door| {
            let mut wire = door.accept_new(5);
            let load = wire.expect("loadBefore");
            let said = wire.say().load(&load, (b"old", 4, None));
            wire.send(&said.bytes);
            wire.expect("ping");
            drop(wire);
            let mut wire = door.accept();
            wire.register(9);
            let answers = [
                ("iterator_start", Value::Int(1)),
                ("iterator_next", entry(5)),
                ("getInvalidations", changes(9, &[])),
                ("get_info", info()),
            ];
            for (index, (name, value)) in answers.iter().enumerate() {
                let asked = wire.expect(name);
                if index == place {
                    let said = wire.say().invalidation(10, &[1]);
                    wire.send(&said.bytes);
                }
                let said = wire.say().reply(&asked, value);
                wire.send(&said.bytes);
            }
            wire.answer("ping", &Value::None);
            let load = wire.expect("loadBefore");
            let said = wire.say().load(&load, (b"new", 10, None));
            wire.send(&said.bytes);
            wire.stay();
        });
        let client = go!(Zeo::open(peer.options())).unwrap();
        assert_eq!(&*go!(client.load(O)).unwrap().data, b"old");
        go!(client.ping()).unwrap();
        assert_eq!((client.last_transaction(), heard(&client)), (Tid(10), vec![10]));
        assert_eq!(&*go!(client.load(O)).unwrap().data, b"new");
        drop(client);
        peer.join();
    }
});

scenario!(a_transaction_that_was_voted_on_a_broken_connection_is_lost_and_not_finished {
    let peer = Peer::new(|door| {
        let mut wire = door.accept_new(5);
        wire.answer("vote", &Value::List(vec![]));
        wire.expect("ping");
        drop(wire);
        let mut wire = door.accept_again(5, 5, &[]);
        wire.answer("ping", &Value::None);
        // Neither its finish nor its abort comes.
        wire.answer("get_info", &info());
        wire.stay();
    });
    let client = go!(Zeo::open(peer.options())).unwrap();
    let mut transaction = go!(client.begin(&Description::default())).unwrap();
    go!(transaction.store(O, Tid(4), b"mine")).unwrap();
    let Vote::Ready(voted) = go!(transaction.vote()).unwrap() else { panic!("it may") };
    go!(client.ping()).unwrap();
    let lost = go!(voted.finish()).unwrap_err();
    assert!(matches!(lost, ClientError::TransactionLost), "{lost}");
    go!(client.server_info()).unwrap();
    assert_eq!(client.last_transaction(), Tid(5));
    drop(client);
    peer.join();
});

scenario!(a_finish_that_finds_no_connection_is_not_in_doubt {
    let peer = Peer::new(|door| {
        let mut wire = door.accept_new(5);
        wire.answer("vote", &Value::List(vec![]));
        // Nobody listens any more.
        wire.expect("ping");
    });
    let mut options = peer.options();
    options.wait = Duration::ZERO;
    let client = go!(Zeo::open(options)).unwrap();
    while !client.is_connected() {
        breathe!();
    }
    let mut transaction = go!(client.begin(&Description::default())).unwrap();
    go!(transaction.store(O, Tid(4), b"mine")).unwrap();
    let Vote::Ready(voted) = go!(transaction.vote()).unwrap() else { panic!("it may") };
    go!(client.ping()).unwrap_err();
    let lost = go!(voted.finish()).unwrap_err();
    assert!(matches!(lost, ClientError::TransactionLost), "{lost}");
    drop(client);
    peer.join();
});

scenario!(a_finish_whose_connection_breaks_is_in_doubt_until_the_next_one_tells {
    let peer = Peer::new(|door| {
        let mut wire = door.accept_new(5);
        let load = wire.expect("loadBefore");
        let said = wire.say().load(&load, (b"old", 4, None));
        wire.send(&said.bytes);
        wire.answer("vote", &Value::List(vec![]));
        wire.expect("tpc_finish");
        drop(wire);
        // It was committed.
        let mut wire = door.accept_again(5, 6, &[1]);
        wire.answer("ping", &Value::None);
        let load = wire.expect("loadBefore");
        let said = wire.say().load(&load, (b"mine", 6, None));
        wire.send(&said.bytes);
        wire.stay();
    });
    let client = go!(Zeo::open(peer.options())).unwrap();
    go!(client.load(O)).unwrap();
    let mut transaction = go!(client.begin(&Description::default())).unwrap();
    go!(transaction.store(O, Tid(4), b"mine")).unwrap();
    let Vote::Ready(voted) = go!(transaction.vote()).unwrap() else { panic!("it may") };
    let doubt = go!(voted.finish()).unwrap_err();
    assert!(matches!(doubt, ClientError::Disconnected(_)), "{doubt}");
    go!(client.ping()).unwrap();
    assert_eq!((client.last_transaction(), heard(&client)), (Tid(6), vec![6]));
    assert_eq!(&*go!(client.load(O)).unwrap().data, b"mine");
    drop(client);
    peer.join();
});

scenario!(a_finish_that_is_not_answered_in_time_ends_its_connection {
    let peer = Peer::new(|door| {
        let mut wire = door.accept_new(5);
        wire.answer("vote", &Value::List(vec![]));
        wire.expect("tpc_finish");
        assert!(wire.next().is_none(), "only the end of the connection settles it");
        let mut wire = door.accept_again(5, 6, &[1]);
        wire.answer("ping", &Value::None);
        wire.stay();
    });
    let mut options = peer.options();
    options.deadline = Duration::from_millis(500);
    let client = go!(Zeo::open(options)).unwrap();
    let mut transaction = go!(client.begin(&Description::default())).unwrap();
    go!(transaction.store(O, Tid(4), b"mine")).unwrap();
    let Vote::Ready(voted) = go!(transaction.vote()).unwrap() else { panic!("it may") };
    let doubt = go!(voted.finish()).unwrap_err();
    assert!(matches!(doubt, ClientError::Deadline { call: "tpc_finish", .. }), "{doubt}");
    go!(client.ping()).unwrap();
    assert_eq!((client.last_transaction(), heard(&client)), (Tid(6), vec![6]));
    drop(client);
    peer.join();
});

scenario!(an_answer_that_comes_after_its_deadline_is_still_taken_in_its_place {
    for is_overtaken in [false, true] {
        let peer = Peer::new(move |door| {
            let mut wire = door.accept_new(5);
            let load = wire.expect("loadBefore");
            let ping = wire.expect("ping");
            let said = wire.say();
            let said = if is_overtaken { said.invalidation(6, &[1]) } else { said };
            let said = said.load(&load, (b"old", 4, None)).reply(&ping, &Value::None);
            wire.send(&said.bytes);
            if is_overtaken {
                let again = wire.expect("loadBefore");
                let said = wire.say().load(&again, (b"new", 6, None));
                wire.send(&said.bytes);
            }
            // Who looked for it before it came may ask once more.
            let mut asked = wire.next().expect("a call");
            if is_overtaken && asked.name == "loadBefore" {
                let said = wire.say().load(&asked, (b"new", 6, None));
                wire.send(&said.bytes);
                asked = wire.next().expect("a call");
            }
            assert_eq!(asked.name, "get_info");
            let said = wire.say().reply(&asked, &info());
            wire.send(&said.bytes);
            wire.stay();
        });
        let mut options = peer.options();
        options.deadline = Duration::from_millis(500);
        let client = go!(Zeo::open(options)).unwrap();
        let late = go!(client.load(O)).unwrap_err();
        assert!(matches!(late, ClientError::Deadline { call: "loadBefore", .. }), "{late}");
        go!(client.ping()).unwrap();
        let expected = if is_overtaken { &b"new"[..] } else { b"old" };
        assert_eq!(&*go!(client.load(O)).unwrap().data, expected);
        go!(client.server_info()).unwrap();
        drop(client);
        peer.join();
    }
});

scenario!(every_transaction_is_heard_of_once_and_in_order {
    const ROUNDS: u64 = 50;
    let peer = Peer::new(|door| {
        let mut wire = door.accept_new(5);
        let mut next = 6;
        for round in 0..ROUNDS {
            let asked = wire.expect("ping");
            let mut said = wire.say();
            for number in 0..=round % 3 {
                said = said.invalidation(next, &[number]);
                next += 1;
            }
            let said = said.reply(&asked, &Value::None).invalidation(next, &[9]);
            next += 1;
            wire.send(&said.bytes);
        }
        wire.answer("ping", &Value::None);
        wire.stay();
    });
    let client = go!(Zeo::open(peer.options())).unwrap();
    let diary = Arc::new(Diary::default());
    client.watch(Arc::clone(&diary) as Arc<dyn Watcher>);
    let mut all = Vec::new();
    for _ in 0..=ROUNDS {
        go!(client.ping()).unwrap();
        all.extend(heard(&client));
        let last = client.last_transaction();
        assert!(diary.0.lock().unwrap().last().is_some_and(|(tid, _)| last <= Tid(*tid)));
    }
    let last = client.last_transaction().0;
    assert_eq!(all, (6..=last).collect::<Vec<u64>>());
    let told: Vec<u64> = diary.0.lock().unwrap().iter().map(|(tid, _)| *tid).collect();
    assert_eq!(told, all);
    drop(client);
    peer.join();
});

scenario!(a_server_that_tells_tids_out_of_order_is_left {
    for number in [4, 5] {
        let peer = Peer::new(move |door| {
            let mut wire = door.accept_new(5);
            wire.expect("ping");
            let said = wire.say().invalidation(number, &[1]);
            wire.send(&said.bytes);
            assert!(wire.next().is_none(), "the client goes");
            let mut wire = door.accept_again(5, 5, &[]);
            wire.answer("ping", &Value::None);
            wire.stay();
        });
        let client = go!(Zeo::open(peer.options())).unwrap();
        go!(client.ping()).unwrap();
        assert_eq!((client.last_transaction(), heard(&client)), (Tid(5), vec![]));
        drop(client);
        peer.join();
    }
});
