//! What the server has to say, in the format of ZEO's logs, so that what reads those goes on
//! reading these.
//!
//! ```text
//! ------
//! 2026-03-01T12:00:00 INFO ZEO.StorageServer (127.0.0.1:40112) disconnected
//! ```
//!
//! The facade is our own and not the `log` crate's, because that has neither CRITICAL, which
//! administrators are woken by, nor ZEO's BLATHER and TRACE. A message is always one line: what
//! comes from a peer and could end a line, or hide one, is escaped, and what is long is cut.

mod format;
mod handler;
mod level;

use std::{
    fmt::{self, Write as _},
    panic::Location,
    sync::OnceLock,
};

use jiff::{Timestamp, Zoned};

use self::{format::Record, handler::Handler};
pub use self::{
    format::{Format, check_date_format},
    handler::LogError,
    level::{Severity, Threshold},
};
use crate::config::LogSettings;

/// The longest message, in bytes. Stock's longest line is a label and a sentence; a message that
/// is longer is a peer's doing.
pub const MESSAGE_BYTES_MAX: usize = 4096;

/// Who speaks: the names of ZEO's loggers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Source(pub &'static str);

impl Source {
    /// The program: start, signals, pid file.
    pub const RUNZEO: Self = Self("ZEO.runzeo");
    /// Everything about clients and their transactions.
    pub const SERVER: Self = Self("ZEO.StorageServer");
    /// A data file: opening, packing, damage.
    pub const FILE_STORAGE: Self = Self("ZODB.FileStorage");
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Opens the log of this process. Until then, messages go nowhere. To be called once.
pub fn install(settings: &LogSettings) -> Result<(), LogError> {
    let log = Log::open(settings)?;
    assert!(LOG.set(log).is_ok(), "the log of a process is opened once");
    Ok(())
}

/// Whether anyone would see a message this grave; for messages that cost something to put
/// together.
pub fn admits(severity: Severity) -> bool {
    LOG.get().is_some_and(|log| log.admits(severity))
}

/// Says something. `label` is whom it is about, such as a client's address; it may be empty.
///
/// ```
/// use zeoring_server::log::{self, Severity, Source};
///
/// log::event(Source::SERVER, Severity::Info, "127.0.0.1:40112", format_args!("disconnected"));
/// ```
#[track_caller]
pub fn event(source: Source, severity: Severity, label: &str, text: fmt::Arguments<'_>) {
    if let Some(log) = LOG.get() {
        log.event(source, severity, label, text);
    }
}

/// Says something about this process, with its id in front, as `runzeo` does.
#[track_caller]
pub fn program(severity: Severity, text: fmt::Arguments<'_>) {
    if let Some(log) = LOG.get() {
        log.program(severity, text);
    }
}

/// Opens every log file anew, and says so, as ZEO does at USR2. What cannot be opened goes on
/// where it was, and is named.
pub fn reopen() {
    if let Some(log) = LOG.get() {
        log.reopen();
    }
}

/// A log: a threshold, and those who write what passes it.
#[derive(Debug)]
pub struct Log {
    level: Threshold,
    handlers: Vec<Handler>,
    configured: bool,
    opened_at: Timestamp,
}

impl Log {
    /// Opens the files of all handlers.
    pub fn open(settings: &LogSettings) -> Result<Self, LogError> {
        let handlers: Result<_, _> = settings.handlers.iter().cloned().map(Handler::open).collect();
        Ok(Self {
            level: settings.level,
            handlers: handlers?,
            configured: settings.configured,
            opened_at: Timestamp::now(),
        })
    }

    /// See [`admits`].
    pub fn admits(&self, severity: Severity) -> bool {
        self.level.admits(severity) && self.handlers.iter().any(|h| h.admits(severity))
    }

    /// See [`event`].
    #[track_caller]
    pub fn event(&self, source: Source, severity: Severity, label: &str, text: fmt::Arguments<'_>) {
        if !self.admits(severity) {
            return;
        }
        let at = Zoned::now();
        let place = Location::caller();
        let record = Record {
            at: &at,
            uptime_s: at.timestamp().duration_since(self.opened_at).as_secs_f64().max(0.0),
            severity,
            source: source.0,
            message: &message(label, text),
            file: place.file(),
            line: place.line(),
        };
        for handler in self.handlers.iter().filter(|handler| handler.admits(severity)) {
            handler.write(&record);
        }
    }

    /// See [`program`].
    #[track_caller]
    pub fn program(&self, severity: Severity, text: fmt::Arguments<'_>) {
        let pid = std::process::id();
        self.event(Source::RUNZEO, severity, "", format_args!("({pid}) {text}"));
    }

    /// See [`reopen`].
    pub fn reopen(&self) {
        if !self.configured {
            let text = format_args!("received SIGUSR2, but it was not handled!");
            return self.program(Severity::Warning, text);
        }
        let mut failed = false;
        for error in self.handlers.iter().filter_map(|handler| handler.reopen().err()) {
            failed = true;
            self.program(Severity::Error, format_args!("{error}"));
        }
        if !failed {
            self.program(Severity::Info, format_args!("Log files reopened successfully"));
        }
    }
}

fn message(label: &str, text: fmt::Arguments<'_>) -> String {
    let mut line = Line(String::new());
    let written = match label {
        "" => line.write_fmt(text),
        label => write!(line, "({label}) ").and_then(|()| line.write_fmt(text)),
    };
    // `Line` fails when it is full, and then has said so itself.
    let _ = written;
    line.0
}

/// Takes a text of any length, and keeps one line of [`MESSAGE_BYTES_MAX`] bytes.
struct Line(String);

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let length_before = self.0.len();
            if could_mislead(c) {
                self.0.extend(c.escape_default());
            } else {
                self.0.push(c);
            }
            if MESSAGE_BYTES_MAX - "...".len() < self.0.len() {
                self.0.truncate(length_before);
                self.0.push_str("...");
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

/// Ends a line, moves the cursor, or changes the direction of what follows.
fn could_mislead(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::{fs, num::NonZeroUsize};

    use super::*;
    use crate::config::{HandlerSettings, Rotation, Target};

    fn handler(target: Target, format: &str) -> HandlerSettings {
        HandlerSettings { format: Format::parse(format).unwrap(), ..HandlerSettings::new(target) }
    }

    fn log_with(handlers: Vec<HandlerSettings>) -> Log {
        Log::open(&LogSettings { level: Threshold::INFO, handlers, configured: true }).unwrap()
    }

    fn say(log: &Log, severity: Severity, text: &str) {
        log.event(Source::SERVER, severity, "", format_args!("{text}"));
    }

    #[test]
    fn a_message_is_one_short_line_whatever_a_peer_puts_in_it() {
        assert_eq!(message("a:1", format_args!("b")), "(a:1) b");
        assert_eq!(message("", format_args!("caf\u{e9}")), "caf\u{e9}");
        let evil = "x\n------\r2026\u{1b}[2J\u{202e}\u{0}\u{2028}";
        assert_eq!(
            message(evil, format_args!("{evil}")),
            "(x\\n------\\r2026\\u{1b}[2J\\u{202e}\\u{0}\\u{2028}) \
             x\\n------\\r2026\\u{1b}[2J\\u{202e}\\u{0}\\u{2028}"
        );
        for filler in ["x", "\u{e9}", "\n", "\u{10ffff}"] {
            let long = message("", format_args!("{}", filler.repeat(100_000)));
            assert!(long.len() <= MESSAGE_BYTES_MAX && long.ends_with("..."), "{filler:?}");
        }
    }

    #[test]
    fn each_handler_gets_what_is_grave_enough() {
        let folder = tempfile::tempdir().unwrap();
        let (all, grave) = (folder.path().join("all"), folder.path().join("grave"));
        let format = "%(levelname)s %(name)s %(message)s";
        let mut second = handler(Target::File(grave.clone()), format);
        second.level = Threshold::new(40).unwrap();
        let log = log_with(vec![handler(Target::File(all.clone()), format), second]);
        for severity in [Severity::Blather, Severity::Info, Severity::Error, Severity::Critical] {
            say(&log, severity, "text");
        }
        let lines = "INFO ZEO.StorageServer text\n\
                     ERROR ZEO.StorageServer text\nCRITICAL ZEO.StorageServer text\n";
        assert_eq!(fs::read_to_string(&all).unwrap(), lines);
        let lines = lines.split_once('\n').unwrap().1;
        assert_eq!(fs::read_to_string(&grave).unwrap(), lines);
        assert!(log.admits(Severity::Info) && !log.admits(Severity::Blather));
    }

    #[test]
    fn a_moved_file_is_written_until_the_log_is_reopened() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("log"), folder.path().join("moved"));
        let log = log_with(vec![handler(Target::File(path.clone()), "%(message)s")]);
        say(&log, Severity::Info, "one");
        fs::rename(&path, &moved).unwrap();
        say(&log, Severity::Info, "two");
        log.reopen();
        assert_eq!(fs::read_to_string(&moved).unwrap(), "one\ntwo\n");
        let pid = std::process::id();
        let reopened = format!("({pid}) Log files reopened successfully\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), reopened);
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut settings = handler(Target::File(path.clone()), "%(message)s");
        settings.delay = true;
        settings.rotation =
            Some(Rotation { bytes_max: 8, old_files: NonZeroUsize::new(2).unwrap() });
        let log = log_with(vec![settings]);
        assert!(!path.exists());
        for text in ["one", "two", "three", "four", "a long message"] {
            say(&log, Severity::Info, text);
        }
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("log"), "a long message\n");
        assert_eq!((read("log.1"), read("log.2")), ("four\n".into(), "three\n".into()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn what_could_not_be_written_is_counted_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("later").join("log");
        let mut settings = handler(Target::File(path.clone()), "%(levelname)s %(message)s");
        settings.delay = true;
        let log = log_with(vec![settings.clone()]);
        say(&log, Severity::Info, "one");
        say(&log, Severity::Info, "two");
        fs::create_dir(path.parent().unwrap()).unwrap();
        say(&log, Severity::Info, "three");
        let lines = "INFO three\nWARNING 2 messages before this could not be written\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), lines);

        settings.delay = false;
        settings.target = Target::File(folder.path().join("nowhere").join("log"));
        let settings =
            LogSettings { level: Threshold::INFO, handlers: vec![settings], configured: true };
        let error = Log::open(&settings).unwrap_err().to_string();
        assert!(error.ends_with("nowhere/log: No such file or directory (os error 2)"), "{error}");
    }
}
