//! Sessions against bytes as a server writes them, in the worst order and cut wherever it hurts.

mod coming_up;
mod cuts;
mod hostile;
mod order;

use zeoring_shared::wire::frame::{frame, split_frame};
use zeoring_shared::wire::reply::{self, ErrorReply};
use zeoring_shared::wire::request::{Incoming, decode_call};

use super::order::{Finish, Question};
use super::*;
use crate::cache::{Cache, CacheOptions};

const CODECS: [Codec; 2] = [Codec::Pickle, Codec::Msgpack];

/// A client that knows its waiters by numbers, and the server that it hears.
struct Talk {
    session: Session<u32>,
    view: Arc<View>,
    inbound: Inbound,
    codec: Codec,
}

/// What a server sends, written with the server's half of the codec.
struct Sent {
    codec: Codec,
    bytes: Vec<u8>,
}

impl Sent {
    fn new(codec: Codec) -> Self {
        Self { codec, bytes: Vec::new() }
    }

    fn greeting(mut self) -> Self {
        wire::handshake::announce(self.codec, &mut self.bytes);
        self
    }

    /// The answer to the call with that number: a session counts from 1, the number of `register`.
    fn reply(mut self, id: u32, value: &Value<'_>) -> Self {
        reply::reply(self.codec, &MessageId::int(self.codec, id), value, &mut self.bytes);
        self
    }

    fn error(mut self, id: u32, error: &ErrorReply) -> Self {
        let id = MessageId::int(self.codec, id);
        reply::error_reply(self.codec, &id, error, &mut self.bytes);
        self
    }

    /// The answer to a load of `oid` before `before`.
    fn load(mut self, oid: u64, before: Tid, revision: (&[u8], u64, Option<u64>)) -> Self {
        let id = MessageId::load(self.codec, Oid(oid), before);
        let (data, serial, end) = (revision.0, Tid(revision.1), revision.2.map(Tid));
        reply::load_reply(self.codec, &id, data, serial, end, &mut self.bytes);
        self
    }

    fn load_none(mut self, oid: u64, before: Tid) -> Self {
        let id = MessageId::load(self.codec, Oid(oid), before);
        reply::reply(self.codec, &id, &Value::None, &mut self.bytes);
        self
    }

    fn load_error(mut self, oid: u64, before: Tid) -> Self {
        let id = MessageId::load(self.codec, Oid(oid), before);
        let error = ErrorReply::pos_key_error(Oid(oid));
        reply::error_reply(self.codec, &id, &error, &mut self.bytes);
        self
    }

    fn invalidation(mut self, tid: u64, oids: &[u64]) -> Self {
        let oids: Vec<Oid> = oids.iter().copied().map(Oid).collect();
        reply::invalidate_transaction(self.codec, Tid(tid), &oids, &mut self.bytes);
        self
    }

    fn notice(mut self, name: &str, args: &Value<'_>) -> Self {
        reply::notice(self.codec, name, args, &mut self.bytes);
        self
    }

    /// A frame with any body.
    fn raw(mut self, body: &[u8]) -> Self {
        frame(&mut self.bytes, |out| out.extend_from_slice(body));
        self
    }
}

impl Talk {
    /// A session that has heard nothing.
    fn new(codec: Codec) -> Self {
        Self::with(codec, &view())
    }

    /// A further session of the same client.
    fn with(codec: Codec, view: &Arc<View>) -> Self {
        let hello = Hello {
            storage: "main".to_owned(),
            access: Access::Write,
            label: None,
            codec: Some(codec),
        };
        let session = Session::new(hello, Arc::clone(view));
        Self { session, view: Arc::clone(view), inbound: Inbound::new(), codec }
    }

    /// A session that is ready with an empty cache, of a server whose last transaction is `last`.
    /// Its next call has the number 3.
    fn ready(codec: Codec, last: u64) -> Self {
        let mut talk = Self::new(codec);
        talk.register(last);
        talk.session.verify().unwrap();
        talk.hear(Sent::new(codec).reply(2, &info())).unwrap();
        talk.is_ready();
        talk
    }

    fn register(&mut self, last: u64) {
        self.hear(Sent::new(self.codec).greeting().reply(1, &tid(last))).unwrap();
        assert_eq!(self.session.stage(), &Stage::Registered(Tid(last)));
        self.calls();
    }

    fn is_ready(&mut self) {
        assert_eq!(self.session.stage(), &Stage::Ready);
        self.calls();
    }

    fn sent(&self) -> Sent {
        Sent::new(self.codec)
    }

    fn hear(&mut self, sent: Sent) -> Result<(), SessionError> {
        self.session.receive_from(&mut self.inbound, &sent.bytes)
    }

    fn ask(&mut self, question: Question, waiter: u32) {
        self.session.put(Order::any(question), Some(waiter));
    }

    fn load(&mut self, oid: u64, before: Tid, waiter: u32) {
        self.ask(Question::Load { oid: Oid(oid), before }, waiter);
    }

    /// All answers that nobody has taken yet.
    fn answers(&mut self) -> Vec<(u32, Outcome)> {
        std::iter::from_fn(|| self.session.poll()).collect()
    }

    /// The only answer that nobody has taken yet.
    fn answer(&mut self) -> (u32, Answer) {
        let mut answers = self.answers();
        assert_eq!(answers.len(), 1, "{answers:?}");
        let (waiter, outcome) = answers.remove(0);
        (waiter, outcome.unwrap())
    }

    /// What the cache gives for current; `None` is a miss.
    fn cached(&self, oid: u64) -> Option<(Vec<u8>, u64, Option<u64>)> {
        let revision = self.view.cache().load_before(Oid(oid), Tid::MAX)?;
        Some((revision.data.to_vec(), revision.serial.0, revision.end.map(|end| end.0)))
    }

    fn last(&self) -> u64 {
        self.view.last_tid().0
    }

    /// The tids of what others committed, as the application hears of them.
    fn heard(&self) -> Vec<u64> {
        match self.view.take_invalidations() {
            Invalidated::Transactions(list) => list.iter().map(|one| one.tid.0).collect(),
            Invalidated::Everything { until } => panic!("all is invalid until {until}"),
        }
    }

    /// The names of the calls that are to be sent, which takes them.
    fn calls(&mut self) -> Vec<&'static str> {
        let output = self.session.output().to_vec();
        self.session.sent(output.len());
        let mut rest = &output[..];
        let mut names = Vec::new();
        while let Some(frame) = split_frame(rest, wire::FRAME_MAX).unwrap() {
            rest = frame.rest;
            if let Ok(Incoming::Call(call)) = decode_call(self.codec, frame.body) {
                names.push(call.request.name());
            }
        }
        assert_eq!(rest, b"");
        names
    }
}

fn view() -> Arc<View> {
    let options = CacheOptions { memory_max: 1 << 20, file: None };
    Arc::new(View::new(Cache::open(&options).unwrap().0))
}

/// A view of somebody who has seen transaction `last` and remembers `oid` as of it.
fn remembering(last: u64, oid: u64, is_live: bool) -> Arc<View> {
    let view = view();
    view.start_anew(Tid(last));
    let revision = Revision { data: Bytes::from_static(b"seen"), serial: Tid(last), end: None };
    view.loaded(Oid(oid), &revision);
    if is_live {
        let value = info();
        let Ok(Answer::Info(info)) = Kind::Info.read(&value).unwrap() else { panic!("{value:?}") };
        view.be_informed(info);
    }
    view
}

fn eight(number: u64) -> Value<'static> {
    Value::Bytes(number.to_be_bytes().to_vec().into())
}

fn tid(number: u64) -> Value<'static> {
    eight(number)
}

fn text(text: &'static str) -> Value<'static> {
    Value::Str(text.into())
}

fn bytes(bytes: &'static [u8]) -> Value<'static> {
    Value::Bytes(bytes.into())
}

fn info() -> Value<'static> {
    Value::Dict(vec![
        (text("length"), Value::Int(2)),
        (text("size"), Value::Int(300)),
        (text("name"), text("Data.fs")),
        (text("supportsUndo"), Value::Bool(true)),
        (text("interfaces"), Value::Tuple(vec![])),
    ])
}

/// What an iterator gives for a transaction.
fn entry(number: u64, status: &'static str) -> Value<'static> {
    let none = || bytes(b"");
    Value::Tuple(vec![tid(number), text(status), none(), none(), Value::Dict(vec![])])
}

/// The answer to `getInvalidations`.
fn changes(until: u64, oids: &[u64]) -> Value<'static> {
    Value::Tuple(vec![tid(until), Value::List(oids.iter().copied().map(eight).collect())])
}

/// The end of a transaction that stored these states.
fn finish(stored: &[(u64, &'static [u8])], others: &[u64]) -> Question {
    let stored = stored.iter().map(|(oid, data)| (Oid(*oid), Bytes::from_static(data))).collect();
    let others = others.iter().copied().map(Oid).collect();
    let id = request::TransactionId(1);
    Question::Finish(Box::new(Finish { id, stored, others, then: None }))
}

/// The answer that a caller gets to a load.
fn revision(data: &'static [u8], serial: u64, end: Option<u64>) -> Answer {
    let data = Bytes::from_static(data);
    Answer::Revision(Some(Revision { data, serial: Tid(serial), end: end.map(Tid) }))
}
