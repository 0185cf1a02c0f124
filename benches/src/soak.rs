//! The soak of the hand-over: millions of calls from several threads, with chance deciding on both
//! sides who spins, yields, sleeps, and where the stream is cut. It measures nothing: one wake-up
//! that is lost is a call that is not answered within its deadline, and fails the run.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use zeoring_client::cache::CacheOptions;
use zeoring_client::{Client, ClientError, DrivenClient, Options};
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::request::{Incoming, Request};
use zeoring_shared::wire::value::Value;
use zeoring_shared::wire::{self, Codec};

use crate::canned::CannedReply;
use crate::clients::Loads;
use crate::error::{BenchError, doing};

/// A call that takes so long was not woken: answers are microseconds away.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long to look before sleeping: always asleep, sometimes, hardly ever.
const SPINS: [Duration; 3] =
    [Duration::ZERO, Duration::from_micros(20), Duration::from_micros(200)];

/// Between two lines that tell how far it is.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What `zeoring-bench soak` is told.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Calls in all, shared out among both clients and three ways to wait.
    #[arg(long, default_value_t = 10_000_000)]
    calls: u64,
    /// Application threads that share a client.
    #[arg(long, default_value_t = 4)]
    threads: u64,
    /// What chance begins with; the same one makes the same choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Chance (Marsaglia's xorshift64).
struct Dice(u64);

impl Dice {
    fn new(seed: u64, number: u64) -> Self {
        Self((seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_add(1)).max(1))
    }

    /// A number below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// Goes on at once, mostly; else lets others run, spins or sleeps a little.
    fn dawdle(&mut self) {
        match self.roll(64) {
            0 => std::thread::sleep(Duration::from_micros(self.roll(100))),
            1..8 => std::thread::yield_now(),
            8..16 => (0..self.roll(2_000)).for_each(|_| std::hint::spin_loop()),
            _ => {}
        }
    }
}

/// Runs it, and says what was done.
pub(crate) fn run(arguments: &Arguments) -> Result<(), BenchError> {
    let Arguments { calls, threads, seed } = *arguments;
    let share = calls.div_ceil(2 * SPINS.len() as u64);
    println!("{calls} calls by {threads} threads, seed {seed}");
    for (number, spin) in (0..).zip(SPINS) {
        soak("DrivenClient", DrivenClient::open, share, threads, seed + 2 * number, spin)?;
        soak("Client", Client::open, share, threads, seed + 2 * number + 1, spin)?;
    }
    println!("no wake-up was lost");
    Ok(())
}

fn soak<C: Loads>(
    name: &str,
    open: impl FnOnce(Options) -> Result<C, ClientError>,
    calls: u64,
    threads: u64,
    seed: u64,
    spin: Duration,
) -> Result<(), BenchError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(doing("listening"))?;
    let address: SocketAddr = listener.local_addr().map_err(doing("listening"))?;
    let (done, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let begun = Instant::now();
    // It ends with the client's connection.
    let server = std::thread::spawn(move || serve(&listener, seed));
    let client = open(Options {
        cache: CacheOptions { memory_max: 0, ..CacheOptions::default() },
        deadline: DEADLINE,
        spin,
        ..Options::new([address.into()])
    })?;
    let work = |thread: u64| -> Result<(), ClientError> {
        let mut dice = Dice::new(seed, thread);
        for _ in 0..calls.div_ceil(threads) {
            // Few objects, so that several threads often wait for one answer.
            client.load(Oid(dice.roll(8)))?;
            done.fetch_add(1, Ordering::Relaxed);
            dice.dawdle();
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> =
            (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        scope.spawn(|| tell(name, &done, &is_over));
        let results: Vec<_> = workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker does not panic"))
            .collect();
        is_over.store(true, Ordering::Relaxed);
        results.into_iter().collect::<Result<Vec<()>, _>>()
    })?;
    drop(client);
    server.join().expect("the server's thread does not panic");
    let seconds = begun.elapsed().as_secs_f64();
    let done = done.load(Ordering::Relaxed);
    println!("{name}, spinning {spin:?}, seed {seed}: {done} calls answered in {seconds:.1} s");
    Ok(())
}

/// Says now and then how far it is: whoever sees the number stand still knows.
fn tell(name: &str, done: &AtomicU64, is_over: &AtomicBool) {
    let mut told = Instant::now();
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
        if TELL_EVERY <= told.elapsed() {
            told = Instant::now();
            eprintln!("{name}: {} calls", done.load(Ordering::Relaxed));
        }
    }
}

/// Answers one client: late or at once, whole or in pieces.
fn serve(listener: &TcpListener, seed: u64) {
    let Ok((stream, _)) = listener.accept() else { return };
    // An error is the client's end, or becomes one of its calls'.
    let _ = answer(stream, &mut Dice::new(seed, u64::MAX / 2));
}

fn answer(mut stream: TcpStream, dice: &mut Dice) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let reply = CannedReply::new();
    let mut output = Vec::new();
    wire::handshake::announce(Codec::Msgpack, &mut output);
    stream.write_all(&output)?;
    let (mut input, mut kept, mut has_greeted) = (vec![0; 64 * 1024], Vec::new(), false);
    loop {
        let count = stream.read(&mut input)?;
        if count == 0 {
            return Ok(());
        }
        kept.extend_from_slice(&input[..count]);
        output.clear();
        let mut rest = &kept[..];
        loop {
            while has_greeted && reply.answer(rest, &mut output) {
                rest = &rest[reply.request_length()..];
            }
            let frame = wire::frame::split_frame(rest, wire::FRAME_MAX);
            let Some(frame) = frame.map_err(std::io::Error::other)? else { break };
            rest = frame.rest;
            if has_greeted {
                answer_other(frame.body, &mut output)?;
            }
            has_greeted = true;
        }
        kept.drain(..kept.len() - rest.len());
        send_in_pieces(&mut stream, &output, dice)?;
    }
}

fn send_in_pieces(
    stream: &mut TcpStream,
    mut bytes: &[u8],
    dice: &mut Dice,
) -> std::io::Result<()> {
    while !bytes.is_empty() {
        dice.dawdle();
        let is_cut = dice.roll(4) == 0;
        let count = if is_cut { 1 + dice.roll(bytes.len() as u64) as usize } else { bytes.len() };
        stream.write_all(&bytes[..count])?;
        bytes = &bytes[count..];
    }
    Ok(())
}

/// What a client asks besides loads: it registers, and wants to know what the storage is.
fn answer_other(body: &[u8], output: &mut Vec<u8>) -> std::io::Result<()> {
    let call = wire::request::decode_call(Codec::Msgpack, body).map_err(std::io::Error::other)?;
    let Incoming::Call(call) = call else { return Ok(()) };
    let last = Tid(1).to_bytes();
    let value = match call.request {
        Request::Register { .. } => Value::Bytes(last.as_slice().into()),
        Request::GetInfo => Value::Dict(vec![
            (Value::Str("name".into()), Value::Str("soak".into())),
            (Value::Str("length".into()), Value::Int(8)),
            (Value::Str("size".into()), Value::Int(8_000)),
            (Value::Str("supportsUndo".into()), Value::Bool(false)),
            (Value::Str("interfaces".into()), Value::Tuple(Vec::new())),
        ]),
        _ => return Ok(()),
    };
    wire::reply::reply(Codec::Msgpack, &call.id, &value, output);
    Ok(())
}
