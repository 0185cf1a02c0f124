// Included once a driver by main.rs, which says what `go!`, `scenario!` and `commit!` are.

use zeoring_client::cache::CacheOptions;
use zeoring_client::{ClientError, Options};
use zeoring_shared::ids::{Oid, Tid};

use super::Zeo;
use crate::house::House;

const A: Oid = Oid(0);
const B: Oid = Oid(1);

/// A client that remembers nothing asks the server for everything.
fn forgetful(house: &House) -> Options {
    Options {
        cache: CacheOptions { memory_max: 0, ..CacheOptions::default() },
        ..house.options()
    }
}

scenario!(what_is_committed_can_be_loaded_by_everybody {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let oid = go!(client.new_oid()).unwrap();
    let tid = commit!(client, [(oid, Tid::ZERO, b"first")]);
    assert_eq!(client.last_transaction(), tid);
    let revision = go!(client.load(oid)).unwrap();
    assert_eq!((&*revision.data, revision.serial, revision.end), (&b"first"[..], tid, None));
    let other = go!(Zeo::open(house.options())).unwrap();
    assert_eq!(go!(other.load(oid)).unwrap(), revision);
});

scenario!(every_revision_is_found_by_its_time_and_says_when_it_ended {
    let house = House::new();
    let writer = go!(Zeo::open(house.options())).unwrap();
    let first = commit!(writer, [(A, Tid::ZERO, "1")]);
    let second = commit!(writer, [(A, first, "2"), (B, Tid::ZERO, "b")]);
    let third = commit!(writer, [(A, second, "3")]);
    let expected = [
        (first, None),
        (Tid(first.0 + 1), Some(("1", first, Some(second)))),
        (second, Some(("1", first, Some(second)))),
        (Tid(second.0 + 1), Some(("2", second, Some(third)))),
        (third, Some(("2", second, Some(third)))),
        (Tid(third.0 + 1), Some(("3", third, None))),
        (Tid::MAX, Some(("3", third, None))),
    ];
    // One client that asks for each, twice, so that the second time is from memory; and one that
    // remembers nothing.
    for options in [house.options(), forgetful(&house)] {
        let client = go!(Zeo::open(options)).unwrap();
        for (before, revision) in expected.iter().chain(&expected) {
            let loaded = go!(client.load_before(A, *before)).unwrap();
            let loaded = loaded.as_ref().map(|it| (&*it.data, it.serial, it.end));
            let revision = revision.map(|(data, serial, end)| (data.as_bytes(), serial, end));
            assert_eq!(loaded, revision, "before {before}");
        }
        for (serial, data) in [(first, "1"), (second, "2"), (third, "3")] {
            assert_eq!(go!(client.load_serial(A, serial)).unwrap(), data);
        }
    }
});

scenario!(what_does_not_exist_is_an_error_and_what_did_not_yet_is_not {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let tid = commit!(client, [(A, Tid::ZERO, "1")]);
    for error in [
        go!(client.load(Oid(999))).unwrap_err(),
        go!(client.load_before(Oid(999), tid)).unwrap_err(),
        go!(client.load_serial(Oid(999), tid)).unwrap_err(),
        go!(client.load_serial(A, Tid(tid.0 + 1))).unwrap_err(),
    ] {
        let ClientError::Server(error) = error else { panic!("{error}") };
        assert!(error.is_missing_object(), "{error}");
    }
    assert_eq!(go!(client.load_before(A, tid)).unwrap(), None);
});

scenario!(objects_of_every_size_come_back_whole {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let lengths = [1, 253, 254, 255, 256, 65_535, 65_536, 1_000_000, 20_000_000];
    let data = |length: usize| -> Vec<u8> { (0..length).map(|at| (at * 7 % 251) as u8).collect() };
    let states: Vec<_> =
        lengths.iter().enumerate().map(|(n, &len)| (Oid(n as u64), Tid::ZERO, data(len))).collect();
    commit!(client, states);
    let other = go!(Zeo::open(forgetful(&house))).unwrap();
    for (number, &length) in lengths.iter().enumerate() {
        let loaded = go!(other.load(Oid(number as u64))).unwrap();
        assert!(loaded.data == data(length), "{length} bytes, got {}", loaded.data.len());
    }
});

scenario!(a_prefetch_gives_each_object_its_own_result_and_remembers_them {
    let mut house = House::new();
    let writer = go!(Zeo::open(house.options())).unwrap();
    let states: Vec<_> =
        (0..1_000).map(|n| (Oid(n), Tid::ZERO, format!("state of {n}"))).collect();
    let tid = commit!(writer, states);
    let newer = commit!(writer, [(Oid(7), tid, "newer")]);
    go!(writer.ping()).unwrap();
    let client = go!(Zeo::open(house.options())).unwrap();
    // Twice the same, one that is not there, and one in another revision.
    let mut oids: Vec<Oid> = (0..1_000).map(Oid).collect();
    oids.extend([Oid(5), Oid(5_000)]);
    let results = go!(client.prefetch(&oids, newer)).unwrap();
    assert_eq!(results.len(), oids.len());
    for (oid, result) in oids.iter().zip(&results) {
        match (oid.0, result) {
            (5_000, Err(error)) => assert!(error.is_missing_object()),
            (number, Ok(Some(revision))) => {
                assert_eq!(revision.data, format!("state of {number}"));
                assert_eq!(revision.end, (number == 7).then_some(newer));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(go!(client.prefetch(&[], newer)).unwrap().is_empty());
    house.stop();
    for number in 0..1_000 {
        let revision = go!(client.load_before(Oid(number), newer)).unwrap().unwrap();
        assert_eq!(revision.data, format!("state of {number}"));
    }
});

scenario!(a_client_gets_its_data_wherever_the_pieces_of_the_stream_end {
    // Replies of all lengths about the size of a receive buffer, asked for in bursts.
    let house = House::new();
    let client = go!(Zeo::open(forgetful(&house))).unwrap();
    let lengths: Vec<usize> = (0..40).map(|n| 65_536 - 500 + n * 25).collect();
    let states: Vec<_> = lengths
        .iter()
        .enumerate()
        .map(|(n, &length)| (Oid(n as u64), Tid::ZERO, vec![n as u8; length]))
        .collect();
    commit!(client, states);
    let oids: Vec<Oid> = (0..lengths.len() as u64).map(Oid).collect();
    for _ in 0..3 {
        let results = go!(client.prefetch(&oids, Tid::MAX)).unwrap();
        for (number, result) in results.iter().enumerate() {
            let revision = result.as_ref().unwrap().as_ref().unwrap();
            assert!(revision.data == vec![number as u8; lengths[number]], "object {number}");
        }
    }
});

scenario!(oids_are_given_once_whoever_asks {
    let house = House::new();
    let one = go!(Zeo::open(house.options())).unwrap();
    let two = go!(Zeo::open(house.options())).unwrap();
    let mut all = go!(one.new_oids(250)).unwrap();
    all.extend(go!(two.new_oids(130)).unwrap());
    for _ in 0..120 {
        all.push(go!(one.new_oid()).unwrap());
    }
    assert_eq!(all.len(), 500);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 500);
    assert!(!all.contains(&Oid(0)), "the root's is never given");
});

scenario!(what_the_server_says_of_itself_arrives {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    commit!(client, [(A, Tid::ZERO, "1"), (B, Tid::ZERO, "2")]);
    let info = go!(client.server_info()).unwrap();
    assert_eq!(info.length, 2);
    assert!(info.supports_undo);
    assert!(0 < info.size);
    let status = go!(client.status()).unwrap();
    assert_eq!(status.connections, 1);
    assert_eq!(go!(client.server_last_transaction()).unwrap(), client.last_transaction());
    assert_eq!(go!(client.current_serial(A)).unwrap(), client.last_transaction());
    assert!(client.info().is_some());
    assert!(client.is_connected());
    assert!(!client.is_read_only());
});
