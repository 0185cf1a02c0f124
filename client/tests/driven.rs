//! The driven client against servers that behave in ways a real one seldom does.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;
use std::time::Duration;

use zeoring_client::{Address, ClientError, Description, DrivenClient, Options, Vote};
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::reply::ErrorReply;
use zeoring_shared::wire::request::{Incoming, Request};
use zeoring_shared::wire::value::Value;
use zeoring_shared::wire::{self, Codec, MessageId};

const CODEC: Codec = Codec::Msgpack;

/// What a server does about a call: appends what it sends, and says whether it stays.
type Behaviour = Box<dyn FnMut(&MessageId, &Request<'_>, &mut Vec<u8>) -> bool + Send>;

/// Serves one client until either side leaves; then tells the names of its calls.
fn serve(mut stream: impl Read + Write, mut behave: Behaviour) -> Vec<&'static str> {
    let mut output = Vec::new();
    wire::handshake::announce(Codec::Pickle, &mut output);
    let mut names = Vec::new();
    let mut input = VecDeque::new();
    let mut has_answered = false;
    loop {
        if stream.write_all(&output).is_err() {
            return names;
        }
        output.clear();
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => return names,
            Ok(count) => input.extend(&bytes[..count]),
        }
        while let Ok(Some(frame)) =
            wire::frame::split_frame(input.make_contiguous(), wire::FRAME_MAX)
        {
            let length = 4 + frame.body.len();
            if has_answered {
                let Ok(Incoming::Call(call)) = wire::request::decode_call(CODEC, frame.body) else {
                    panic!("a client sends calls");
                };
                names.push(call.request.name());
                let stays = match &call.request {
                    Request::Register { .. } => {
                        reply_tid(&call.id, Tid(1), &mut output);
                        true
                    }
                    request => behave(&call.id, request, &mut output),
                };
                if !stays {
                    return names;
                }
            }
            has_answered = true;
            input.drain(..length);
        }
    }
}

/// Starts a server and connects to it.
fn start(behave: Behaviour, options: Options) -> (DrivenClient, JoinHandle<Vec<&'static str>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::from(listener.local_addr().unwrap());
    let server = std::thread::spawn(move || serve(listener.accept().unwrap().0, behave));
    (DrivenClient::connect(&address, "1", false, options).unwrap(), server)
}

fn reply_tid(id: &MessageId, tid: Tid, output: &mut Vec<u8>) {
    let tid = tid.to_bytes();
    wire::reply::reply(CODEC, id, &Value::Bytes(tid.as_slice().into()), output);
}

fn refuse(id: &MessageId, class: &'static str, output: &mut Vec<u8>) {
    wire::reply::error_reply(CODEC, id, &ErrorReply { class, args: Value::Tuple(vec![]) }, output);
}

/// A record that tells its object, large enough to fill sockets soon.
fn data(oid: Oid) -> Vec<u8> {
    oid.to_bytes().repeat(250)
}

/// Answers every load; objects with odd oids do not exist.
fn answer_loads() -> Behaviour {
    Box::new(|id, request, output| {
        match request {
            Request::LoadBefore { oid, .. } if oid.0.is_multiple_of(2) => {
                wire::reply::load_reply(CODEC, id, &data(*oid), Tid(9), None, output);
            }
            _ => refuse(id, "ZODB.POSException.POSKeyError", output),
        }
        true
    })
}

#[test]
fn a_prefetch_that_fills_every_buffer_comes_back_whole_and_in_order() {
    let (mut client, _server) = start(answer_loads(), Options::default());
    let oids: Vec<Oid> = (0..20_000).map(Oid).collect();
    let results = client.prefetch(&oids, Tid::MAX).unwrap();
    assert_eq!(results.len(), oids.len());
    for (oid, result) in oids.into_iter().zip(results) {
        match result {
            Ok(Some(revision)) => assert_eq!(revision.data, data(oid)),
            Ok(None) => panic!("{oid} has a revision or does not exist"),
            Err(error) => assert!(error.is_missing_object() && !oid.0.is_multiple_of(2)),
        }
    }
    assert!(client.prefetch(&[], Tid::MAX).unwrap().is_empty());
}

#[test]
fn objects_asked_for_twice_in_a_prefetch_are_given_twice_and_sent_once() {
    let (mut client, server) = start(answer_loads(), Options::default());
    let results = client.prefetch(&[4, 6, 4].map(Oid), Tid::MAX).unwrap();
    let given = results.into_iter().map(|result| result.unwrap().unwrap().data);
    assert!(given.eq([4, 6, 4].map(|oid| data(Oid(oid)))));
    drop(client);
    assert_eq!(server.join().unwrap(), ["register", "loadBefore", "loadBefore"]);
}

#[test]
fn a_unix_socket_serves_as_well_and_a_sleeping_client_is_woken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("zeo.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || serve(listener.accept().unwrap().0, answer_loads()));
    let options = Options { spin: Duration::ZERO, ..Options::default() };
    let mut client = DrivenClient::connect(&Address::Unix(path), "1", true, options).unwrap();
    assert_eq!(client.last_transaction_at_start(), Tid(1));
    assert_eq!(client.load(Oid(8)).unwrap().data, data(Oid(8)));
    drop(client);
    server.join().unwrap();
}

#[test]
fn an_answer_after_its_deadline_is_dropped_and_the_next_call_gets_its_own() {
    let mut late = None;
    let behave: Behaviour = Box::new(move |id, request, output| {
        match request {
            Request::LoadBefore { .. } => late = Some(id.clone()),
            _ => {
                let late = late.take().expect("the load came first");
                wire::reply::load_reply(CODEC, &late, b"late", Tid(9), None, output);
                reply_tid(id, Tid(7), output);
            }
        }
        true
    });
    let options = Options { deadline: Duration::from_millis(300), ..Options::default() };
    let (mut client, _server) = start(behave, options);
    let outcome = client.load(Oid(2));
    assert!(matches!(outcome, Err(ClientError::Deadline { call: "loadBefore", .. })));
    assert_eq!(client.last_transaction().unwrap(), Tid(7));
}

#[test]
fn a_server_that_hangs_up_breaks_the_call_and_ends_the_client() {
    let (mut client, server) = start(Box::new(|_, _, _| false), Options::default());
    assert!(matches!(client.ping(), Err(ClientError::Broken(_))));
    assert!(matches!(client.ping(), Err(ClientError::Ended)));
    assert!(matches!(client.begin(&Description::default()), Err(ClientError::Ended)));
    server.join().unwrap();
}

#[test]
fn nobody_listening_is_an_error_that_names_the_address() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address = Address::from(port);
    let Err(error) = DrivenClient::connect(&address, "1", false, Options::default()) else {
        panic!("nobody listens there");
    };
    assert_eq!(error.to_string(), format!("cannot connect to {address}"));
}

#[test]
fn a_transaction_that_is_dropped_is_aborted() {
    let behave: Behaviour = Box::new(|id, request, output| {
        let value = match request {
            Request::Vote { .. } => Value::List(vec![]),
            Request::TpcAbort { .. } | Request::Ping => Value::None,
            _ => return true,
        };
        wire::reply::reply(CODEC, id, &value, output);
        true
    });
    let (mut client, server) = start(behave, Options::default());
    let mut transaction = client.begin(&Description::default()).unwrap();
    transaction.store(Oid(2), Tid::ZERO, b"state").unwrap();
    drop(transaction);
    let Vote::Ready(voted) = client.begin(&Description::default()).unwrap().vote().unwrap() else {
        panic!("an empty transaction has no conflicts");
    };
    drop(voted);
    client.ping().unwrap();
    drop(client);
    let expected =
        ["register", "tpc_begin", "storea", "tpc_abort", "tpc_begin", "vote", "tpc_abort", "ping"];
    assert_eq!(server.join().unwrap(), expected);
}

#[test]
fn a_finish_that_fails_ends_the_connection() {
    let behave: Behaviour = Box::new(|id, request, output| {
        match request {
            Request::Vote { .. } => wire::reply::reply(CODEC, id, &Value::List(vec![]), output),
            Request::TpcFinish { .. } => refuse(id, "builtins.OSError", output),
            _ => {}
        }
        true
    });
    let (mut client, server) = start(behave, Options::default());
    let Vote::Ready(voted) = client.begin(&Description::default()).unwrap().vote().unwrap() else {
        panic!("an empty transaction has no conflicts");
    };
    let Err(ClientError::Server(error)) = voted.finish() else { panic!("the server failed") };
    assert_eq!(error.class, "builtins.OSError");
    // The server hears the end while the client still exists.
    assert_eq!(server.join().unwrap(), ["register", "tpc_begin", "vote", "tpc_finish"]);
    assert!(matches!(client.ping(), Err(ClientError::Ended)));
}
