//! `zeoringctl copy`: all transactions of one storage to another, with their tids.
//!
//! Goes on where an earlier copy ended. Never writes to a target that has something else.

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use zeoring_client::{
    Access, Address, Description, DrivenClient, Restored, TransactionEntry, Vote,
};
use zeoring_shared::ids::Tid;

use crate::connect::Way;
use crate::print::{Failure, line, show};

/// What `zeoringctl copy` is told.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where the storage is that is read: an address as of a server.
    source: Address,
    /// Where the storage is that is written.
    target: Address,
    #[command(flatten)]
    way: Way,
    /// The storage that is written [default: as --storage].
    #[arg(long)]
    target_storage: Option<String>,
    /// Print JSON, and no progress.
    #[arg(long)]
    json: bool,
}

/// What was copied.
#[derive(Default)]
struct Copied {
    transactions: u64,
    records: u64,
    bytes: u64,
    /// Records that have a blob beside them, which is not copied.
    blobs: u64,
}

/// Copies.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let source = arguments.way.open(&arguments.source, Access::Read)?;
    let storage = arguments.target_storage.as_deref();
    let target = arguments.way.open_storage(&arguments.target, storage, Access::Write)?;
    let last = target.server_last_transaction()?;
    if last != Tid::ZERO {
        has_transaction(&source, last)?;
    }
    let info = source.server_info()?;
    let bar = match arguments.json {
        true => ProgressBar::hidden(),
        false => ProgressBar::new(u64::try_from(info.size).unwrap_or(0)),
    };
    let style = "{bar:40} {bytes} of about {total_bytes}, {bytes_per_sec}, {eta} to go  {msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("the template is a constant"));
    let start = (last != Tid::ZERO).then(|| last.next());
    let mut copied = Copied::default();
    let mut walk = source.iterate(start, None)?;
    while let Some(entry) = walk.next_transaction()? {
        let restored = Restored { tid: entry.tid, status: entry.status };
        let mut transaction = target.begin_restored(&description(&entry), Some(restored))?;
        while let Some(record) = walk.next_record()? {
            let data = record.data.as_deref();
            transaction.restore(record.oid, record.tid, data, record.data_tid)?;
            let length = data.map_or(0, <[u8]>::len) as u64;
            copied.records += 1;
            copied.bytes += length;
            copied.blobs += u64::from(data.is_some_and(is_blob));
            bar.inc(length);
        }
        match transaction.vote()? {
            Vote::Ready(voted) => drop(voted.finish()?),
            Vote::Conflicts { conflicts, transaction } => {
                transaction.abort()?;
                return Err(written_meanwhile(conflicts.first().map(|conflict| conflict.oid)));
            }
            Vote::Refused(conflict) => return Err(written_meanwhile(Some(conflict.oid))),
        }
        copied.transactions += 1;
        bar.set_message(format!("{} transactions", copied.transactions));
    }
    bar.finish_and_clear();
    report(arguments.json, &copied)
}

fn report(json: bool, copied: &Copied) -> Result<(), Failure> {
    let Copied { transactions, records, bytes, blobs } = copied;
    if json {
        return show(&json!({
            "transactions": transactions, "records": records, "bytes": bytes,
            "blobs_not_copied": blobs,
        }));
    }
    line(format_args!("copied {transactions} transactions, {records} records, {bytes} bytes"))?;
    if 0 < *blobs {
        line(format_args!(
            "{blobs} records have blobs, whose files are not copied: copy the blob directory"
        ))?;
    }
    Ok(())
}

/// A target that is not empty must hold the beginning of the source.
fn has_transaction(source: &DrivenClient, tid: Tid) -> Result<(), Failure> {
    let first = source.iterate(Some(tid), Some(tid))?.next_transaction()?;
    if first.is_some_and(|entry| entry.tid == tid) {
        return Ok(());
    }
    Err(Failure::Refused(format!(
        "the target's last transaction {tid} is none of the source's: it is no copy of it; copy to \
         an empty storage"
    )))
}

fn written_meanwhile(oid: Option<zeoring_shared::ids::Oid>) -> Failure {
    let oid = oid.map_or_else(|| "an object".to_owned(), |oid| format!("object {oid}"));
    Failure::Refused(format!("somebody else has written {oid} of the target meanwhile"))
}

fn description(entry: &TransactionEntry) -> Description {
    Description {
        user: entry.user.clone(),
        description: entry.description.clone(),
        extension: entry.extension.clone(),
    }
}

/// Whether a record is that of a blob (`ZODB/blob.py`, `is_blob_record`).
fn is_blob(data: &[u8]) -> bool {
    let class = b"cZODB.blob\nBlob\n";
    data.windows(class.len()).take(64).any(|window| window == class)
}
