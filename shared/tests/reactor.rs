//! The reactor against real sockets and files.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may say so")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use zeoring_shared::io::{Access, Disk, RealDisk};
use zeoring_shared::ring::Doorbell;
use zeoring_shared::uring::{Event, Options, Reactor, SpinBudget, Token};

const SLEEPER: Options = Options { spin: SpinBudget::Fixed(Duration::ZERO), processors: 1 };
const SPINNER: Options =
    Options { spin: SpinBudget::Fixed(Duration::from_millis(1)), processors: 2 };

fn reactor(options: Options) -> (Reactor, Arc<Doorbell>) {
    let doorbell = Arc::new(Doorbell::for_ring().unwrap());
    (Reactor::new(options, Arc::clone(&doorbell)).unwrap(), doorbell)
}

fn next_event(reactor: &mut Reactor) -> Event {
    let mut events = Vec::new();
    while events.is_empty() {
        reactor.turn(&mut events, Some(Duration::from_secs(20)), || false).unwrap();
    }
    assert_eq!(events.len(), 1);
    events.remove(0)
}

#[test]
fn bytes_come_and_go_over_an_accepted_socket_until_its_end() {
    for options in [SLEEPER, SPINNER] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener: OwnedFd = UnixListener::bind(&path).unwrap().into();
        let (mut reactor, _) = reactor(options);
        reactor.accept(Token(1), Rc::new(listener));
        let mut peer = UnixStream::connect(&path).unwrap();
        let Event::Accepted { token: Token(1), socket: Ok(socket), more: true } =
            next_event(&mut reactor)
        else {
            panic!("a connection was made");
        };
        let socket = Rc::new(socket);
        reactor.receive(Token(2), Rc::clone(&socket));
        for round in 0..1000_u32 {
            peer.write_all(&round.to_be_bytes()).unwrap();
            let Event::Received { token: Token(2), bytes: Ok(Some(bytes)), more: true } =
                next_event(&mut reactor)
            else {
                panic!("bytes were sent");
            };
            assert_eq!(*bytes, round.to_be_bytes());
            let reply = bytes.repeat(3);
            reactor.send(Token(3), Rc::clone(&socket), reply, 4);
            let Event::Sent { token: Token(3), count: Ok(8), .. } = next_event(&mut reactor) else {
                panic!("a small send goes through");
            };
            let mut back = [0; 8];
            peer.read_exact(&mut back).unwrap();
            assert_eq!(back, *round.to_be_bytes().repeat(2));
        }
        drop(peer);
        let Event::Received { bytes: Ok(None), more: false, .. } = next_event(&mut reactor) else {
            panic!("the peer has gone");
        };
    }
}

#[test]
fn a_receive_that_is_stopped_says_so_and_can_be_started_again() {
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let socket = Rc::new(OwnedFd::from(socket));
    let (mut reactor, _) = reactor(SLEEPER);
    let receiving = reactor.receive(Token(1), Rc::clone(&socket));
    reactor.stop_receiving(receiving);
    let Event::Received { bytes: Err(_), more: false, .. } = next_event(&mut reactor) else {
        panic!("it was stopped");
    };
    peer.write_all(b"late").unwrap();
    reactor.receive(Token(2), socket);
    let Event::Received { token: Token(2), bytes: Ok(Some(bytes)), .. } = next_event(&mut reactor)
    else {
        panic!("bytes were waiting");
    };
    assert_eq!(*bytes, *b"late");
}

#[test]
fn buffers_that_are_all_in_use_end_a_receive_without_losing_bytes() {
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let socket = Rc::new(OwnedFd::from(socket));
    let (mut reactor, _) = reactor(SLEEPER);
    reactor.receive(Token(1), Rc::clone(&socket));
    let mut held = Vec::new();
    let mut sent = 0_u32;
    loop {
        peer.write_all(&sent.to_be_bytes()).unwrap();
        sent += 1;
        match next_event(&mut reactor) {
            Event::Received { bytes: Ok(Some(chunk)), more: true, .. } => held.push(chunk),
            Event::Received { bytes: Err(error), more: false, .. } => {
                assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    for (number, chunk) in held.drain(..).enumerate() {
        assert_eq!(*chunk, (number as u32).to_be_bytes());
    }
    reactor.receive(Token(1), socket);
    let Event::Received { bytes: Ok(Some(chunk)), .. } = next_event(&mut reactor) else {
        panic!("the bytes have waited");
    };
    assert_eq!(*chunk, (sent - 1).to_be_bytes());
}

#[test]
fn the_bell_ends_a_sleep_and_work_that_was_left_before_it_prevents_one() {
    let (mut reactor, doorbell) = reactor(SLEEPER);
    let left = Arc::new(AtomicBool::new(false));
    let giver = thread::spawn({
        let left = Arc::clone(&left);
        move || {
            left.store(true, Ordering::Release);
            doorbell.ring();
        }
    });
    let mut events = Vec::new();
    while !left.load(Ordering::Acquire) {
        reactor.turn(&mut events, None, || left.load(Ordering::Acquire)).unwrap();
    }
    giver.join().unwrap();
    assert!(events.is_empty());
}

#[test]
fn a_read_brings_what_the_file_has_at_that_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = RealDisk.open(&folder.path().join("file"), Access::Create).unwrap();
    file.write_all_at(b"0123456789", 0).unwrap();
    let (mut reactor, _) = reactor(SLEEPER);
    reactor.read(Token(7), file, 6, 100, vec![0xa5; 3]);
    let Event::Read { token: Token(7), bytes: Ok(bytes) } = next_event(&mut reactor) else {
        panic!("the file is readable");
    };
    assert_eq!(bytes, b"6789");
}

#[test]
fn patience_ends_a_sleep_that_nothing_else_does() {
    let (mut reactor, _) = reactor(SLEEPER);
    let mut events = Vec::new();
    reactor.turn(&mut events, Some(Duration::from_millis(1)), || false).unwrap();
    assert!(events.is_empty());
}

#[test]
fn a_reactor_can_be_dropped_while_the_kernel_works_for_it() {
    let (_peer, socket) = UnixStream::pair().unwrap();
    let (mut reactor, _) = reactor(SLEEPER);
    reactor.receive(Token(1), Rc::new(socket.into()));
    reactor.turn(&mut Vec::new(), Some(Duration::from_millis(1)), || false).unwrap();
}
