//! `zeoringctl`: asks ZEO servers, ours or any other, from a shell.
//!
//! Prints for people, or with `--json` one JSON value for programs. Exit codes: 0, 1 for an error
//! of the server or the network, 2 for a wrong command line.
#![forbid(unsafe_code)]

mod connect;
mod copy;
mod object;
mod print;
mod status;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use serde_json::json;
use zeoring_client::{Access, ClientError, DrivenClient};
use zeoring_shared::ids::Tid;

use self::connect::Connect;
use self::print::{Failure, hex_number, show, time_text};

/// How many seconds a day has, for `pack --days`.
const DAY_S: f64 = 86_400.0;

/// Ask and tend ZEO servers.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Go to the server and back, and say how long that took.
    Ping {
        #[command(flatten)]
        connect: Connect,
        /// How often.
        #[arg(long, default_value_t = 4)]
        count: u32,
    },
    /// What the server counts and who is there.
    Status(status::Arguments),
    /// Drop revisions that nobody needs any more.
    Pack {
        #[command(flatten)]
        connect: Connect,
        /// Keep what was current so many days ago and since.
        #[arg(long, default_value_t = 0.0)]
        days: f64,
        /// Return at once; the server packs on.
        #[arg(long)]
        no_wait: bool,
    },
    /// The last transactions, which can be undone.
    UndoLog {
        #[command(flatten)]
        connect: Connect,
        /// Pass over so many.
        #[arg(long, default_value_t = 0)]
        skip: u32,
        /// Show so many.
        #[arg(long, default_value_t = 20)]
        count: u32,
    },
    /// Copy all transactions of one storage to another, with their tids. What the target has
    /// already is not copied again.
    Copy(copy::Arguments),
    /// Write the data of an object to a file, or to the standard output.
    Load(object::Load),
    /// Show an object: its class, its revision, and its bytes.
    Dump(object::Dump),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().job {
        Job::Ping { connect, count } => ping(&connect, count),
        Job::Status(arguments) => status::run(&arguments),
        Job::Pack { connect, days, no_wait } => pack(&connect, days, no_wait),
        Job::UndoLog { connect, skip, count } => undo_log(&connect, skip, count),
        Job::Copy(arguments) => copy::run(&arguments),
        Job::Load(arguments) => object::load(&arguments),
        Job::Dump(arguments) => object::dump(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads us has seen enough.
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("zeoringctl: {failure}");
            match failure {
                Failure::Usage(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn ping(connect: &Connect, count: u32) -> Result<(), Failure> {
    let client = connect.open()?;
    let mut times_us = Vec::new();
    for _ in 0..count.max(1) {
        let started = Instant::now();
        client.ping()?;
        times_us.push(started.elapsed().as_secs_f64() * 1e6);
    }
    times_us.sort_by(f64::total_cmp);
    let (least, most) = (times_us[0], times_us[times_us.len() - 1]);
    let middle = times_us[times_us.len() / 2];
    let last = client.last_transaction();
    if connect.json {
        return show(&json!({
            "server": connect.server.to_string(), "count": times_us.len(), "min_us": least,
            "median_us": middle, "max_us": most, "last_transaction": last.to_string(),
        }));
    }
    print::line(format_args!(
        "{}: {} times there and back in {least:.0} to {most:.0} us, median {middle:.0} us; last \
         transaction {last}",
        connect.server,
        times_us.len()
    ))
}

fn pack(connect: &Connect, days: f64, no_wait: bool) -> Result<(), Failure> {
    if !(0.0..1e6).contains(&days) {
        return Err(Failure::Usage(format!("--days {days} is not a number of days in the past")));
    }
    // A connection that only reads may not pack.
    let client = connect.way.open(&connect.server, Access::Write)?;
    let before = client.server_info()?.size;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    client.pack(now.as_secs_f64() - days * DAY_S, !no_wait)?;
    let after = client.server_info()?.size;
    if connect.json {
        return show(&json!({ "waited": !no_wait, "bytes_before": before, "bytes_after": after }));
    }
    match no_wait {
        true => print::line(format_args!("the server packs")),
        false => print::line(format_args!("packed: {before} bytes before, {after} after")),
    }
}

fn undo_log(connect: &Connect, skip: u32, count: u32) -> Result<(), Failure> {
    let client = connect.open()?;
    let entries = client.undo_log(i64::from(skip), i64::from(skip) + i64::from(count))?;
    if connect.json {
        let entries: Vec<_> = entries
            .iter()
            .map(|entry| {
                json!({
                    "tid": entry.id.to_string(), "time_s": entry.time_s, "size": entry.size,
                    "user": String::from_utf8_lossy(&entry.user),
                    "description": String::from_utf8_lossy(&entry.description),
                })
            })
            .collect();
        return show(&json!(entries));
    }
    for entry in entries {
        print::line(format_args!(
            "{}  {}  {:>9}  {}  {}",
            entry.id,
            time_text(entry.time_s),
            entry.size.map_or_else(|| "-".to_owned(), |size| size.to_string()),
            String::from_utf8_lossy(&entry.user).escape_debug(),
            String::from_utf8_lossy(&entry.description).escape_debug()
        ))?;
    }
    Ok(())
}

/// Reads a tid as the command line has it.
fn tid(text: &str) -> Result<Tid, String> {
    hex_number(text).map(Tid)
}

/// A client, and what went wrong with it in the words of this program.
type Opened = Result<DrivenClient, ClientError>;
