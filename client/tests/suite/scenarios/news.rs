// Included once a driver by main.rs, which says what `go!`, `scenario!` and `commit!` are.

use std::sync::{Arc, Mutex};

use zeoring_client::{Invalidated, Invalidation, Options, Watcher};
use zeoring_shared::ids::{Oid, Tid};

use super::Zeo;
use crate::house::House;

const A: Oid = Oid(0);
const B: Oid = Oid(1);

/// Writes down what it is told.
#[derive(Default)]
struct Diary(Mutex<Vec<Invalidation>>);

impl Watcher for Diary {
    fn invalidated(&self, tid: Tid, oids: &[Oid]) {
        self.0.lock().unwrap().push(Invalidation { tid, oids: oids.to_vec() });
    }

    fn everything_invalidated(&self, until: Tid) {
        panic!("nothing was lost until {until}");
    }
}

scenario!(who_watches_hears_of_every_commit_of_others_in_order_and_of_no_own_one {
    let house = House::new();
    let one = go!(Zeo::open(house.options())).unwrap();
    let two = go!(Zeo::open(house.options())).unwrap();
    let diary = Arc::new(Diary::default());
    two.watch(Arc::clone(&diary) as Arc<dyn Watcher>);
    let first = commit!(one, [(A, Tid::ZERO, "a1"), (B, Tid::ZERO, "b1")]);
    go!(two.ping()).unwrap();
    let own = commit!(two, [(B, first, "b2")]);
    let second = commit!(one, [(A, first, "a2")]);
    go!(two.ping()).unwrap();
    let expected = [
        Invalidation { tid: first, oids: vec![A, B] },
        Invalidation { tid: second, oids: vec![A] },
    ];
    assert_eq!(*diary.0.lock().unwrap(), expected);
    assert_eq!(two.invalidations(), Invalidated::Transactions(expected.into()));
    assert_eq!(two.invalidations(), Invalidated::Transactions(Vec::new()));
    assert_eq!(two.last_transaction(), second);
    assert!(first < own && own < second);
});

scenario!(what_others_change_is_not_served_from_memory_once_it_was_told {
    let house = House::new();
    let one = go!(Zeo::open(house.options())).unwrap();
    let two = go!(Zeo::open(house.options())).unwrap();
    let first = commit!(one, [(A, Tid::ZERO, "a1"), (B, Tid::ZERO, "b1")]);
    go!(two.ping()).unwrap();
    for oid in [A, B] {
        assert_eq!(go!(two.load(oid)).unwrap().serial, first);
    }
    let second = commit!(one, [(A, first, "a2")]);
    go!(two.ping()).unwrap();
    assert_eq!(go!(two.load(A)).unwrap().data, "a2");
    // The past is still there, with its end now known.
    let past = go!(two.load_before(A, second)).unwrap().unwrap();
    assert_eq!((&*past.data, past.serial, past.end), (&b"a1"[..], first, Some(second)));
    assert_eq!(go!(two.load(B)).unwrap().data, "b1");
    assert_eq!(go!(two.load_before(B, second)).unwrap().unwrap().data, "b1");
});

scenario!(a_sync_that_goes_to_the_server_sees_all_that_was_answered_before {
    let house = House::new();
    let writer = go!(Zeo::open(house.options())).unwrap();
    let reader = go!(Zeo::open(Options { server_sync: true, ..house.options() })).unwrap();
    let mut serial = Tid::ZERO;
    for number in 0..50_u8 {
        serial = commit!(writer, [(A, serial, [number])]);
        go!(reader.sync()).unwrap();
        assert_eq!(reader.last_transaction(), serial);
        assert_eq!(*go!(reader.load(A)).unwrap().data, [number]);
    }
});

scenario!(a_commit_larger_than_anybody_wants_to_keep_is_told_as_everything_or_in_full {
    let house = House::new();
    let one = go!(Zeo::open(house.options())).unwrap();
    let two = go!(Zeo::open(house.options())).unwrap();
    let states: Vec<_> = (0..20_000).map(|n| (Oid(n), Tid::ZERO, "x")).collect();
    let tid = commit!(one, states);
    go!(two.ping()).unwrap();
    match two.invalidations() {
        Invalidated::Transactions(told) => {
            let [invalidation] = &told[..] else { panic!("{} transactions", told.len()) };
            assert_eq!((invalidation.tid, invalidation.oids.len()), (tid, 20_000));
        }
        Invalidated::Everything { until } => assert_eq!(until, tid),
    }
});
