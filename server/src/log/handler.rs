//! Where messages are written: a file or a standard stream.
//!
//! Never stops the server: what cannot be written is counted, and said when writing works again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Severity, format::Record};
use crate::config::{HandlerSettings, Rotation, Target};

/// A log file cannot be opened. Reads as the file and what the system said.
#[derive(Debug, thiserror::Error)]
#[error("log file {}: {source}", path.display())]
pub struct LogError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Writes what is grave enough.
#[derive(Debug)]
pub(super) struct Handler {
    settings: HandlerSettings,
    output: Mutex<Output>,
}

#[derive(Debug, Default)]
struct Output {
    /// Open, if the target is a file and needs to be.
    file: Option<File>,
    /// Messages that could not be written since the last that could.
    lost: u64,
}

impl Handler {
    /// Opens the file, unless that is to wait for the first message.
    pub(super) fn open(settings: HandlerSettings) -> Result<Self, LogError> {
        let mut output = Output::default();
        if let (Target::File(path), false) = (&settings.target, settings.delay) {
            output.file = Some(open(path)?);
        }
        Ok(Self { settings, output: Mutex::new(output) })
    }

    pub(super) fn admits(&self, severity: Severity) -> bool {
        self.settings.level.admits(severity)
    }

    pub(super) fn write(&self, record: &Record<'_>) {
        let mut output = self.lock();
        if self.write_line(&mut output, &self.line(record)).is_err() {
            output.lost = output.lost.saturating_add(1);
        } else if 0 < output.lost {
            let message = format!("{} messages before this could not be written", output.lost);
            let severity = Severity::Warning;
            let note = self.line(&Record { severity, message: &message, ..record.clone() });
            if self.write_line(&mut output, &note).is_ok() {
                output.lost = 0;
            }
        }
    }

    /// Opens the file anew, because someone has moved it. If that fails, the old one stays open.
    pub(super) fn reopen(&self) -> Result<(), LogError> {
        let Target::File(path) = &self.settings.target else { return Ok(()) };
        let mut output = self.lock();
        if output.file.is_none() {
            return Ok(());
        }
        if let Some(rotation) = self.settings.rotation {
            put_aside(path, rotation);
        }
        output.file = if self.settings.delay { None } else { Some(open(path)?) };
        Ok(())
    }

    /// A panic under the lock leaves nothing half done that the next message could trip over.
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, record: &Record<'_>) -> String {
        let mut line = String::new();
        self.settings.format.write(record, &self.settings.date_format, &mut line);
        line
    }

    /// One write a message, so that the messages of several processes do not mix.
    fn write_line(&self, output: &mut Output, line: &str) -> io::Result<()> {
        let path = match &self.settings.target {
            Target::Stdout => return write_and_flush(io::stdout().lock(), line),
            Target::Stderr => return write_and_flush(io::stderr().lock(), line),
            Target::File(path) => path,
        };
        if let (Some(file), Some(rotation)) = (&output.file, self.settings.rotation) {
            let bytes = file.metadata()?.len();
            if 0 < bytes && rotation.bytes_max <= bytes + line.len() as u64 {
                output.file = None;
                put_aside(path, rotation);
            }
        }
        if output.file.is_none() {
            output.file = Some(open(path).map_err(|error| error.source)?);
        }
        let file = output.file.as_mut().expect("it has just been opened");
        file.write_all(line.as_bytes())
    }
}

fn write_and_flush(mut stream: impl Write, line: &str) -> io::Result<()> {
    stream.write_all(line.as_bytes())?;
    stream.flush()
}

fn open(path: &Path) -> Result<File, LogError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|source| LogError { path: path.to_owned(), source })
}

/// Renames `log` to `log.1`, `log.1` to `log.2`, and so on; the oldest is overwritten. What
/// cannot be renamed stays, and the log goes on in the same file: better long than lost.
fn put_aside(path: &Path, rotation: Rotation) {
    let numbered = |number: usize| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    for number in (1..rotation.old_files.get()).rev() {
        let _ = fs::rename(numbered(number), numbered(number + 1));
    }
    let _ = fs::rename(path, numbered(1));
}
