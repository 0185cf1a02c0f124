// Included once a driver by main.rs, which says what `go!`, `scenario!` and `commit!` are.

use std::time::Duration;

use zeoring_client::tls::{Authenticate, TlsOptions};
use zeoring_client::Options;
use zeoring_shared::ids::{Oid, Tid};

use super::Zeo;
use crate::house::House;

scenario!(everything_goes_through_tls_with_certificates_of_ones_own_and_again_after_a_restart {
    let mut house = House::with_tls();
    let client = go!(Zeo::open(house.options())).unwrap();
    let data = |number: u64| vec![number as u8; 1_000 + number as usize * 4_000];
    let states: Vec<_> = (0..200).map(|n| (Oid(n), Tid::ZERO, data(n))).collect();
    let tid = commit!(client, states);
    let other = go!(Zeo::open(house.options())).unwrap();
    let oids: Vec<Oid> = (0..200).map(Oid).collect();
    let results = go!(other.prefetch(&oids, Tid::MAX)).unwrap();
    for (number, result) in results.into_iter().enumerate() {
        assert!(result.unwrap().unwrap().data == data(number as u64), "object {number}");
    }
    house.stop();
    house.start();
    go!(client.ping()).unwrap();
    let newer = commit!(client, [(Oid(0), tid, "newer")]);
    go!(other.ping()).unwrap();
    assert_eq!(go!(other.load(Oid(0))).unwrap().serial, newer);
    client.close().unwrap();
});

scenario!(who_cannot_be_trusted_is_named_with_the_reason {
    let house = House::with_tls();
    let tls = house.options().tls.unwrap();
    let stranger = || house.folder.path().join("stranger.pem");
    let with = |change: &dyn Fn(&mut TlsOptions)| {
        let mut tls = tls.clone();
        change(&mut tls);
        Some(tls)
    };
    let cases = [
        (
            "another server",
            with(&|tls| tls.authenticate = Authenticate::File(stranger())),
            "certificate",
        ),
        (
            "another name",
            with(&|tls| tls.server_hostname = Some("zodb.example".into())),
            "zodb.example",
        ),
        (
            "a client that nobody knows",
            with(&|tls| tls.certificate = Some(stranger())),
            "stranger.pem",
        ),
        ("a client without a certificate", with(&|tls| tls.certificate = None), "certificate"),
        ("no TLS", None, "127.0.0.1"),
    ];
    for (what, tls, word) in cases {
        // A server that waits for a handshake says nothing to who begins none.
        let options = Options {
            wait: Duration::from_millis(1_500),
            connect_limit: Duration::from_millis(700),
            tls,
            ..house.options()
        };
        let error = go!(Zeo::open(options)).map(drop).unwrap_err().to_string();
        assert!(error.contains(word), "{what}: {error}");
    }
    // None of them has done harm.
    let client = go!(Zeo::open(house.options())).unwrap();
    commit!(client, [(Oid(0), Tid::ZERO, "fine")]);
});

scenario!(a_server_without_tls_is_told_from_one_with_it {
    let with = House::with_tls();
    let without = House::new();
    let options = Options {
        wait: Duration::from_millis(1_500),
        tls: with.options().tls,
        ..without.options()
    };
    let error = go!(Zeo::open(options)).map(drop).unwrap_err().to_string();
    assert!(error.contains("TLS"), "{error}");
});
