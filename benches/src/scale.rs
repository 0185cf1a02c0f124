//! How it grows: databases of more and more objects, and larger and larger objects.
//!
//! Data files are written directly. Each is served by a server of its own, first without an index
//! file, then with the one that the server saved; loads are of objects drawn by chance, first with
//! the file in the page cache, then without.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use serde_json::{Value, json};
use tempfile::TempDir;
use zeoring_client::cache::CacheOptions;
use zeoring_client::{DrivenClient, Options};
use zeoring_shared::ids::Oid;

use crate::error::{BenchError, doing};
use crate::loads::server_beside_us;
use crate::machine::{CLIENT_CPU, Machine, SERVER_CPU, pin};
use crate::make;
use crate::process::{Program, Server};
use crate::raw::RECORD_LEN;
use crate::report::{Latencies, Output, Table};

/// Bytes of objects whose loads are measured; a record of ours has 68 at least.
const LENGTHS: [usize; 5] = [100, 1_000, 10_000, 100_000, 1_000_000];

/// What all objects of one length have together, so that all of them fit the page cache.
const TOTAL_LEN: usize = 100_000_000;

/// Loads of objects that are on the disk only.
const COLD_LOADS: usize = 500;

/// What `zeoring-bench scale` is told.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Our server's binary [default: zeoring-server beside this program].
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// Objects of 1 kB in the databases.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000, 1_000_000])]
    objects: Vec<u64>,
    /// Seconds of loads for each figure.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Where data files go, in directories of their own [default: the system's temporary one].
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// What was measured of one database.
struct Figures {
    file_bytes: u64,
    open_without_index: Duration,
    open_with_index: Duration,
    resident_bytes: u64,
    warm: Latencies,
    cold: Latencies,
}

/// Measures and prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<(), BenchError> {
    let machine = Machine::observe();
    pin(CLIENT_CPU)?;
    let mut table = Table::new(&[
        "objects x bytes",
        "file MB",
        "open, no index ms",
        "open, index ms",
        "RSS MB",
        "RSS B an object",
        "load p50 us",
        "load p99 us",
        "load MB/s",
        "cold p50 us",
        "cold p99 us",
    ]);
    let databases = arguments.objects.iter().map(|&objects| (objects, RECORD_LEN));
    let lengths = LENGTHS.iter().map(|&length| ((TOTAL_LEN / length) as u64, length));
    let mut empty = None;
    for (objects, length) in databases.chain(lengths) {
        let figures = measure(arguments, objects, length)?;
        // The smallest database stands for a server without objects.
        let base = *empty.get_or_insert(figures.resident_bytes);
        let each = figures.resident_bytes.saturating_sub(base) as f64 / objects as f64;
        let p50 = figures.warm.percentile(50.0);
        let ms = |time: Duration| json!(time.as_secs_f64() * 1e3);
        table.row([
            json!(format!("{objects} x {length}")),
            json!(figures.file_bytes as f64 / 1e6),
            ms(figures.open_without_index),
            ms(figures.open_with_index),
            json!(figures.resident_bytes as f64 / 1e6),
            if figures.resident_bytes == base { Value::Null } else { json!(each) },
            json!(p50),
            json!(figures.warm.percentile(99.0)),
            json!(length as f64 / p50),
            json!(figures.cold.percentile(50.0)),
            json!(figures.cold.percentile(99.0)),
        ]);
    }
    let notes = [format!(
        "pinned: server to CPU {SERVER_CPU}, DrivenClient to CPU {CLIENT_CPU}, both spin; nothing is \
         remembered; objects drawn by chance; open: from the start of the process until a client is \
         registered, looked at every 20 ms; cold: the file was dropped from the page cache before"
    )];
    let told = json!({
        "objects": arguments.objects, "seconds": arguments.seconds, "transport": "TCP, loopback",
        "data_files": arguments.directory.clone().unwrap_or_else(std::env::temp_dir),
    });
    arguments.output.publish(&machine, &told, &notes, &table)
}

fn measure(arguments: &Arguments, objects: u64, length: usize) -> Result<Figures, BenchError> {
    let parent = arguments.directory.clone().unwrap_or_else(std::env::temp_dir);
    let folder = TempDir::with_prefix_in("zeoring-bench-", parent)
        .map_err(doing("making a temporary directory"))?;
    let file_bytes = make::data_file(&folder.path().join("Data.fs"), objects, length)?;
    let program = Program::Zeoring(arguments.server.clone().unwrap_or_else(server_beside_us));
    let start = || {
        let begun = Instant::now();
        let server = Server::start_in(&program, &[SERVER_CPU], folder.path())?;
        Ok::<_, BenchError>((server, begun.elapsed()))
    };
    let (server, open_without_index) = start()?;
    server.stop()?;
    let (server, open_with_index) = start()?;
    let resident_bytes = server.resident_bytes()?;
    let client = DrivenClient::open(Options {
        cache: CacheOptions { memory_max: 0, ..CacheOptions::default() },
        ..Options::new([server.address()])
    })?;
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let mut warm = Latencies::new();
    let end = Instant::now() + Duration::from_secs_f64(arguments.seconds);
    while Instant::now() < end {
        load(&client, &mut chance, objects, length, &mut warm)?;
    }
    let file = File::open(server.data_file()).map_err(doing("opening a data file"))?;
    rustix::fs::fdatasync(&file).map_err(|e| doing("syncing a data file")(e.into()))?;
    fadvise(&file, 0, None, Advice::DontNeed)
        .map_err(|e| doing("dropping a data file from the page cache")(e.into()))?;
    let mut cold = Latencies::new();
    for _ in 0..COLD_LOADS {
        load(&client, &mut chance, objects, length, &mut cold)?;
    }
    Ok(Figures { file_bytes, open_without_index, open_with_index, resident_bytes, warm, cold })
}

fn load(
    client: &DrivenClient,
    chance: &mut Chance,
    objects: u64,
    length: usize,
    latencies: &mut Latencies,
) -> Result<(), BenchError> {
    let oid = Oid(chance.below(objects));
    let started = Instant::now();
    let revision = client.load(oid)?;
    latencies.record(started.elapsed());
    if revision.data.len() != length {
        return Err(BenchError::WrongAnswer { peer: "the server", fact: "an object has changed" });
    }
    Ok(())
}

/// Chance (Marsaglia's xorshift64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
