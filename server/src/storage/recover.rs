//! Reads the transactions that the index file does not know, and decides about a file's bad end.
//!
//! ```text
//!   | good | good | good | part of a torn one |     cut off here, the rest saved as .trN
//!   | good | good | DAMAGE | good | good |          refused: what follows was committed
//! ```
//!
//! A server that died while it wrote leaves a torn transaction at the end, and Python's leaves one
//! with status `c` between vote and finish. Neither was answered to anybody, so both are cut off.
//! A damaged length looks the same at first, but we cut off nothing that was committed:
//!
//! - If a whole transaction stands somewhere behind it, the damage is in the middle. Such a
//!   transaction is known by its records, which name the position that they are at.
//! - A torn transaction ends with the file, or in zeros where blocks were never written. One that
//!   was written to its end and is wrong inside was not torn.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::{Access, Disk, DiskFile};
use zeoring_shared::record::header::TRAILER;
use zeoring_shared::record::{
    COMMITTED, Damage, DataHeader, FIRST, PACKED, TransactionHeader, UNDONE, VOTED,
};

use super::StorageError;
use super::index::Index;
use super::paths::{beside, folder};
use super::window::Window;
use crate::log::{self, Severity, Source};

/// What a scan found.
#[derive(Debug)]
pub(super) struct Scanned {
    /// Behind the last good transaction.
    pub(super) end: u64,
    /// The last good transaction.
    pub(super) last: Tid,
    /// What stands behind the good end, if anything does.
    pub(super) rest: Option<Rest>,
}

/// What stands behind the last good transaction.
#[derive(Debug)]
pub(super) struct Rest {
    /// What is wrong with it.
    pub(super) damage: Damage,
    /// Why it must not be cut off, if it must not.
    pub(super) proof: Option<Proof>,
}

/// What shows that bad bytes are not just the torn end of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Proof {
    /// A whole transaction behind them, at this position.
    Later(u64),
    /// The length at the end of the transaction, or the transaction's end within the file.
    Written,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Later(position) => write!(f, "a whole transaction follows at {position}"),
            Self::Written => write!(f, "the transaction was once written to its end"),
        }
    }
}

/// Why a transaction was not taken.
enum Fault {
    /// It is not what the format requires.
    Damage(Damage),
    /// It is whole, ends there, and was never finished.
    Voted { end: u64 },
    /// The disk failed.
    Read(StorageError),
}

impl From<Damage> for Fault {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        Self::Read(error)
    }
}

/// A data record, as far as the index is concerned.
struct Entry {
    oid: Oid,
    position: u64,
    previous: u64,
}

/// Reads transactions from `start`, which is behind transaction `last`, and adds them to the index.
///
/// # Errors
///
/// [`StorageError::Read`]. Damage is no error of a scan, but its result.
pub(super) fn scan(
    file: &Arc<dyn DiskFile>,
    size: u64,
    start: u64,
    last: Tid,
    index: &Index,
) -> Result<Scanned, StorageError> {
    let mut window = Window::new(file.clone(), size);
    let mut entries = Vec::new();
    let mut scanned = Scanned { end: start, last, rest: None };
    let mut astray = 0;
    while scanned.end < size {
        let position = scanned.end;
        let (damage, voted) = match transaction(&mut window, position, size, &mut entries) {
            Ok(header) => {
                remark(&header, position, scanned.last);
                // Of an oid that comes twice in a transaction, both records name the one before.
                let leads = |e: &Entry| index.position(e.oid).unwrap_or(0) == e.previous;
                astray += entries.iter().filter(|entry| !leads(entry)).count();
                for entry in entries.drain(..) {
                    index.set(entry.oid, entry.position);
                }
                scanned.end = header.end(position);
                scanned.last = header.tid;
                continue;
            }
            Err(Fault::Damage(damage)) => (damage, None),
            Err(Fault::Voted { end }) => {
                (Damage { position, expected: "a transaction that was finished" }, Some(end))
            }
            Err(Fault::Read(error)) => return Err(error),
        };
        let later = later_transaction(&mut window, file, voted.unwrap_or(position + 1), size)?;
        let proof = match later {
            Some(later) => Some(Proof::Later(later)),
            None if voted.is_some() => None,
            None => was_written(&mut window, position, size, damage)?.then_some(Proof::Written),
        };
        scanned.rest = Some(Rest { damage, proof });
        break;
    }
    if astray != 0 {
        log::event(
            Source::FILE_STORAGE,
            Severity::Warning,
            "",
            format_args!(
                "{astray} records do not lead to the revision before; histories may be short"
            ),
        );
    }
    Ok(scanned)
}

/// Says in the log what Python's FileStorage lets pass, too.
fn remark(header: &TransactionHeader, position: u64, last: Tid) {
    let TransactionHeader { tid, status, .. } = header;
    if *tid <= last {
        log::event(
            Source::FILE_STORAGE,
            Severity::Warning,
            "",
            format_args!("transaction {tid} at {position} is not later than {last}"),
        );
    }
    if !matches!(*status, COMMITTED | PACKED | UNDONE) {
        log::event(
            Source::FILE_STORAGE,
            Severity::Warning,
            "",
            format_args!("transaction {tid} at {position} has status {status}"),
        );
    }
}

/// Whether a damaged transaction at the end of a file was written to its end.
fn was_written(
    window: &mut Window,
    position: u64,
    size: u64,
    damage: Damage,
) -> Result<bool, StorageError> {
    if has_blank_block(window, position, damage.position)? {
        return Ok(false);
    }
    let head = window.bytes(position, TransactionHeader::LEN)?;
    let Ok(header) = TransactionHeader::parse(head, position) else { return Ok(false) };
    if header.fits(position, size).is_ok() {
        return Ok(true);
    }
    let trailer = size - TRAILER as u64;
    let length = window.bytes(trailer, TRAILER)?.try_into().map(u64::from_be_bytes);
    Ok(length.is_ok_and(|length| position.checked_add(length) == Some(trailer)))
}

/// Whether a block of the disk that reaches into the damaged header was never written: zeros, from
/// the transaction's beginning or its own to its end or the file's.
///
/// A power cut may leave such blocks, in any order, of a transaction that was not synced.
fn has_blank_block(
    window: &mut Window,
    transaction: u64,
    damage: u64,
) -> Result<bool, StorageError> {
    const BLOCK: u64 = 512;
    // Fewer zeros than these are found at the front of many a length.
    const BLANK_MIN: usize = 16;
    let first = damage - damage % BLOCK;
    for block in [first, first + BLOCK] {
        if damage + DataHeader::LEN_WITH_BACK as u64 <= block {
            break;
        }
        let start = block.max(transaction);
        let bytes = window.bytes(start, (block + BLOCK - start) as usize)?;
        if BLANK_MIN <= bytes.len() && bytes.iter().all(|byte| *byte == 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads one transaction, and fills `entries` with its records.
fn transaction(
    window: &mut Window,
    position: u64,
    size: u64,
    entries: &mut Vec<Entry>,
) -> Result<TransactionHeader, Fault> {
    entries.clear();
    let header =
        TransactionHeader::parse(window.bytes(position, TransactionHeader::LEN)?, position)?;
    header.fits(position, size)?;
    let trailer = header.trailer(position);
    // Records of an undone transaction are skipped as they are, by Python too.
    let mut at = if header.status == UNDONE { trailer } else { position + header.head_length() };
    while at < trailer {
        let record = DataHeader::parse(window.bytes(at, DataHeader::LEN_WITH_BACK)?, at)?;
        if record.transaction != position {
            return Err(Damage { position: at, expected: "a record of this transaction" }.into());
        }
        if trailer < record.end(at) {
            let expected = "a record that ends in its transaction";
            return Err(Damage { position: at, expected }.into());
        }
        entries.push(Entry { oid: record.oid, position: at, previous: record.previous });
        at = record.end(at);
    }
    if window.bytes(trailer, TRAILER)? != header.length.to_be_bytes() {
        let expected = "the transaction length, repeated";
        return Err(Damage { position: trailer, expected }.into());
    }
    if header.status == VOTED {
        return Err(Fault::Voted { end: header.end(position) });
    }
    Ok(header)
}

/// Finds a whole transaction at or after `start`, wherever it begins.
fn later_transaction(
    window: &mut Window,
    file: &Arc<dyn DiskFile>,
    start: u64,
    size: u64,
) -> Result<Option<u64>, StorageError> {
    const STEP: usize = 64 * 1024;
    let mut position = start;
    while position < size {
        let bytes = window.bytes(position, STEP + TransactionHeader::LEN)?;
        let count = bytes.len().saturating_sub(TransactionHeader::LEN - 1).min(STEP);
        for at in 0..count {
            let here = position + at as u64;
            let Ok(header) = TransactionHeader::parse(&bytes[at..], here) else { break };
            let plausible = matches!(header.status, COMMITTED | PACKED)
                && header.head_length() < header.length
                && header.fits(here, size).is_ok();
            if plausible && names_itself(&**file, here, &header)? {
                return Ok(Some(here));
            }
        }
        if count < STEP {
            break;
        }
        position += count as u64;
    }
    Ok(None)
}

/// Whether the first record names this position, and the length is repeated at the end.
fn names_itself(
    file: &dyn DiskFile,
    position: u64,
    header: &TransactionHeader,
) -> Result<bool, StorageError> {
    let failed = |source| StorageError::Read { position, source };
    let first = position + header.head_length();
    if header.trailer(position) - first < DataHeader::LEN_WITH_BACK as u64 - TRAILER as u64 {
        return Ok(false);
    }
    let mut record = [0; DataHeader::LEN_WITH_BACK];
    file.read_exact_at(&mut record, first).map_err(failed)?;
    let names = DataHeader::parse(&record, first).is_ok_and(|r| r.transaction == position);
    if !names {
        return Ok(false);
    }
    let mut trailer = [0; TRAILER];
    file.read_exact_at(&mut trailer, header.trailer(position)).map_err(failed)?;
    Ok(trailer == header.length.to_be_bytes())
}

/// The last transaction before `end`, if an index that is complete up to there agrees with the
/// file: with the last transactions that have records, until a few records were compared.
///
/// `Ok(None)`: it does not agree. The index is of another file, or of another time.
pub(super) fn last_transaction(
    file: &Arc<dyn DiskFile>,
    size: u64,
    end: u64,
    index: &Index,
) -> Result<Option<Tid>, StorageError> {
    const RECORDS: usize = 5;
    if size < end {
        return Ok(None);
    }
    let mut window = Window::new(file.clone(), end);
    let (mut last, mut compared, mut behind) = (None, 0, end);
    let (mut entries, mut seen) = (Vec::new(), BTreeSet::new());
    while compared < RECORDS && FIRST < behind {
        let Some(trailer) = behind.checked_sub(TRAILER as u64) else { return Ok(None) };
        let Ok(length) = window.bytes(trailer, TRAILER)?.try_into().map(u64::from_be_bytes) else {
            return Ok(None);
        };
        let Some(position) = trailer.checked_sub(length).filter(|at| FIRST <= *at) else {
            return Ok(None);
        };
        match transaction(&mut window, position, behind, &mut entries) {
            Ok(header) => last = last.or(Some(header.tid)),
            Err(Fault::Read(error)) => return Err(error),
            Err(Fault::Damage(_) | Fault::Voted { .. }) => return Ok(None),
        }
        // From the end backwards, the first record of an object that comes is the current one.
        let mut current = entries.iter().rev().filter(|entry| seen.insert(entry.oid));
        if !current.all(|entry| index.position(entry.oid) == Some(entry.position)) {
            return Ok(None);
        }
        compared += entries.len();
        behind = position;
    }
    Ok(last)
}

/// Copies what stands behind the good end into a new file `.trN`, and cuts it off.
///
/// # Errors
///
/// The copy could not be made: nothing was cut off.
pub(super) fn save_and_cut(
    disk: &dyn Disk,
    file: &dyn DiskFile,
    data_file: &Path,
    end: u64,
    size: u64,
) -> io::Result<PathBuf> {
    let mut number = 0;
    let path = loop {
        let path = beside(data_file, &format!(".tr{number}"));
        if !disk.exists(&path)? {
            break path;
        }
        number += 1;
    };
    let copy = disk.open(&path, Access::Truncate)?;
    let mut buffer = vec![0; 1024 * 1024];
    let mut position = end;
    while position < size {
        let length = buffer.len().min((size - position) as usize);
        file.read_exact_at(&mut buffer[..length], position)?;
        copy.write_all_at(&buffer[..length], position - end)?;
        position += length as u64;
    }
    copy.sync_data()?;
    disk.sync_folder(folder(data_file))?;
    file.set_length(end)?;
    file.sync_data()?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::storage::open::{OpenError, Options};
    use crate::storage::testing::{Folder, Write, commit, load};
    use crate::storage::{Appender, Storage};

    /// A data file of four transactions, and where each of them begins and the last one ends.
    fn file_of_four() -> (Vec<u8>, Vec<u64>) {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        let mut borders = vec![storage.end()];
        for tid in 1..5 {
            let data = [b'x'; 20];
            commit(&mut appender, tid, &[(0, Write::Data(&data)), (tid, Write::Data(b"y"))]);
            borders.push(storage.end());
        }
        appender.close().unwrap();
        (fs::read(folder.path()).unwrap(), borders)
    }

    #[test]
    fn a_transaction_torn_at_any_byte_is_saved_and_cut_off() {
        let (bytes, borders) = file_of_four();
        let start = borders[3] as usize;
        let folder = Folder::new();
        for cut in start + 1..bytes.len() {
            fs::write(folder.path(), &bytes[..cut]).unwrap();
            let (storage, _appender) = folder.open().unwrap();
            let state = (storage.end(), storage.last_tid(), storage.object_count());
            assert_eq!(state, (start as u64, Tid(3), 4), "cut at {cut}");
            assert_eq!(fs::read(folder.path()).unwrap(), &bytes[..start]);
            let saved = folder.beside(".tr0");
            assert_eq!(fs::read(&saved).unwrap(), &bytes[start..cut]);
            fs::remove_file(saved).unwrap();
            fs::remove_file(folder.beside(".index")).unwrap();
        }
    }

    #[test]
    fn blocks_that_were_never_written_are_a_torn_end() {
        const BLOCK: usize = 512;
        let (good, _) = file_of_four();
        let folder = Folder::new();
        fs::write(folder.path(), &good).unwrap();
        let (storage, mut appender) = folder.open().unwrap();
        let writes: Vec<_> = (0..100).map(|oid| (oid, Write::Data(b"some more data"))).collect();
        commit(&mut appender, 5, &writes);
        appender.close().unwrap();
        let end = storage.end() as usize;
        drop((storage, appender));
        fs::remove_file(folder.beside(".index")).unwrap();
        let whole = fs::read(folder.path()).unwrap();
        let mut torn_blocks = 0;
        for block in (0..end).step_by(BLOCK).filter(|block| good.len() < block + BLOCK) {
            let (from, to) = (block.max(good.len()), end.min(block + BLOCK));
            if to - from < 16 {
                continue;
            }
            for also_the_end in [false, true] {
                let mut torn = whole.clone();
                torn[from..to].fill(0);
                if also_the_end {
                    torn[to..].fill(0);
                }
                fs::write(folder.path(), &torn).unwrap();
                let (storage, _appender) = folder.open().unwrap();
                assert_eq!((storage.last_tid(), storage.end()), (Tid(4), good.len() as u64));
                assert_eq!(fs::read(folder.beside(".tr0")).unwrap(), &torn[good.len()..]);
                fs::remove_file(folder.beside(".tr0")).unwrap();
                fs::remove_file(folder.beside(".index")).unwrap();
                torn_blocks += 1;
            }
        }
        assert!(20 < torn_blocks, "{torn_blocks}");
    }

    #[test]
    fn a_transaction_that_was_voted_for_and_not_finished_is_cut_off() {
        let (mut bytes, borders) = file_of_four();
        bytes[borders[3] as usize + 16] = VOTED;
        let folder = Folder::new();
        fs::write(folder.path(), &bytes).unwrap();
        fs::write(folder.beside(".tr0"), b"taken").unwrap();
        let (storage, _appender) = folder.open().unwrap();
        assert_eq!(storage.last_tid(), Tid(3));
        assert_eq!(fs::read(folder.beside(".tr1")).unwrap(), &bytes[borders[3] as usize..]);
        assert_eq!(fs::read(folder.beside(".tr0")).unwrap(), b"taken");
    }

    #[test]
    fn a_read_only_storage_ends_before_the_torn_transaction_and_leaves_it() {
        let (bytes, borders) = file_of_four();
        let folder = Folder::new();
        let torn = &bytes[..bytes.len() - 1];
        fs::write(folder.path(), torn).unwrap();
        let options = Options { read_only: true, ..Default::default() };
        let (storage, mut appender) = folder.open_with(&options).unwrap();
        assert_eq!((storage.end(), storage.last_tid()), (borders[3], Tid(3)));
        assert!(matches!(appender.write(&[]), Err(StorageError::ReadOnly)));
        appender.close().unwrap();
        assert_eq!(fs::read(folder.path()).unwrap(), torn);
        assert_eq!(fs::read_dir(folder.temporary.path()).unwrap().count(), 1);
    }

    #[test]
    fn no_flipped_bit_cuts_off_what_was_committed() {
        let (bytes, borders) = file_of_four();
        let folder = Folder::new();
        let last_status = borders[3] as usize + 16;
        let (mut opened, mut refused) = (0, 0);
        for bit in 4 * 8..bytes.len() * 8 {
            let (at, mask) = (bit / 8, 1 << (bit % 8));
            let mut damaged = bytes.clone();
            damaged[at] ^= mask;
            if at == last_status && damaged[at] == VOTED {
                continue;
            }
            fs::write(folder.path(), &damaged).unwrap();
            // Else a bit of the last tid may be a reason to refuse.
            let options = Options { future_allowed: true, ..Default::default() };
            match folder.open_with(&options) {
                Ok((storage, _appender)) => {
                    // The data, a tid, an oid: nothing that the structure depends on.
                    assert_eq!(storage.end(), bytes.len() as u64, "byte {at}");
                    opened += 1;
                }
                Err(OpenError::Damaged { .. }) => refused += 1,
                Err(other) => panic!("byte {at}: {other}"),
            }
            assert_eq!(fs::read(folder.path()).unwrap(), damaged, "byte {at}");
            let _ = fs::remove_file(folder.beside(".index"));
            assert!(!folder.beside(".tr0").exists());
        }
        assert!(1000 < opened && 1000 < refused, "{opened} opened, {refused} refused");
    }

    #[test]
    fn a_status_flipped_to_voted_in_the_middle_cuts_nothing_off() {
        let (mut bytes, borders) = file_of_four();
        bytes[borders[1] as usize + 16] = VOTED;
        let folder = Folder::new();
        fs::write(folder.path(), &bytes).unwrap();
        let Err(OpenError::Damaged { damage, proof, .. }) = folder.open() else {
            panic!("it is damaged");
        };
        assert_eq!((damage.position, proof), (borders[1], Proof::Later(borders[2])));
        assert_eq!(fs::read(folder.path()).unwrap(), bytes);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn any_bytes_are_opened_cut_off_or_refused(
            start in 4_usize..500,
            garbage in prop::collection::vec(
                prop::sample::select(b"\0\0\0\0\x01\x40 pc\xff".as_slice()), 0..300),
        ) {
            static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| file_of_four().0);
            let mut bytes = FILE.clone();
            let end = bytes.len().max(start + garbage.len());
            bytes.resize(end, 0);
            bytes[start..start + garbage.len()].copy_from_slice(&garbage);
            let folder = Folder::new();
            fs::write(folder.path(), &bytes).unwrap();
            match folder.open() {
                Ok((storage, _appender)) => {
                    let cut = fs::read(folder.beside(".tr0")).unwrap_or_default();
                    prop_assert_eq!([fs::read(folder.path()).unwrap(), cut].concat(), bytes);
                    for oid in 0..5 {
                        let _ = load(&storage, oid, Tid::MAX, Tid::MAX);
                    }
                }
                Err(_) => prop_assert_eq!(fs::read(folder.path()).unwrap().len(), bytes.len()),
            }
        }
    }
}
