//! Loads of 1 kB over TCP, each figure beside its floor or ceiling from the same round.
//!
//! All peers take turns within a round, and all are pinned alike: whatever answers on one CPU,
//! whatever asks on another. Who does not have its turn has no connections and sleeps.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::Timespec;
use serde_json::{Value, json};
use zeoring_client::{DrivenClient, Options};

use crate::error::{BenchError, doing};
use crate::floor::{Floor, RoundTrip};
use crate::machine::{CLIENT_CPU, Machine, SERVER_CPU, pin};
use crate::process::{Program, Responder, Server};
use crate::raw::{BURST_MAX, RawConnection, Requests};
use crate::report::{Latencies, Output, Table};
use crate::run::fill;

/// Connections that load one object at a time.
const CLOSED_LOOPS: [usize; 4] = [1, 8, 32, 100];

/// Connections that load [`BURST`] objects at a time.
const PIPELINES: [usize; 2] = [1, 8];

/// Loads in a burst: one send, and the next burst once all of it is answered.
const BURST: u64 = BURST_MAX;

/// One recv takes what a socket buffer holds.
const RECV_LEN: usize = 1 << 20;

/// Peers that are not measured go to sleep in this time.
const SETTLE: Duration = Duration::from_millis(5);

const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What the issue that asked for this server demands, as ratios.
const LATENCY_TARGET: &str = "<= 1.30 x floor";
const CLOSED_LOOP_TARGET: &str = ">= 0.85 x ceiling";
const PIPELINE_TARGET: &str = ">= 0.80 x ceiling";

/// What `zeoring-bench loads` is told.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Our server's binary [default: zeoring-server beside this program].
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// Measure floor and ceiling only.
    #[arg(long, conflicts_with = "server")]
    no_server: bool,
    /// A Python with the package ZEO, to measure the stock server as well.
    #[arg(long, value_name = "PATH")]
    stock_python: Option<PathBuf>,
    /// Rounds; every figure is taken once in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that each figure is measured in a round.
    #[arg(long, default_value_t = 0.4)]
    seconds: f64,
    /// Objects in the database.
    #[arg(long, default_value_t = 1_000)]
    objects: u64,
    /// Where data files go, in directories of their own [default: the system's temporary one].
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// Someone who answers loads, and what was measured of it.
struct Peer {
    name: &'static str,
    address: SocketAddr,
    latencies: Latencies,
    /// The p50 of the best round, in microseconds.
    lowest_p50: f64,
    /// Loads a second: for each of [`CLOSED_LOOPS`], then of [`PIPELINES`], the rounds in order.
    rates: Vec<Vec<f64>>,
}

impl Peer {
    fn new(name: &'static str, address: SocketAddr) -> Self {
        let rates = vec![Vec::new(); CLOSED_LOOPS.len() + PIPELINES.len()];
        Self { name, address, latencies: Latencies::new(), lowest_p50: f64::INFINITY, rates }
    }

    fn take(&mut self, round: &Latencies) {
        self.latencies.add(round);
        self.lowest_p50 = self.lowest_p50.min(round.percentile(50.0));
    }
}

/// The connections and the burst of each rate, in the order of [`Peer::rates`].
fn levels() -> impl Iterator<Item = (usize, u64)> {
    CLOSED_LOOPS.map(|count| (count, 1)).into_iter().chain(PIPELINES.map(|count| (count, BURST)))
}

/// Measures and prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<(), BenchError> {
    let machine = Machine::observe();
    pin(CLIENT_CPU)?;
    let requests = Requests::encode(arguments.objects.max(1));
    let parent = arguments.directory.clone().unwrap_or_else(std::env::temp_dir);
    let floor_responder = Responder::start("floor")?;
    let canned = Responder::start("canned")?;
    let mut servers = Vec::new();
    for program in programs(arguments) {
        let server = Server::start(&program, &[SERVER_CPU], &parent)?;
        let address = server.address();
        let client = DrivenClient::open(Options::new([address]))?;
        fill(&client, arguments.objects.max(1))?;
        servers.push((program.name(), server));
    }

    let mut floor = Peer::new("floor", floor_responder.address());
    let mut peers = vec![Peer::new("canned", canned.address())];
    peers.extend(servers.iter().map(|(name, server)| Peer::new(name, server.socket())));
    let span = Duration::from_secs_f64(arguments.seconds);
    let mut buffer = vec![0; RECV_LEN];
    let sizes = RoundTrip { request: requests.shape().request, reply: requests.shape().reply };
    for _ in 0..arguments.rounds {
        let mut round = Latencies::new();
        let mut connection = Floor::connect(floor.address, sizes)?;
        connection.measure(Instant::now() + span / 10, &mut Latencies::new())?;
        connection.measure(Instant::now() + span, &mut round)?;
        drop(connection);
        floor.take(&round);
        for peer in &mut peers {
            std::thread::sleep(SETTLE);
            peer.take(&latency(peer.address, &requests, span, &mut buffer)?);
        }
        for (level, (connections, burst)) in levels().enumerate() {
            for peer in &mut peers {
                std::thread::sleep(SETTLE);
                let load = Load { requests: &requests, connections, burst, span };
                peer.rates[level].push(load.rate(peer.address, &mut buffer)?);
            }
        }
    }

    let options = json!({
        "rounds": arguments.rounds, "seconds": arguments.seconds, "objects": arguments.objects,
        "request_bytes": sizes.request, "reply_bytes": sizes.reply, "transport": "TCP, loopback",
        "data_files": parent,
    });
    let notes = [format!(
        "pinned: whatever answers to CPU {SERVER_CPU}, whatever asks to CPU {CLIENT_CPU}; \
         floor, canned responder and asker spin, our server for 1 ms; stock sleeps"
    )];
    arguments.output.publish(&machine, &options, &notes, &table(&floor, &peers))
}

fn programs(arguments: &Arguments) -> Vec<Program> {
    let ours = (!arguments.no_server)
        .then(|| Program::Zeoring(arguments.server.clone().unwrap_or_else(server_beside_us)));
    let stock = arguments.stock_python.clone().map(Program::Stock);
    ours.into_iter().chain(stock).collect()
}

/// The server's binary where cargo puts it: in the same directory as this program.
pub(crate) fn server_beside_us() -> PathBuf {
    let ours = std::env::current_exe().unwrap_or_default();
    ours.with_file_name("zeoring-server")
}

/// One connection, one load at a time, the asker spinning on `recv`.
pub(crate) fn latency(
    address: SocketAddr,
    requests: &Requests,
    span: Duration,
    buffer: &mut [u8],
) -> Result<Latencies, BenchError> {
    let mut connection = RawConnection::open(address, requests, 0)?;
    let mut latencies = Latencies::new();
    let warm = Instant::now() + span / 10;
    let mut started = Instant::now();
    let end = warm + span;
    while started < end {
        connection.ask(1)?;
        connection.take_all(buffer)?;
        let now = Instant::now();
        if warm <= started {
            latencies.record(now - started);
        }
        started = now;
    }
    Ok(latencies)
}

/// Connections that each keep a burst of loads under way, all asked by this one thread.
struct Load<'r> {
    requests: &'r Requests,
    connections: usize,
    burst: u64,
    span: Duration,
}

impl Load<'_> {
    /// Loads a second.
    fn rate(&self, address: SocketAddr, buffer: &mut [u8]) -> Result<f64, BenchError> {
        let mut connections = Vec::with_capacity(self.connections);
        for index in 0..self.connections as u64 {
            let mut connection = RawConnection::open(address, self.requests, index * 7)?;
            connection.ask(self.burst)?;
            connection.take_all(buffer)?;
            connections.push(connection);
        }
        let started = Instant::now();
        let answered = match connections.as_mut_slice() {
            [one] => self.ask_one(one, started + self.span, buffer)?,
            many => self.ask_many(many, started + self.span, buffer)?,
        };
        Ok(answered as f64 / started.elapsed().as_secs_f64())
    }

    fn ask_one(
        &self,
        connection: &mut RawConnection<'_>,
        end: Instant,
        buffer: &mut [u8],
    ) -> Result<u64, BenchError> {
        let mut answered = 0;
        while Instant::now() < end {
            connection.ask(self.burst)?;
            connection.take_all(buffer)?;
            answered += self.burst;
        }
        Ok(answered)
    }

    fn ask_many(
        &self,
        connections: &mut [RawConnection<'_>],
        end: Instant,
        buffer: &mut [u8],
    ) -> Result<u64, BenchError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|e| doing("making an epoll set")(e.into()))?;
        for (token, connection) in connections.iter_mut().enumerate() {
            let data = EventData::new_u64(token as u64);
            epoll::add(&epoll, connection.stream(), data, EventFlags::IN)
                .map_err(|e| doing("watching a socket")(e.into()))?;
            connection.ask(self.burst)?;
        }
        let mut events = Vec::with_capacity(connections.len());
        let mut answered = 0;
        while Instant::now() < end {
            events.clear();
            let space = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&epoll, space, Some(&NO_WAIT)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(doing("waiting for sockets")(e.into())),
            }
            for event in &events {
                let connection = &mut connections[event.data.u64() as usize];
                answered += connection.take(buffer)?;
                if connection.waiting() == 0 {
                    connection.ask(self.burst)?;
                }
            }
        }
        Ok(answered)
    }
}

fn table(floor: &Peer, peers: &[Peer]) -> Table {
    let mut table = Table::new(&[
        "measured",
        "peer",
        "count",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "max us",
        "best p50",
        "per s",
        "lowest",
        "highest",
        "ratio",
        "best ratio",
        "target",
    ]);
    let ours = |peer: &Peer, target: &str| match peer.name {
        "server" => json!(target),
        _ => Value::Null,
    };
    for peer in std::iter::once(floor).chain(peers) {
        let ratio = peer.latencies.percentile(50.0) / floor.latencies.percentile(50.0);
        let names = [json!("load, 1 connection"), json!(peer.name)];
        let rest = [
            json!(peer.lowest_p50),
            Value::Null,
            Value::Null,
            Value::Null,
            json!(ratio),
            json!(peer.lowest_p50 / floor.lowest_p50),
            ours(peer, LATENCY_TARGET),
        ];
        table.row(names.into_iter().chain(peer.latencies.cells()).chain(rest));
    }
    let ceiling = &peers[0];
    for (level, (connections, burst)) in levels().enumerate() {
        let (measured, target) = match burst {
            1 => (format!("loads, {connections} closed loops"), CLOSED_LOOP_TARGET),
            _ => (format!("{burst} pipelined, {connections} connections"), PIPELINE_TARGET),
        };
        for peer in peers {
            let rates = &peer.rates[level];
            let ratios = rates.iter().zip(&ceiling.rates[level]).map(|(rate, top)| rate / top);
            let (lowest, highest) = (minimum(rates), maximum(rates));
            let names = [json!(measured), json!(peer.name)];
            let nothing = std::iter::repeat_n(Value::Null, 6);
            let rest = [
                json!(median(rates.iter().copied()).round() as u64),
                json!(lowest.round() as u64),
                json!(highest.round() as u64),
                json!(median(ratios)),
                json!(highest / maximum(&ceiling.rates[level])),
                ours(peer, target),
            ];
            table.row(names.into_iter().chain(nothing).chain(rest));
        }
    }
    table
}

/// The middle of the figures; between two middles, the upper. Zero for none.
pub(crate) fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}

fn minimum(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(f64::INFINITY, f64::min)
}

fn maximum(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(0.0, f64::max)
}
