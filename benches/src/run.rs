//! The main job: what an application does with a storage, on a server that runs already.
//!
//! Every object that is read is compared with what was written, so the job is also a check.

use std::time::{Duration, Instant};

use serde_json::json;
use zeoring_client::cache::CacheOptions;
use zeoring_client::{Address, ClientError, Description, DrivenClient, Options, Vote};
use zeoring_shared::ids::{Oid, Tid};

use crate::error::BenchError;
use crate::machine::Machine;
use crate::raw::{RECORD_LEN, record};
use crate::report::{Latencies, Output, Table};

/// What the client that writes remembers at most: all objects of a long run.
const CACHE_LEN: usize = 256 * 1024 * 1024;

/// What `zeoring-bench run` is told.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Where the server listens: PORT, HOST:PORT, `[IPV6]:PORT`, or the path of a Unix socket.
    address: Address,
    /// Seconds to wait for the server to come up.
    #[arg(long, default_value_t = 0)]
    wait: u64,
    /// The storage to use.
    #[arg(long, default_value = "1")]
    storage: String,
    /// Transactions that add objects; as many update them.
    #[arg(long, default_value_t = 200)]
    transactions: usize,
    /// Objects of 1 kB that a transaction writes.
    #[arg(long, default_value_t = 10)]
    objects: usize,
    /// Objects in a prefetch.
    #[arg(long, default_value_t = 100)]
    burst: usize,
    /// Times that all objects are read and prefetched.
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    #[command(flatten)]
    output: Output,
}

/// An object and the transaction that wrote it last.
#[derive(Clone, Copy)]
struct Written {
    oid: Oid,
    serial: Tid,
}

/// Does the job and prints its table.
pub(crate) fn run(arguments: &Arguments) -> Result<(), BenchError> {
    let Arguments { address, storage, transactions, objects, burst, repeat, .. } = arguments;
    let machine = Machine::observe();
    let options = |memory_max| Options {
        storage: storage.clone(),
        wait: Duration::from_secs(arguments.wait.max(1)),
        cache: CacheOptions { memory_max, ..CacheOptions::default() },
        ..Options::new([address.clone()])
    };
    let client = DrivenClient::open(options(CACHE_LEN))?;
    // Whoever remembers nothing goes to the server for each object.
    let reader = DrivenClient::open(options(0))?;
    let mut table = Table::new(&["operation", "count", "p50 us", "p99 us", "p99.9 us", "max us"]);
    let mut row = |name: String, latencies: &Latencies| {
        table.row([json!(name)].into_iter().chain(latencies.cells()));
    };

    let oids = client.new_oids(transactions * objects)?;
    let new = oids.iter().map(|&oid| Written { oid, serial: Tid::ZERO });
    let mut written: Vec<Written> = new.collect();
    let added = write_all(&client, &mut written, *objects, 0)?;
    row(format!("add, {objects} objects a transaction"), &added);
    let updated = write_all(&client, &mut written, *objects, 1)?;
    row(format!("update, {objects} objects a transaction"), &updated);
    row("cached, 1 object".into(), &read_all(&client, &written, *repeat)?);
    row("read, 1 object".into(), &read_all(&reader, &written, *repeat)?);
    let prefetched = prefetch_all(&reader, &written, *burst, *repeat)?;
    row(format!("prefetch, {burst} objects"), &prefetched);

    let options = json!({
        "address": address.to_string(), "storage": storage, "transactions": transactions,
        "objects": objects, "bytes": RECORD_LEN, "burst": burst, "repeat": repeat,
        "client": "driven, spinning 200 us, not pinned",
    });
    arguments.output.publish(&machine, &options, &[], &table)
}

/// Writes every object once, so many in a transaction. A sample is a transaction, from its begin
/// to the reply that says it is on the disk.
fn write_all(
    client: &DrivenClient,
    objects: &mut [Written],
    per_transaction: usize,
    version: u8,
) -> Result<Latencies, BenchError> {
    let mut latencies = Latencies::new();
    let description = Description {
        user: b"bench".to_vec(),
        description: b"run".to_vec(),
        ..Description::default()
    };
    for group in objects.chunks_mut(per_transaction.max(1)) {
        let records: Vec<Vec<u8>> = group.iter().map(|object| state(object.oid, version)).collect();
        let started = Instant::now();
        let mut transaction = client.begin(&description)?;
        for (object, data) in group.iter().zip(&records) {
            transaction.store(object.oid, object.serial, data)?;
        }
        let Vote::Ready(voted) = transaction.vote()? else {
            return Err(wrong("it saw a conflict where nobody else writes"));
        };
        let tid = voted.finish()?;
        latencies.record(started.elapsed());
        group.iter_mut().for_each(|object| object.serial = tid);
    }
    Ok(latencies)
}

fn read_all(
    client: &DrivenClient,
    objects: &[Written],
    repeat: usize,
) -> Result<Latencies, BenchError> {
    let mut latencies = Latencies::new();
    for object in std::iter::repeat_n(objects, repeat).flatten() {
        let started = Instant::now();
        let revision = client.load(object.oid)?;
        latencies.record(started.elapsed());
        let is_right = revision.data == state(object.oid, 1)
            && revision.serial == object.serial
            && revision.end.is_none();
        if !is_right {
            return Err(wrong("a load gave something else than was stored"));
        }
    }
    Ok(latencies)
}

fn prefetch_all(
    client: &DrivenClient,
    objects: &[Written],
    burst: usize,
    repeat: usize,
) -> Result<Latencies, BenchError> {
    let mut latencies = Latencies::new();
    for group in std::iter::repeat_n(objects, repeat).flat_map(|all| all.chunks(burst.max(1))) {
        let oids: Vec<Oid> = group.iter().map(|object| object.oid).collect();
        let started = Instant::now();
        let revisions = client.prefetch(&oids, Tid::MAX)?;
        latencies.record(started.elapsed());
        for (object, revision) in group.iter().zip(revisions) {
            let revision = revision.map_err(ClientError::from)?;
            let is_right = revision.is_some_and(|revision| {
                revision.serial == object.serial && revision.data == state(object.oid, 1)
            });
            if !is_right {
                return Err(wrong("a prefetch gave something else than was stored"));
            }
        }
    }
    Ok(latencies)
}

/// What an object holds: its record, which ends differently in each version.
fn state(oid: Oid, version: u8) -> Vec<u8> {
    let mut data = record(oid, RECORD_LEN);
    // The last byte of the payload, before the two that end the pickle.
    let last = data.len() - 3;
    data[last] = b'0' + version;
    data
}

fn wrong(fact: &'static str) -> BenchError {
    BenchError::WrongAnswer { peer: "the server", fact }
}

/// Commits the objects below `count` to an empty storage, 100 in a transaction, and returns each
/// with its serial.
pub(crate) fn fill(client: &DrivenClient, count: u64) -> Result<Vec<(Oid, Tid)>, BenchError> {
    let mut objects: Vec<(Oid, Tid)> = (0..count).map(|oid| (Oid(oid), Tid::ZERO)).collect();
    for group in objects.chunks_mut(100) {
        let mut transaction = client.begin(&Description::default())?;
        for (oid, serial) in group.iter() {
            transaction.store(*oid, *serial, &record(*oid, RECORD_LEN))?;
        }
        let Vote::Ready(voted) = transaction.vote()? else {
            return Err(wrong("it saw a conflict in an empty storage"));
        };
        let tid = voted.finish()?;
        group.iter_mut().for_each(|(_, serial)| *serial = tid);
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_an_object_differ_and_are_equally_long() {
        let states = [0, 1].map(|version| state(Oid(5), version));
        assert_ne!(states[0], states[1]);
        assert!(states.iter().all(|state| state.len() == RECORD_LEN));
    }
}
