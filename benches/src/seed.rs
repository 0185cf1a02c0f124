//! What ZEO's author measured in 2016, again: a transaction of ten objects of 1 kB, added, updated,
//! and read in three ways; and one load, across threads and within the thread that has the socket.
//!
//! Every client beside every server, in turns: each round goes through all of them once.

use std::io::{BufRead, BufReader, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use zeoring_client::cache::CacheOptions;
use zeoring_client::{Address, AsyncClient, Client, Description, DrivenClient, Options, Vote};
use zeoring_shared::ids::{Oid, Tid};

use crate::error::{BenchError, doing};
use crate::loads::{median, server_beside_us};
use crate::machine::{CLIENT_CPU, Machine, SERVER_CPU, pin, pinned};
use crate::process::{Guard, Program, Server};
use crate::raw::{RECORD_LEN, record};
use crate::report::{Output, Table};

/// Figures of a row, in the order of the table.
const FIGURES: [&str; 7] = ["add", "update", "cached", "read", "prefetch", "across", "within"];

/// What `zeoring-bench seed` is told.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Our server's binary [default: zeoring-server beside this program].
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// A Python that has ZEO (`scripts/venv` makes one): for the stock server and the stock client.
    #[arg(long, value_name = "PATH")]
    stock_python: Option<PathBuf>,
    /// The stock client's program.
    #[arg(long, value_name = "PATH", default_value = "scripts/python/seed.py")]
    stock_client: PathBuf,
    /// A folder with the package uvloop (`pip install --target`): the stock client with it, too.
    #[arg(long, value_name = "PATH")]
    uvloop: Option<PathBuf>,
    /// Rounds; a figure is the median of its rounds.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Transactions of each kind in a round.
    #[arg(long, default_value_t = 20)]
    transactions: usize,
    /// Objects of 1 kB in a transaction.
    #[arg(long, default_value_t = 10)]
    objects: usize,
    /// Loads in a row of one object, in a round.
    #[arg(long, default_value_t = 1_000)]
    loads: usize,
    /// Where data files go, in directories of their own [default: the system's temporary one].
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// The means of one round, in microseconds; `None` for what a client does not have.
type Round = [Option<f64>; 7];

/// How much is done in a round.
#[derive(Clone, Copy)]
struct Work {
    transactions: usize,
    objects: usize,
    loads: usize,
}

/// A client of one server.
enum Kind {
    Driven {
        client: DrivenClient,
        cold: DrivenClient,
    },
    Threaded {
        client: Client,
        cold: Client,
    },
    /// Opened anew for each round, because it lives in a runtime.
    Async(Address),
    Stock(Python),
}

struct Row {
    name: String,
    kind: Kind,
    rounds: Vec<Round>,
}

/// The stock client's process, which measures a round for each line that it is sent.
struct Python {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _process: Guard,
}

/// One text for all drivers: `$go` says how a call is waited for.
macro_rules! round {
    ($go:ident, $client:expr, $cold:expr, $work:expr) => {{
        let (client, cold, work): (_, _, Work) = ($client, $cold, $work);
        let mut groups: Vec<Vec<(Oid, Tid)>> = Vec::new();
        for _ in 0..work.transactions {
            let oids = $go!(client.new_oids(work.objects))?;
            groups.push(oids.into_iter().map(|oid| (oid, Tid::ZERO)).collect());
        }
        let per_transaction = |begun: Instant| micros(begun, work.transactions);
        let mut written = [None; 2];
        for figure in &mut written {
            let begun = Instant::now();
            for group in &mut groups {
                let mut transaction = $go!(client.begin(&Description::default()))?;
                for (oid, serial) in group.iter() {
                    $go!(transaction.store(*oid, *serial, &record(*oid, RECORD_LEN)))?;
                }
                let Vote::Ready(voted) = $go!(transaction.vote())? else {
                    return Err(wrong("it saw a conflict where nobody else writes"));
                };
                let tid = $go!(voted.finish())?;
                group.iter_mut().for_each(|(_, serial)| *serial = tid);
            }
            *figure = per_transaction(begun);
        }
        let mut read = [None; 2];
        for (figure, reader) in read.iter_mut().zip([client, cold]) {
            let begun = Instant::now();
            for group in &groups {
                for (oid, serial) in group {
                    if $go!(reader.load(*oid))?.serial != *serial {
                        return Err(wrong("it loaded another revision than was written"));
                    }
                }
            }
            *figure = per_transaction(begun);
        }
        let oids: Vec<Vec<Oid>> =
            groups.iter().map(|group| group.iter().map(|(oid, _)| *oid).collect()).collect();
        let begun = Instant::now();
        for oids in &oids {
            $go!(cold.prefetch(oids, Tid::MAX))?;
        }
        let prefetched = per_transaction(begun);
        let begun = Instant::now();
        for _ in 0..work.loads {
            $go!(cold.load(oids[0][0]))?;
        }
        let load = micros(begun, work.loads);
        ([written[0], written[1], read[0], read[1], prefetched], load)
    }};
}

macro_rules! wait_inside {
    ($call:expr) => {
        $call
    };
}

macro_rules! wait_as_task {
    ($call:expr) => {
        $call.await
    };
}

/// Measures and prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<(), BenchError> {
    let machine = Machine::observe();
    pin(CLIENT_CPU)?;
    let parent = arguments.directory.clone().unwrap_or_else(std::env::temp_dir);
    let Arguments { transactions, objects, loads, .. } = *arguments;
    let work = Work { transactions: transactions.max(1), objects: objects.max(1), loads };
    let mut programs =
        vec![Program::Zeoring(arguments.server.clone().unwrap_or_else(server_beside_us))];
    programs.extend(arguments.stock_python.clone().map(Program::Stock));
    let mut servers = Vec::new();
    let mut rows = Vec::new();
    for program in programs {
        let server = Server::start(&program, &[SERVER_CPU], &parent)?;
        rows.extend(rows_of(arguments, &program, &server, work)?);
        servers.push(server);
    }
    for _ in 0..arguments.rounds {
        for row in &mut rows {
            let round = row.kind.measure(work)?;
            row.rounds.push(round);
        }
    }

    let mut table = Table::new(&[
        "client x server",
        "add us",
        "update us",
        "cached us",
        "read us",
        "prefetch us",
        "load across us",
        "load within us",
    ]);
    for row in &rows {
        let figures = (0..FIGURES.len()).map(|figure| {
            let rounds: Vec<f64> = row.rounds.iter().filter_map(|round| round[figure]).collect();
            if rounds.is_empty() { Value::Null } else { json!(median(rounds.into_iter())) }
        });
        table.row([json!(row.name)].into_iter().chain(figures));
    }
    let notes = [format!(
        "medians of {} rounds in turns; add to prefetch: a transaction of {objects} objects of 1 kB; \
         load: one of {loads} in a row of one object\npinned: servers to CPU {SERVER_CPU}, clients \
         to CPU {CLIENT_CPU}, but the thread of our Client, which may run anywhere; our clients and \
         our server spin (200 us, 1 ms), the stock ones sleep",
        arguments.rounds
    )];
    let told = json!({
        "rounds": arguments.rounds, "transactions": transactions, "objects": objects,
        "loads": loads, "bytes": RECORD_LEN, "transport": "TCP, loopback", "data_files": parent,
    });
    arguments.output.publish(&machine, &told, &notes, &table)
}

/// All clients of one server.
fn rows_of(
    arguments: &Arguments,
    program: &Program,
    server: &Server,
    work: Work,
) -> Result<Vec<Row>, BenchError> {
    let place = match program {
        Program::Zeoring(_) => "our server",
        Program::Stock(_) => "stock server",
    };
    let every: Vec<usize> =
        (0..std::thread::available_parallelism().map_or(1, NonZero::get)).collect();
    let warm = || options(server.address(), CacheOptions::default().memory_max);
    let cold = || options(server.address(), 0);
    let mut kinds = vec![
        (
            "DrivenClient",
            Kind::Driven { client: DrivenClient::open(warm())?, cold: DrivenClient::open(cold())? },
        ),
        (
            "Client",
            pinned(&every, || {
                Ok(Kind::Threaded { client: Client::open(warm())?, cold: Client::open(cold())? })
            })?,
        ),
        ("AsyncClient", Kind::Async(server.address())),
    ];
    if let Some(python) = &arguments.stock_python {
        let start =
            |uvloop| Python::start(python, arguments, uvloop, server, work).map(Kind::Stock);
        kinds.push(("stock client, asyncio", start(None)?));
        if let Some(uvloop) = &arguments.uvloop {
            kinds.push(("stock client, uvloop", start(Some(uvloop.as_path()))?));
        }
    }
    let row = |(name, kind)| Row { name: format!("{name} x {place}"), kind, rounds: Vec::new() };
    Ok(kinds.into_iter().map(row).collect())
}

fn options(address: Address, memory_max: usize) -> Options {
    Options {
        cache: CacheOptions { memory_max, ..CacheOptions::default() },
        ..Options::new([address])
    }
}

impl Kind {
    fn measure(&mut self, work: Work) -> Result<Round, BenchError> {
        match self {
            Self::Driven { client, cold } => {
                let (round, load) = round!(wait_inside, &*client, &*cold, work);
                Ok(all(round, None, load))
            }
            Self::Threaded { client, cold } => {
                let (round, load) = round!(wait_inside, &*client, &*cold, work);
                Ok(all(round, load, None))
            }
            Self::Async(address) => {
                let address = address.clone();
                let rounds = async {
                    let warm = options(address.clone(), CacheOptions::default().memory_max);
                    let client = AsyncClient::open(warm).await?;
                    let cold = AsyncClient::open(options(address, 0)).await?;
                    let measured = round!(wait_as_task, &client, &cold, work);
                    client.close()?;
                    cold.close()?;
                    Ok::<_, BenchError>(measured)
                };
                let mut ring = tokio_uring::uring_builder();
                ring.setup_coop_taskrun();
                let runtime =
                    tokio_uring::builder().entries(256).uring_builder(&ring).start(rounds);
                let (round, load) = runtime?;
                Ok(all(round, None, load))
            }
            Self::Stock(python) => python.measure(),
        }
    }
}

fn all(
    [add, update, cached, read, prefetch]: [Option<f64>; 5],
    across: Option<f64>,
    within: Option<f64>,
) -> Round {
    [add, update, cached, read, prefetch, across, within]
}

fn micros(begun: Instant, count: usize) -> Option<f64> {
    Some(begun.elapsed().as_secs_f64() * 1e6 / count.max(1) as f64)
}

fn wrong(fact: &'static str) -> BenchError {
    BenchError::WrongAnswer { peer: "a server", fact }
}

impl Python {
    fn start(
        python: &Path,
        arguments: &Arguments,
        uvloop: Option<&Path>,
        server: &Server,
        work: Work,
    ) -> Result<Self, BenchError> {
        let mut command = Command::new(python);
        command.arg(&arguments.stock_client).arg("--address").arg(server.socket().to_string());
        match uvloop {
            None => command.args(["--loop", "asyncio"]),
            Some(folder) => command.args(["--loop", "uvloop", "--uvloop"]).arg(folder),
        };
        command.args(["--transactions", &work.transactions.to_string()]);
        command.args(["--objects", &work.objects.to_string()]);
        command.args(["--loads", &work.loads.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(doing("starting the stock client"))?;
        let input = child.stdin.take().expect("its standard input is a pipe");
        let output = BufReader::new(child.stdout.take().expect("its standard output is a pipe"));
        let mut python = Self { input, output, _process: Guard(child) };
        match python.line()?.trim() {
            "ready" => Ok(python),
            _ => Err(BenchError::WrongAnswer {
                peer: "the stock client",
                fact: "it did not come up; what it says is above",
            }),
        }
    }

    fn measure(&mut self) -> Result<Round, BenchError> {
        self.input.write_all(b"round\n").map_err(doing("asking the stock client"))?;
        let line = self.line()?;
        let told: Value = serde_json::from_str(&line).map_err(|_| BenchError::WrongAnswer {
            peer: "the stock client",
            fact: "it went away; what it says is above",
        })?;
        Ok(FIGURES.map(|figure| told[figure].as_f64()))
    }

    fn line(&mut self) -> Result<String, BenchError> {
        let mut line = String::new();
        self.output.read_line(&mut line).map_err(doing("reading from the stock client"))?;
        Ok(line)
    }
}
