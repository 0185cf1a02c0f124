// Included once a driver by main.rs, which says what `go!`, `scenario!`, `commit!` and `ready!` are.

use zeoring_client::{ClientError, Description, Restored};
use zeoring_shared::ids::{Oid, Tid};

use super::Zeo;
use crate::house::House;

const A: Oid = Oid(0);
const B: Oid = Oid(1);

scenario!(a_history_is_newest_first_and_as_long_as_asked_for {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let first = commit!(client, [(A, Tid::ZERO, "1")]);
    let second = commit!(client, [(A, first, "22")]);
    let third = commit!(client, [(A, second, "333")]);
    let told = |entries: Vec<zeoring_client::HistoryEntry>| -> Vec<(Tid, u64)> {
        entries.iter().map(|entry| (entry.tid, entry.size)).collect()
    };
    assert_eq!(told(go!(client.history(A, 1)).unwrap()), [(third, 3)]);
    assert_eq!(told(go!(client.history(A, 2)).unwrap()), [(third, 3), (second, 2)]);
    assert_eq!(told(go!(client.history(A, 9)).unwrap()), [(third, 3), (second, 2), (first, 1)]);
    let ClientError::Server(error) = go!(client.history(B, 1)).unwrap_err() else { panic!() };
    assert!(error.is_missing_object());
});

scenario!(a_walk_through_transactions_gives_all_they_wrote_in_order {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let first = commit!(client, [(A, Tid::ZERO, "a1"), (B, Tid::ZERO, "b1")]);
    let second = commit!(client, [(A, first, "a2")]);
    let third = commit!(client, [(B, first, "b3")]);
    for (start, stop, expected) in [
        (None, None, vec![first, second, third]),
        (Some(second), None, vec![second, third]),
        (None, Some(second), vec![first, second]),
        (Some(Tid(first.0 + 1)), Some(Tid(third.0 - 1)), vec![second]),
    ] {
        let mut walk = go!(client.iterate(start, stop)).unwrap();
        let mut seen = Vec::new();
        while let Some(transaction) = go!(walk.next_transaction()).unwrap() {
            seen.push(transaction.tid);
        }
        assert_eq!(seen, expected);
    }
    let mut walk = go!(client.iterate(None, None)).unwrap();
    let mut seen = Vec::new();
    while let Some(transaction) = go!(walk.next_transaction()).unwrap() {
        assert_eq!(transaction.status, b' ');
        while let Some(record) = go!(walk.next_record()).unwrap() {
            assert_eq!(record.tid, transaction.tid);
            seen.push((record.oid, record.tid, record.data.unwrap()));
        }
    }
    let expected = [(A, first, "a1"), (B, first, "b1"), (A, second, "a2"), (B, third, "b3")];
    let expected = expected.map(|(oid, tid, data)| (oid, tid, data.into()));
    assert_eq!(seen, expected);
    // One that is left in the middle is forgotten by the server, and another begins.
    let mut walk = go!(client.iterate(None, None)).unwrap();
    go!(walk.next_transaction()).unwrap();
    go!(walk.next_record()).unwrap();
    drop(walk);
    let mut walk = go!(client.iterate(None, None)).unwrap();
    assert_eq!(go!(walk.next_transaction()).unwrap().unwrap().tid, first);
});

scenario!(a_walk_through_records_gives_the_current_state_of_every_object {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let mut walk = go!(client.records()).unwrap();
    assert_eq!(go!(walk.next_record()).unwrap(), None);
    let states: Vec<_> = (0..50).map(|n| (Oid(n * 3), Tid::ZERO, format!("{n}"))).collect();
    let first = commit!(client, states);
    let second = commit!(client, [(Oid(9), first, "newer")]);
    let mut walk = go!(client.records()).unwrap();
    for number in 0..50 {
        let record = go!(walk.next_record()).unwrap().unwrap();
        let (tid, data) = match number {
            3 => (second, "newer".to_owned()),
            other => (first, other.to_string()),
        };
        assert_eq!((record.oid, record.tid), (Oid(number * 3), tid));
        assert_eq!(record.data, data);
    }
    assert_eq!(go!(walk.next_record()).unwrap(), None);
});

scenario!(a_storage_copied_transaction_by_transaction_is_the_same {
    let (source, target) = (House::new(), House::new());
    let from = go!(Zeo::open(source.options())).unwrap();
    let to = go!(Zeo::open(target.options())).unwrap();
    let first = commit!(from, [(A, Tid::ZERO, "a1"), (B, Tid::ZERO, "b1")]);
    let second = commit!(from, [(A, first, "a2")]);
    let mut transaction = go!(from.begin(&Description::default())).unwrap();
    go!(transaction.undo(second)).unwrap();
    go!(ready!(go!(transaction.vote()).unwrap()).finish()).unwrap();
    let last = from.last_transaction();
    commit!(from, [(B, first, "b2")]);
    let mut walk = go!(from.iterate(None, None)).unwrap();
    while let Some(entry) = go!(walk.next_transaction()).unwrap() {
        let description = Description {
            user: entry.user.clone(),
            description: entry.description.clone(),
            extension: entry.extension.clone(),
        };
        let restored = Restored { tid: entry.tid, status: entry.status };
        let mut copy = go!(to.begin_restored(&description, Some(restored))).unwrap();
        while let Some(record) = go!(walk.next_record()).unwrap() {
            let data = record.data.as_deref();
            go!(copy.restore(record.oid, record.tid, data, record.data_tid)).unwrap();
        }
        assert_eq!(go!(ready!(go!(copy.vote()).unwrap()).finish()).unwrap(), entry.tid);
    }
    assert_eq!(to.last_transaction(), from.last_transaction());
    for oid in [A, B] {
        assert_eq!(go!(to.load(oid)).unwrap(), go!(from.load(oid)).unwrap());
        let tids = |entries: Vec<zeoring_client::HistoryEntry>| -> Vec<(Tid, u64)> {
            entries.iter().map(|entry| (entry.tid, entry.size)).collect()
        };
        let (theirs, ours) = (go!(from.history(oid, 9)).unwrap(), go!(to.history(oid, 9)).unwrap());
        assert_eq!(tids(ours), tids(theirs));
    }
    assert_eq!(go!(to.load(A)).unwrap().serial, last);
});
