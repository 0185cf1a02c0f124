//! A server that does what a test says: a thread on a loopback port that reads calls one by one and
//! writes whatever bytes, in whatever order. Everything it does answers something that the client
//! did, so nothing depends on time.
#![allow(dead_code, reason = "each test target uses a part of it")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use zeoring_client::{Address, Options};
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::frame::{frame, split_frame};
use zeoring_shared::wire::handshake::{self, Answer};
use zeoring_shared::wire::reply::{self, ErrorReply};
use zeoring_shared::wire::request::{Incoming, decode_call};
use zeoring_shared::wire::value::Value;
use zeoring_shared::wire::{Codec, FRAME_MAX, MessageId};

/// The server's thread. It ends with its script.
pub(crate) struct Peer {
    address: SocketAddr,
    is_healed: Arc<AtomicBool>,
    script: Option<JoinHandle<()>>,
}

/// What a script works with: it takes connections one after the other.
pub(crate) struct Door {
    listener: TcpListener,
    is_healed: Arc<AtomicBool>,
}

/// One connection, with the bytes that have come.
pub(crate) struct Wire {
    stream: TcpStream,
    codec: Codec,
    inbound: Vec<u8>,
    /// So many more bytes are sent before the connection breaks.
    budget: Option<usize>,
}

/// What a client wants an answer to.
pub(crate) struct Asked {
    /// What the answer has to carry.
    pub(crate) id: MessageId,
    /// The method.
    pub(crate) name: &'static str,
}

/// Bytes to be sent at once.
pub(crate) struct Said {
    codec: Codec,
    pub(crate) bytes: Vec<u8>,
}

impl Peer {
    /// A server with that script.
    pub(crate) fn new(script: impl FnOnce(&Door) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let is_healed = Arc::new(AtomicBool::new(false));
        let door = Door { listener, is_healed: Arc::clone(&is_healed) };
        let script = std::thread::spawn(move || script(&door));
        Self { address, is_healed, script: Some(script) }
    }

    /// A server that does something bad to each connection until it is healed, and then is good to
    /// one until that ends.
    pub(crate) fn bad(mut act: impl FnMut(&mut Wire) + Send + 'static) -> Self {
        Self::new(move |door| {
            loop {
                let mut wire = door.accept();
                if door.is_healed.load(Ordering::SeqCst) {
                    return wire.serve(5);
                }
                act(&mut wire);
            }
        })
    }

    /// From the next connection on, it is a good server.
    pub(crate) fn heal(&self) {
        self.is_healed.store(true, Ordering::SeqCst);
    }

    /// The options of a client of this server, which gives a failing test a quick end.
    pub(crate) fn options(&self) -> Options {
        let mut options = Options::new([Address::from(self.address)]);
        options.wait = Duration::from_secs(20);
        options.deadline = Duration::from_secs(20);
        options
    }

    /// Waits until the script is done: whatever it asserts was so. Let go of the client first.
    pub(crate) fn join(mut self) {
        let script = self.script.take().unwrap();
        if let Err(panic) = script.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Door {
    /// The next connection.
    pub(crate) fn accept(&self) -> Wire {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        // A test that went wrong ends some time.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Wire { stream, codec: Codec::Msgpack, inbound: Vec::new(), budget: None }
    }

    /// The next connection, of a client that is new: it is ready, and the storage at `last`.
    pub(crate) fn accept_new(&self, last: u64) -> Wire {
        let mut wire = self.accept();
        wire.come_up(last);
        wire
    }

    /// The next connection, of a client that has seen `seen` meanwhile: what changed is told.
    pub(crate) fn accept_again(&self, seen: u64, until: u64, oids: &[u64]) -> Wire {
        let mut wire = self.accept();
        wire.register(until);
        wire.catch_up(seen, until, oids);
        wire
    }
}

impl Wire {
    /// Breaks the connection after so many bytes.
    pub(crate) fn limit(&mut self, bytes: usize) {
        self.budget = Some(bytes);
    }

    /// Greets with msgpack, and reads how the client answers.
    pub(crate) fn greet(&mut self) {
        self.greet_with(Codec::Msgpack);
        assert_eq!(self.chosen(), Some(Codec::Msgpack));
    }

    /// Says what it speaks.
    pub(crate) fn greet_with(&mut self, codec: Codec) {
        let mut bytes = Vec::new();
        handshake::announce(codec, &mut bytes);
        self.send(&bytes);
    }

    /// The codec that the client chose; `None` if it went.
    pub(crate) fn chosen(&mut self) -> Option<Codec> {
        let body = self.frame()?;
        match handshake::read_answer(&body).unwrap() {
            Answer::Chosen(codec) => {
                self.codec = codec;
                Some(codec)
            }
            Answer::Ruok => panic!("a client does not ask for the status"),
        }
    }

    pub(crate) fn register(&mut self, last: u64) {
        self.greet();
        self.answer("register", &eight(last));
    }

    /// A new client's way to its first call.
    pub(crate) fn come_up(&mut self, last: u64) {
        self.register(last);
        self.answer("get_info", &info());
    }

    /// The comparison of a client that has seen `seen`.
    pub(crate) fn catch_up(&mut self, seen: u64, until: u64, oids: &[u64]) {
        if seen < until {
            self.answer("iterator_start", &Value::Int(1));
            self.answer("iterator_next", &entry(seen));
            self.answer("getInvalidations", &changes(until, oids));
        }
        self.answer("get_info", &info());
    }

    /// Expects a call of that name.
    pub(crate) fn expect(&mut self, name: &str) -> Asked {
        let asked = self.next().unwrap_or_else(|| panic!("the client went instead of {name}"));
        assert_eq!(asked.name, name);
        asked
    }

    /// Expects a call, and answers it.
    pub(crate) fn answer(&mut self, name: &str, value: &Value<'_>) {
        let asked = self.expect(name);
        let said = self.say().reply(&asked, value);
        self.send(&said.bytes);
    }

    /// The next call that wants an answer; `None` when the client has gone.
    pub(crate) fn next(&mut self) -> Option<Asked> {
        loop {
            let (codec, body) = (self.codec, self.frame()?);
            match decode_call(codec, &body).unwrap() {
                Incoming::Call(call) if !call.oneway => {
                    let name = call.request.name();
                    return Some(Asked { id: call.id, name });
                }
                Incoming::Call(_) | Incoming::KeepAlive => {}
            }
        }
    }

    /// Nothing yet.
    pub(crate) fn say(&self) -> Said {
        Said { codec: self.codec, bytes: Vec::new() }
    }

    /// Sends all at once.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let count = self.budget.map_or(bytes.len(), |budget| budget.min(bytes.len()));
        // The client may have gone.
        let _ = self.stream.write_all(&bytes[..count]);
        if let Some(budget) = &mut self.budget {
            *budget -= count;
            if *budget == 0 {
                let _ = self.stream.shutdown(std::net::Shutdown::Both);
            }
        }
    }

    /// Sends every byte for itself.
    pub(crate) fn trickle(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.send(std::slice::from_ref(byte)));
    }

    /// Reads until the client goes.
    pub(crate) fn stay(&mut self) {
        while self.frame().is_some() {}
    }

    /// A good server: the storage is at `last`, and every object has the state `fine` of it.
    pub(crate) fn serve(&mut self, last: u64) {
        self.greet_with(Codec::Msgpack);
        if self.chosen().is_none() {
            return;
        }
        while let Some(asked) = self.next() {
            let said = match asked.name {
                "register" => self.say().reply(&asked, &eight(last)),
                "get_info" => self.say().reply(&asked, &info()),
                "loadBefore" => self.say().load(&asked, (b"fine", last, None)),
                _ => self.say().reply(&asked, &Value::None),
            };
            self.send(&said.bytes);
        }
    }

    fn frame(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(frame) = split_frame(&self.inbound, FRAME_MAX).unwrap() {
                let body = frame.body.to_vec();
                self.inbound = frame.rest.to_vec();
                return Some(body);
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.inbound.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    panic!("the client has been silent for a minute")
                }
                Err(_) => return None,
            }
        }
    }
}

impl Said {
    pub(crate) fn reply(mut self, asked: &Asked, value: &Value<'_>) -> Self {
        reply::reply(self.codec, &asked.id, value, &mut self.bytes);
        self
    }

    pub(crate) fn error(mut self, asked: &Asked, error: &ErrorReply) -> Self {
        reply::error_reply(self.codec, &asked.id, error, &mut self.bytes);
        self
    }

    pub(crate) fn load(mut self, asked: &Asked, revision: (&[u8], u64, Option<u64>)) -> Self {
        let (data, serial, end) = (revision.0, Tid(revision.1), revision.2.map(Tid));
        reply::load_reply(self.codec, &asked.id, data, serial, end, &mut self.bytes);
        self
    }

    pub(crate) fn invalidation(mut self, tid: u64, oids: &[u64]) -> Self {
        let oids: Vec<Oid> = oids.iter().copied().map(Oid).collect();
        reply::invalidate_transaction(self.codec, Tid(tid), &oids, &mut self.bytes);
        self
    }

    /// A frame with any body.
    pub(crate) fn raw(mut self, body: &[u8]) -> Self {
        frame(&mut self.bytes, |out| out.extend_from_slice(body));
        self
    }
}

pub(crate) fn eight(number: u64) -> Value<'static> {
    Value::Bytes(number.to_be_bytes().to_vec().into())
}

pub(crate) fn text(text: &'static str) -> Value<'static> {
    Value::Str(text.into())
}

pub(crate) fn info() -> Value<'static> {
    Value::Dict(vec![
        (text("length"), Value::Int(2)),
        (text("size"), Value::Int(300)),
        (text("name"), text("Data.fs")),
        (text("supportsUndo"), Value::Bool(true)),
        (text("interfaces"), Value::Tuple(vec![])),
    ])
}

/// What an iterator gives for a transaction.
pub(crate) fn entry(tid: u64) -> Value<'static> {
    let none = || Value::Bytes(Vec::new().into());
    Value::Tuple(vec![eight(tid), text(" "), none(), none(), Value::Dict(vec![])])
}

/// The answer to `getInvalidations`.
pub(crate) fn changes(until: u64, oids: &[u64]) -> Value<'static> {
    Value::Tuple(vec![eight(until), Value::List(oids.iter().copied().map(eight).collect())])
}
