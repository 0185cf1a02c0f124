//! A client that commits one object after the other: a session over a non-blocking socket, moved
//! on by whoever finds something to read on it.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use zeoring_client::session::{Answer, Event, SessionError, Ticket, TransactionId, Verdict};
use zeoring_client::{ClientError, Description, Session};
use zeoring_shared::ids::{Oid, Tid};

use crate::error::{BenchError, doing};
use crate::floor::write_spinning;
use crate::raw::{RECORD_LEN, record};

/// One connection and the objects that only it writes.
pub(crate) struct Committer<'o> {
    stream: TcpStream,
    session: Session,
    /// Each object and its current serial; they are written in turn.
    objects: &'o mut [(Oid, Tid)],
    at: usize,
    data: Vec<u8>,
    description: Description,
    transaction: u64,
    phase: Phase,
}

/// Where the commit that is under way stands.
enum Phase {
    Registering,
    Idle,
    Voting { vote: Ticket, started: Instant },
    Finishing { finish: Ticket, started: Instant },
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
        let mut committer = Self {
            stream: open().map_err(doing("connecting"))?,
            session: Session::new("1", false),
            objects,
            at: 0,
            data: record(Oid(0), RECORD_LEN),
            description: Description::default(),
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
        self.session.begin(id, &self.description);
        self.session.store(id, oid, serial, &self.data);
        let vote = self.session.vote(id);
        self.phase = Phase::Voting { vote, started };
        self.flush()
    }

    /// Receives once and goes on; how long the commit took, if that was the end of it.
    pub(crate) fn turn(&mut self) -> Result<Option<Duration>, BenchError> {
        let count = match self.stream.read(self.session.space()) {
            Ok(0) => return Err(wrong("it hung up")),
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(doing("receiving")(e)),
        };
        self.session.receive(count).map_err(|e: SessionError| ClientError::from(e))?;
        let mut took = None;
        while let Some(event) = self.session.poll() {
            took = self.step(event)?.or(took);
        }
        // What others commit is told to each of us; nobody here has a cache.
        self.session.take_invalidations();
        self.flush()?;
        Ok(took)
    }

    fn step(&mut self, event: Event) -> Result<Option<Duration>, BenchError> {
        let id = TransactionId(self.transaction);
        match (event, &self.phase) {
            (Event::Registered(result), Phase::Registering) => {
                result.map_err(ClientError::from)?;
                self.phase = Phase::Idle;
                Ok(None)
            }
            (Event::Answered(ticket, result), Phase::Voting { vote, started })
                if ticket == *vote =>
            {
                let Answer::Verdict(Verdict::Accepted(_)) = result.map_err(ClientError::from)?
                else {
                    return Err(wrong("it saw a conflict between disjoint objects"));
                };
                let started = *started;
                self.phase = Phase::Finishing { finish: self.session.finish(id), started };
                Ok(None)
            }
            (Event::Answered(ticket, result), Phase::Finishing { finish, started })
                if ticket == *finish =>
            {
                let Answer::Tid(tid) = result.map_err(ClientError::from)? else {
                    return Err(wrong("it finished without a tid"));
                };
                let took = started.elapsed();
                self.objects[self.at].1 = tid;
                self.at = (self.at + 1) % self.objects.len();
                self.transaction += 1;
                self.phase = Phase::Idle;
                Ok(Some(took))
            }
            _ => Err(wrong("it answered what was not asked")),
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

fn wrong(fact: &'static str) -> BenchError {
    BenchError::WrongAnswer { peer: "the server", fact }
}
