//! `zeoringctl status`: once, or again and again with what happened between.

use std::time::{Duration, Instant};

use serde_json::json;
use zeoring_client::{ClientError, Info, Status};

use crate::connect::Connect;
use crate::print::{Failure, line, show};

/// Lines between two headings of `--watch`.
const LINES_PER_HEADING: u32 = 20;

/// What `zeoringctl status` is told.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    connect: Connect,
    /// Look again after so many seconds, until interrupted: rates a second.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    watch: Option<f64>,
}

/// Shows the status.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let connect = &arguments.connect;
    let client = connect.open()?;
    if let Some(seconds) = arguments.watch {
        let pause = Duration::try_from_secs_f64(seconds).ok().filter(|pause| !pause.is_zero());
        let Some(pause) = pause else {
            return Err(Failure::Usage(format!("--watch {seconds} is not a number of seconds")));
        };
        return watch(connect.json, pause, || Ok((client.status()?, client.server_info()?)));
    }
    let (status, info) = (client.status()?, client.server_info()?);
    if connect.json {
        return show(&to_json(&status, &info));
    }
    line(format_args!("storage            {}", info.name))?;
    line(format_args!("objects            {}", info.length))?;
    line(format_args!("bytes              {}", info.size))?;
    line(format_args!("since              {}", status.start))?;
    line(format_args!("connections        {}", status.connections))?;
    line(format_args!("loads              {}", status.loads))?;
    line(format_args!("stores             {}", status.stores))?;
    line(format_args!("commits            {}", status.commits))?;
    line(format_args!("aborts             {}", status.aborts))?;
    line(format_args!("conflicts          {}", status.conflicts))?;
    line(format_args!("voted transactions {}", status.active_transactions))?;
    line(format_args!("waiting to vote    {}", status.waiting))?;
    let last = status.last_transaction.map_or_else(|| "none".to_owned(), |tid| tid.to_string());
    line(format_args!("last transaction   {last}"))
}

fn watch(
    json: bool,
    pause: Duration,
    ask: impl Fn() -> Result<(Status, Info), ClientError>,
) -> Result<(), Failure> {
    let mut before = ask()?.0;
    let mut since = Instant::now();
    for number in 0.. {
        std::thread::sleep(pause);
        let (status, info) = ask()?;
        let seconds = since.elapsed().as_secs_f64();
        since = Instant::now();
        // A server that was started again counts from nothing.
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        let rates = [
            rate(status.loads, before.loads),
            rate(status.stores, before.stores),
            rate(status.commits, before.commits),
            rate(status.aborts, before.aborts),
            rate(status.conflicts, before.conflicts),
        ];
        if json {
            let [loads, stores, commits, aborts, conflicts] = rates;
            line(format_args!(
                "{}",
                json!({
                    "seconds": seconds, "loads_per_s": loads, "stores_per_s": stores,
                    "commits_per_s": commits, "aborts_per_s": aborts,
                    "conflicts_per_s": conflicts, "status": to_json(&status, &info),
                })
            ))?;
        } else {
            if number % LINES_PER_HEADING == 0 {
                line(format_args!(
                    "{:>12} {:>12} {:>10} {:>10} {:>10} {:>8} {:>8}  last transaction",
                    "loads/s",
                    "stores/s",
                    "commits/s",
                    "aborts/s",
                    "conflicts/s",
                    "clients",
                    "waiting"
                ))?;
            }
            let [loads, stores, commits, aborts, conflicts] = rates;
            let last =
                status.last_transaction.map_or_else(|| "none".to_owned(), |tid| tid.to_string());
            line(format_args!(
                "{loads:>12.1} {stores:>12.1} {commits:>10.1} {aborts:>10.1} {conflicts:>11.1} \
                 {:>8} {:>8}  {last}",
                status.connections, status.waiting
            ))?;
        }
        before = status;
    }
    Ok(())
}

fn to_json(status: &Status, info: &Info) -> serde_json::Value {
    json!({
        "storage": info.name, "objects": info.length, "bytes": info.size,
        "start": status.start, "connections": status.connections, "loads": status.loads,
        "stores": status.stores, "commits": status.commits, "aborts": status.aborts,
        "conflicts": status.conflicts, "conflicts_resolved": status.conflicts_resolved,
        "active_transactions": status.active_transactions, "waiting": status.waiting,
        "lock_time_s": status.lock_time_s,
        "timeout_thread_is_alive": status.timeout_thread_is_alive,
        "last_transaction": status.last_transaction.map(|tid| tid.to_string()),
    })
}
