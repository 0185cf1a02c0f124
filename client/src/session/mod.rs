//! One connection to a server, as bytes: calls in, bytes out; bytes in, results out.
//!
//! A session owns no socket, reads no clock and never waits. A driver moves bytes: it sends
//! [`Session::output`], receives into [`Session::space`], and asks [`Session::poll`] what came of
//! it. Whether a thread, a ring or a future drives it makes no difference to the protocol.
//!
//! ```text
//!   load_before(oid, tid) --> ticket          pending: message id -> ticket
//!       output() --> socket --> space() --> receive(n) --> poll() --> Event::Answered(ticket, ..)
//! ```

pub(crate) mod answer;
mod inbound;
mod invalidations;

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::reply::FromServer;
use zeoring_shared::wire::request::{Call, Request};
use zeoring_shared::wire::{self, Codec, MessageId, WireError};

use self::answer::Kind;
pub use self::answer::{Answer, Conflict, Info, Revision, Verdict};
use self::inbound::Inbound;
use self::invalidations::Invalidations;
pub use self::invalidations::{Invalidated, Invalidation};
use crate::error::ServerError;

pub use zeoring_shared::wire::request::TransactionId;

/// What we speak with every server: one that announces pickle takes msgpack as well, because the
/// client's half of the handshake decides (`ZEO/asyncio/server.py`, `finish_first_connect`).
const CODEC: Codec = Codec::Msgpack;

/// Ids of calls that are numbers run up to here and begin anew; a number in use is passed over.
const NUMBER_MAX: u32 = 0x7fff_ffff;

/// The status of a transaction that is not a copy of an old one.
const STATUS_NORMAL: u8 = b' ';

/// Names a call of one session. Tickets rise by one with each call.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ticket(pub u64);

/// Something that a driver or its caller waits for.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The server took us: calls may be made now. Its last transaction, or why it refused.
    Registered(Result<Tid, ServerError>),
    /// A call has its result. Each ticket comes once, in the order of the server's answers.
    Answered(Ticket, Result<Answer, ServerError>),
}

/// What a server did that ends its connection.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// It does not speak ZEO.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It answered a call with a value of another form.
    #[error("the server's answer to {call} has the wrong form")]
    WrongForm {
        /// The call, by its name on the wire.
        call: &'static str,
    },
    /// It answered what was not asked.
    #[error("the server answered a call that was not made: {id:?}")]
    NotAsked {
        /// The id that it gave.
        id: MessageId,
    },
}

/// Who and what of a transaction, for its entry in the history.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Description {
    /// Who commits.
    pub user: Vec<u8>,
    /// What it is about.
    pub description: Vec<u8>,
}

/// The protocol state of one connection.
pub struct Session {
    inbound: Inbound,
    dialogue: Dialogue,
}

/// Everything but the bytes that came in, which a frame borrows while it is taken in.
struct Dialogue {
    state: State,
    /// Invariant: sent <= output.len()
    output: Vec<u8>,
    sent: usize,
    pending: HashMap<MessageId, Waiting>,
    events: VecDeque<Event>,
    invalidations: Invalidations,
    next_ticket: u64,
    next_number: u32,
}

enum State {
    /// The server's half of the handshake is due; then this is registered.
    Greeting { storage: String, read_only: bool },
    /// The answer to `register` is due.
    Registering,
    /// Calls may be made.
    Open,
}

/// Who waits for one answer. Equal loads share one.
struct Waiting {
    kind: Kind,
    first: Ticket,
    joined: Vec<Ticket>,
}

impl Session {
    /// A session that will register for `storage` as soon as the server greets.
    ///
    /// With `read_only`, the server refuses writes of this connection, and one that is itself
    /// read-only accepts it.
    pub fn new(storage: &str, read_only: bool) -> Self {
        let dialogue = Dialogue {
            state: State::Greeting { storage: storage.to_owned(), read_only },
            output: Vec::new(),
            sent: 0,
            pending: HashMap::new(),
            events: VecDeque::new(),
            invalidations: Invalidations::default(),
            next_ticket: 0,
            next_number: 1,
        };
        Self { inbound: Inbound::new(), dialogue }
    }

    /// What is to be sent, in order. Empty when there is nothing.
    pub fn output(&self) -> &[u8] {
        &self.dialogue.output[self.dialogue.sent..]
    }

    /// Says how many bytes of [`Session::output`] were sent.
    pub fn sent(&mut self, count: usize) {
        let Dialogue { output, sent, .. } = &mut self.dialogue;
        *sent += count;
        assert!(*sent <= output.len(), "a driver sends what it was given");
        if *sent == output.len() {
            output.clear();
            *sent = 0;
        }
    }

    /// Where to receive into: never empty.
    pub fn space(&mut self) -> &mut [u8] {
        self.inbound.space()
    }

    /// Takes in the first `count` bytes of [`Session::space`], wherever messages begin and end in
    /// them. An error ends the connection: the session is of no more use.
    pub fn receive(&mut self, count: usize) -> Result<(), SessionError> {
        self.inbound.fill(count);
        let mut rest = self.inbound.unparsed();
        let length = rest.len();
        while let Some(frame) = wire::frame::split_frame(rest, wire::FRAME_MAX)? {
            rest = frame.rest;
            self.dialogue.take(frame.body)?;
        }
        let parsed = length - rest.len();
        self.inbound.consume(parsed);
        Ok(())
    }

    /// The oldest event that was not yet taken.
    pub fn poll(&mut self) -> Option<Event> {
        self.dialogue.events.pop_front()
    }

    /// What other clients committed since the last time, so far as it has arrived.
    pub fn take_invalidations(&mut self) -> Invalidated {
        self.dialogue.invalidations.take()
    }

    /// Whether a call waits for its answer.
    pub fn is_waiting(&self) -> bool {
        !self.dialogue.pending.is_empty()
    }

    /// Asks for the newest revision that is older than `before`. An equal load that is under way
    /// is not sent again.
    pub fn load_before(&mut self, oid: Oid, before: Tid) -> Ticket {
        let id = MessageId::load(CODEC, oid, before);
        self.dialogue.ask(Kind::Load, id, Request::LoadBefore { oid, before })
    }

    /// Asks for the last transaction that the storage knows.
    pub fn last_transaction(&mut self) -> Ticket {
        self.dialogue.ask_numbered(Kind::LastTransaction, Request::LastTransaction)
    }

    /// Asks for fresh oids. A server gives 100 at most, and at least one.
    pub fn new_oids(&mut self, count: u32) -> Ticket {
        self.dialogue.ask_numbered(Kind::NewOids, Request::NewOids { count: i64::from(count) })
    }

    /// Asks what the storage is and can do.
    pub fn info(&mut self) -> Ticket {
        self.dialogue.ask_numbered(Kind::Info, Request::GetInfo)
    }

    /// Asks for a sign of life. Everything that the server sent before has arrived with it.
    pub fn ping(&mut self) -> Ticket {
        self.dialogue.ask_numbered(Kind::Ping, Request::Ping)
    }

    /// Opens a transaction. A connection has one at a time; a server closes it over a second one.
    pub fn begin(&mut self, id: TransactionId, description: &Description) {
        self.dialogue.tell(Request::TpcBegin {
            id,
            user: Cow::Borrowed(&description.user),
            description: Cow::Borrowed(&description.description),
            extension: b"".as_slice().into(),
            tid: None,
            status: STATUS_NORMAL,
        });
    }

    /// Adds a new state of an object, made from the revision `serial` (zero for a new object).
    pub fn store(&mut self, id: TransactionId, oid: Oid, serial: Tid, data: &[u8]) {
        self.dialogue.tell(Request::Storea { oid, serial, data: Cow::Borrowed(data), id });
    }

    /// Adds the deletion of an object whose current revision is `serial`.
    pub fn delete(&mut self, id: TransactionId, oid: Oid, serial: Tid) {
        self.dialogue.tell(Request::DeleteObject { oid, serial, id });
    }

    /// Lets the vote fail if the current revision of an object is not `serial` by then.
    pub fn check(&mut self, id: TransactionId, oid: Oid, serial: Tid) {
        self.dialogue.tell(Request::CheckCurrentSerial { oid, serial, id });
    }

    /// Asks whether the transaction can be committed; if so, its objects are locked.
    pub fn vote(&mut self, id: TransactionId) -> Ticket {
        self.dialogue.ask_numbered(Kind::Vote, Request::Vote { id })
    }

    /// Commits what was voted. The answer is its tid, and comes once it is on the disk.
    pub fn finish(&mut self, id: TransactionId) -> Ticket {
        self.dialogue.ask_numbered(Kind::Finish, Request::TpcFinish { id })
    }

    /// Drops the transaction, at any point.
    pub fn abort(&mut self, id: TransactionId) -> Ticket {
        self.dialogue.ask_numbered(Kind::Abort, Request::TpcAbort { id })
    }
}

impl Dialogue {
    fn take(&mut self, body: &[u8]) -> Result<(), SessionError> {
        let State::Greeting { storage, read_only } = &self.state else {
            return self.take_message(body);
        };
        wire::handshake::read_announcement(body)?;
        wire::handshake::answer(CODEC, &mut self.output);
        let request = Request::Register { storage: storage.clone().into(), read_only: *read_only };
        self.state = State::Registering;
        self.ask_numbered(Kind::Register, request);
        Ok(())
    }

    fn take_message(&mut self, body: &[u8]) -> Result<(), SessionError> {
        match wire::reply::decode_from_server(CODEC, body)? {
            FromServer::Load { id, data, serial, end } => {
                let waiting = self.answered(&id)?;
                if waiting.kind != Kind::Load {
                    return Err(SessionError::WrongForm { call: waiting.kind.name() });
                }
                let data = Bytes::copy_from_slice(data);
                let revision = Revision { data, serial, end };
                self.deliver(waiting, Ok(Answer::Revision(Some(revision))));
            }
            FromServer::Reply { id, value } => {
                let waiting = self.answered(&id)?;
                let Some(answer) = waiting.kind.read(&value) else {
                    return Err(SessionError::WrongForm { call: waiting.kind.name() });
                };
                self.deliver(waiting, Ok(answer));
            }
            FromServer::Error { id, class, args } => {
                let waiting = self.answered(&id)?;
                let result = waiting.kind.read_error(&class, &args);
                self.deliver(waiting, result);
            }
            FromServer::Invalidate { tid, oids } => {
                self.invalidations.push(Invalidation { tid, oids });
            }
            // `info` tells sizes, which nobody asked for; blob messages follow only a sendBlob.
            FromServer::Notice { .. } => {}
        }
        Ok(())
    }

    fn answered(&mut self, id: &MessageId) -> Result<Waiting, SessionError> {
        self.pending.remove(id).ok_or_else(|| SessionError::NotAsked { id: id.clone() })
    }

    fn deliver(&mut self, waiting: Waiting, result: Result<Answer, ServerError>) {
        if waiting.kind == Kind::Register {
            if result.is_ok() {
                self.state = State::Open;
            }
            let last = result.map(|answer| match answer {
                Answer::Tid(last) => last,
                _ => unreachable!("an answer to register is a tid"),
            });
            return self.events.push_back(Event::Registered(last));
        }
        for ticket in waiting.joined {
            self.events.push_back(Event::Answered(ticket, result.clone()));
        }
        self.events.push_back(Event::Answered(waiting.first, result));
    }

    fn ask(&mut self, kind: Kind, id: MessageId, request: Request<'_>) -> Ticket {
        let is_in_order = matches!(self.state, State::Open) || kind == Kind::Register;
        assert!(is_in_order, "a driver makes no calls before Event::Registered");
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        match self.pending.entry(id) {
            Entry::Occupied(mut same) => same.get_mut().joined.push(ticket),
            Entry::Vacant(free) => {
                let call = Call { id: free.key().clone(), oneway: false, request };
                wire::request::encode_call(CODEC, &call, &mut self.output);
                free.insert(Waiting { kind, first: ticket, joined: Vec::new() });
            }
        }
        ticket
    }

    fn ask_numbered(&mut self, kind: Kind, request: Request<'_>) -> Ticket {
        let id = loop {
            let id = MessageId::int(CODEC, self.next_number);
            self.next_number =
                if self.next_number == NUMBER_MAX { 1 } else { self.next_number + 1 };
            if !self.pending.contains_key(&id) {
                break id;
            }
        };
        self.ask(kind, id, request)
    }

    fn tell(&mut self, request: Request<'_>) {
        assert!(matches!(self.state, State::Open), "a driver makes no calls before it registered");
        let call = Call { id: MessageId::int(CODEC, 0), oneway: true, request };
        wire::request::encode_call(CODEC, &call, &mut self.output);
    }
}

#[cfg(test)]
mod tests;
