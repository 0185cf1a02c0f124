// Included once a driver by main.rs, which says what `go!`, `scenario!`, `commit!` and `ready!` are.

use zeoring_client::{ClientError, Description};
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::value::Value;

use super::Zeo;
use crate::house::House;

const A: Oid = Oid(0);
const B: Oid = Oid(1);

scenario!(an_undo_brings_back_what_was_before_and_its_client_forgets_what_it_remembered {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let other = go!(Zeo::open(house.options())).unwrap();
    let first = commit!(client, [(A, Tid::ZERO, "1")]);
    let second = commit!(client, [(A, first, "2"), (B, Tid::ZERO, "b")]);
    assert_eq!(go!(client.load(A)).unwrap().data, "2");
    let mut transaction = go!(client.begin(&Description::default())).unwrap();
    go!(transaction.undo(second)).unwrap();
    let voted = ready!(go!(transaction.vote()).unwrap());
    let mut rewritten = voted.rewritten().to_vec();
    rewritten.sort();
    assert_eq!(rewritten, [A, B]);
    let tid = go!(voted.finish()).unwrap();
    go!(other.ping()).unwrap();
    for client in [&client, &other] {
        let a = go!(client.load(A)).unwrap();
        assert_eq!((&*a.data, a.serial), (&b"1"[..], tid));
        let ClientError::Server(error) = go!(client.load(B)).unwrap_err() else { panic!() };
        assert!(error.is_missing_object(), "its creation was undone");
    }
});

scenario!(what_cannot_be_undone_says_so_and_the_client_goes_on {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let first = commit!(client, [(A, Tid::ZERO, "1")]);
    let second = commit!(client, [(A, first, "2")]);
    commit!(client, [(A, second, "3")]);
    for impossible in [second, Tid(second.0 + 1)] {
        let mut transaction = go!(client.begin(&Description::default())).unwrap();
        go!(transaction.undo(impossible)).unwrap();
        let ClientError::Server(error) = go!(transaction.vote()).unwrap_err() else { panic!() };
        assert!(error.is_undo_error(), "{error}");
    }
    assert_eq!(go!(client.load(A)).unwrap().data, "3");
    let last = client.last_transaction();
    commit!(client, [(A, last, "4")]);
});

scenario!(the_log_of_what_can_be_undone_is_newest_first_and_can_be_asked_in_parts {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let mut tids = Vec::new();
    for number in 0..6_u8 {
        let user = if number % 2 == 0 { "even" } else { "odd" };
        let description = Description { user: user.into(), ..Description::default() };
        let mut transaction = go!(client.begin(&description)).unwrap();
        let serial = tids.last().copied().unwrap_or(Tid::ZERO);
        go!(transaction.store(A, serial, &[number])).unwrap();
        tids.push(go!(ready!(go!(transaction.vote()).unwrap()).finish()).unwrap());
    }
    tids.reverse();
    let ids = |entries: Vec<zeoring_client::UndoEntry>| -> Vec<Tid> {
        entries.iter().map(|entry| entry.id).collect()
    };
    assert_eq!(ids(go!(client.undo_log(0, 10)).unwrap()), tids);
    assert_eq!(ids(go!(client.undo_log(1, 3)).unwrap()), tids[1..3]);
    assert_eq!(ids(go!(client.undo_log(2, -2)).unwrap()), tids[2..4]);
    let filter = Value::Dict(vec![(Value::Str("user_name".into()), Value::Bytes(b"odd"[..].into()))]);
    let odd = ids(go!(client.undo_info(0, 10, Some(filter))).unwrap());
    assert_eq!(odd, [tids[0], tids[2], tids[4]]);
    assert_eq!(ids(go!(client.undo_info(0, 2, None)).unwrap()), tids[..2]);
});
