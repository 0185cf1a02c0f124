//! A disk in memory that dies at a chosen operation, and then shows all that a real one may have
//! kept: for tests of what a crash leaves.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use zeoring_shared::io::{Access, Disk, DiskFile, Machine};

/// What a crash may leave of what was not synced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remains {
    /// Names given and taken since their folder was synced.
    pub(crate) names: bool,
    /// Bytes written since their file was synced.
    pub(crate) bytes: bool,
}

/// All of a killed process, and the extremes of a power cut.
pub(crate) const REMAINS: [Remains; 4] = [
    Remains { names: true, bytes: true },
    Remains { names: true, bytes: false },
    Remains { names: false, bytes: true },
    Remains { names: false, bytes: false },
];

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct MortalDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Changes that may still be made, if they are counted.
    life: Option<usize>,
    /// The last change that was asked for.
    last: String,
    names: Names,
    durable_names: Names,
    files: Vec<Bytes>,
}

type Names = BTreeMap<PathBuf, usize>;

#[derive(Debug, Default)]
struct Bytes {
    now: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Debug)]
struct MortalFile {
    disk: MortalDisk,
    number: usize,
}

impl MortalDisk {
    /// A machine with such a disk.
    pub(crate) fn machine() -> (Self, Machine) {
        let disk = Self::default();
        let machine = Machine { disk: Arc::new(disk.clone()), ..Machine::real() };
        (disk, machine)
    }

    /// Lets the disk die after so many changes.
    pub(crate) fn die_after(&self, changes: usize) {
        self.state().life = Some(changes);
    }

    /// Whether it is dead, and of which change.
    pub(crate) fn death(&self) -> Option<String> {
        let state = self.state();
        (state.life == Some(0)).then(|| state.last.clone())
    }

    /// Writes into a real folder what is left.
    pub(crate) fn leave(&self, remains: Remains, folder: &Path) {
        let state = self.state();
        let names = if remains.names { &state.names } else { &state.durable_names };
        for (name, number) in names {
            let file = &state.files[*number];
            let bytes = if remains.bytes { &file.now } else { &file.durable };
            fs::write(folder.join(name), bytes).unwrap();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A change, if there is life for it.
    fn change(&self, what: impl FnOnce() -> String) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        if let Some(life) = state.life {
            if life == 0 {
                return Err(io::ErrorKind::Other.into());
            }
            state.life = Some(life - 1);
            state.last = what();
        }
        Ok(state)
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for MortalDisk {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = match access {
            Access::Read | Access::Write => self.state(),
            Access::Create | Access::Truncate => {
                self.change(|| format!("open {}", path.display()))?
            }
        };
        let number = match (state.names.get(path).copied(), access) {
            (None, Access::Read | Access::Write) => return Err(not_found()),
            (Some(number), Access::Truncate) => {
                state.files[number].now.clear();
                number
            }
            (Some(number), _) => number,
            (None, _) => {
                let number = state.files.len();
                state.files.push(Bytes::default());
                state.names.insert(path.to_owned(), number);
                number
            }
        };
        Ok(Arc::new(MortalFile { disk: self.clone(), number }))
    }

    fn rename(&self, source: &Path, target: &Path) -> io::Result<()> {
        let mut state = self.change(|| format!("rename to {}", target.display()))?;
        let number = state.names.remove(source).ok_or_else(not_found)?;
        state.names.insert(target.to_owned(), number);
        Ok(())
    }

    fn link(&self, source: &Path, target: &Path) -> io::Result<()> {
        let mut state = self.change(|| format!("link as {}", target.display()))?;
        let number = *state.names.get(source).ok_or_else(not_found)?;
        if state.names.insert(target.to_owned(), number).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.change(|| format!("remove {}", path.display()))?;
        state.names.remove(path).map(drop).ok_or_else(not_found)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.state().names.contains_key(path))
    }

    fn list(&self, _: &Path) -> io::Result<Vec<OsString>> {
        Ok(self.state().names.keys().map(|name| name.clone().into_os_string()).collect())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        let mut state = self.change(|| "sync the folder".to_owned())?;
        state.durable_names = state.names.clone();
        Ok(())
    }
}

impl DiskFile for MortalFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let state = self.disk.state();
        let bytes = state.files[self.number].now.get(position as usize..).unwrap_or_default();
        let count = bytes.len().min(buffer.len());
        buffer[..count].copy_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn read_at_now(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.read_at(buffer, position)
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        let mut state = self.disk.change(|| format!("write to file {}", self.number))?;
        let (file, end) = (&mut state.files[self.number].now, position as usize + bytes.len());
        if file.len() < end {
            file.resize(end, 0);
        }
        file[position as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.change(|| format!("sync file {}", self.number))?;
        let file = &mut state.files[self.number];
        file.durable = file.now.clone();
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.number].now.len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.change(|| format!("cut file {}", self.number))?;
        state.files[self.number].now.resize(length as usize, 0);
        Ok(())
    }

    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
