//! What a hostile client may send, and what becomes of it: the connection ends or an error is
//! told, locks are free, and a well-behaved client beside it goes on.
//!
//! Messages that are refused for their bytes alone have their own tests in `shared/tests`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may say so")]

mod support;

use std::num::NonZeroUsize;

use support::house::{House, MINE, SHORT, framed, is_nothing, message, pick, refused, vote, voted};
use support::{Client, begin, tid};
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::request::Request;
use zeoring_shared::wire::value::Value;
use zeoring_shared::wire::{Codec, FRAME_BEFORE_REGISTER_MAX};

const CODECS: [Codec; 2] = [Codec::Pickle, Codec::Msgpack];

// Before registration.

#[test]
fn whoever_does_not_register_in_time_is_closed() {
    let mut house = House::with(|settings| settings.tuning.handshake_timeout = SHORT);
    let half_a_register = message(Codec::Pickle, false, "register", b"X\x01\0\0\x001\x89\x86");
    let starts: [&[u8]; 6] = [
        b"",
        b"\0",
        b"\0\0\0\x02",
        b"\0\0\0\x02Z",
        b"\0\0\0\x02Z5",
        &[&b"\0\0\0\x02Z5"[..], &half_a_register[..half_a_register.len() - 1]].concat(),
    ];
    for start in starts {
        let mut client = Client::raw(house.server.socket());
        client.send(start);
        client.is_closed();
        house.neighbour.goes_on();
    }
    // Life signs and failed registrations are no registration.
    let alive = framed(b"\x80\x03(J\xff\xff\xff\xffK\0X\x06\0\0\0.replyNt.");
    let unknown = message(Codec::Pickle, false, "register", b"X\x02\0\0\0no\x89\x86");
    for chatter in [alive, unknown] {
        let mut client = house.greeted(Codec::Pickle);
        client.is_closed_while_sending(&chatter);
        house.neighbour.goes_on();
    }
}

#[test]
fn bytes_may_come_one_by_one() {
    let mut house = House::new();
    for codec in CODECS {
        let mut client = Client::raw(house.server.socket());
        let arguments = pick(codec, b"\x92\xa11\xc2", b"X\x01\0\0\x001\x89\x86");
        let register = message(codec, false, "register", arguments);
        let ping = message(codec, false, "ping", pick(codec, b"\x90", b")"));
        let choice = framed(pick(codec, b"M5", b"Z5"));
        for byte in [choice, register, ping].concat() {
            client.send(&[byte]);
        }
        let frames = (0..3).map(|_| client.frame().unwrap());
        let lengths: Vec<_> = frames.map(|frame| frame.len()).collect();
        assert_eq!(lengths[0], 2, "the announcement");
        house.neighbour.goes_on();
    }
}

#[test]
fn lengths_that_are_nothing_or_too_much_end_the_connection() {
    const FRAME_MAX: u32 = 1 << 20;
    let mut house = House::with(|settings| settings.tuning.frame_bytes_max = FRAME_MAX);
    let early = [0, u32::MAX, FRAME_BEFORE_REGISTER_MAX + 1];
    let late = [0, u32::MAX, FRAME_MAX + 1];
    for codec in CODECS {
        for length in early {
            let mut silent = Client::raw(house.server.socket());
            silent.send(&length.to_be_bytes());
            silent.is_closed();
            let mut greeted = house.greeted(codec);
            greeted.send(&length.to_be_bytes());
            greeted.is_closed();
        }
        for length in late {
            let mut client = house.client(codec);
            client.send(&length.to_be_bytes());
            client.is_closed();
        }
        house.neighbour.goes_on();
    }
    let mut client = house.client(Codec::Msgpack);
    let data = vec![b'x'; FRAME_MAX as usize - 100];
    client.store(1, &[(Oid(MINE), Tid::ZERO, &data)]);
    client.commit(1);
    house.neighbour.goes_on();
}

#[test]
fn other_protocols_are_closed_and_a_monitor_gets_its_status() {
    let mut house = House::new();
    for other in [&b"Z4"[..], b"M4", b"Z6", b"Z", b"M55", b"GET / HTTP/1.1", b"\0\0", &[b'Z'; 9000]]
    {
        let mut client = Client::raw(house.server.socket());
        client.send(&framed(other));
        client.is_closed();
    }
    let mut monitor = Client::raw(house.server.socket());
    monitor.send(&framed(b"ruok"));
    assert_eq!(monitor.frame().unwrap(), b"Z5");
    let status = String::from_utf8(monitor.frame().unwrap()).unwrap();
    assert!(status.starts_with("{\"1\": {\"connections\": 1, "), "{status}");
    assert_eq!(monitor.frame(), None);
    house.neighbour.goes_on();
}

#[test]
fn the_client_chooses_the_codec_whatever_is_announced() {
    for announced in [false, true] {
        let mut house = House::with(|settings| settings.msgpack = announced);
        for codec in CODECS {
            let mut client = house.client(codec);
            assert!(is_nothing(&client.call(Request::Ping)));
        }
        // One codec's bytes are none of the other's.
        for (chosen, spoken) in [(Codec::Pickle, Codec::Msgpack), (Codec::Msgpack, Codec::Pickle)] {
            let mut client = house.greeted(chosen);
            client.send(&message(spoken, false, "ping", pick(spoken, b"\x90", b")")));
            client.is_closed();
        }
        house.neighbour.goes_on();
    }
}

#[test]
fn nothing_is_to_be_called_before_register() {
    let mut house = House::new();
    for codec in CODECS {
        let calls = [
            Request::Ping,
            Request::GetInfo,
            Request::ServerStatus,
            Request::LoadBefore { oid: Oid(1), before: Tid::MAX },
            Request::SetClientLabel { label: "me".into() },
            begin(1),
            vote(1),
            Request::IteratorGc { iterators: vec![1] },
        ];
        for call in calls {
            let mut client = house.greeted(codec);
            client.ask(call);
            client.is_closed();
        }
        let mut client = house.greeted(codec);
        client.tell(Request::Register { storage: "1".into(), read_only: false });
        client.is_closed();
        house.neighbour.goes_on();
    }
}

#[test]
fn an_unknown_storage_and_a_second_registration_are_errors() {
    let mut house = House::new();
    for codec in CODECS {
        let mut client = house.greeted(codec);
        let long = "no\nsuch".repeat(1000);
        for storage in ["2", "", "../1", &long] {
            let register = Request::Register { storage: storage.into(), read_only: false };
            assert_eq!(refused(client.call(register), house.path()), "ValueError");
        }
        let register = || Request::Register { storage: "1".into(), read_only: false };
        tid(&client.call(register()));
        assert_eq!(refused(client.call(register()), house.path()), "ValueError");
        assert!(is_nothing(&client.call(Request::Ping)), "the first registration holds");
        house.neighbour.goes_on();
    }
}

#[test]
fn more_connections_than_there_may_be_are_closed_at_once() {
    let most = 6;
    let mut house = House::with(|settings| {
        settings.tuning.connections_max = NonZeroUsize::new(most).unwrap();
    });
    for _ in 0..3 {
        let mut clients: Vec<_> = (1..most).map(|_| house.greeted(Codec::Pickle)).collect();
        for _ in 0..50 {
            let mut refused = Client::raw(house.server.socket());
            assert_eq!(refused.frame(), None, "nothing is said to whoever has no place");
        }
        for client in &mut clients {
            client.call(Request::Register { storage: "1".into(), read_only: false });
        }
        house.neighbour.goes_on();
        drop(clients);
        house.neighbour.wait_for_connections(1);
    }
}

// Messages.

#[test]
fn messages_that_mean_nothing_end_the_connection_and_its_transaction() {
    let mut house = House::new();
    let oid_of_three =
        |codec| pick(codec, b"\x92\xc4\x03abc\xc4\x08abcdefgh", b"C\x03abcC\x08abcdefgh\x86");
    let tid_of_int = |codec| pick(codec, b"\x92\xc4\x08abcdefgh\x07", b"C\x08abcdefghK\x07\x86");
    let none = |codec| pick(codec, b"\x90", b")");
    for codec in CODECS {
        let long = match codec {
            Codec::Msgpack => {
                [&b"\x96\x02\xc6\0\x01\x11\x70"[..], &[b'u'; 70_000], b"\xa0\x80\xc0\xa1 "].concat()
            }
            Codec::Pickle => {
                let start = &b"(K\x02B\x70\x11\x01\0"[..];
                [start, &[b'u'; 70_000], b"C\0}NX\x01\0\0\0 t"].concat()
            }
        };
        let status = pick(codec, b"\x96\x02\xa0\xa0\x80\xc0\xa1c", b"(K\x02C\0C\0}NX\x01\0\0\0ct");
        let store = pick(
            codec,
            b"\x94\xc4\x03abc\xc4\x08abcdefgh\xc4\x01d\x01",
            b"(C\x03abcC\x08abcdefghC\x01dK\x01t",
        );
        let deep = framed(&[pick(codec, b"\x91", b"\x85"); 60_000].concat());
        let bomb = match codec {
            Codec::Msgpack => framed(&[&b"\xdd\0\x0f\x42\x40"[..], &[0x80; 1_000_000]].concat()),
            Codec::Pickle => framed(&[&b"("[..], &[b'}'; 1_000_000], b"t."].concat()),
        };
        let messages: Vec<(&str, Vec<u8>)> = vec![
            ("no message", framed(b"\xff")),
            ("an unknown method", message(codec, false, "no_such_method", none(codec))),
            ("__class__", message(codec, false, "__class__", none(codec))),
            ("a reply", message(codec, false, ".reply", none(codec))),
            ("a callback", message(codec, true, "invalidateTransaction", none(codec))),
            ("an oid of three bytes", message(codec, false, "loadBefore", oid_of_three(codec))),
            ("a stored oid of three bytes", message(codec, true, "storea", store)),
            ("a number for a tid", message(codec, false, "loadBefore", tid_of_int(codec))),
            ("a user of 70 kB", message(codec, true, "tpc_begin", &long)),
            ("a status that is none", message(codec, true, "tpc_begin", status)),
            ("too deep", deep),
            ("too much", bomb),
            ("os.system", framed(b"\x80\x03cos\nsystem\nX\x04\0\0\0true\x85R.")),
        ];
        for (name, bytes) in messages {
            let mut client = house.client(codec);
            voted(&mut client, 1);
            assert_ne!(house.neighbour.status("lock_time"), Value::None);
            client.send(&bytes);
            client.is_closed();
            let active = house.neighbour.status("active_txns");
            assert_eq!(active, Value::Int(0), "{name} ends its transaction");
            house.neighbour.goes_on();
        }
        let mut client = house.client(codec);
        let gone = refused(client.load(Oid(MINE), Tid::MAX), house.path());
        assert_eq!(gone, "POSKeyError", "nothing of all that was committed");
    }
}

/// A generator of numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

#[test]
fn damaged_messages_of_every_kind_leave_the_others_alone() {
    let mut house = House::new();
    let golden = include_str!("../../shared/src/wire/golden.txt");
    let lines: Vec<(Codec, Vec<u8>)> = golden
        .lines()
        .filter_map(|line| line.strip_prefix("C "))
        .map(|line| {
            let hex = line.rsplit(' ').next().unwrap();
            let digits = (0..hex.len()).step_by(2);
            let codec = if line.starts_with('Z') { Codec::Pickle } else { Codec::Msgpack };
            (codec, digits.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect())
        })
        .collect();
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    for round in 0..400 {
        let codec = CODECS[round % 2];
        let mut client = house.client(codec);
        let spoken: Vec<_> = lines.iter().filter(|(spoken, _)| *spoken == codec).collect();
        for _ in 0..20 {
            let mut body = spoken[dice.roll(spoken.len())].1.clone();
            if dice.roll(4) == 0 {
                let place = dice.roll(body.len());
                body[place] = dice.roll(256) as u8;
            }
            if client.try_send(&framed(&body)).is_err() {
                break;
            }
        }
        if round % 20 == 0 {
            // The server may have shut it already.
            drop(client.socket().shutdown(std::net::Shutdown::Write));
            client.is_closed();
            house.neighbour.client.heard.clear();
            house.neighbour.goes_on();
        }
    }
    house.neighbour.wait_for_connections(1);
    assert_eq!(house.neighbour.status("active_txns"), Value::Int(0));
    house.neighbour.goes_on();
}

#[test]
fn a_sign_of_life_needs_no_answer() {
    let mut house = House::new();
    let alive = [
        (Codec::Pickle, &b"\x80\x03(J\xff\xff\xff\xffK\0X\x06\0\0\0.replyNt."[..]),
        (Codec::Msgpack, b"\x94\xff\0\xa6.reply\xc0"),
    ];
    for (codec, body) in alive {
        let mut client = house.client(codec);
        for _ in 0..100 {
            client.send(&framed(body));
        }
        assert!(is_nothing(&client.call(Request::Ping)));
        assert!(client.heard.is_empty(), "nothing else was said");
        house.neighbour.goes_on();
    }
}

#[test]
fn labels_are_cut_and_change_nothing_else() {
    let mut house = House::new();
    let long = "x".repeat(100_000);
    for label in ["", "a\nb\r\0\x1b[31m", &long, "\u{2028}\u{202e}"] {
        let mut client = house.client(Codec::Pickle);
        client.tell(Request::SetClientLabel { label: label.into() });
        assert!(is_nothing(&client.call(Request::Ping)));
        house.neighbour.goes_on();
    }
}
