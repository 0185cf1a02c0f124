//! Commits of one object of 1 kB: beside what the disk and the wire must take, and many at once.
//!
//! The committers of a measurement are sessions of one thread, each on its own connection with
//! objects of its own, so that no two ever conflict and no thread waits for a CPU.

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::Timespec;
use serde_json::json;
use tempfile::TempDir;
use zeoring_client::{DrivenClient, Options};
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::request::{Call, Request, TransactionId};
use zeoring_shared::wire::value::Value;
use zeoring_shared::wire::{self, Codec, MessageId};

use crate::committer::Committer;
use crate::error::{BenchError, doing};
use crate::floor::{Floor, RoundTrip};
use crate::loads::{median, server_beside_us};
use crate::machine::{CLIENT_CPU, Machine, SERVER_CPU, pin, pinned};
use crate::process::{Program, Responder, Server};
use crate::raw::{RECORD_LEN, record};
use crate::report::{Latencies, Output, Table};
use crate::run::fill;

/// The bytes that FileStorage appends for a commit of one object without user and description:
/// the transaction's header, the record's, the record, and the length once more.
const APPENDED_LEN: usize = 23 + 42 + RECORD_LEN + 8;

/// Objects that one committer writes in turn.
const OBJECTS_EACH: u64 = 16;

/// A tmpfs, where syncing does nothing: `TMPFS_MAGIC` of statfs(2).
const TMPFS: u64 = 0x0102_1994;

const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What the issue that asked for this server demands.
const ONE_TARGET: &str = "<= 1.00 x (1.4 disk + 2 trips)";
const MANY_TARGET: &str = ">= 4.00 x one, p99.9 <= 10 x p50";

/// What `zeoring-bench commits` is told.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Our server's binary [default: zeoring-server beside this program].
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// Measure the floors only.
    #[arg(long, conflicts_with = "server")]
    no_server: bool,
    /// A Python with the package ZEO, to measure the stock server as well.
    #[arg(long, value_name = "PATH")]
    stock_python: Option<PathBuf>,
    /// Rounds; every figure is taken once in each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that each figure is measured in a round.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Committers that are measured against one.
    #[arg(long, default_value_t = 8)]
    committers: u64,
    /// CPUs of the server; the committers have CPU 1.
    #[arg(long, value_delimiter = ',', default_values_t = [SERVER_CPU])]
    server_cpus: Vec<usize>,
    /// Where data files go, in directories of their own [default: the system's temporary one].
    /// A tmpfs tells nothing about commits.
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// One server, and what was measured of it.
struct Measured {
    name: &'static str,
    server: Server,
    /// Every object and its current serial; [`OBJECTS_EACH`] for each committer.
    objects: Vec<(Oid, Tid)>,
    one: Many,
    many: Many,
}

/// Measures and prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<(), BenchError> {
    let machine = Machine::observe();
    pin(CLIENT_CPU)?;
    let parent = arguments.directory.clone().unwrap_or_else(std::env::temp_dir);
    let responder = Responder::start("floor")?;
    let span = Duration::from_secs_f64(arguments.seconds);
    let mut servers = Vec::new();
    for program in programs(arguments) {
        servers.push(Measured::start(&program, arguments, &parent)?);
    }
    let sizes = CommitSizes::measure();
    let bytes = match servers.first_mut() {
        Some(measured) => measured.bytes_a_commit()?,
        None => APPENDED_LEN,
    };

    let mut disk = Disk::create(&parent, bytes)?;
    let mut appends = Latencies::new();
    let mut trips = [Latencies::new(), Latencies::new()];
    for _ in 0..arguments.rounds {
        pinned(&[SERVER_CPU], || disk.measure(Instant::now() + span, &mut appends))?;
        for (sizes, latencies) in [sizes.vote, sizes.finish].into_iter().zip(&mut trips) {
            let mut floor = Floor::connect(responder.address(), sizes)?;
            floor.measure(Instant::now() + span / 20, &mut Latencies::new())?;
            floor.measure(Instant::now() + span / 5, latencies)?;
        }
        for measured in &mut servers {
            measured.round(span)?;
        }
    }

    let options = json!({
        "rounds": arguments.rounds, "seconds": arguments.seconds, "objects": 1,
        "bytes": RECORD_LEN, "bytes_appended": bytes, "committers": arguments.committers,
        "server_cpus": arguments.server_cpus, "transport": "TCP, loopback", "data_files": parent,
    });
    let mut notes = vec![format!(
        "pinned: servers to CPUs {:?}, append + fdatasync to CPU {SERVER_CPU}, committers to CPU \
         {CLIENT_CPU}, one thread for all of them, which spins",
        arguments.server_cpus
    )];
    if is_tmpfs(&parent) {
        notes.push("WARNING: data files lie on a tmpfs, where a sync does nothing".into());
    }
    let table = table(&appends, &trips, &servers, arguments.committers);
    arguments.output.publish(&machine, &options, &notes, &table)
}

fn programs(arguments: &Arguments) -> Vec<Program> {
    let ours = (!arguments.no_server)
        .then(|| Program::Zeoring(arguments.server.clone().unwrap_or_else(server_beside_us)));
    let stock = arguments.stock_python.clone().map(Program::Stock);
    ours.into_iter().chain(stock).collect()
}

fn is_tmpfs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 == TMPFS)
}

impl Measured {
    fn start(program: &Program, arguments: &Arguments, parent: &Path) -> Result<Self, BenchError> {
        let server = Server::start(program, &arguments.server_cpus, parent)?;
        let address = server.address();
        let client = DrivenClient::open(Options::new([address]))?;
        let count = OBJECTS_EACH * arguments.committers.max(1);
        let objects = fill(&client, count)?;
        Ok(Self { name: program.name(), server, objects, one: Many::new(), many: Many::new() })
    }

    /// How far the data file grows in one commit.
    fn bytes_a_commit(&mut self) -> Result<usize, BenchError> {
        let path = self.server.data_file();
        let size = || fs::metadata(&path).map_err(doing("looking at the data file"));
        let before = size()?.len();
        let mut committer = Committer::connect(self.server.socket(), &mut self.objects)?;
        committer.begin()?;
        while committer.turn()?.is_none() {
            rustix::thread::sched_yield();
        }
        Ok((size()?.len() - before) as usize)
    }

    fn round(&mut self, span: Duration) -> Result<(), BenchError> {
        let socket = self.server.socket();
        let (first, _) = self.objects.split_at_mut(OBJECTS_EACH as usize);
        self.one.measure(vec![Committer::connect(socket, first)?], span)?;
        let each = self.objects.chunks_mut(OBJECTS_EACH as usize);
        let committers: Result<Vec<_>, _> =
            each.map(|objects| Committer::connect(socket, objects)).collect();
        self.many.measure(committers?, span)
    }
}

/// What a number of committers reached.
struct Many {
    latencies: Latencies,
    /// Commits a second in each round.
    rates: Vec<f64>,
}

impl Many {
    fn new() -> Self {
        Self { latencies: Latencies::new(), rates: Vec::new() }
    }

    /// Lets each commit in a closed loop for a while, then waits for the commits under way.
    fn measure(
        &mut self,
        mut committers: Vec<Committer<'_>>,
        span: Duration,
    ) -> Result<(), BenchError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|e| doing("making an epoll set")(e.into()))?;
        for (token, committer) in committers.iter().enumerate() {
            let data = EventData::new_u64(token as u64);
            epoll::add(&epoll, committer.stream(), data, EventFlags::IN)
                .map_err(|e| doing("watching a socket")(e.into()))?;
        }
        let mut events = Vec::with_capacity(committers.len());
        let started = Instant::now();
        for committer in &mut committers {
            committer.begin()?;
        }
        let mut under_way = committers.len();
        let mut in_time: u64 = 0;
        while 0 < under_way {
            events.clear();
            let space = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&epoll, space, Some(&NO_WAIT)) {
                // Costs nothing while nobody else wants this CPU, and much is saved if one does.
                Ok(0) => rustix::thread::sched_yield(),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(doing("waiting for sockets")(e.into())),
            }
            let is_over = span <= started.elapsed();
            for event in &events {
                let committer = &mut committers[event.data.u64() as usize];
                let Some(took) = committer.turn()? else { continue };
                self.latencies.record(took);
                if is_over {
                    under_way -= 1;
                } else {
                    in_time += 1;
                    committer.begin()?;
                }
            }
        }
        self.rates.push(in_time as f64 / span.as_secs_f64());
        Ok(())
    }

    fn rate(&self) -> f64 {
        median(self.rates.iter().copied())
    }
}

/// A file that grows by appends, each of which is synced: what a commit cannot do without.
struct Disk {
    file: File,
    bytes: Vec<u8>,
    /// Removed with its directory.
    _directory: TempDir,
}

impl Disk {
    fn create(parent: &Path, bytes: usize) -> Result<Self, BenchError> {
        let directory = TempDir::with_prefix_in("zeoring-bench-", parent)
            .map_err(doing("making a temporary directory"))?;
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(directory.path().join("append"))
            .map_err(doing("making the file to append to"))?;
        Ok(Self { file, bytes: vec![b'x'; bytes], _directory: directory })
    }

    fn measure(&mut self, end: Instant, latencies: &mut Latencies) -> Result<(), BenchError> {
        let mut started = Instant::now();
        while started < end {
            self.file.write_all(&self.bytes).map_err(doing("appending"))?;
            self.file.sync_data().map_err(doing("syncing"))?;
            let now = Instant::now();
            latencies.record(now - started);
            started = now;
        }
        Ok(())
    }
}

/// The messages of one commit, in bytes: two round trips.
struct CommitSizes {
    /// tpc_begin, storea and vote; an empty list comes back.
    vote: RoundTrip,
    /// tpc_finish; a tid comes back.
    finish: RoundTrip,
}

impl CommitSizes {
    fn measure() -> Self {
        let reply = |value: Value<'_>| {
            let mut frame = Vec::new();
            let id = MessageId::int(Codec::Msgpack, 1_000);
            wire::reply::reply(Codec::Msgpack, &id, &value, &mut frame);
            frame.len()
        };
        let call = |oneway, request| {
            let mut frame = Vec::new();
            let id = MessageId::int(Codec::Msgpack, 1_000);
            wire::request::encode_call(Codec::Msgpack, &Call { id, oneway, request }, &mut frame);
            frame.len()
        };
        let id = TransactionId(1_000);
        let data = record(Oid(0), RECORD_LEN);
        let begin = Request::TpcBegin {
            id,
            user: Cow::Borrowed(b""),
            description: Cow::Borrowed(b""),
            extension: b"".as_slice().into(),
            tid: None,
            status: b' ',
        };
        let store = Request::Storea { oid: Oid(0), serial: Tid(1), data: data.into(), id };
        let vote = call(true, begin) + call(true, store) + call(false, Request::Vote { id });
        let tid = Tid(1).to_bytes();
        Self {
            vote: RoundTrip { request: vote, reply: reply(Value::List(Vec::new())) },
            finish: RoundTrip {
                request: call(false, Request::TpcFinish { id }),
                reply: reply(Value::Bytes(tid.as_slice().into())),
            },
        }
    }
}

fn table(disk: &Latencies, trips: &[Latencies; 2], servers: &[Measured], committers: u64) -> Table {
    let mut table = Table::new(&[
        "measured",
        "peer",
        "count",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "max us",
        "per s",
        "ratio",
        "p99.9/p50",
        "target",
    ]);
    let mut floor = |measured: &str, latencies: &Latencies| {
        let names = [json!(measured), json!("floor")];
        let rest = std::iter::repeat_n(json!(null), 4);
        table.row(names.into_iter().chain(latencies.cells()).chain(rest));
    };
    floor("append + fdatasync", disk);
    floor("round trip, begin to vote", &trips[0]);
    floor("round trip, finish", &trips[1]);
    let two_trips = trips[0].percentile(50.0) + trips[1].percentile(50.0);
    let allowed = 1.4 * disk.percentile(50.0) + two_trips;
    for Measured { name, one, many, .. } in servers {
        let is_ours = *name == "server";
        let mut row = |measured: String, figures: &Many, ratio: f64, target: &str| {
            let Many { latencies, .. } = figures;
            let names = [json!(measured), json!(name)];
            let rest = [
                json!(figures.rate().round() as u64),
                json!(ratio),
                json!(latencies.percentile(99.9) / latencies.percentile(50.0)),
                if is_ours { json!(target) } else { json!(null) },
            ];
            table.row(names.into_iter().chain(latencies.cells()).chain(rest));
        };
        let to_allowed = one.latencies.percentile(50.0) / allowed;
        row("commit, 1 committer".into(), one, to_allowed, ONE_TARGET);
        let to_one = many.rate() / one.rate();
        row(format!("commit, {committers} committers"), many, to_one, MANY_TARGET);
    }
    table
}
