// Included once a driver by main.rs, which says what `go!`, `scenario!`, `commit!` and `ready!` are.

use zeoring_client::{ClientError, Description, Vote};
use zeoring_shared::ids::{Oid, Tid};

use super::Zeo;
use crate::house::House;

const A: Oid = Oid(0);
const B: Oid = Oid(1);

scenario!(commits_follow_each_other_with_rising_tids {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let mut serial = Tid::ZERO;
    for number in 0..20 {
        let tid = commit!(client, [(A, serial, format!("state {number}"))]);
        assert!(serial < tid);
        serial = tid;
        assert_eq!(go!(client.load(A)).unwrap().data, format!("state {number}"));
    }
    let other = go!(Zeo::open(house.options())).unwrap();
    assert_eq!(go!(other.load(A)).unwrap().serial, serial);
});

scenario!(a_conflict_is_a_value_with_all_three_states_that_can_be_resolved_and_voted_again {
    let house = House::new();
    let one = go!(Zeo::open(house.options())).unwrap();
    let two = go!(Zeo::open(house.options())).unwrap();
    let old = commit!(one, [(A, Tid::ZERO, "old"), (B, Tid::ZERO, "b")]);
    let newer = commit!(two, [(A, old, "theirs")]);
    let mut transaction = go!(one.begin(&Description::default())).unwrap();
    go!(transaction.store(A, old, b"mine")).unwrap();
    go!(transaction.store(B, old, b"b2")).unwrap();
    let Vote::Conflicts { conflicts, mut transaction } = go!(transaction.vote()).unwrap() else {
        panic!("A has changed")
    };
    let [conflict] = &conflicts[..] else { panic!("{conflicts:?}") };
    assert_eq!((conflict.oid, conflict.read, conflict.committed), (A, old, newer));
    assert_eq!(conflict.data.as_deref(), Some(&b"mine"[..]));
    assert_eq!(conflict.read_data.as_deref(), Some(&b"old"[..]));
    assert_eq!(conflict.committed_data.as_deref(), Some(&b"theirs"[..]));
    go!(transaction.store(A, conflict.committed, b"both")).unwrap();
    let tid = go!(ready!(go!(transaction.vote()).unwrap()).finish()).unwrap();
    for client in [&one, &two] {
        go!(client.ping()).unwrap();
        let a = go!(client.load(A)).unwrap();
        assert_eq!((&*a.data, a.serial), (&b"both"[..], tid));
        assert_eq!(go!(client.load(B)).unwrap().data, "b2");
    }
});

scenario!(a_conflict_that_is_not_resolved_is_given_up_and_leaves_no_lock {
    let house = House::new();
    let one = go!(Zeo::open(house.options())).unwrap();
    let two = go!(Zeo::open(house.options())).unwrap();
    let old = commit!(one, [(A, Tid::ZERO, "old")]);
    let newer = commit!(two, [(A, old, "theirs")]);
    let mut transaction = go!(one.begin(&Description::default())).unwrap();
    go!(transaction.store(A, old, b"mine")).unwrap();
    let Vote::Conflicts { transaction, .. } = go!(transaction.vote()).unwrap() else {
        panic!("A has changed")
    };
    go!(transaction.abort()).unwrap();
    let last = commit!(two, [(A, newer, "theirs again")]);
    go!(one.ping()).unwrap();
    assert_eq!(go!(one.load(A)).unwrap().serial, last);
});

scenario!(a_check_of_what_was_only_read_refuses_a_commit_that_others_made_wrong {
    let house = House::new();
    let one = go!(Zeo::open(house.options())).unwrap();
    let two = go!(Zeo::open(house.options())).unwrap();
    let old = commit!(one, [(A, Tid::ZERO, "a"), (B, Tid::ZERO, "b")]);
    let mut transaction = go!(one.begin(&Description::default())).unwrap();
    go!(transaction.check(A, old)).unwrap();
    go!(transaction.store(B, old, b"b2")).unwrap();
    let tid = go!(ready!(go!(transaction.vote()).unwrap()).finish()).unwrap();
    commit!(two, [(A, old, "changed")]);
    let mut transaction = go!(one.begin(&Description::default())).unwrap();
    go!(transaction.check(A, old)).unwrap();
    go!(transaction.store(B, tid, b"b3")).unwrap();
    let Vote::Refused(conflict) = go!(transaction.vote()).unwrap() else { panic!("A has changed") };
    assert_eq!(conflict.oid, A);
    assert_eq!(go!(one.load(B)).unwrap().data, "b2");
    commit!(two, [(B, tid, "b4")]);
});

scenario!(what_is_aborted_or_dropped_leaves_nothing_behind {
    let house = House::new();
    let one = go!(Zeo::open(house.options())).unwrap();
    let two = go!(Zeo::open(house.options())).unwrap();
    let tid = commit!(one, [(A, Tid::ZERO, "kept")]);
    // Before anything was sent, after a vote, and by forgetting about it.
    let mut transaction = go!(one.begin(&Description::default())).unwrap();
    go!(transaction.store(A, tid, b"dropped")).unwrap();
    go!(transaction.abort()).unwrap();
    let mut transaction = go!(one.begin(&Description::default())).unwrap();
    go!(transaction.store(A, tid, b"dropped")).unwrap();
    let voted = ready!(go!(transaction.vote()).unwrap());
    go!(voted.abort()).unwrap();
    let mut transaction = go!(one.begin(&Description::default())).unwrap();
    go!(transaction.store(A, tid, b"dropped")).unwrap();
    drop(ready!(go!(transaction.vote()).unwrap()));
    let newer = commit!(two, [(A, tid, "after")]);
    go!(one.ping()).unwrap();
    let loaded = go!(one.load(A)).unwrap();
    assert_eq!((&*loaded.data, loaded.serial), (&b"after"[..], newer));
    assert_eq!(go!(one.history(A, 9)).unwrap().len(), 2);
});

scenario!(a_transaction_larger_than_what_is_gathered_arrives_whole {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let data = |number: u64| vec![number as u8; 100_000];
    let states: Vec<_> = (0..300).map(|n| (Oid(n), Tid::ZERO, data(n))).collect();
    let tid = commit!(client, states);
    let other = go!(Zeo::open(house.options())).unwrap();
    for number in 0..300 {
        for client in [&client, &other] {
            let loaded = go!(client.load(Oid(number))).unwrap();
            assert!(loaded.data == data(number) && loaded.serial == tid, "object {number}");
        }
    }
    // A large one that is given up is gone as well.
    let mut transaction = go!(client.begin(&Description::default())).unwrap();
    for number in 0..100 {
        go!(transaction.store(Oid(number), tid, &data(number + 1))).unwrap();
    }
    go!(transaction.abort()).unwrap();
    go!(other.ping()).unwrap();
    assert_eq!(go!(other.load(Oid(5))).unwrap().serial, tid);
});

scenario!(who_committed_and_why_is_in_the_history {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let description = Description {
        user: b"/ maria".to_vec(),
        description: b"/edit \xc3\xa9".to_vec(),
        extension: Vec::new(),
    };
    let mut transaction = go!(client.begin(&description)).unwrap();
    go!(transaction.store(A, Tid::ZERO, b"state")).unwrap();
    let tid = go!(ready!(go!(transaction.vote()).unwrap()).finish()).unwrap();
    let history = go!(client.history(A, 1)).unwrap();
    assert_eq!((history[0].tid, history[0].size), (tid, 5));
    assert_eq!(history[0].user, description.user);
    assert_eq!(history[0].description, description.description);
    let undo = go!(client.undo_log(0, 1)).unwrap();
    assert_eq!(undo[0].id, tid);
    assert_eq!(undo[0].user, description.user);
    assert_eq!(undo[0].description, description.description);
});

scenario!(an_object_that_is_deleted_is_gone_and_its_past_is_not {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let first = commit!(client, [(A, Tid::ZERO, "a"), (B, Tid::ZERO, "b")]);
    let mut transaction = go!(client.begin(&Description::default())).unwrap();
    go!(transaction.delete(B, first)).unwrap();
    let tid = go!(ready!(go!(transaction.vote()).unwrap()).finish()).unwrap();
    let ClientError::Server(error) = go!(client.load(B)).unwrap_err() else { panic!() };
    assert!(error.is_missing_object());
    assert_eq!(go!(client.load_before(B, tid)).unwrap().unwrap().data, "b");
    assert_eq!(go!(client.load(A)).unwrap().data, "a");
});

scenario!(the_last_state_that_a_transaction_stores_of_an_object_is_the_one {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let first = commit!(client, [(A, Tid::ZERO, "a")]);
    commit!(client, [(A, first, "a2"), (B, Tid::ZERO, "b"), (A, first, "a3")]);
    let other = go!(Zeo::open(house.options())).unwrap();
    let (ours, theirs) = (go!(client.load(A)).unwrap(), go!(other.load(A)).unwrap());
    assert_eq!(ours, theirs);
    assert_eq!(theirs.data, "a3");
});

scenario!(a_transaction_that_writes_nothing_is_one {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let before = commit!(client, [(A, Tid::ZERO, "a")]);
    let states: [(Oid, Tid, &str); 0] = [];
    let tid = commit!(client, states);
    assert!(before < tid);
    assert_eq!(go!(client.load(A)).unwrap().serial, before);
});

scenario!(a_description_that_the_file_has_no_room_for_is_refused_and_the_client_goes_on {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let endless = Description { user: vec![b'x'; 70_000], ..Description::default() };
    let error = go!(client.begin(&endless)).map(drop).unwrap_err();
    assert!(matches!(error, ClientError::TooLong { what: "user", .. }), "{error}");
    commit!(client, [(A, Tid::ZERO, "state")]);
});

scenario!(a_read_only_client_is_told_that_it_cannot_write {
    let house = House::new();
    let writer = go!(Zeo::open(house.options())).unwrap();
    commit!(writer, [(A, Tid::ZERO, "a")]);
    let options =
        zeoring_client::Options { access: zeoring_client::Access::Read, ..house.options() };
    let reader = go!(Zeo::open(options)).unwrap();
    assert!(reader.is_read_only());
    assert_eq!(go!(reader.load(A)).unwrap().data, "a");
    let error = go!(reader.begin(&Description::default())).map(drop).unwrap_err();
    assert!(matches!(error, ClientError::ReadOnly), "{error}");
    assert_eq!(go!(reader.load(A)).unwrap().data, "a");
});
