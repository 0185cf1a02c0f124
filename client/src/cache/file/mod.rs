//! The second tier: revisions in a file, which may be much larger than memory and outlives the
//! process.
//!
//! The file is a circular log of what the server said (`format.rs`). A thread of its own writes it
//! (`log.rs`), and is told what to write through a queue on which nobody waits (`inbox.rs`). At
//! open the log is read again (`scan.rs`). Which bytes are where, the cache's index says; data are
//! read without any lock and checked against the name of the revision, so a place that was recycled
//! meanwhile is a miss.
//!
//! What a restart finds depends on how the process ended:
//!
//! | end | file |
//! |---|---|
//! | [`close`](super::Cache::close) | all of it, with the last tid |
//! | killed | what was written, with the last tid of that; the kernel has it |
//! | power cut | nothing: which writes reached the disk, nobody knows |
//!
//! A failed write turns the tier off until the next start. Nothing is ever synced but at open and
//! at close.

mod format;
mod inbox;
mod log;
mod scan;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::{Access, DiskFile, Machine};

use self::format::{Geometry, HEADER_LENGTH, Header, Kind, Record, SIZE_MIN};
use self::inbox::Task;
pub(super) use self::inbox::{Ending, Inbox, Note};
use self::log::Log;
use self::scan::Scanned;
use super::contents::Contents;
use super::{CacheError, CacheFile, Dropped, Opened};

/// The file of a cache that is in use.
#[derive(Debug)]
pub(super) struct Tier {
    file: Arc<dyn DiskFile>,
    data_max: usize,
    pub(super) inbox: Inbox,
    /// Why nothing is written or read any more.
    failure: OnceLock<io::Error>,
    bytes: AtomicU64,
    damaged: AtomicU64,
}

/// What is in a file that was just opened.
enum State {
    /// A log that may be used.
    Log(Header),
    /// Nothing, and why.
    Nothing(Opened),
}

impl Tier {
    /// Whether the file can take data of this length.
    pub(super) fn takes(&self, length: usize) -> bool {
        length <= self.data_max && self.failure.get().is_none()
    }

    /// Reads a revision's data, and checks that they are this revision's.
    pub(super) fn read(&self, position: u64, length: u32, oid: Oid, serial: Tid) -> Option<Bytes> {
        if self.failure.get().is_some() {
            return None;
        }
        let mut bytes = vec![0; Record::LENGTH + length as usize];
        self.file.read_exact_at(&mut bytes, position).ok()?;
        let (head, data) = bytes.split_at(Record::LENGTH);
        let record = Record::decode(head)?;
        let is_it = matches!(record.kind, Kind::Revision { oid: its, serial: wrote, .. }
            if (its, wrote) == (oid, serial));
        (is_it && record.fits(data)).then(|| Bytes::from(bytes).slice(Record::LENGTH..))
    }

    /// Counts a record that is not what was written.
    pub(super) fn count_damaged(&self) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that turned out to be damaged.
    pub(super) fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Bytes that the log takes in the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Why the tier is off, if it is.
    pub(super) fn failure(&self) -> Option<&io::Error> {
        self.failure.get()
    }
}

/// Opens the file, puts what it knows into `contents`, which are empty, and starts its writer.
pub(super) fn open(
    machine: &Machine,
    boot_id: &str,
    options: &CacheFile,
    contents: impl FnOnce(Tier) -> Arc<Contents>,
) -> Result<(Arc<Contents>, JoinHandle<()>, Opened), CacheError> {
    let path = &options.path;
    let geometry = Geometry::new(options.size_max)
        .ok_or_else(|| CacheError::TooSmall { path: path.clone(), size_min: SIZE_MIN })?;
    let failed = |source| CacheError::Io { path: path.clone(), source };
    let boot = format::boot(boot_id);
    let mut file = open_locked(machine, path)?;
    let state = read_state(&*file, geometry, &boot).map_err(failed)?;
    if matches!(state, State::Nothing(Opened::Dropped(Dropped::Foreign))) {
        machine.disk.rename(path, &beside(path)).map_err(failed)?;
        file = open_locked(machine, path)?;
    }
    let tier = Tier {
        file: file.clone(),
        data_max: geometry.data_max(),
        inbox: Inbox::default(),
        failure: OnceLock::new(),
        bytes: AtomicU64::new(0),
        damaged: AtomicU64::new(0),
    };
    let contents = contents(tier);
    let (log, opened) =
        open_log(machine, file, state, Header { geometry, epoch: 0, boot, clean: None }, &contents)
            .map_err(failed)?;
    let writer = thread::Builder::new().name("zeoring-cache".to_owned()).spawn({
        let contents = contents.clone();
        move || write(log, &contents)
    });
    Ok((contents, writer.map_err(failed)?, opened))
}

fn open_log(
    machine: &Machine,
    file: Arc<dyn DiskFile>,
    state: State,
    fresh: Header,
    contents: &Contents,
) -> io::Result<(Log, Opened)> {
    match state {
        State::Nothing(opened) => {
            // Cut off first, so that the space of what was there is given back.
            file.set_length(0)?;
            file.set_length(fresh.geometry.file_size())?;
            let mut log = Log::new(file, machine.chance.clone(), fresh, Scanned::default());
            log.begin_anew(None)?;
            log.mark_used()?;
            Ok((log, opened))
        }
        State::Log(header) => {
            let scanned = scan::scan(&*file, header.geometry, header.epoch, &contents.index)?;
            contents.restore(scanned.last_tid);
            let (revisions, damaged) = (contents.index.revisions(), scanned.damaged);
            let is_empty = scanned.end.is_none();
            let header = Header { boot: fresh.boot, ..header };
            let mut log = Log::new(file, machine.chance.clone(), header, scanned);
            if is_empty {
                log.begin_anew(None)?;
            }
            log.mark_used()?;
            Ok((log, Opened::Warm { revisions, damaged }))
        }
    }
}

fn open_locked(machine: &Machine, path: &Path) -> Result<Arc<dyn DiskFile>, CacheError> {
    let failed = |source| CacheError::Io { path: path.to_owned(), source };
    let file = machine.disk.open(path, Access::Create).map_err(failed)?;
    match file.try_lock().map_err(failed)? {
        true => Ok(file),
        false => Err(CacheError::InUse { path: path.to_owned() }),
    }
}

fn read_state(file: &dyn DiskFile, geometry: Geometry, boot: &[u8]) -> io::Result<State> {
    let length = file.length()?;
    if length == 0 {
        return Ok(State::Nothing(Opened::Fresh));
    }
    let mut page = vec![0; HEADER_LENGTH.min(length) as usize];
    file.read_exact_at(&mut page, 0)?;
    // A file whose making was cut off by a power cut.
    if page.iter().all(|byte| *byte == 0) {
        return Ok(State::Nothing(Opened::Fresh));
    }
    let dropped = |why| Ok(State::Nothing(Opened::Dropped(why)));
    match Header::decode(&page) {
        None => dropped(Dropped::Foreign),
        Some(header) if header.geometry != geometry => dropped(Dropped::Resized),
        Some(header) if header.clean.is_none() && header.boot != boot => dropped(Dropped::PowerCut),
        Some(header) => Ok(State::Log(header)),
    }
}

/// Where a file that is none of ours is kept.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".bad");
    name.into()
}

/// What the writer's thread does until it is told to end, or a write fails.
fn write(mut log: Log, contents: &Contents) {
    let tier = contents.tier().expect("a writer is started for a file");
    loop {
        tier.bytes.store(log.bytes(), Ordering::Relaxed);
        let result = match tier.inbox.take() {
            Task::Write(notes) => log.write(&notes, contents),
            Task::BeginAnew => log.begin_anew(contents.leave_file(|| tier.inbox.begin_anew())),
            Task::End(Ending::Stop) => break,
            Task::End(Ending::Close) => {
                if let Err(error) = log.close(contents) {
                    tier.failure.get_or_init(|| error);
                }
                break;
            }
        };
        match result {
            Ok(()) => {}
            // What was written is not there any more. What others wrote meanwhile is not known to
            // the log, so it begins anew.
            Err(error) if is_damage(&error) => {
                tier.count_damaged();
                tier.inbox.lose();
            }
            Err(error) => {
                tier.failure.get_or_init(|| error);
                break;
            }
        }
    }
    tier.inbox.over();
    contents.leave_file(|| {});
}

fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}
