// Included once a driver by main.rs, which says what `Zeo`, `go!`, `breathe!` and `scenario!` are.

use std::time::Duration;

use zeoring_client::ClientError;
use zeoring_shared::ids::Oid;
use zeoring_shared::wire::value::Value;

use crate::peer::{Peer, Wire};

type Act = fn(&mut Wire);

scenario!(a_server_that_cannot_be_used_is_named_with_the_reason_until_it_can {
    let cases: [(Act, &str); 6] = [
        (|wire| wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ""),
        (|wire| wire.send(b"\0\0\0\x02Z4"), ""),
        (|wire| wire.send(&[0; 64]), ""),
        (|_| {}, ""),
        (|wire| wire.stay(), "no answer in time"),
        (|wire| { wire.greet(); wire.stay(); }, "no answer in time"),
    ];
    for (act, reason) in cases {
        let peer = Peer::bad(act);
        let mut options = peer.options();
        options.wait = Duration::ZERO;
        options.connect_limit = Duration::from_millis(200);
        let client = go!(Zeo::open(options)).unwrap();
        let told = loop {
            match go!(client.ping()) {
                Err(ClientError::NotConnected { reasons, .. }) if !reasons.is_empty() => {
                    break reasons[0].1.to_string();
                }
                Err(ClientError::NotConnected { .. }) => breathe!(),
                other => panic!("{other:?}"),
            }
        };
        assert!(!told.is_empty() && told.contains(reason), "{told}");
        peer.heal();
        while go!(client.ping()).is_err() {
            breathe!();
        }
        assert_eq!(&*go!(client.load(Oid(1))).unwrap().data, b"fine");
        drop(client);
        peer.join();
    }
});

scenario!(an_answer_that_makes_no_sense_is_an_error_of_its_call_and_not_a_wait {
    let cases: [Act; 6] = [
        |wire| { let said = wire.say().raw(&[0xc1]); wire.send(&said.bytes) },
        |wire| { let said = wire.say().raw(&[0x91; 10_000]); wire.send(&said.bytes) },
        |wire| wire.send(&[0x80, 0, 0, 0]),
        |wire| wire.send(b"\0\0\0\x0b\x94\x4d\0\xa6.reply\xc0"),
        |wire| { let said = wire.say().invalidation(1, &[1]); wire.send(&said.bytes) },
        |_| {},
    ];
    for act in cases {
        let peer = Peer::bad(move |wire| {
            wire.come_up(5);
            if wire.next().is_some() {
                act(wire);
            }
        });
        let client = go!(Zeo::open(peer.options())).unwrap();
        let error = go!(client.load(Oid(1))).unwrap_err();
        assert!(matches!(error, ClientError::Disconnected(_)), "{error}");
        peer.heal();
        while go!(client.ping()).is_err() {
            breathe!();
        }
        drop(client);
        peer.join();
    }
});

scenario!(an_answer_of_the_wrong_form_names_its_call {
    let peer = Peer::bad(|wire| {
        wire.come_up(5);
        if let Some(asked) = wire.next() {
            let said = wire.say().reply(&asked, &Value::Float(0.5));
            wire.send(&said.bytes);
            wire.stay();
        }
    });
    let client = go!(Zeo::open(peer.options())).unwrap();
    let error = go!(client.new_oid()).unwrap_err();
    assert!(error.to_string().contains("new_oids"), "{error}");
    peer.heal();
    while go!(client.load(Oid(1))).is_err() {
        breathe!();
    }
    drop(client);
    peer.join();
});
