//! Bytes through a channel: whole, in pieces, damaged, and none of TLS at all.

use super::site::{ASKED, Asked, Chance, Made, Site, VERSIONS, channel, server, talk};
use super::{Channel, ChannelError};
use crate::tls::{Tls, TlsOptions};

/// A server's certificate, and the settings of a client that trusts it.
fn pair(site: &Site) -> (Made, TlsOptions) {
    let shown = Asked { names: &["db.example"], ..ASKED }.self_signed();
    let options = site.trusting(&shown.pem());
    (shown, options)
}

fn noise(length: usize, chance: &mut Chance) -> Vec<u8> {
    (0..length).map(|_| u8::try_from(chance.below(256)).unwrap()).collect()
}

#[test]
fn what_is_sent_before_the_handshake_and_after_it_arrives_however_it_is_cut() {
    let site = Site::new();
    let (shown, options) = pair(&site);
    let tls = Tls::prepare(&options).unwrap();
    for version in VERSIONS {
        for (seed, piece_max) in (1..).zip([1, 2, 3, 7, 50, 300, 5000, 100_000]) {
            let mut chance = Chance::new(seed);
            let (mut channel, mut server) =
                (tls.channel("db.example").unwrap(), server(&shown, &[], version));
            let (early, late) = (noise(100, &mut chance), noise(3000, &mut chance));
            assert!(channel.is_handshaking());
            assert!(!channel.is_plain());
            channel.send(&early).unwrap();
            let outcome = talk(&mut channel, &mut server, piece_max, &mut chance);
            assert_eq!(outcome.client, Ok(()), "{version:?}, pieces of {piece_max}");
            assert_eq!(outcome.server, Ok(()), "{version:?}, pieces of {piece_max}");
            assert!(!channel.is_handshaking());
            assert_eq!((&outcome.at_server, &outcome.clear), (&early, &early));
            channel.send(&late).unwrap();
            let outcome = talk(&mut channel, &mut server, piece_max, &mut chance);
            assert_eq!((&outcome.at_server, &outcome.clear), (&late, &late));
        }
    }
}

#[test]
fn five_megabytes_go_there_and_back() {
    let site = Site::new();
    let (shown, options) = pair(&site);
    for (seed, version) in (1..).zip(VERSIONS) {
        let mut chance = Chance::new(seed);
        let (mut channel, mut server) =
            (channel(&options, "db.example"), server(&shown, &[], version));
        let much = noise(5_000_000, &mut chance);
        channel.send(&much).unwrap();
        let outcome = talk(&mut channel, &mut server, 300_000, &mut chance);
        assert!(outcome.at_server == much, "{version:?}, at the server");
        assert!(outcome.clear == much, "{version:?}, back");
    }
}

#[test]
fn without_tls_bytes_go_through_as_they_are() {
    let mut channel = Channel::plain();
    assert!(channel.is_plain());
    assert!(!channel.is_handshaking());
    channel.send(b"Z5").unwrap();
    channel.send(b"...").unwrap();
    let mut out = b"before ".to_vec();
    channel.take_output(&mut out).unwrap();
    assert_eq!(out, b"before Z5...");
    let mut clear = Vec::new();
    channel.receive(b"reply", &mut |bytes| clear.extend_from_slice(bytes)).unwrap();
    assert_eq!(clear, b"reply");
    channel.close();
    out.clear();
    channel.take_output(&mut out).unwrap();
    assert_eq!(out, b"");
    assert_eq!(channel.end(), ChannelError::Closed);
}

#[test]
fn what_is_not_tls_is_told_from_it() {
    let site = Site::new();
    let (_, options) = pair(&site);
    let greetings: [&[u8]; 5] = [
        b"\0\0\0\x02M5",
        b"\0\0\0\x02Z5",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16ZODB\0\0\0\0",
    ];
    for greeting in greetings {
        for piece in 1..=greeting.len() {
            let mut channel = channel(&options, "db.example");
            let mut pieces = greeting.chunks(piece);
            let received =
                pieces.try_for_each(|piece| channel.receive(piece, &mut |_| panic!("clear bytes")));
            assert_eq!(received, Err(ChannelError::NotTls), "{greeting:?}");
            assert!(channel.receive(b"more", &mut |_| panic!("clear bytes")).is_err());
        }
    }
    let error = ChannelError::NotTls.to_string();
    assert!(error.starts_with("the server does not speak TLS here"), "{error}");
}

#[test]
fn noise_and_damage_give_errors_and_never_a_clear_byte() {
    let site = Site::new();
    let (shown, options) = pair(&site);
    let tls = Tls::prepare(&options).unwrap();
    for seed in 1..200 {
        let mut chance = Chance::new(seed);
        let mut bytes = noise(2000, &mut chance);
        // Half of them look like a handshake of TLS 1.2 for a while.
        if seed % 2 == 0 {
            bytes[..5].copy_from_slice(&[22, 3, 3, 0, 200]);
        }
        let mut channel = tls.channel("db.example").unwrap();
        let received = channel.receive(&bytes, &mut |_| panic!("clear bytes"));
        assert!(received.is_err(), "seed {seed}");
    }
    for (version, step) in VERSIONS.into_iter().zip([7, 11]) {
        for at in (0..).step_by(step) {
            let mut channel = tls.channel("db.example").unwrap();
            let mut server = server(&shown, &[], version);
            let (mut out, mut flight) = (Vec::new(), Vec::new());
            channel.take_output(&mut out).unwrap();
            server.read_tls(&mut &out[..]).unwrap();
            server.process_new_packets().unwrap();
            while server.wants_write() {
                server.write_tls(&mut flight).unwrap();
            }
            let Some(byte) = flight.get_mut(at) else { break };
            *byte ^= 0x10;
            drop(channel.receive(&flight, &mut |_| panic!("clear bytes")));
            assert_ne!(
                finished(&mut channel, &mut server),
                Some(b"secret".to_vec()),
                "{version:?}, byte {at} changed"
            );
        }
    }
}

/// What the server gets if a channel that has been given damaged bytes goes on.
fn finished(channel: &mut Channel, server: &mut rustls::ServerConnection) -> Option<Vec<u8>> {
    channel.send(b"secret").ok()?;
    let outcome = talk(channel, server, 1000, &mut Chance::new(1));
    Some(outcome.at_server)
}

#[test]
fn either_side_may_say_that_it_ends() {
    let site = Site::new();
    let (shown, options) = pair(&site);
    for version in VERSIONS {
        let mut chance = Chance::new(1);
        let (mut channel, mut server) =
            (channel(&options, "db.example"), server(&shown, &[], version));
        channel.send(b"word").unwrap();
        talk(&mut channel, &mut server, 1000, &mut chance);
        assert_eq!(channel.end(), ChannelError::Closed);

        server.send_close_notify();
        let outcome = talk(&mut channel, &mut server, 1000, &mut chance);
        assert_eq!(outcome.client, Err(ChannelError::Closed), "{version:?}");
        let after = channel.receive(b"more", &mut |_| panic!("clear bytes"));
        assert_eq!(after, Err(ChannelError::Closed), "{version:?}");

        channel.close();
        let mut out = Vec::new();
        channel.take_output(&mut out).unwrap();
        server.read_tls(&mut &out[..]).unwrap();
        assert!(server.process_new_packets().unwrap().peer_has_closed(), "{version:?}");
    }
}

#[test]
fn a_server_that_ends_before_it_has_said_anything_may_miss_a_certificate() {
    let site = Site::new();
    let (shown, options) = pair(&site);
    let certificate = site.file("own.pem", &(shown.key.serialize_pem() + &shown.pem()));
    let with = TlsOptions { certificate: Some(certificate.clone()), ..options.clone() };
    let cases = [(options, "set `certificate`"), (with, certificate.to_str().unwrap())];
    for ((options, expected), version) in
        cases.iter().flat_map(|case| VERSIONS.map(|version| (case, version)))
    {
        let mut channel = channel(options, "db.example");
        let mut server = server(&shown, &[], version);
        let is_told = |error: &ChannelError| {
            let text = error.to_string();
            text.starts_with("the server closed the connection at once") && text.contains(expected)
        };
        assert!(is_told(&channel.end()), "{version:?}, in the handshake");
        talk(&mut channel, &mut server, 1000, &mut Chance::new(1));
        assert!(!channel.is_handshaking());
        assert!(is_told(&channel.end()), "{version:?}, after it");
        server.send_close_notify();
        let outcome = talk(&mut channel, &mut server, 1000, &mut Chance::new(1));
        assert!(is_told(&outcome.client.unwrap_err()), "{version:?}, with a word of TLS");
    }
}

#[test]
fn what_a_server_makes_tls_answer_does_not_add_up() {
    let site = Site::new();
    let (shown, options) = pair(&site);
    let (mut channel, mut server) =
        (channel(&options, "db.example"), server(&shown, &[], VERSIONS[1]));
    talk(&mut channel, &mut server, 1000, &mut Chance::new(1));
    let mut flood = Vec::new();
    for _ in 0..10_000 {
        server.refresh_traffic_keys().unwrap();
        while server.wants_write() {
            server.write_tls(&mut flood).unwrap();
        }
    }
    // A driver whose socket takes nothing goes on receiving, or it ends the connection.
    let received = channel.receive(&flood, &mut |_| panic!("clear bytes"));
    let mut answer = Vec::new();
    channel.take_output(&mut answer).unwrap();
    assert!(answer.len() < 1000, "{} bytes of answer to {received:?}", answer.len());
}
