//! What a load costs an application, by each driver of our client, beside the floor from the same
//! round: one thread, four threads, bursts, and what is remembered.
//!
//! All take turns within a round. Who does not have its turn sleeps. The server answers on one
//! processor and the asking thread has the other; where the ring-fed client's own thread runs is
//! said in its row, because on two processors three threads cannot all spin.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zeoring_client::cache::CacheOptions;
use zeoring_client::{AsyncClient, Client, ClientError, DrivenClient, Options};
use zeoring_shared::ids::{Oid, Tid};

use crate::error::{BenchError, doing};
use crate::floor::{Floor, RoundTrip};
use crate::loads::server_beside_us;
use crate::machine::{CLIENT_CPU, Machine, SERVER_CPU, pin, pinned};
use crate::process::{Program, Responder, Server};
use crate::raw::Requests;
use crate::report::{Latencies, Output, Table};
use crate::run::fill;

/// Application threads that share a client.
const THREADS: usize = 4;

/// Objects in a prefetch.
const BURSTS: [usize; 2] = [100, 1_000];

/// Clients that are not measured go to sleep in this time.
const SETTLE: Duration = Duration::from_millis(5);

/// What a client that remembers may keep: everything that is measured.
const CACHE_LEN: usize = 64 * 1024 * 1024;

/// Room for the replies to requests that no client sends.
const RAW_BUFFER_LEN: usize = 64 * 1024;

/// Hits are taken in groups of this size, and the clock is read once a group.
const HITS_PER_SAMPLE: u32 = 64;

/// What `zeoring-bench clients` is told.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Our server's binary [default: zeoring-server beside this program].
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
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

/// What was measured of one way to load.
struct Row {
    name: String,
    latencies: Latencies,
    lowest_p50: f64,
    target: &'static str,
}

impl Row {
    fn new(name: impl Into<String>, target: &'static str) -> Self {
        let name = name.into();
        Self { name, latencies: Latencies::new(), lowest_p50: f64::INFINITY, target }
    }

    fn take(&mut self, round: &Latencies) {
        self.latencies.add(round);
        self.lowest_p50 = self.lowest_p50.min(round.percentile(50.0));
    }

    fn cells(&self, floor: &Self) -> impl Iterator<Item = Value> {
        let ratio = self.latencies.percentile(50.0) / floor.latencies.percentile(50.0);
        let best = self.lowest_p50 / floor.lowest_p50;
        let rest = [json!(self.lowest_p50), json!(ratio), json!(best), json!(self.target)];
        [json!(self.name)].into_iter().chain(self.latencies.cells()).chain(rest)
    }
}

/// Loads a second of one thread and of several, the rounds in order.
#[derive(Default)]
struct Rates {
    one: Vec<f64>,
    many: Vec<f64>,
}

/// A client that several threads may load through.
pub(crate) trait Loads: Sync {
    fn load(&self, oid: Oid) -> Result<(), ClientError>;
}

impl Loads for DrivenClient {
    fn load(&self, oid: Oid) -> Result<(), ClientError> {
        self.load(oid).map(drop)
    }
}

impl Loads for Client {
    fn load(&self, oid: Oid) -> Result<(), ClientError> {
        self.load(oid).map(drop)
    }
}

/// Measures and prints the tables.
pub(crate) fn run(arguments: &Arguments) -> Result<(), BenchError> {
    let machine = Machine::observe();
    let parent = arguments.directory.clone().unwrap_or_else(std::env::temp_dir);
    let span = Duration::from_secs_f64(arguments.seconds);
    let objects = arguments.objects.max(1_000);
    let every: Vec<usize> =
        (0..std::thread::available_parallelism().map_or(1, NonZero::get)).collect();
    pin(CLIENT_CPU)?;
    let shape = Requests::encode(objects);
    let sizes = RoundTrip { request: shape.shape().request, reply: shape.shape().reply };
    let responder = Responder::start("floor")?;
    let path = arguments.server.clone().unwrap_or_else(server_beside_us);
    let server = Server::start(&Program::Zeoring(path), &[SERVER_CPU], &parent)?;
    let options = |memory_max| Options {
        cache: CacheOptions { memory_max, ..CacheOptions::default() },
        ..Options::new([server.address()])
    };
    let driven = DrivenClient::open(options(0))?;
    fill(&driven, objects)?;
    let beside = Client::open(options(0))?;
    let apart = pinned(&every, || Ok(Client::open(options(0))?))?;
    let remembering = DrivenClient::open(options(CACHE_LEN))?;
    let oids: Vec<Oid> = (0..objects).map(Oid).collect();
    remembering.prefetch(&oids, Tid::MAX)?;

    let mut floor = Row::new("floor", "");
    let mut raw = Row::new("our server, requests without a client", "");
    let mut buffer = vec![0; RAW_BUFFER_LEN];
    let mut rows = [
        Row::new("DrivenClient", "<= 1.25 x floor"),
        Row::new("Client, own thread on any CPU", "<= 1.6 x floor if CPUs are free"),
        Row::new("Client, own thread on the caller's CPU", "<= 3 x DrivenClient"),
        Row::new("AsyncClient, busy", "<= 2 x floor"),
        Row::new("AsyncClient, sleeping", ""),
        Row::new("prefetch of 100, DrivenClient", "<= 60 us"),
        Row::new("prefetch of 1,000, DrivenClient", "<= 400 us"),
        Row::new("remembered, DrivenClient", "<= 0.25 us"),
    ];
    let mut rates = [Rates::default(), Rates::default()];
    for _ in 0..arguments.rounds {
        let mut round = Latencies::new();
        let mut connection = Floor::connect(responder.address(), sizes)?;
        connection.measure(Instant::now() + span / 10, &mut Latencies::new())?;
        connection.measure(Instant::now() + span, &mut round)?;
        drop(connection);
        floor.take(&round);
        std::thread::sleep(SETTLE);
        raw.take(&crate::loads::latency(server.socket(), &shape, span, &mut buffer)?);
        rows[0].take(&loop_of(&driven, &oids, span)?);
        rows[1].take(&loop_of(&apart, &oids, span)?);
        rows[2].take(&loop_of(&beside, &oids, span)?);
        for (row, is_busy) in [(3, true), (4, false)] {
            std::thread::sleep(SETTLE);
            rows[row].take(&loop_of_tasks(options(0), &oids, span, is_busy)?);
        }
        for (row, burst) in [5, 6].into_iter().zip(BURSTS) {
            rows[row].take(&loop_of_bursts(&driven, &oids[..burst], span)?);
        }
        rows[7].take(&loop_of_hits(&remembering, &oids, span)?);
        rates[0].one.push(rate(&driven, 1, &oids, span)?);
        rates[0].many.push(rate(&driven, THREADS, &oids, span)?);
        rates[1].one.push(rate(&apart, 1, &oids, span)?);
        rates[1].many.push(rate(&apart, THREADS, &oids, span)?);
    }

    let mut table = Table::new(&[
        "load of 1 kB",
        "count",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "max us",
        "best p50",
        "ratio",
        "best ratio",
        "target",
    ]);
    table.row(floor.cells(&floor));
    table.row(raw.cells(&floor));
    for row in &rows {
        table.row(row.cells(&floor));
    }
    let mut notes = vec![format!(
        "pinned: floor and server to CPU {SERVER_CPU}, who asks to CPU {CLIENT_CPU}; the floor \
         spins, clients spin for 200 us, the server for 1 ms; nothing is remembered but where it \
         is said"
    )];
    let across = rows[1].latencies.percentile(50.0) / rows[0].latencies.percentile(50.0);
    notes.push(format!("across threads / within thread: {across:.2} (asked: <= 1.3)"));
    for (name, rates) in ["DrivenClient", "Client"].iter().zip(&rates) {
        let ratio = median_ratio(&rates.many, &rates.one);
        let (one, many) = (mean(&rates.one), mean(&rates.many));
        notes.push(format!(
            "{name}: {many:.0} loads/s by {THREADS} threads, {one:.0} by one: {ratio:.2} x (asked: \
             >= 1)"
        ));
    }
    let told = json!({
        "rounds": arguments.rounds, "seconds": arguments.seconds, "objects": objects,
        "request_bytes": sizes.request, "reply_bytes": sizes.reply, "transport": "TCP, loopback",
        "data_files": parent,
    });
    arguments.output.publish(&machine, &told, &notes, &table)
}

fn loop_of(client: &impl Loads, oids: &[Oid], span: Duration) -> Result<Latencies, BenchError> {
    std::thread::sleep(SETTLE);
    let mut latencies = Latencies::new();
    let warm = Instant::now() + span / 10;
    let mut started = Instant::now();
    for &oid in oids.iter().cycle() {
        if warm + span <= started {
            break;
        }
        client.load(oid)?;
        let now = Instant::now();
        if warm <= started {
            latencies.record(now - started);
        }
        started = now;
    }
    Ok(latencies)
}

/// The same within a `tokio-uring` runtime. A runtime that always has something to do does not
/// sleep: that is its busy mode.
fn loop_of_tasks(
    options: Options,
    oids: &[Oid],
    span: Duration,
    is_busy: bool,
) -> Result<Latencies, BenchError> {
    let work = async {
        let client = AsyncClient::open(options).await?;
        let spinner = is_busy.then(|| {
            tokio_uring::spawn(async {
                loop {
                    let _ = tokio_uring::no_op().await;
                }
            })
        });
        let mut latencies = Latencies::new();
        let warm = Instant::now() + span / 10;
        let mut started = Instant::now();
        for &oid in oids.iter().cycle() {
            if warm + span <= started {
                break;
            }
            client.load(oid).await?;
            let now = Instant::now();
            if warm <= started {
                latencies.record(now - started);
            }
            started = now;
        }
        if let Some(spinner) = spinner {
            spinner.abort();
        }
        client.close()?;
        Ok(latencies)
    };
    let mut ring = tokio_uring::uring_builder();
    ring.setup_coop_taskrun();
    tokio_uring::builder().entries(256).uring_builder(&ring).start(work)
}

fn loop_of_bursts(
    client: &DrivenClient,
    oids: &[Oid],
    span: Duration,
) -> Result<Latencies, BenchError> {
    std::thread::sleep(SETTLE);
    let mut latencies = Latencies::new();
    let end = Instant::now() + span;
    while Instant::now() < end {
        let started = Instant::now();
        let results = client.prefetch(oids, Tid::MAX)?;
        latencies.record(started.elapsed());
        if results.iter().any(|result| !matches!(result, Ok(Some(_)))) {
            return Err(BenchError::WrongAnswer { peer: "the server", fact: "an object is gone" });
        }
    }
    Ok(latencies)
}

fn loop_of_hits(
    client: &DrivenClient,
    oids: &[Oid],
    span: Duration,
) -> Result<Latencies, BenchError> {
    let mut latencies = Latencies::new();
    let end = Instant::now() + span / 4;
    let mut next = oids.iter().cycle();
    while Instant::now() < end {
        let started = Instant::now();
        for &oid in next.by_ref().take(HITS_PER_SAMPLE as usize) {
            std::hint::black_box(client.load(oid)?);
        }
        latencies.record(started.elapsed() / HITS_PER_SAMPLE);
    }
    Ok(latencies)
}

/// Loads a second of so many threads, all on the asking processor.
fn rate(
    client: &impl Loads,
    threads: usize,
    oids: &[Oid],
    span: Duration,
) -> Result<f64, BenchError> {
    std::thread::sleep(SETTLE);
    let done = AtomicU64::new(0);
    let started = Instant::now();
    let end = started + span;
    let work = |first: usize| -> Result<(), ClientError> {
        let mut count = 0;
        for &oid in oids.iter().cycle().skip(first) {
            if end <= Instant::now() {
                break;
            }
            client.load(oid)?;
            count += 1;
        }
        done.fetch_add(count, Ordering::Relaxed);
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|number| {
                std::thread::Builder::new().spawn_scoped(scope, move || work(number * 97))
            })
            .collect();
        for worker in workers {
            let worker = worker.map_err(doing("starting a thread"))?;
            worker.join().expect("a worker does not panic")?;
        }
        Ok::<(), BenchError>(())
    })?;
    Ok(done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
}

fn median_ratio(figures: &[f64], to: &[f64]) -> f64 {
    crate::loads::median(figures.iter().zip(to).map(|(figure, base)| figure / base))
}

fn mean(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>() / figures.len().max(1) as f64
}
