//! One connection to a server, as bytes: calls in, bytes out; bytes in, results out.
//!
//! A session owns no socket, reads no clock and never waits. A driver moves bytes: it sends
//! [`Session::output`], lets [`Session::receive`] take in what has come, and asks
//! [`Session::poll`] who has an answer. Whether a thread, a ring or a future drives it makes no
//! difference to the protocol. Everything that a server tells is applied to the [`View`] here, in
//! the order in which it was sent: that is what keeps a cache right.
//!
//! ```text
//!   Order, waiter --> put() --> output() --> socket --> Inbound --> receive() --> poll() --> waiter
//!                                                                      `--> View (cache, last tid)
//! ```

pub(crate) mod answer;
mod connect;
mod inbound;
mod invalidations;
pub mod order;
mod pending;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::reply::FromServer;
use zeoring_shared::wire::request::{self, Request};
use zeoring_shared::wire::value::Value;
use zeoring_shared::wire::{self, Codec, MessageId, WireError};

pub use self::answer::{
    Answer, Conflict, CurrentRecord, HistoryEntry, Info, RecordEntry, Revision, Status,
    TransactionEntry, UndoEntry, Verdict,
};
pub use self::connect::Stage;
pub use self::inbound::Inbound;
pub(crate) use self::invalidations::Invalidations;
pub use self::invalidations::{Invalidated, Invalidation};
pub use self::order::Epoch;

use self::answer::Kind;
use self::connect::Verifying;
use self::order::{Order, Question};
use self::pending::{Call, Load, Pending, UseOfAnswer, Waiter};
use crate::error::{ClientError, ServerError};
use crate::options::Access;
use crate::view::View;

/// The result of a call.
pub type Outcome = Result<Answer, ClientError>;

/// What a session tells a server about itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hello {
    /// The storage, which `runzeo` calls `"1"`.
    pub storage: String,
    /// What the connection is for. One that wants to write registers so first, and again by
    /// [`Session::register_read_only`].
    pub access: Access,
    /// What the server's log calls this client, if anything.
    pub label: Option<String>,
    /// Answer with this codec if the server announces it. `None` answers msgpack always, which
    /// servers since ZEO 5.2 take whatever they announce (`ZEO/asyncio/server.py`).
    pub codec: Option<Codec>,
}

/// What a server did that ends its connection.
#[derive(Clone, Debug, thiserror::Error)]
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
    /// It does not know what it, or another of its kind, has told us before.
    #[error(
        "the server is at transaction {theirs}, before {ours}, which this client has seen: it was \
         restored from an older copy, or is a replica that lags. Let it catch up, or restart this \
         program to accept it"
    )]
    BackInTime {
        /// What this client has seen.
        ours: Tid,
        /// What the server told.
        theirs: Tid,
    },
    /// Its history does not have a transaction that this client has seen.
    #[error(
        "the server's history has no transaction {ours}, which this client has seen: it serves \
         another database, or one restored from a copy. Restart this program to accept it"
    )]
    AnotherHistory {
        /// What this client has seen.
        ours: Tid,
    },
    /// Too much was invalidated before the session was up.
    #[error("the server invalidated {oids} objects while the connection came up; try again")]
    TooMuchEarly {
        /// How many.
        oids: usize,
    },
}

/// So many loads of a batch are encoded before the first of them is sent, and then at once.
const FIRST_OF_BATCH: usize = 128;
const MORE_OF_BATCH: usize = 256;

/// The protocol state of one connection. `W` is whatever a driver needs to tell a caller of its
/// answer: a slot, a channel, or a number in a test.
#[derive(Debug)]
pub struct Session<W> {
    hello: Hello,
    codec: Codec,
    announced: Option<Codec>,
    stage: Stage,
    verifying: Verifying,
    registered_at: Tid,
    early: Vec<Invalidation>,
    early_oids: usize,
    /// Invariant: sent <= output.len()
    output: Vec<u8>,
    sent: usize,
    pending: Pending<W>,
    batches: VecDeque<Unsent>,
    done: VecDeque<(W, Outcome)>,
    view: Arc<View>,
}

/// The loads of a batch that are not yet in the output.
#[derive(Debug)]
struct Unsent {
    batch: u32,
    oids: Vec<Oid>,
    before: Tid,
    next: usize,
}

impl<W> Session<W> {
    /// A session that registers as soon as the server greets, and tells `view` what it hears.
    pub fn new(hello: Hello, view: Arc<View>) -> Self {
        Self {
            hello,
            codec: Codec::Msgpack,
            announced: None,
            stage: Stage::Greeting,
            verifying: Verifying::Info,
            registered_at: Tid::ZERO,
            early: Vec::new(),
            early_oids: 0,
            output: Vec::new(),
            sent: 0,
            pending: Pending::new(),
            batches: VecDeque::new(),
            done: VecDeque::new(),
            view,
        }
    }

    /// How far it has come.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The codec of this connection, for whoever encodes frames beforehand.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// What the server said that it speaks best.
    pub fn announced(&self) -> Option<Codec> {
        self.announced
    }

    /// Whether it is registered, or registers, only to read.
    pub fn is_read_only(&self) -> bool {
        self.hello.access == Access::Read
    }

    /// Whether a server that takes no writes would do.
    pub fn may_read(&self) -> bool {
        self.hello.access == Access::WriteOrRead
    }

    /// What is encoded to be sent, in order.
    pub fn output(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// Says how many bytes of [`Session::output`] were sent.
    pub fn sent(&mut self, count: usize) {
        self.sent += count;
        assert!(self.sent <= self.output.len(), "a driver sends what it was given");
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        }
    }

    /// Whether there is something to send.
    pub fn has_output(&self) -> bool {
        !self.output().is_empty() || !self.batches.is_empty()
    }

    /// Moves the output to `bytes`, which is empty: its memory is used for what comes next. Of a
    /// long batch it is a part, so that the server can begin; the next call gives more. Empty when
    /// there is nothing.
    pub fn take_output(&mut self, bytes: &mut Vec<u8>) {
        debug_assert!(bytes.is_empty(), "output goes to an empty buffer");
        if self.output().is_empty() {
            self.send_more_of_batches();
        }
        if self.sent == 0 {
            std::mem::swap(&mut self.output, bytes);
        } else {
            bytes.extend_from_slice(self.output());
            self.output.clear();
            self.sent = 0;
        }
    }

    /// Takes in all whole messages that have come, wherever they begin and end in what was
    /// received. An error ends the connection: the session is of no more use.
    pub fn receive(&mut self, inbound: &mut Inbound) -> Result<(), SessionError> {
        let mut rest = inbound.unparsed();
        let length = rest.len();
        while let Some(frame) = wire::frame::split_frame(rest, self.frame_max())? {
            rest = frame.rest;
            self.take(frame.body)?;
        }
        let parsed = length - rest.len();
        inbound.consume(parsed);
        Ok(())
    }

    /// As [`Session::receive`], for bytes that are elsewhere: only what is no whole message is
    /// copied to `inbound`.
    pub fn receive_from(
        &mut self,
        inbound: &mut Inbound,
        bytes: &[u8],
    ) -> Result<(), SessionError> {
        let mut rest = bytes;
        if inbound.unparsed().is_empty() {
            while let Some(frame) = wire::frame::split_frame(rest, self.frame_max())? {
                rest = frame.rest;
                self.take(frame.body)?;
            }
        }
        if rest.is_empty() {
            return Ok(());
        }
        inbound.add(rest);
        self.receive(inbound)
    }

    /// The oldest answer that its caller was not yet told of.
    pub fn poll(&mut self) -> Option<(W, Outcome)> {
        self.done.pop_front()
    }

    /// Whether a call waits for its answer.
    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes an order on. Its answer comes to `waiter`; without one nobody is told.
    pub fn put(&mut self, order: Order, waiter: Option<W>) {
        assert!(self.stage == Stage::Ready, "a driver makes no calls before the session is ready");
        self.output.extend_from_slice(&order.frames);
        let waiter = waiter.map_or(Waiter::Nobody, Waiter::One);
        match order.question {
            Question::Nothing => {}
            Question::Load { oid, before } => self.load(oid, before, waiter),
            Question::Loads { oids, before } => self.load_many(oids, before, waiter),
            Question::Finish(finish) => {
                let request = Request::TpcFinish { id: finish.id };
                let use_of_answer = UseOfAnswer::Finish(finish);
                self.send_call(Call { kind: Kind::of(&request), waiter, use_of_answer }, request);
            }
            Question::Blob { oid, serial, into } => {
                self.pending.blobs.insert((oid, serial), into);
                let request = Request::SendBlob { oid, serial };
                let use_of_answer = UseOfAnswer::Blob { oid, serial };
                self.send_call(Call { kind: Kind::of(&request), waiter, use_of_answer }, request);
            }
            Question::Call(request) => {
                let use_of_answer = UseOfAnswer::Plain;
                self.send_call(Call { kind: Kind::of(&request), waiter, use_of_answer }, request);
            }
        }
    }

    /// Gives up all calls: their callers get `error`. The connection has ended.
    pub fn abandon(&mut self, error: &ClientError) {
        self.batches.clear();
        let waiters = self.pending.drain();
        self.done.extend(waiters.into_iter().map(|waiter| (waiter, Err(error.clone()))));
    }

    /// Adds the sign of life that clients send once a minute (`ZEO/asyncio/client.py`,
    /// `heartbeat`).
    pub fn keep_alive(&mut self) {
        request::encode_keep_alive(self.codec, &mut self.output);
    }

    fn load(&mut self, oid: Oid, before: Tid, waiter: Waiter<W>) {
        if self.pending.add_load(oid, before, waiter) {
            request::encode_load(self.codec, oid, before, &mut self.output);
        }
    }

    fn load_many(&mut self, oids: Vec<Oid>, before: Tid, waiter: Waiter<W>) {
        let Waiter::One(waiter) = waiter else { return };
        if oids.is_empty() {
            return self.done.push_back((waiter, Ok(Answer::Revisions(Vec::new()))));
        }
        let batch = self.pending.add_batch(oids.len(), waiter);
        self.batches.push_back(Unsent { batch, oids, before, next: 0 });
        self.send_more_of_batches();
    }

    /// Encodes some loads of the oldest batch. The first ones are few: the server works on them
    /// while the others are encoded.
    fn send_more_of_batches(&mut self) {
        let Some(mut unsent) = self.batches.pop_front() else { return };
        let count = if unsent.next == 0 { FIRST_OF_BATCH } else { MORE_OF_BATCH };
        let end = unsent.oids.len().min(unsent.next + count);
        for index in unsent.next..end {
            let waiter = Waiter::Part { batch: unsent.batch, index: index as u32 };
            self.load(unsent.oids[index], unsent.before, waiter);
        }
        unsent.next = end;
        if end < unsent.oids.len() {
            self.batches.push_back(unsent);
        }
    }

    fn send_call(&mut self, call: Call<W>, request: Request<'_>) {
        let number = self.pending.add_call(call);
        let id = MessageId::int(self.codec, number);
        let call = request::Call { id, oneway: false, request };
        request::encode_call(self.codec, &call, &mut self.output);
    }

    fn tell(&mut self, request: &Request<'static>) {
        order::encode_one_way(self.codec, request.clone(), &mut self.output);
    }

    fn frame_max(&self) -> u32 {
        match self.stage {
            Stage::Greeting => wire::FRAME_BEFORE_REGISTER_MAX,
            _ => wire::FRAME_MAX,
        }
    }

    fn take(&mut self, body: &[u8]) -> Result<(), SessionError> {
        if self.stage == Stage::Greeting {
            return self.greeted(body);
        }
        match wire::reply::decode_from_server(self.codec, body)? {
            FromServer::Load { id, data, serial, end } => {
                let Some(key) = id.as_load(self.codec) else {
                    // A list of three oids looks like a load's answer in msgpack.
                    let call = self.answered(&id)?;
                    let answer = call.kind.read_load(data, serial, end);
                    return self.finish_call(call, answer.map(Ok));
                };
                let load = self.pending.loads.remove(&key);
                let load = load.ok_or(SessionError::NotAsked { id })?;
                self.loaded(key, load, data, serial, end)
            }
            FromServer::Reply { id, value } => self.replied(&id, &value),
            FromServer::Error { id, class, args } => {
                if let Some(key) = id.as_load(self.codec) {
                    let load = self.pending.loads.remove(&key);
                    let load = load.ok_or(SessionError::NotAsked { id })?;
                    self.deliver_load(load, &Err(ServerError::new(&class, &args)));
                    return Ok(());
                }
                let call = self.answered(&id)?;
                let result = call.kind.read_error(&class, &args);
                self.finish_call(call, Some(result))
            }
            FromServer::Invalidate { tid, oids } => {
                let invalidation = Invalidation { tid, oids };
                match self.stage {
                    Stage::Ready => self.invalidated(&invalidation),
                    _ => self.keep_early(invalidation),
                }
            }
            FromServer::Notice { name, args } => self.noticed(&name, &args),
        }
    }

    fn loaded(
        &mut self,
        (oid, before): (Oid, Tid),
        load: Load<W>,
        data: &[u8],
        serial: Tid,
        end: Option<Tid>,
    ) -> Result<(), SessionError> {
        let is_older = serial < before && end.is_none_or(|end| serial < end && before <= end);
        if !is_older {
            self.pending.doom(load.waiters());
            return Err(SessionError::WrongForm { call: "loadBefore" });
        }
        let stale = load.overtaken.filter(|&tid| end.is_none() && serial < tid);
        if let Some(tid) = stale
            && tid < before
        {
            // The server read it before that transaction, and told of the transaction first.
            // Whoever asked for the newest gets it; a new question cannot be answered from before.
            let load = Load { overtaken: None, ..load };
            self.pending.loads.insert((oid, before), load);
            request::encode_load(self.codec, oid, before, &mut self.output);
            return Ok(());
        }
        let revision = Revision { data: Bytes::copy_from_slice(data), serial, end };
        if stale.is_none() {
            self.view.loaded(oid, &revision);
        }
        self.deliver_load(load, &Ok(Some(revision)));
        Ok(())
    }

    fn replied(&mut self, id: &MessageId, value: &Value<'_>) -> Result<(), SessionError> {
        if let Some(key) = id.as_load(self.codec) {
            let Some(load) = self.pending.loads.remove(&key) else {
                return Err(SessionError::NotAsked { id: id.clone() });
            };
            // Revisions come as loads, so here the server says that there is none.
            if *value != Value::None {
                self.pending.doom(load.waiters());
                return Err(SessionError::WrongForm { call: "loadBefore" });
            }
            self.deliver_load(load, &Ok(None));
            return Ok(());
        }
        let call = self.answered(id)?;
        let result = call.kind.read(value);
        self.finish_call(call, result)
    }

    fn answered(&mut self, id: &MessageId) -> Result<Call<W>, SessionError> {
        let call = id.as_int(self.codec).and_then(|number| self.pending.calls.remove(&number));
        call.ok_or_else(|| SessionError::NotAsked { id: id.clone() })
    }

    /// Uses an answer, which is `None` if it has the wrong form, and tells its caller.
    fn finish_call(
        &mut self,
        call: Call<W>,
        result: Option<Result<Answer, ServerError>>,
    ) -> Result<(), SessionError> {
        let Some(result) = result else {
            self.pending.doom([call.waiter]);
            return Err(SessionError::WrongForm { call: call.kind.name() });
        };
        let mut result = result.map_err(ClientError::Server);
        match call.use_of_answer {
            UseOfAnswer::Plain => {}
            UseOfAnswer::Finish(finish) => {
                if let Ok(Answer::Tid(tid)) = result {
                    if let Err(error) = self.check_rises(tid) {
                        self.pending.doom([call.waiter]);
                        return Err(error);
                    }
                    let oids = finish.stored.iter().map(|(oid, _)| *oid);
                    let oids: Vec<Oid> = oids.chain(finish.others.iter().copied()).collect();
                    self.pending.overtake(tid, &oids);
                    self.view.committed_own(tid, &oids, *finish);
                }
            }
            UseOfAnswer::Blob { oid, serial } => {
                let receiving = self.pending.blobs.remove(&(oid, serial));
                let receiving = receiving.expect("a blob's file waits as long as its call");
                if result.is_ok() {
                    let received = receiving.finish().map(Arc::new);
                    result = received.map(Answer::Blob).map_err(ClientError::from);
                }
            }
        }
        match call.waiter {
            Waiter::One(waiter) => self.done.push_back((waiter, result)),
            Waiter::Session => {
                let result = match result {
                    Ok(answer) => Ok(answer),
                    Err(ClientError::Server(error)) => Err(error),
                    Err(_) => unreachable!("a session waits for servers only"),
                };
                if let (Stage::Registering, Ok(Answer::Tid(last))) = (&self.stage, &result) {
                    self.registered_at = *last;
                }
                return self.advance(result);
            }
            Waiter::Part { .. } => unreachable!("batches are of loads"),
            Waiter::Nobody => {}
        }
        Ok(())
    }

    fn deliver_load(&mut self, load: Load<W>, result: &Result<Option<Revision>, ServerError>) {
        for waiter in load.others {
            self.deliver_revision(waiter, result.clone());
        }
        self.deliver_revision(load.first, result.clone());
    }

    fn deliver_revision(
        &mut self,
        waiter: Waiter<W>,
        result: Result<Option<Revision>, ServerError>,
    ) {
        match waiter {
            Waiter::One(waiter) => {
                let outcome = result.map(Answer::Revision).map_err(ClientError::Server);
                self.done.push_back((waiter, outcome));
            }
            Waiter::Part { batch, index } => {
                if let Some((waiter, results)) = self.pending.fill_batch(batch, index, result) {
                    self.done.push_back((waiter, Ok(Answer::Revisions(results))));
                }
            }
            Waiter::Session | Waiter::Nobody => {}
        }
    }

    fn invalidated(&mut self, invalidation: &Invalidation) -> Result<(), SessionError> {
        self.check_rises(invalidation.tid)?;
        self.pending.overtake(invalidation.tid, &invalidation.oids);
        self.view.committed(invalidation);
        Ok(())
    }

    fn check_rises(&self, theirs: Tid) -> Result<(), SessionError> {
        let ours = self.view.last_tid();
        if theirs <= ours {
            return Err(SessionError::BackInTime { ours, theirs });
        }
        Ok(())
    }

    fn noticed(&mut self, name: &str, args: &Value<'_>) -> Result<(), SessionError> {
        match (name, args) {
            ("info", Value::Tuple(args) | Value::List(args)) => {
                if let [Value::Dict(changed)] = args.as_slice() {
                    self.view.be_informed_of(changed);
                }
                Ok(())
            }
            (
                "receiveBlobStart" | "receiveBlobChunk" | "receiveBlobStop",
                Value::Tuple(args) | Value::List(args),
            ) => self.blob_comes(name, args).ok_or(SessionError::WrongForm { call: "sendBlob" }),
            // Other notices are for other clients.
            _ => Ok(()),
        }
    }

    /// Takes a part of a blob, one of `receiveBlob...`; `None` if it is none.
    fn blob_comes(&mut self, name: &str, args: &[Value<'_>]) -> Option<()> {
        let [oid, serial, chunk @ ..] = args else { return None };
        let blob = answer::read::oid(oid).zip(answer::read::tid(serial))?;
        // Nobody asked for it on this connection: it is dropped.
        let Some(into) = self.pending.blobs.get_mut(&blob) else { return Some(()) };
        match (name, chunk) {
            ("receiveBlobStart", []) => {}
            ("receiveBlobChunk", [Value::Bytes(chunk)]) => into.write(chunk),
            ("receiveBlobStop", []) => into.end(),
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
