//! The file that tells others this server's process id.
//!
//! Nothing that goes wrong with it stops the server: the log says so, as in ZEO.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
};

use crate::log::{self, Severity};

/// The file exists while this value lives.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Writes the file anew, whatever was there. `None` if it cannot be written.
    pub fn create(path: &Path) -> Option<Self> {
        match write(path) {
            Ok(()) => {
                log::program(Severity::Info, format_args!("created PID file '{}'", path.display()));
                Some(Self { path: path.to_owned() })
            }
            Err(error) => {
                let path = path.display();
                log::program(
                    Severity::Error,
                    format_args!("PID file '{path}' cannot be opened: {error}"),
                );
                None
            }
        }
    }

    /// Only if it is still ours: another server may have been told the same path since.
    fn remove(&self) -> io::Result<bool> {
        let ours = match fs::read_to_string(&self.path) {
            Ok(text) => text == text_of_this_process(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if ours {
            fs::remove_file(&self.path)?;
        }
        Ok(ours)
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let path = self.path.display();
        match self.remove() {
            Ok(true) => log::program(Severity::Info, format_args!("removed PID file '{path}'")),
            Ok(false) => {}
            Err(error) => log::program(
                Severity::Error,
                format_args!("PID file '{path}' could not be removed: {error}"),
            ),
        }
    }
}

/// The old file is removed first, so that a link put in its place is not followed.
fn write(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    io::Write::write_all(&mut fs::File::create_new(path)?, text_of_this_process().as_bytes())
}

fn text_of_this_process() -> String {
    format!("{}\n", process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_there_as_long_as_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ZEO.pid");
        fs::write(&path, "1\nstale").unwrap();
        let file = PidFile::create(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_another_server_has_written_since_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ZEO.pid");
        let file = PidFile::create(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
    }

    #[test]
    fn a_file_that_cannot_be_written_or_removed_is_no_reason_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        assert!(PidFile::create(&folder.path().join("nowhere").join("ZEO.pid")).is_none());
        assert!(PidFile::create(folder.path()).is_none());
        let path = folder.path().join("ZEO.pid");
        let file = PidFile::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        drop(file);
    }
}
