//! A client that commits one object after the other: a session over a non-blocking socket, moved
//! on by whoever finds something to read on it.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeoring_client::cache::{Cache, CacheOptions};
use zeoring_client::session::order::{Finish, Order, Question, encode_one_way};
use zeoring_client::session::{Answer, Hello, Inbound, Outcome, SessionError, Stage, Verdict};
use zeoring_client::{Access, Broken, ClientError, Session, View};
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::request::{Request, TransactionId};

use crate::error::{BenchError, doing};
use crate::floor::write_spinning;
use crate::raw::{RECORD_LEN, record};

/// One connection and the objects that only it writes.
pub(crate) struct Committer<'o> {
    stream: TcpStream,
    session: Session<()>,
    inbound: Inbound,
    /// Each object and its current serial; they are written in turn.
    objects: &'o mut [(Oid, Tid)],
    at: usize,
    data: Vec<u8>,
    transaction: u64,
    phase: Phase,
}

/// Where the commit that is under way stands.
enum Phase {
    Registering,
    Idle,
    Voting { started: Instant },
    Finishing { started: Instant },
}

impl<'o> Committer<'o> {
    /// Connects and registers. There must be an object at least.
    pub(crate) fn connect(
        address: SocketAddr,
        objects: &'o mut [(Oid, Tid)],
    ) -> Result<Self, BenchError> {
        let open = || {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        let nothing = CacheOptions { memory_max: 0, ..CacheOptions::default() };
        let (cache, _) = Cache::open(&nothing).map_err(ClientError::from)?;
        let hello = Hello { storage: "1".into(), access: Access::Write, label: None, codec: None };
        let mut committer = Self {
            stream: open().map_err(doing("connecting"))?,
            session: Session::new(hello, Arc::new(View::new(cache))),
            inbound: Inbound::new(),
            objects,
            at: 0,
            data: record(Oid(0), RECORD_LEN),
            transaction: 1,
            phase: Phase::Registering,
        };
        while matches!(committer.phase, Phase::Registering) {
            committer.turn()?;
            rustix::thread::sched_yield();
        }
        Ok(committer)
    }

    /// The socket, to watch it.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether no commit is under way.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Begins the next commit: everything up to its vote leaves in one send.
    pub(crate) fn begin(&mut self) -> Result<(), BenchError> {
        assert!(self.is_idle(), "one commit at a time");
        let started = Instant::now();
        let id = TransactionId(self.transaction);
        let (oid, serial) = self.objects[self.at];
        let mut frames = Vec::new();
        let (user, description, extension) = (b"".into(), b"".into(), b"".into());
        let begin = Request::TpcBegin { id, user, description, extension, tid: None, status: b' ' };
        encode_one_way(self.session.codec(), begin, &mut frames);
        let store = Request::Storea { oid, serial, data: self.data.as_slice().into(), id };
        encode_one_way(self.session.codec(), store, &mut frames);
        let question = Question::Call(Request::Vote { id });
        self.session.put(Order { epoch: None, frames, question }, Some(()));
        self.phase = Phase::Voting { started };
        self.flush()
    }

    /// Receives once and goes on; how long the commit took, if that was the end of it.
    pub(crate) fn turn(&mut self) -> Result<Option<Duration>, BenchError> {
        let count = match self.stream.read(self.inbound.space()) {
            Ok(0) => return Err(wrong("it hung up")),
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(doing("receiving")(e)),
        };
        self.inbound.fill(count);
        self.session.receive(&mut self.inbound).map_err(broken)?;
        if matches!(self.phase, Phase::Registering) {
            match self.session.stage() {
                Stage::Registered(_) => self.session.verify().map_err(broken)?,
                Stage::Refused(error) => return Err(ClientError::from(error.clone()).into()),
                Stage::Ready => self.phase = Phase::Idle,
                Stage::Greeting | Stage::Registering | Stage::Verifying => {}
            }
        }
        let mut took = None;
        while let Some(((), outcome)) = self.session.poll() {
            took = self.step(outcome)?.or(took);
        }
        self.flush()?;
        Ok(took)
    }

    fn step(&mut self, outcome: Outcome) -> Result<Option<Duration>, BenchError> {
        let id = TransactionId(self.transaction);
        match (outcome?, &self.phase) {
            (Answer::Verdict(Verdict::Accepted(_)), Phase::Voting { started }) => {
                let started = *started;
                let finish = Finish { id, stored: Vec::new(), others: Vec::new(), then: None };
                self.session.put(Order::any(Question::Finish(Box::new(finish))), Some(()));
                self.phase = Phase::Finishing { started };
                Ok(None)
            }
            (Answer::Tid(tid), Phase::Finishing { started }) => {
                let took = started.elapsed();
                self.objects[self.at].1 = tid;
                self.at = (self.at + 1) % self.objects.len();
                self.transaction += 1;
                self.phase = Phase::Idle;
                Ok(Some(took))
            }
            _ => Err(wrong("it saw a conflict between disjoint objects, or answered otherwise")),
        }
    }

    fn flush(&mut self) -> Result<(), BenchError> {
        let output = self.session.output();
        write_spinning(&mut self.stream, output).map_err(doing("sending"))?;
        let count = output.len();
        self.session.sent(count);
        Ok(())
    }
}

fn broken(error: SessionError) -> ClientError {
    Broken::Session(error).into()
}

fn wrong(fact: &'static str) -> BenchError {
    BenchError::WrongAnswer { peer: "the server", fact }
}
