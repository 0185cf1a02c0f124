//! One connection's side of the protocol: messages in, messages and errands out. Does no I/O.
//!
//! ```text
//!   Greeting --codec chosen--> Choosing --register--> Open --anything wrong--> gone
//! ```
//!
//! A session writes what is to be sent into [`Session::outbox`] and leaves everything else that
//! has to happen at its reactor's [`Desk`]. Replies and invalidations leave in the order in which
//! they are written, which is what `docs/ordering.md` builds on.

use std::collections::VecDeque;
use std::time::Duration;

use zeoring_shared::ids::Tid;
use zeoring_shared::wire::handshake::{self, Answer};
use zeoring_shared::wire::reply::{self, ErrorReply};
use zeoring_shared::wire::request::{Call, Incoming, Request, decode_call};
use zeoring_shared::wire::value::Value;
use zeoring_shared::wire::{Codec, FRAME_BEFORE_REGISTER_MAX, MessageId, WireError};

pub mod desk;
mod load;
pub mod query;
pub mod refusal;
mod register;
mod transaction;

use self::desk::{Desk, Since};
use self::query::{Iterators, Question};
use self::transaction::Transaction;
use crate::clerk::Errand;
use crate::limits::Limits;
use crate::log::{self, Severity, Source};
use crate::note::{Committed, ConnectionId, Packed, Peer};
use crate::packing;

/// One connection.
#[derive(Debug)]
pub struct Session {
    id: ConnectionId,
    peer: Peer,
    label: String,
    state: State,
    /// Calls that will be answered later.
    pending: usize,
    /// What is to be sent, in order.
    pub outbox: Vec<u8>,
}

#[derive(Debug)]
enum State {
    /// The client has not said yet which codec it speaks.
    Greeting,
    /// The client has not said yet which storage it wants.
    Choosing(Codec),
    /// The client works with a storage.
    Open(Open),
    /// Nothing more is answered.
    Over,
}

/// A registered client.
#[derive(Debug)]
struct Open {
    codec: Codec,
    storage: usize,
    read_only: bool,
    transactions_begun: u32,
    transaction: Option<Transaction>,
    /// The open iterators, or `None` while a clerk has them.
    iterators: Option<Box<Iterators>>,
    /// Questions that wait until the clerk is back.
    questions: VecDeque<(Option<MessageId>, Question)>,
}

/// Why a connection ends.
#[derive(Debug)]
pub enum Farewell {
    /// The client broke the protocol.
    Wire(WireError),
    /// The client called something that is not to be called, or not now.
    Call(String),
    /// A call that expects no reply failed.
    Oneway {
        /// Which method.
        method: &'static str,
        /// Why.
        error: ErrorReply,
    },
    /// Everything was said: close once it is sent.
    Done,
    /// The client took too long.
    Slow(&'static str),
    /// A transaction held its locks for too long.
    TransactionTimeout(Duration),
    /// The client does not read what it is sent.
    Unread,
    /// The client has gone.
    Gone,
    /// The socket failed.
    Socket(std::io::Error),
    /// The server stops.
    Stop,
}

/// How a call ends, as far as the session can say at once.
type Outcome = Result<Option<Value<'static>>, Refusal>;

/// Why a call has no answer.
#[derive(Debug)]
enum Refusal {
    /// The client is told; or, if it expects no reply, the connection ends.
    Told(ErrorReply),
    /// The connection ends.
    Ends(Farewell),
}

impl From<ErrorReply> for Refusal {
    fn from(error: ErrorReply) -> Self {
        Self::Told(error)
    }
}

impl From<Farewell> for Refusal {
    fn from(farewell: Farewell) -> Self {
        Self::Ends(farewell)
    }
}

impl Session {
    /// Greets a client that has just connected.
    pub fn new(id: ConnectionId, peer: Peer, announced: Codec) -> Self {
        let mut outbox = Vec::new();
        handshake::announce(announced, &mut outbox);
        let label = peer.to_string();
        log::event(Source::SERVER, Severity::Info, "", format_args!("new connection {label}"));
        Self { id, peer, label, state: State::Greeting, pending: 0, outbox }
    }

    /// Which connection this is.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Bytes that the next message may have.
    pub fn frame_max(&self, desk: &Desk) -> u32 {
        match self.state {
            State::Open(_) => desk.limits.frame_max,
            _ => FRAME_BEFORE_REGISTER_MAX,
        }
    }

    /// Whether the client has registered.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Whether so many calls are under way that further messages have to wait.
    pub fn is_busy(&self) -> bool {
        let questions = match &self.state {
            State::Open(open) => open.questions.len(),
            _ => 0,
        };
        Limits::CALLS_MAX <= self.pending + questions || Limits::OUTPUT_PAUSE <= self.outbox.len()
    }

    /// When something has to happen even if nothing comes: the end of a vote's patience.
    pub fn deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Open(open) => open.transaction.as_ref().and_then(Transaction::deadline),
            _ => None,
        }
    }

    /// Takes one message.
    ///
    /// # Errors
    ///
    /// The connection is to be closed, for the reason given; [`Session::end`] comes next.
    pub fn receive(&mut self, body: &[u8], desk: &mut Desk) -> Result<(), Farewell> {
        match &self.state {
            State::Greeting => self.greeted(body, desk),
            State::Choosing(codec) => {
                let codec = *codec;
                match decode_call(codec, body).map_err(Farewell::Wire)? {
                    Incoming::KeepAlive => Ok(()),
                    Incoming::Call(call) => self.register(codec, call, desk),
                }
            }
            State::Open(open) => match decode_call(open.codec, body).map_err(Farewell::Wire)? {
                Incoming::KeepAlive => Ok(()),
                Incoming::Call(Call {
                    id, request: Request::LoadBefore { oid, before }, ..
                }) => {
                    self.load(id, oid, before, desk);
                    Ok(())
                }
                Incoming::Call(call) => self.call(call, desk),
            },
            State::Over => Ok(()),
        }
    }

    fn greeted(&mut self, body: &[u8], desk: &Desk) -> Result<(), Farewell> {
        match handshake::read_answer(body).map_err(Farewell::Wire)? {
            Answer::Chosen(codec) => {
                self.state = State::Choosing(codec);
                Ok(())
            }
            Answer::Ruok => {
                register::tell_status(desk, &mut self.outbox);
                Err(Farewell::Done)
            }
        }
    }

    fn call(&mut self, call: Call<'_>, desk: &mut Desk) -> Result<(), Farewell> {
        let Call { id, oneway, request } = call;
        let method = request.name();
        let State::Open(open) = &self.state else {
            unreachable!("only an open session is called");
        };
        let codec = open.codec;
        let later = if oneway { None } else { Some(&id) };
        match self.answer(request, later, desk) {
            Ok(Some(value)) if !oneway => reply::reply(codec, &id, &value, &mut self.outbox),
            Ok(_) => {}
            Err(Refusal::Ends(farewell)) => return Err(farewell),
            Err(Refusal::Told(error)) if oneway => return Err(Farewell::Oneway { method, error }),
            Err(Refusal::Told(error)) => self.refuse(method, &id, &error),
        }
        Ok(())
    }

    /// Answers a call, or sees to it that it is answered later: then the outcome is `None`.
    fn answer(&mut self, request: Request<'_>, id: Option<&MessageId>, desk: &mut Desk) -> Outcome {
        let State::Open(open) = &mut self.state else {
            unreachable!("only an open session is called");
        };
        let hall = &mut desk.halls[open.storage];
        let facts = hall.service.storage.facts();
        let none = Ok(Some(Value::None));
        let question = match request {
            Request::Register { .. } => {
                return Err(ErrorReply::value_error("duplicate register() call").into());
            }
            Request::LoadBefore { oid, before } => {
                let Some(id) = id else {
                    return none;
                };
                let id = id.clone();
                self.load(id, oid, before, desk);
                return Ok(None);
            }
            Request::GetInfo => return Ok(Some(register::info(hall))),
            Request::LastTransaction => return Ok(Some(query::tid_value(hall.visible))),
            Request::Ping => return none,
            Request::ServerStatus => {
                hall.settle();
                return Ok(Some(hall.service.status()));
            }
            Request::SetClientLabel { label } => {
                let printable = label.chars().filter(|character| !character.is_control());
                let label: String = printable.take(LABEL_MAX).collect();
                self.label = format!("{label} {}", self.peer);
                return none;
            }
            Request::NewOids { count } => {
                if open.read_only {
                    return Err(ErrorReply::read_only().into());
                }
                let count = count.clamp(1, OIDS_AT_ONCE_MAX) as usize;
                let oids = hall.service.storage.new_oids(count);
                let oids = oids.map_err(|error| refusal::of(&error))?;
                return Ok(Some(Value::List(oids.into_iter().map(query::oid_value).collect())));
            }
            Request::GetInvalidations { tid } => match hall.since(tid) {
                Since::Known(latest, oids) => {
                    let text =
                        format!("Return {} invalidations up to tid {}", oids.len(), latest.0);
                    self.log(Severity::Info, &text);
                    return Ok(Some(query::invalidations(latest, oids)));
                }
                Since::TooOld => {
                    let age = desk.since_1970.as_secs_f64() - tid.seconds_since_1970();
                    let limit = desk.limits.invalidation_age;
                    if limit.is_none_or(|limit| limit.as_secs_f64() <= age) {
                        self.log(Severity::Info, &format!("tid too old for invalidations: {tid}"));
                        return none;
                    }
                    Question::Invalidations { since: tid }
                }
            },
            Request::LoadSerial { oid, serial } => Question::LoadSerial { oid, serial },
            Request::GetTid { oid } => Question::Serial { oid },
            Request::History { oid, count } => Question::History { oid, count },
            Request::RecordIternext { .. } if !facts.supports_record_iternext => {
                return Err(ErrorReply::attribute_error("record_iternext").into());
            }
            Request::RecordIternext { from } => {
                Question::RecordNext { from: from.unwrap_or_default() }
            }
            Request::UndoLog { .. } | Request::UndoInfo { .. } if !facts.supports_undo => {
                return Ok(Some(Value::Tuple(Vec::new())));
            }
            Request::UndoLog { first, last } => {
                Question::UndoLog { first, last, filter: Vec::new() }
            }
            Request::UndoInfo { first, last, filter } => {
                let filter = match filter {
                    Some(Value::Dict(filter)) if query::is_filter(&filter) => {
                        let owned = |(key, value): (Value<'_>, Value<'_>)| {
                            (key.into_owned(), value.into_owned())
                        };
                        filter.into_iter().map(owned).collect()
                    }
                    None | Some(Value::None) => Vec::new(),
                    Some(_) => {
                        let text = "the specification of undoInfo is a small dictionary or None";
                        return Err(ErrorReply::type_error(text).into());
                    }
                };
                Question::UndoLog { first, last, filter }
            }
            Request::IteratorStart { start, stop } => Question::IteratorStart {
                start: start.unwrap_or(Tid::ZERO),
                stop: stop.unwrap_or(Tid::MAX),
            },
            Request::IteratorNext { iterator } => Question::IteratorNext { iterator },
            Request::IteratorRecordStart { iterator, tid } => {
                Question::RecordsStart { iterator, tid }
            }
            Request::IteratorRecordNext { iterator } => Question::RecordsNext { iterator },
            Request::IteratorGc { iterators } if query::GARBAGE_MAX < iterators.len() => {
                return Err(ErrorReply::value_error("so many iterators were never open").into());
            }
            Request::IteratorGc { iterators } => Question::Forget { iterators },
            Request::NewOid => return Err(ErrorReply::attribute_error("new_oid").into()),
            Request::Pack { time, wait } => return self.pack(time, wait, id, desk),
            Request::StoreBlobStart
            | Request::StoreBlobChunk { .. }
            | Request::StoreBlobEnd { .. }
            | Request::StoreBlobShared { .. }
            | Request::SendBlob { .. } => {
                return Err(ErrorReply::storage_error("this server stores no blobs").into());
            }
            change => return self.change(change, id, desk),
        };
        self.ask(id.cloned(), question, desk);
        Ok(None)
    }

    /// Has the storage packed. A read-only client may do that, too (`ZEOStorage.pack`).
    fn pack(&mut self, time: f64, wait: bool, id: Option<&MessageId>, desk: &Desk) -> Outcome {
        let State::Open(open) = &self.state else {
            unreachable!("only an open session packs");
        };
        let service = &desk.halls[open.storage].service;
        let asker = id.filter(|_| wait).map(|id| (self.id, id.clone()));
        let stop = Tid::at_seconds(time)
            .ok_or_else(|| ErrorReply::file_storage_error("Invalid pack time"))?;
        let (label, waits) = (self.label.clone(), asker.is_some());
        match packing::start(service, &desk.post, packing::Errand { time, stop, asker, label }) {
            Ok(()) if waits => {
                self.pending += 1;
                Ok(None)
            }
            Ok(()) => Ok(Some(Value::None)),
            Err(error) if waits => Err(error.into()),
            // Nobody waits to hear of it.
            Err(error) => {
                self.log(Severity::Error, &format!("`pack` raised {}", error.class));
                Ok(Some(Value::None))
            }
        }
    }

    /// A pack of the storage has ended.
    pub fn packed(&mut self, packed: &Packed) {
        let State::Open(open) = &self.state else {
            return;
        };
        let codec = open.codec;
        if let Ok((object_count, size)) = packed.outcome {
            let sizes = register::sizes(object_count, size);
            reply::notice(codec, "info", &Value::Tuple(vec![sizes]), &mut self.outbox);
        }
        if let Some((_, id)) = packed.asker.as_ref().filter(|(asker, _)| *asker == self.id) {
            self.pending -= 1;
            match &packed.outcome {
                Ok(_) => reply::reply(codec, id, &Value::None, &mut self.outbox),
                Err(error) => self.refuse("pack", id, error),
            }
        }
    }

    /// Sends a question to a clerk, or keeps it until the last one has been answered.
    fn ask(&mut self, id: Option<MessageId>, question: Question, desk: &Desk) {
        let State::Open(open) = &mut self.state else {
            unreachable!("only an open session asks");
        };
        let Some(iterators) = open.iterators.take() else {
            open.questions.push_back((id, question));
            return;
        };
        self.pending += 1;
        let hall = &desk.halls[open.storage];
        let (service, visible) = (hall.service.clone(), hall.visible);
        let connection = self.id;
        let errand = Errand::Answer { connection, id, question, service, visible, iterators };
        desk.send(connection, errand);
    }

    /// A clerk has answered.
    pub fn answered(
        &mut self,
        id: Option<MessageId>,
        outcome: Result<Value<'static>, ErrorReply>,
        iterators: Box<Iterators>,
        desk: &Desk,
    ) {
        let State::Open(open) = &mut self.state else {
            return;
        };
        let codec = open.codec;
        open.iterators = Some(iterators);
        let next = open.questions.pop_front();
        self.pending -= 1;
        if let Some(id) = id {
            match outcome {
                Ok(value) => reply::reply(codec, &id, &value, &mut self.outbox),
                Err(error) => self.refuse("a question", &id, &error),
            }
        }
        if let Some((id, question)) = next {
            self.ask(id, question, desk);
        }
    }

    /// A transaction is published: the client's own is answered, another's invalidates.
    ///
    /// Every commit passes here, in tid order, on every connection of its storage: the place in
    /// the outbox is the place in the order.
    pub fn committed(&mut self, committed: &Committed, desk: &Desk) {
        let own = committed.ticket.connection == self.id;
        if !own || !self.finished(committed, desk) {
            let State::Open(open) = &self.state else {
                return;
            };
            let (tid, oids) = (committed.tid, &committed.oids);
            reply::invalidate_transaction(open.codec, tid, oids, &mut self.outbox);
        }
    }

    /// Ends the session: whatever it holds is given back.
    pub fn end(&mut self, farewell: &Farewell, desk: &mut Desk) {
        if let Some((severity, text)) = farewell.describe() {
            self.log(severity, &text);
        }
        let State::Open(mut open) = std::mem::replace(&mut self.state, State::Over) else {
            self.log(Severity::Info, "disconnected");
            return;
        };
        match open.transaction.take() {
            None => self.log(Severity::Info, "disconnected"),
            Some(transaction) => {
                let locked = if transaction.is_locked() { "locked" } else { "unlocked" };
                self.log(Severity::Info, &format!("disconnected during {locked} transaction"));
                transaction.abandon(open.storage, desk);
            }
        }
        let hall = &mut desk.halls[open.storage];
        hall.members.remove(&self.id);
        hall.service.stats.connections.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// Writes an error reply, and logs it as ZEO does: all but those that are part of business.
    fn refuse(&mut self, method: &str, id: &MessageId, error: &ErrorReply) {
        let State::Open(open) = &self.state else {
            return;
        };
        reply::error_reply(open.codec, id, error, &mut self.outbox);
        let business = ["POSKeyError", "ConflictError", "ReadConflictError"];
        if !business.iter().any(|name| error.class.ends_with(name)) {
            let text = format!("`{method}` raised {}: {:?}", error.class, error.args);
            self.log(Severity::Error, &text);
        }
    }

    fn log(&self, severity: Severity, text: &str) {
        log::event(Source::SERVER, severity, &self.label, format_args!("{text}"));
    }
}

/// Characters of a client's label that are kept.
const LABEL_MAX: usize = 128;

/// Oids that one call may ask for (`ZEOStorage.new_oids`).
const OIDS_AT_ONCE_MAX: i64 = 100;

impl Farewell {
    /// What the log says about it, if anything.
    fn describe(&self) -> Option<(Severity, String)> {
        match self {
            Self::Wire(error) => Some((Severity::Error, format!("{error}; closing"))),
            Self::Call(text) => Some((Severity::Error, format!("{text}; closing"))),
            Self::Oneway { method, error } => {
                let text = format!("`{method}` raised {}: {:?}; closing", error.class, error.args);
                Some((Severity::Error, text))
            }
            Self::Slow(what) => Some((Severity::Warning, format!("too slow: {what}; closing"))),
            Self::TransactionTimeout(limit) => {
                let seconds = limit.as_secs_f64();
                Some((Severity::Critical, format!("Transaction timeout after {seconds} seconds")))
            }
            Self::Unread => {
                Some((Severity::Warning, "does not read what it is sent; closing".to_owned()))
            }
            Self::Socket(error) => Some((Severity::Info, format!("socket: {error}"))),
            Self::Done | Self::Gone | Self::Stop => None,
        }
    }
}
