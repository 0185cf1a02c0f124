// Included once a driver by main.rs, which says what `go!`, `scenario!` and `commit!` are.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use zeoring_client::cache::{CacheFile, CacheOptions};
use zeoring_client::{Access, Address, ClientError, Description, Invalidated, Options, Vote};
use zeoring_shared::ids::{Oid, Tid};

use super::Zeo;
use crate::house::House;

const A: Oid = Oid(0);
const B: Oid = Oid(1);

/// Asks again and again until it is so. A test that waits for ever is killed by its caller.
macro_rules! until {
    ($what:expr) => {
        let begin = Instant::now();
        while !$what {
            assert!(begin.elapsed() < Duration::from_secs(60), "{}", stringify!($what));
            pause!();
        }
    };
}

/// An address at which nobody listens.
fn nobody() -> Address {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().into()
}

scenario!(without_a_server_a_client_says_what_it_tried_and_why_not {
    let options = Options {
        wait: Duration::from_millis(300),
        ..Options::new([nobody(), Address::Unix("/nowhere/zeo.socket".into())])
    };
    let error = go!(Zeo::open(options.clone())).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("refused") && text.contains("No such file"), "{text}");
    // One that need not be connected says so when it is asked.
    let client = go!(Zeo::open(Options { wait: Duration::ZERO, ..options })).unwrap();
    let error = go!(client.load(A)).unwrap_err();
    assert!(matches!(error, ClientError::NotConnected { .. }), "{error}");
    assert!(!client.is_connected());
});

scenario!(a_client_that_came_first_finds_its_server_when_it_comes {
    let mut house = House::to_be();
    let options = Options { wait: Duration::ZERO, ..house.options() };
    let client = go!(Zeo::open(options)).unwrap();
    assert!(!client.is_connected());
    house.start();
    until!(match go!(client.server_last_transaction()) {
        Ok(_) => true,
        Err(ClientError::NotConnected { .. }) => false,
        Err(other) => panic!("{other}"),
    });
    commit!(client, [(A, Tid::ZERO, "1")]);
});

scenario!(of_several_addresses_the_one_with_a_server_is_used {
    let house = House::new();
    let client = go!(Zeo::open(Options::new([nobody(), house.address(), nobody()]))).unwrap();
    commit!(client, [(A, Tid::ZERO, "1")]);
    assert_eq!(go!(client.load(A)).unwrap().data, "1");
});

scenario!(a_unix_socket_does_as_well {
    let house = House::at_a_path();
    let client = go!(Zeo::open(house.options())).unwrap();
    let tid = commit!(client, [(A, Tid::ZERO, vec![7; 300_000])]);
    let other = go!(Zeo::open(house.options())).unwrap();
    let loaded = go!(other.load(A)).unwrap();
    assert_eq!((loaded.data.len(), loaded.serial), (300_000, tid));
});

scenario!(a_storage_that_the_server_does_not_have_is_refused_at_once {
    let house = House::new();
    let error = go!(Zeo::open(Options { storage: "unknown".into(), ..house.options() })).unwrap_err();
    assert!(matches!(error, ClientError::NotConnected { .. }), "{error}");
    assert!(error.to_string().contains("unknown"), "{error}");
});

scenario!(after_a_restart_of_the_server_everything_goes_on_and_nothing_stale_is_served {
    let mut house = House::new();
    let one = go!(Zeo::open(house.options())).unwrap();
    let first = commit!(one, [(A, Tid::ZERO, "a1"), (B, Tid::ZERO, "b1")]);
    assert_eq!(go!(one.load(A)).unwrap().serial, first);
    house.stop();
    until!(!one.is_connected());
    // What is remembered is there while nobody can have changed it as far as one knows.
    assert_eq!(go!(one.load_before(A, Tid(first.0 + 1))).unwrap().unwrap().data, "a1");
    house.start();
    // Somebody else is quicker.
    let two = go!(Zeo::open(house.options())).unwrap();
    let second = commit!(two, [(A, first, "a2")]);
    go!(one.ping()).unwrap();
    assert_eq!(one.last_transaction(), second);
    assert_eq!(go!(one.load(A)).unwrap().data, "a2");
    assert_eq!(go!(one.load(B)).unwrap().data, "b1");
    assert!(matches!(one.invalidations(), Invalidated::Transactions(_)));
    commit!(one, [(A, second, "a3")]);
});

scenario!(a_transaction_does_not_outlive_its_connection {
    let mut house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    let first = commit!(client, [(A, Tid::ZERO, "a1")]);
    let mut gathered = go!(client.begin(&Description::default())).unwrap();
    go!(gathered.store(A, first, b"lost")).unwrap();
    let mut other = go!(client.begin(&Description::default())).unwrap();
    go!(other.store(A, first, b"lost")).unwrap();
    let voted = ready!(go!(other.vote()).unwrap());
    house.stop();
    house.start();
    until!(go!(client.ping()).is_ok());
    let error = go!(voted.finish()).unwrap_err();
    assert!(matches!(error, ClientError::TransactionLost), "{error}");
    let error = go!(gathered.vote()).unwrap_err();
    assert!(matches!(error, ClientError::TransactionLost), "{error}");
    assert_eq!(go!(client.load(A)).unwrap().serial, first);
    commit!(client, [(A, first, "a2")]);
});

scenario!(another_history_is_refused_by_who_has_seen_more_and_taken_by_who_has_not {
    let mut house = House::new();
    let options = Options { wait: Duration::from_secs(1), ..house.options() };
    let client = go!(Zeo::open(options)).unwrap();
    let tid = commit!(client, [(A, Tid::ZERO, "a1")]);
    house.forget_everything();
    let error = loop {
        match go!(client.server_last_transaction()) {
            Err(error @ ClientError::NotConnected { .. }) => break error,
            Err(ClientError::Disconnected(_)) => {}
            other => panic!("{other:?}"),
        }
        pause!();
    };
    let text = error.to_string();
    assert!(text.contains("an older copy"), "{text}");
    // What it knew it knows.
    assert_eq!(go!(client.load_before(A, Tid(tid.0 + 1))).unwrap().unwrap().data, "a1");
    let fresh = go!(Zeo::open(house.options())).unwrap();
    assert_eq!(fresh.last_transaction(), Tid::ZERO);
});

scenario!(a_cache_file_restarts_warm_and_is_verified {
    let house = House::new();
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        cache: CacheOptions {
            file: Some(CacheFile { path: folder.path().join("cache"), size_max: 8 * 1024 * 1024 }),
            ..CacheOptions::default()
        },
        ..house.options()
    };
    let writer = go!(Zeo::open(house.options())).unwrap();
    let first = commit!(writer, [(A, Tid::ZERO, "a1"), (B, Tid::ZERO, "b1")]);
    let client = go!(Zeo::open(options.clone())).unwrap();
    for oid in [A, B] {
        go!(client.load(oid)).unwrap();
    }
    client.close().unwrap();
    drop(client);
    let second = commit!(writer, [(A, first, "a2")]);
    let client = go!(Zeo::open(options)).unwrap();
    assert_eq!(client.last_transaction(), second);
    let loads = || client.cache_statistics();
    let before = loads();
    assert_eq!(go!(client.load(B)).unwrap().data, "b1");
    assert_eq!(loads().file_hits, before.file_hits + 1, "{:?} {before:?}", client.cache_opened());
    assert_eq!(go!(client.load(A)).unwrap().data, "a2");
});

scenario!(after_close_every_call_says_so {
    let house = House::new();
    let client = go!(Zeo::open(house.options())).unwrap();
    commit!(client, [(A, Tid::ZERO, "a")]);
    client.close().unwrap();
    client.close().unwrap();
    for error in [
        go!(client.load(B)).unwrap_err(),
        go!(client.ping()).unwrap_err(),
        go!(client.begin(&Description::default())).map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, ClientError::Closed), "{error}");
    }
});

scenario!(a_server_that_is_read_only_does_for_who_can_do_with_it_until_a_better_one_comes {
    let mut house = House::new();
    let writer = go!(Zeo::open(house.options())).unwrap();
    let first = commit!(writer, [(A, Tid::ZERO, "a1")]);
    drop(writer);
    house.be_read_only(true);
    let patient = Options { wait: Duration::from_secs(1), ..house.options() };
    let error = go!(Zeo::open(patient)).unwrap_err();
    assert!(error.to_string().contains("ReadOnlyError"), "{error}");
    let client = go!(Zeo::open(Options { access: Access::WriteOrRead, ..house.options() })).unwrap();
    assert!(client.is_read_only());
    assert_eq!(go!(client.load(A)).unwrap().data, "a1");
    house.be_read_only(false);
    until!(go!(client.ping()).is_ok() && !client.is_read_only());
    commit!(client, [(A, first, "a2")]);
});

scenario!(who_votes_waits_for_who_has_voted_before {
    let house = House::new();
    let one = go!(Zeo::open(house.options())).unwrap();
    let short = Options { deadline: Duration::from_millis(300), ..house.options() };
    let two = go!(Zeo::open(short)).unwrap();
    let first = commit!(one, [(A, Tid::ZERO, "a1")]);
    let mut transaction = go!(one.begin(&Description::default())).unwrap();
    go!(transaction.store(A, first, b"a2")).unwrap();
    let voted = ready!(go!(transaction.vote()).unwrap());
    // The lock is the other's: this vote is not answered before its deadline.
    let mut late = go!(two.begin(&Description::default())).unwrap();
    go!(late.store(A, first, b"mine")).unwrap();
    let error = go!(late.vote()).map(drop).unwrap_err();
    assert!(matches!(error, ClientError::Deadline { call: "vote", .. }), "{error}");
    let second = go!(voted.finish()).unwrap();
    // And nothing of it is left over: the next one is a conflict, not a wait.
    until!(go!(two.ping()).is_ok());
    let mut again = go!(two.begin(&Description::default())).unwrap();
    go!(again.store(A, first, b"mine")).unwrap();
    match go!(again.vote()).unwrap() {
        Vote::Conflicts { conflicts, .. } => assert_eq!(conflicts[0].committed, second),
        other => panic!("{other:?}"),
    }
});
