//! The seam between zeoring and the machine: disk, clock and chance as traits.
//!
//! Everything that touches a data file, asks for the time or wants a random number does it through
//! these, so that a test can put a slow, failing or simulated machine underneath. Network sockets
//! are the business of [`crate::uring`].

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FallocateFlags, FlockOperation, Gid, Mode, Uid};
use rustix::io::{Errno, ReadWriteFlags};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Only to read. The file has to be there.
    Read,
    /// To read and write. The file has to be there.
    Write,
    /// To read and write. The file is made, empty, if it is not there.
    Create,
    /// To read and write. The file is made, or emptied.
    Truncate,
}

/// A file system: names, and the files behind them.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Opens a file. New files are readable by owner and group only, less the umask.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name, in place of whatever had it.
    fn rename(&self, source: &Path, target: &Path) -> io::Result<()>;

    /// Gives a file a second name, which nothing may have.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] if files of this disk have one name each.
    fn link(&self, source: &Path, target: &Path) -> io::Result<()> {
        let _ = (source, target);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Takes a name away.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Whether something has this name.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// The names in a folder, in no order.
    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>>;

    /// Makes a folder, and those that it lies in, as far as they are not there.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] if this disk has one folder only.
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        let _ = folder;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Removes a folder that is empty.
    ///
    /// # Errors
    ///
    /// As [`Disk::make_folder`].
    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        let _ = folder;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes names given or taken in a folder durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

/// An open file.
///
/// All methods take `&self` and a position: a file is shared by threads and has no cursor.
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// Reads up to `buffer.len()` bytes, waiting for the disk if need be. Zero is the file's end.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;

    /// Reads as [`DiskFile::read_at`] does, but only what memory holds already.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] if the first byte is not in memory. May return fewer bytes
    /// than there are because the rest is not.
    fn read_at_now(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;

    /// Writes all the bytes.
    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()>;

    /// Makes what was written durable, with the length, without the other metadata (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;

    /// The length, in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Cuts the file off, or fills it up with zeros. Gives back space that was reserved past it.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Sets space aside without changing the length, so that a later write cannot lack it.
    ///
    /// A file system that cannot do it (`EOPNOTSUPP`) is no error.
    fn reserve(&self, position: u64, length: u64) -> io::Result<()>;

    /// Lets the disk begin to read what will be asked for soon. Only a hint: never waits.
    fn will_need(&self, position: u64, length: u64) {
        let _ = (position, length);
    }

    /// Takes the owner and the permissions of another file, as far as the process may.
    ///
    /// # Errors
    ///
    /// The permissions could not be read or set.
    fn take_after(&self, model: &dyn DiskFile) -> io::Result<()> {
        let _ = model;
        Ok(())
    }

    /// Takes the lock that one process may hold, or returns `false` if another has it (`flock`).
    fn try_lock(&self) -> io::Result<bool>;

    /// The descriptor, if a ring can read the file; `None` sends cold reads to a thread.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Reads exactly `buffer.len()` bytes, waiting for the disk if need be.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read_at(&mut buffer[done..], position + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What time it is.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time since 1970-01-01 UTC. May jump, either way.
    fn since_1970(&self) -> Duration;

    /// The time since some fixed moment. Never goes back.
    fn monotonic(&self) -> Duration;
}

/// Random numbers.
pub trait Chance: fmt::Debug + Send + Sync {
    /// Sixty-four random bits.
    fn bits(&self) -> u64;
}

/// The machine under a server or client: everything that a simulation replaces.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Where files are.
    pub disk: Arc<dyn Disk>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where random numbers come from.
    pub chance: Arc<dyn Chance>,
}

impl Machine {
    /// The machine that the program runs on.
    pub fn real() -> Self {
        Self {
            disk: Arc::new(RealDisk),
            clock: Arc::new(RealClock { start: Instant::now() }),
            chance: Arc::new(RealChance),
        }
    }
}

/// The file systems of this machine.
#[derive(Debug)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).mode(0o640);
        match access {
            Access::Read => &mut options,
            Access::Write => options.write(true),
            Access::Create => options.write(true).create(true).truncate(false),
            Access::Truncate => options.write(true).create(true).truncate(true),
        };
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn rename(&self, source: &Path, target: &Path) -> io::Result<()> {
        fs::rename(source, target)
    }

    fn link(&self, source: &Path, target: &Path) -> io::Result<()> {
        fs::hard_link(source, target)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        fs::exists(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)
    }

    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        fs::remove_dir(folder)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder)?.sync_all()
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, buffer, position)
    }

    fn read_at_now(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let slices = &mut [io::IoSliceMut::new(buffer)];
        match rustix::io::preadv2(&self.0, slices, position, ReadWriteFlags::NOWAIT) {
            // A file system that cannot say what is in memory is read the ordinary way.
            Err(Errno::OPNOTSUPP) => FileExt::read_at(&self.0, buffer, position),
            result => Ok(result?),
        }
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        FileExt::write_all_at(&self.0, bytes, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.size())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn reserve(&self, position: u64, length: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::KEEP_SIZE, position, length) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }

    fn will_need(&self, position: u64, length: u64) {
        let length = std::num::NonZeroU64::new(length);
        // A file system that does not take hints reads when it is asked to.
        let _ = rustix::fs::fadvise(&self.0, position, length, rustix::fs::Advice::WillNeed);
    }

    fn take_after(&self, model: &dyn DiskFile) -> io::Result<()> {
        let Some(model) = model.descriptor() else { return Ok(()) };
        let stat = rustix::fs::fstat(model)?;
        let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        // Only root may give files away, and only to a group of its own may anybody else.
        let _ = rustix::fs::fchown(&self.0, None, Some(group));
        let _ = rustix::fs::fchown(&self.0, Some(owner), None);
        Ok(rustix::fs::fchmod(&self.0, Mode::from_raw_mode(stat.st_mode))?)
    }

    fn try_lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

#[derive(Debug)]
struct RealClock {
    start: Instant,
}

impl Clock for RealClock {
    fn since_1970(&self) -> Duration {
        // A clock set before 1970 reads as 1970: tids then creep on from the last one.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

#[derive(Debug)]
struct RealChance;

impl Chance for RealChance {
    fn bits(&self) -> u64 {
        use std::hash::{BuildHasher, RandomState};
        // Every RandomState has other keys, which the standard library draws from the kernel.
        RandomState::new().hash_one(0)
    }
}
