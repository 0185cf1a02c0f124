//! The raw client: the least a load generator can do, so that it is never what is measured.
//!
//! Requests are encoded before the clock starts, one after the other, so that a burst is one send
//! of a slice. Replies are counted by their frame lengths and not decoded; now and then one is
//! looked at, and must name the object that was asked for.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::time::Duration;

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::reply::FromServer;
use zeoring_shared::wire::request::{Call, Request};
use zeoring_shared::wire::{self, Codec, MessageId};

use crate::error::{BenchError, doing};
use crate::floor::write_spinning;

/// Every object of a measurement has so many bytes: the 1 kB of the tables.
pub(crate) const RECORD_LEN: usize = 1_000;

/// One reply of so many is looked at.
const LOOK_EVERY: u64 = 64;

/// A peer that has not registered us by then is broken.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Bytes before the body of a frame.
const LENGTH_LEN: usize = 4;

/// A data record of exactly `length` bytes as ZODB writes them: two pickles, the class and the
/// state. The state begins with the oid, so that a wrong object is seen.
///
/// Panics when `length` is too short for the frame around the payload, which takes 68 bytes.
pub(crate) fn record(oid: Oid, length: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(length);
    // PersistentMapping, given by its module and name; then {'data': {}, 'x': bytes}.
    data.extend_from_slice(b"\x80\x03cpersistent.mapping\nPersistentMapping\n.");
    data.extend_from_slice(b"\x80\x03}(X\x04\x00\x00\x00data}X\x01\x00\x00\x00xB");
    // The payload's length, the payload, and the end: SETITEMS, STOP.
    let payload = length - data.len() - 4 - 2;
    data.extend_from_slice(&(payload as u32).to_le_bytes());
    let start = data.len();
    data.extend_from_slice(&oid.to_bytes());
    data.extend((data.len() - start..payload).map(|at| b'a' + (at % 23) as u8));
    data.extend_from_slice(b"u.");
    data
}

/// Where things are in the frame of a `loadBefore(oid, maxtid)` and of its reply: every oid takes
/// the same bytes, so this is measured once.
#[derive(Clone, Debug)]
pub(crate) struct LoadShape {
    /// The length of a request's frame.
    pub(crate) request: usize,
    /// The length of the frame of a reply with [`RECORD_LEN`] bytes that are current.
    pub(crate) reply: usize,
    /// The message id, in both frames.
    pub(crate) id: Range<usize>,
    /// Where the arguments begin in a request.
    pub(crate) arguments: usize,
}

impl LoadShape {
    /// Encodes one of each, and looks.
    pub(crate) fn measure() -> Self {
        let id = MessageId::load(Codec::Msgpack, Oid(0), Tid::MAX);
        // An array of four begins with one byte, then comes the id.
        let start = LENGTH_LEN + 1;
        let span = start..start + id.as_bytes().len();
        let mut reply = Vec::new();
        wire::reply::load_reply(Codec::Msgpack, &id, &[0; RECORD_LEN], Tid(1), None, &mut reply);
        let mut shape = Self { request: 0, reply: reply.len(), id: span.clone(), arguments: 0 };
        let request = shape.encode(Oid(0));
        assert_eq!(request[span.clone()], *id.as_bytes(), "the id leads a request");
        assert_eq!(reply[span], *id.as_bytes(), "the id leads a reply");
        shape.request = request.len();
        shape.arguments = request.len() - id.as_bytes().len();
        shape
    }

    /// The frame that asks for the current revision of `oid`.
    pub(crate) fn encode(&self, oid: Oid) -> Vec<u8> {
        let mut frame = Vec::with_capacity(self.request);
        let id = MessageId::load(Codec::Msgpack, oid, Tid::MAX);
        let request = Request::LoadBefore { oid, before: Tid::MAX };
        wire::request::encode_call(
            Codec::Msgpack,
            &Call { id, oneway: false, request },
            &mut frame,
        );
        frame
    }
}

/// The longest burst that leaves as one slice.
pub(crate) const BURST_MAX: u64 = 100;

/// Requests for the oids from 0 up, back to back in memory, and [`BURST_MAX`] more from 0 on, so
/// that a burst is one slice wherever it begins.
pub(crate) struct Requests {
    shape: LoadShape,
    bytes: Vec<u8>,
    oids: u64,
}

impl Requests {
    /// Encodes a load of each oid below `oids`.
    pub(crate) fn encode(oids: u64) -> Self {
        let shape = LoadShape::measure();
        let bytes = (0..oids + BURST_MAX).flat_map(|n| shape.encode(Oid(n % oids))).collect();
        Self { shape, bytes, oids }
    }

    /// The lengths of the two frames.
    pub(crate) fn shape(&self) -> &LoadShape {
        &self.shape
    }

    /// `count` requests from `first` on.
    fn slice(&self, first: u64, count: u64) -> &[u8] {
        assert!(count <= BURST_MAX, "a burst is one slice");
        let from = first as usize * self.shape.request;
        &self.bytes[from..from + count as usize * self.shape.request]
    }
}

/// A registered connection that loads as fast as its peer answers.
pub(crate) struct RawConnection<'r> {
    stream: TcpStream,
    requests: &'r Requests,
    /// The oid that is asked for next.
    next: u64,
    /// Asked for and not yet answered.
    waiting: u64,
    replies: ReplyCounter,
}

impl<'r> RawConnection<'r> {
    /// Connects, shakes hands, registers read-only, and turns the socket non-blocking.
    ///
    /// `first` is the oid it starts with, so that connections do not ask for the same.
    pub(crate) fn open(
        address: SocketAddr,
        requests: &'r Requests,
        first: u64,
    ) -> Result<Self, BenchError> {
        let stream = register(address)?;
        stream.set_nonblocking(true).map_err(doing("preparing a socket"))?;
        let next = first % requests.oids;
        let replies = ReplyCounter::new(requests, next);
        Ok(Self { stream, requests, next, waiting: 0, replies })
    }

    /// The socket, to watch it.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Asks for the next `count` objects, at most [`BURST_MAX`], with one send if the socket takes
    /// it.
    pub(crate) fn ask(&mut self, count: u64) -> Result<(), BenchError> {
        let bytes = self.requests.slice(self.next, count);
        write_spinning(&mut self.stream, bytes).map_err(doing("sending loads"))?;
        self.next = (self.next + count) % self.requests.oids;
        self.waiting += count;
        Ok(())
    }

    /// Receives once, and returns how many loads that finished: zero when nothing was there.
    pub(crate) fn take(&mut self, buffer: &mut [u8]) -> Result<u64, BenchError> {
        let count = match self.stream.read(buffer) {
            Ok(0) => {
                return Err(BenchError::WrongAnswer { peer: "a ZEO server", fact: "it hung up" });
            }
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(0),
            Err(e) => return Err(doing("receiving loads")(e)),
        };
        let replies = self.replies.count(&buffer[..count])?;
        let Some(waiting) = self.waiting.checked_sub(replies) else {
            return Err(BenchError::WrongAnswer {
                peer: "a ZEO server",
                fact: "it answered more than was asked",
            });
        };
        self.waiting = waiting;
        Ok(replies)
    }

    /// Receives, spinning, until nothing is owed.
    pub(crate) fn take_all(&mut self, buffer: &mut [u8]) -> Result<(), BenchError> {
        while 0 < self.waiting {
            if self.take(buffer)? == 0 {
                std::hint::spin_loop();
            }
        }
        Ok(())
    }

    /// How many loads are owed.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting
    }
}

/// How many later replies may overtake one.
const LATE_MAX: u64 = 256;

/// Counts frames in a stream that may be cut anywhere, and looks at one of [`LOOK_EVERY`].
struct ReplyCounter {
    shape: LoadShape,
    /// The frame that the last bytes ended in, when it is small enough to matter: its length may
    /// be cut, and so may the id.
    head: Vec<u8>,
    /// Bytes still to come of a frame whose head is known.
    body_left: usize,
    /// How many replies have begun.
    begun: u64,
    first: u64,
    oids: u64,
}

impl ReplyCounter {
    fn new(requests: &Requests, first: u64) -> Self {
        Self {
            shape: requests.shape.clone(),
            head: Vec::new(),
            body_left: 0,
            begun: 0,
            first,
            oids: requests.oids,
        }
    }

    fn count(&mut self, mut input: &[u8]) -> Result<u64, BenchError> {
        let head_len = self.shape.id.end;
        let mut ended = 0;
        loop {
            if 0 < self.body_left {
                let skipped = self.body_left.min(input.len());
                input = &input[skipped..];
                self.body_left -= skipped;
                if 0 < self.body_left {
                    return Ok(ended);
                }
                ended += 1;
            }
            if self.head.is_empty() && head_len <= input.len() {
                let (head, rest) = input.split_at(head_len);
                self.look(head)?;
                input = rest;
                continue;
            }
            let missing = (head_len - self.head.len()).min(input.len());
            self.head.extend_from_slice(&input[..missing]);
            input = &input[missing..];
            if self.head.len() < head_len {
                return Ok(ended);
            }
            let head = std::mem::take(&mut self.head);
            self.look(&head)?;
        }
    }

    /// Takes the head of a reply: its length must be that of a load, and its id the one expected.
    fn look(&mut self, head: &[u8]) -> Result<(), BenchError> {
        let wrong = |fact| Err(BenchError::WrongAnswer { peer: "a ZEO server", fact });
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if LENGTH_LEN + length != self.shape.reply {
            return wrong("a reply has not the length of a load");
        }
        if self.begun.is_multiple_of(LOOK_EVERY) {
            // A load that had to wait for the disk may be answered after later ones.
            let expected = self.first + self.begun;
            let near = (0..2 * LATE_MAX).any(|off| {
                let oid = Oid((expected + off + self.oids - LATE_MAX % self.oids) % self.oids);
                let id = MessageId::load(Codec::Msgpack, oid, Tid::MAX);
                head[self.shape.id.clone()] == *id.as_bytes()
            });
            if !near {
                return wrong("a reply is for an object that was not asked for lately");
            }
        }
        self.begun += 1;
        self.body_left = self.shape.reply - head.len();
        Ok(())
    }
}

/// Opens a connection and registers read-only, blocking.
pub(crate) fn register(address: SocketAddr) -> Result<TcpStream, BenchError> {
    let open = || {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(HANDSHAKE_MAX))?;
        Ok(stream)
    };
    let mut stream = open().map_err(doing("connecting"))?;
    wire::handshake::read_announcement(&read_frame(&mut stream)?)?;
    let mut output = Vec::new();
    wire::handshake::answer(Codec::Msgpack, &mut output);
    let request = Request::Register { storage: "1".into(), read_only: true };
    let id = MessageId::int(Codec::Msgpack, 1);
    wire::request::encode_call(Codec::Msgpack, &Call { id, oneway: false, request }, &mut output);
    stream.write_all(&output).map_err(doing("registering"))?;
    let body = read_frame(&mut stream)?;
    match wire::reply::decode_from_server(Codec::Msgpack, &body)? {
        FromServer::Reply { .. } => Ok(stream),
        _ => Err(BenchError::WrongAnswer { peer: "a ZEO server", fact: "it did not register us" }),
    }
}

fn read_frame(stream: &mut TcpStream) -> Result<Vec<u8>, BenchError> {
    let mut length = [0; LENGTH_LEN];
    stream.read_exact(&mut length).map_err(doing("shaking hands"))?;
    let length = u32::from_be_bytes(length);
    if wire::FRAME_BEFORE_REGISTER_MAX < length {
        return Err(BenchError::WrongAnswer { peer: "a ZEO server", fact: "it greets too long" });
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).map_err(doing("shaking hands"))?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(oids: impl Iterator<Item = u64>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for oid in oids.map(Oid) {
            let id = MessageId::load(Codec::Msgpack, oid, Tid::MAX);
            let data = record(oid, RECORD_LEN);
            wire::reply::load_reply(Codec::Msgpack, &id, &data, Tid(1), None, &mut bytes);
        }
        bytes
    }

    #[test]
    fn replies_cut_anywhere_are_counted_once() {
        let requests = Requests::encode(5);
        let stream = replies((0..10).map(|n| (n + 3) % 5));
        for piece in [1, 2, 3, 7, 25, 26, 1000, 1049, 4096, stream.len()] {
            let mut counter = ReplyCounter::new(&requests, 3);
            let counted: u64 = stream.chunks(piece).map(|c| counter.count(c).unwrap()).sum();
            assert_eq!(counted, 10, "in pieces of {piece} bytes");
        }
    }

    #[test]
    fn a_reply_for_another_object_is_noticed() {
        let requests = Requests::encode(1000);
        assert!(ReplyCounter::new(&requests, 3).count(&replies([700].into_iter())).is_err());
    }

    #[test]
    fn a_record_has_the_length_that_was_asked_for() {
        for length in [100, RECORD_LEN, 70_000] {
            assert_eq!(record(Oid(9), length).len(), length);
        }
    }
}
