//! The floor: the same bytes there and back over plain sockets, with no ZEO in between.
//!
//! Both ends spin on a non-blocking `recv`; nothing is parsed. The responder sleeps in `accept`
//! while nobody is connected, so that it takes no CPU from what is measured in turn with it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use crate::error::{BenchError, doing};
use crate::report::Latencies;

/// The two lengths that a client announces: four bytes each, big endian.
const HELLO_LEN: usize = 8;

/// No message of a floor is longer; a responder takes no orders for more.
const MESSAGE_MAX: usize = 1 << 20;

/// The sizes of one round trip, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct RoundTrip {
    /// What the client sends.
    pub(crate) request: usize,
    /// What comes back.
    pub(crate) reply: usize,
}

/// Answers one client after the other, for ever: the body of the responder process.
pub(crate) fn respond() -> Result<(), BenchError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(doing("listening"))?;
    println!("{}", listener.local_addr().map_err(doing("listening"))?);
    loop {
        let (stream, _) = listener.accept().map_err(doing("accepting"))?;
        // A client that leaves in the middle of a message ends its own service only.
        let _ = serve(stream);
    }
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut hello = [0; HELLO_LEN];
    stream.read_exact(&mut hello)?;
    let [a, b, c, d, e, f, g, h] = hello;
    let length = |bytes| (u32::from_be_bytes(bytes) as usize).min(MESSAGE_MAX);
    let mut request = vec![0; length([a, b, c, d])];
    let reply = vec![0; length([e, f, g, h])];
    stream.set_nonblocking(true)?;
    loop {
        read_spinning(&mut stream, &mut request)?;
        write_spinning(&mut stream, &reply)?;
    }
}

/// One connection to the responder.
pub(crate) struct Floor {
    stream: TcpStream,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Floor {
    /// Connects for round trips of one size.
    pub(crate) fn connect(address: SocketAddr, sizes: RoundTrip) -> Result<Self, BenchError> {
        let open = || {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            let hello = (sizes.request as u64) << 32 | sizes.reply as u64;
            stream.write_all(&hello.to_be_bytes())?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        let stream = open().map_err(doing("connecting to the floor"))?;
        Ok(Self { stream, request: vec![1; sizes.request], reply: vec![0; sizes.reply] })
    }

    /// Goes there and back until `end`, and counts every round.
    pub(crate) fn measure(
        &mut self,
        end: Instant,
        latencies: &mut Latencies,
    ) -> Result<(), BenchError> {
        let mut started = Instant::now();
        while started < end {
            write_spinning(&mut self.stream, &self.request).map_err(doing("sending"))?;
            read_spinning(&mut self.stream, &mut self.reply).map_err(doing("receiving"))?;
            let now = Instant::now();
            latencies.record(now - started);
            started = now;
        }
        Ok(())
    }
}

/// Fills `bytes` from a non-blocking stream without ever sleeping.
pub(crate) fn read_spinning(stream: &mut impl Read, bytes: &mut [u8]) -> std::io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes all of `bytes` to a non-blocking stream without ever sleeping.
pub(crate) fn write_spinning(stream: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
