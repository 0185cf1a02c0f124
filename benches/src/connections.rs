//! What an idle connection costs the server: its resident memory before and after many register.
//!
//! Socket buffers belong to the kernel and are not in this figure.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::error::{BenchError, doing};
use crate::loads::server_beside_us;
use crate::machine::Machine;
use crate::process::{Program, Server};
use crate::raw::register;
use crate::report::{Output, Table};

/// Connections that are there before the first look, so that what is made once is made.
const WARM: usize = 10;

/// Memory is looked at until it stands still for so long.
const STILL: Duration = Duration::from_millis(300);

/// At most so many looks.
const LOOKS_MAX: usize = 20;

/// What `zeoring-bench connections` is told.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Our server's binary [default: zeoring-server beside this program].
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// A Python with the package ZEO: measure the stock server instead.
    #[arg(long, value_name = "PATH", conflicts_with = "server")]
    stock_python: Option<PathBuf>,
    /// How many connections.
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    #[command(flatten)]
    output: Output,
}

/// Measures and prints the table.
pub(crate) fn run(arguments: &Arguments) -> Result<(), BenchError> {
    let machine = Machine::observe();
    // The server inherits this; a connection takes one descriptor at each end.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .map_err(|e| doing("raising the limit of open files")(e.into()))?;
    let program = match &arguments.stock_python {
        Some(python) => Program::Stock(python.clone()),
        None => Program::Zeoring(arguments.server.clone().unwrap_or_else(server_beside_us)),
    };
    let cpus: Vec<usize> =
        (0..std::thread::available_parallelism().map_or(1, usize::from)).collect();
    let server = Server::start(&program, &cpus, &std::env::temp_dir())?;

    let warm = open(&server, WARM)?;
    let before = settled_bytes(&server)?;
    let idle = open(&server, arguments.connections)?;
    let after = settled_bytes(&server)?;
    let each = after.saturating_sub(before) as f64 / idle.len().max(1) as f64;
    drop((warm, idle));

    let mut table =
        Table::new(&["peer", "connections", "before KiB", "after KiB", "KiB each", "target KiB"]);
    let target = matches!(program, Program::Zeoring(_)).then_some("<= 16");
    table.row([
        json!(program.name()),
        json!(arguments.connections),
        json!(before / 1024),
        json!(after / 1024),
        json!(each / 1024.0),
        target.map_or(Value::Null, Value::from),
    ]);
    let options = json!({ "connections": arguments.connections, "transport": "TCP, loopback" });
    let notes = ["registered, idle; VmRSS of the server, nothing pinned".to_owned()];
    arguments.output.publish(&machine, &options, &notes, &table)
}

fn open(server: &Server, count: usize) -> Result<Vec<std::net::TcpStream>, BenchError> {
    (0..count).map(|_| register(server.socket())).collect()
}

/// The server's memory once two looks agree.
fn settled_bytes(server: &Server) -> Result<u64, BenchError> {
    let mut bytes = server.resident_bytes()?;
    for _ in 0..LOOKS_MAX {
        std::thread::sleep(STILL);
        let now = server.resident_bytes()?;
        if now == bytes {
            break;
        }
        bytes = now;
    }
    Ok(bytes)
}
