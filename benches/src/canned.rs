//! The ceiling: a responder that speaks just enough ZEO to be loaded from, and has no storage.
//!
//! Every `loadBefore` gets the same canned reply with the id of its request copied in. It spins on
//! `epoll_wait(0)` while anybody is connected and answers all requests of a read with one send,
//! which is as little as a server can do; what a real server reaches is read as a ratio to it.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::Timespec;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::request::{Incoming, Request};
use zeoring_shared::wire::value::Value;
use zeoring_shared::wire::{self, Codec, MessageId};

use crate::error::{BenchError, doing};
use crate::floor::write_spinning;
use crate::raw::{LoadShape, RECORD_LEN, record};

/// The token of the listening socket; connections have their place in the list.
const LISTENER: u64 = u64::MAX;

/// A read takes up to so many requests at once: 1,000 loads are 59 kB.
const READ_LEN: usize = 256 * 1024;

const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Answers until the process is killed: the body of the responder process.
pub(crate) fn respond() -> Result<(), BenchError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(doing("listening"))?;
    println!("{}", listener.local_addr().map_err(doing("listening"))?);
    Canned::new(listener)?.run()
}

struct Canned {
    listener: TcpListener,
    epoll: OwnedFd,
    /// A slot is free when it holds `None`; its index is the token of its connection.
    connections: Vec<Option<Connection>>,
    open: usize,
    reply: CannedReply,
    input: Vec<u8>,
    output: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// The part of a frame that the last read ended in.
    rest: Vec<u8>,
    phase: Phase,
}

enum Phase {
    /// The client's half of the handshake is due.
    Greeting,
    /// It may register and load.
    Open,
}

impl Canned {
    fn new(listener: TcpListener) -> Result<Self, BenchError> {
        listener.set_nonblocking(true).map_err(doing("listening"))?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|e| doing("making an epoll set")(e.into()))?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)
            .map_err(|e| doing("watching a socket")(e.into()))?;
        Ok(Self {
            listener,
            epoll,
            connections: Vec::new(),
            open: 0,
            reply: CannedReply::new(),
            input: vec![0; READ_LEN],
            output: Vec::new(),
        })
    }

    fn run(&mut self) -> Result<(), BenchError> {
        let mut events = Vec::with_capacity(256);
        loop {
            // Nobody to answer: sleep, and leave the CPU to whatever is measured meanwhile.
            let wait = if self.open == 0 { None } else { Some(&NO_WAIT) };
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), wait) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(doing("waiting for sockets")(e.into())),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    token => self.turn(token as usize),
                }
            }
        }
    }

    fn accept(&mut self) -> Result<(), BenchError> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(doing("accepting")(e)),
        };
        stream.set_nodelay(true).map_err(doing("accepting"))?;
        stream.set_nonblocking(true).map_err(doing("accepting"))?;
        let free = self.connections.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.connections.len());
        epoll::add(&self.epoll, &stream, EventData::new_u64(slot as u64), EventFlags::IN)
            .map_err(|e| doing("watching a socket")(e.into()))?;
        self.output.clear();
        wire::handshake::announce(Codec::Msgpack, &mut self.output);
        write_spinning(&mut &stream, &self.output).map_err(doing("greeting a client"))?;
        let connection = Connection { stream, rest: Vec::new(), phase: Phase::Greeting };
        match free {
            Some(_) => self.connections[slot] = Some(connection),
            None => self.connections.push(Some(connection)),
        }
        self.open += 1;
        Ok(())
    }

    /// Reads once and answers all of it with one send. A client that misbehaves loses its place.
    fn turn(&mut self, slot: usize) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        self.output.clear();
        let outcome = connection.turn(&self.reply, &mut self.input, &mut self.output);
        if outcome.is_none() {
            // Closing the socket takes it out of the epoll set.
            self.connections[slot] = None;
            self.open -= 1;
        }
    }
}

impl Connection {
    /// `None` ends the connection.
    fn turn(&mut self, reply: &CannedReply, input: &mut [u8], output: &mut Vec<u8>) -> Option<()> {
        let count = match self.stream.read(input) {
            Ok(0) => return None,
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Some(()),
            Err(_) => return None,
        };
        if self.rest.is_empty() {
            let parsed = self.answer_all(reply, &input[..count], output)?;
            self.rest.extend_from_slice(&input[parsed..count]);
        } else {
            let mut joined = std::mem::take(&mut self.rest);
            joined.extend_from_slice(&input[..count]);
            let parsed = self.answer_all(reply, &joined, output)?;
            joined.drain(..parsed);
            self.rest = joined;
        }
        write_spinning(&mut self.stream, output).ok()
    }

    /// Answers every whole frame of `input`, and says how many bytes those were.
    fn answer_all(
        &mut self,
        reply: &CannedReply,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> Option<usize> {
        let mut rest = input;
        loop {
            if let Phase::Open = self.phase {
                while reply.answer(rest, output) {
                    rest = &rest[reply.shape.request..];
                }
            }
            let Some(frame) =
                wire::frame::split_frame(rest, wire::FRAME_BEFORE_REGISTER_MAX).ok()?
            else {
                return Some(input.len() - rest.len());
            };
            rest = frame.rest;
            match self.phase {
                Phase::Greeting => {
                    wire::handshake::read_answer(frame.body).ok()?;
                    self.phase = Phase::Open;
                }
                Phase::Open => answer_other(frame.body, output)?,
            }
        }
    }
}

/// Answers what a client asks besides loads: it registers, and it may ping.
fn answer_other(body: &[u8], output: &mut Vec<u8>) -> Option<()> {
    let Incoming::Call(call) = wire::request::decode_call(Codec::Msgpack, body).ok()? else {
        return Some(());
    };
    let last = Tid(1).to_bytes();
    let value = match call.request {
        Request::Register { .. } => Value::Bytes(last.as_slice().into()),
        Request::Ping => Value::None,
        _ => return None,
    };
    wire::reply::reply(Codec::Msgpack, &call.id, &value, output);
    Some(())
}

/// The one reply there is, and where the id goes.
pub(crate) struct CannedReply {
    shape: LoadShape,
    /// What follows the id in a request, up to the arguments: it tells a load from other calls.
    mark: Vec<u8>,
    frame: Vec<u8>,
}

impl CannedReply {
    pub(crate) fn new() -> Self {
        let shape = LoadShape::measure();
        let id = MessageId::load(Codec::Msgpack, Oid(0), Tid::MAX);
        let mut frame = Vec::new();
        let data = record(Oid(0), RECORD_LEN);
        wire::reply::load_reply(Codec::Msgpack, &id, &data, Tid(1), None, &mut frame);
        let request = shape.encode(Oid(0));
        let mark = request[shape.id.end..shape.arguments].to_vec();
        Self { shape, mark, frame }
    }

    /// The length of a load's request.
    pub(crate) fn request_length(&self) -> usize {
        self.shape.request
    }

    /// Answers the load at the front of `input`, or returns false: it is no load, or not whole.
    pub(crate) fn answer(&self, input: &[u8], output: &mut Vec<u8>) -> bool {
        let Some(request) = input.get(..self.shape.request) else { return false };
        let name = self.shape.id.end..self.shape.arguments;
        if request[name] != self.mark {
            return false;
        }
        let start = output.len();
        output.extend_from_slice(&self.frame);
        let id = start + self.shape.id.start..start + self.shape.id.end;
        output[id].copy_from_slice(&request[self.shape.id.clone()]);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canned_reply_is_what_a_server_would_send_but_for_the_data() {
        let canned = CannedReply::new();
        for oid in [Oid(0), Oid(7), Oid(u64::MAX)] {
            let mut output = Vec::new();
            assert!(canned.answer(&canned.shape.encode(oid), &mut output));
            let id = MessageId::load(Codec::Msgpack, oid, Tid::MAX);
            let data = record(Oid(0), RECORD_LEN);
            let mut expected = Vec::new();
            wire::reply::load_reply(Codec::Msgpack, &id, &data, Tid(1), None, &mut expected);
            assert_eq!(output, expected);
        }
    }

    #[test]
    fn part_of_a_request_is_not_answered() {
        let canned = CannedReply::new();
        let request = canned.shape.encode(Oid(7));
        for end in 0..request.len() {
            assert!(!canned.answer(&request[..end], &mut Vec::new()));
        }
    }
}
