//! Reads the command line: `runzeo`'s flags, and two of our own.
//!
//! What the command line says stands above what the configuration file says. Prints nothing and
//! ends no process: [`Stop`] says what to print and which exit code to end with.

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, error::ErrorKind};

use super::{
    ConfigError, Settings, StorageKind, StorageSettings, build, datatype,
    schema::Override,
    zconfig::{self, Environment},
};

/// The exit code of every mistake in flags and configuration, as `runzeo` has it.
pub const EXIT_USAGE: u8 = 2;

/// A ZEO server on io_uring: serves ZODB storages to ZEO clients.
///
/// Unless -C is given, -a and -f are required.
#[derive(Debug, Parser)]
#[command(
    version,
    infer_long_args = true,
    after_help = "Takes the flags and the zeo.conf of runzeo."
)]
struct Flags {
    /// Configuration file, or its file: URL
    #[arg(short = 'C', long, value_name = "FILE")]
    configure: Option<String>,
    /// Where to listen: PORT, HOST:PORT, [IPv6]:PORT, or a PATH with at least one /
    #[arg(short, long, value_name = "ADDRESS", overrides_with = "address")]
    address: Option<String>,
    /// Data file to serve; the first is storage 1, the next storage 2
    #[arg(short, long, value_name = "DATA.FS")]
    filename: Vec<PathBuf>,
    /// How long a transaction may hold its locks [default: 30; 0 or none: for ever]
    #[arg(short, long, value_name = "SECONDS")]
    timeout: Option<String>,
    /// Where to write the process id [default: $INSTANCE_HOME/var/ZEO.pid, if that is set]
    #[arg(long, value_name = "PATH")]
    pid_file: Option<PathBuf>,
    /// Set a key in a section of the configuration file
    #[arg(short = 'X', value_name = "SECTION/KEY=VALUE")]
    overrides: Vec<String>,
    /// How many threads serve connections: auto (one a core) or a number
    #[arg(long, value_name = "N")]
    reactors: Option<String>,
    /// How long an idle thread looks for work before it sleeps: auto or microseconds
    #[arg(long, value_name = "N")]
    spin_us: Option<String>,
    /// Start, open the storages, and exit
    #[arg(long, action = ArgAction::SetTrue)]
    test: bool,
    /// Say whether flags and configuration are in order, and exit; opens and changes nothing
    #[arg(long, action = ArgAction::SetTrue)]
    check_config: bool,
}

/// Why there are no settings: print this, and end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stop {
    /// Help, version or a check was asked for: to the standard output, exit code 0.
    Answer(String),
    /// The flags or the configuration are wrong: to the standard error, [`EXIT_USAGE`].
    Usage(String),
}

/// Reads the arguments (the first is the program's name) and the configuration they name.
pub fn read(
    arguments: impl IntoIterator<Item = OsString>,
    environment: Environment<'_>,
) -> Result<Settings, Stop> {
    let flags = Flags::command()
        .try_get_matches_from(arguments)
        .and_then(|matches| Flags::from_arg_matches(&matches))
        .map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Answer(error.to_string()),
            _ => Stop::Usage(error.to_string()),
        })?;
    let is_check = flags.check_config;
    let settings = settings(flags, environment)
        .map_err(|error| Stop::Usage(format!("Error: {error}\nFor help, use -h\n")))?;
    if is_check { Err(Stop::Answer(summary(&settings))) } else { Ok(settings) }
}

/// What a server with these settings would do, for whoever wrote them.
fn summary(settings: &Settings) -> String {
    let warnings = settings.notices.iter().map(|notice| format!("Warning: {notice}\n"));
    let mut text: String = warnings.collect();
    let mode = if settings.read_only { "to read only" } else { "to read and write" };
    text += &format!("In order. Would listen at {} and serve, {mode}:\n", settings.address);
    for storage in &settings.storages {
        text += &format!("  {}: {}\n", storage.name, described(&storage.kind));
    }
    text
}

fn described(kind: &StorageKind) -> String {
    match kind {
        StorageKind::File(file) => file.path.display().to_string(),
        StorageKind::Mapping { .. } => "in memory".to_owned(),
        StorageKind::Blob { blob_dir, base } => {
            format!("{}, its blobs in {}", described(base), blob_dir.display())
        }
    }
}

fn settings(flags: Flags, environment: Environment<'_>) -> Result<Settings, ConfigError> {
    let address = value("-a", flags.address.as_deref(), datatype::address)?;
    let files = flags.filename.into_iter().enumerate().map(|(index, path)| StorageSettings {
        name: (index + 1).to_string(),
        kind: StorageKind::file(path),
    });
    let files: Vec<_> = files.collect();
    let overrides: Result<Vec<_>, _> =
        flags.overrides.iter().map(|option| Override::parse(option)).collect();
    let overrides = overrides?;

    let mut settings = match flags.configure {
        Some(target) => {
            let file = zconfig::path_of(&target)
                .ok_or_else(|| ConfigError::new(format!("-C {target}: only files can be read")))?;
            let mut settings = build::settings(&file, &overrides, environment)?;
            if let Some(address) = address {
                settings.address = address;
            }
            if !files.is_empty() {
                settings.storages = files;
            }
            settings
        }
        None if !overrides.is_empty() => {
            return Err(ConfigError::new("-X needs a configuration file; use -C"));
        }
        None => {
            let address = address
                .ok_or_else(|| ConfigError::new("no server address specified; use -a or -C"))?;
            if files.is_empty() {
                return Err(ConfigError::new("no storages specified; use -f or -C"));
            }
            Settings::new(address, files, environment)
        }
    };
    if let Some(timeout) = value("-t", flags.timeout.as_deref(), datatype::seconds_or_none)? {
        settings.transaction_timeout = timeout;
    }
    if let Some(pid_file) = flags.pid_file {
        // As in ZEO, a server that only reads leaves no file behind.
        settings.pid_file = (!settings.read_only).then_some(pid_file);
    }
    if let Some(reactors) = value("--reactors", flags.reactors.as_deref(), build::reactors)? {
        settings.tuning.reactors = reactors;
    }
    if let Some(spin) = value("--spin-us", flags.spin_us.as_deref(), build::spin)? {
        settings.tuning.spin = spin;
    }
    settings.stop_at_once = flags.test;
    Ok(settings)
}

fn value<T>(
    flag: &str,
    text: Option<&str>,
    convert: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, ConfigError> {
    let Some(text) = text else { return Ok(None) };
    convert(text)
        .map(Some)
        .map_err(|expected| ConfigError::new(format!("{flag}: {expected}, found {text:?}")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Address, Reactors, Spin};

    fn read_words(words: &[&str]) -> Result<Settings, Stop> {
        let arguments = ["zeoring-server"].iter().chain(words).map(OsString::from);
        read(arguments, &|_| None)
    }

    fn complaint(words: &[&str]) -> String {
        match read_words(words) {
            Err(Stop::Usage(text)) => text,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn an_address_and_files_are_enough() {
        let words = ["-a", "1", "-f", "x", "--file=y", "-t", "2.5", "--pid-file", "p", "--test"];
        let settings = read_words(&words).unwrap();
        assert_eq!(settings.address, Address::Tcp { host: None, port: 1 });
        let names: Vec<_> = settings.storages.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["1", "2"]);
        assert_eq!(settings.storages[1].kind, StorageKind::file("y".into()));
        assert_eq!(settings.transaction_timeout, Some(Duration::from_millis(2500)));
        assert_eq!(settings.pid_file, Some("p".into()));
        assert!(settings.stop_at_once && !settings.log.configured);
    }

    #[test]
    fn flags_stand_above_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("zeo.conf");
        let text = "<zeo>\naddress 1\ntransaction-timeout 7\n</zeo>\n<mappingstorage Main/>\n\
                    <zeoring>\nreactors 2\nspin-us 20\n</zeoring>\n";
        std::fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();

        let settings = read_words(&["-C", file]).unwrap();
        assert_eq!(settings.transaction_timeout, Some(Duration::from_secs(7)));
        assert_eq!(settings.tuning.spin, Spin::For(Duration::from_micros(20)));
        assert!(matches!(settings.tuning.reactors, Reactors::Count(count) if count.get() == 2));

        let url = format!("file://{file}");
        let words = ["-C", &url, "-a", "a/b", "-f", "x", "-t", "0", "--spin-us", "auto"];
        let settings = read_words(&words).unwrap();
        assert_eq!(settings.address, Address::Unix("a/b".into()));
        assert_eq!(settings.storages[0].name, "1");
        assert_eq!(settings.transaction_timeout, None);
        assert_eq!(settings.tuning.spin, Spin::Auto);

        let settings = read_words(&["-C", file, "-X", "ZEO/Address=2"]).unwrap();
        assert_eq!(settings.address, Address::Tcp { host: None, port: 2 });
        let words = ["-C", file, "-X", "zeo/read-only=yes", "--pid-file", "p"];
        assert_eq!(read_words(&words).unwrap().pid_file, None);
    }

    #[test]
    fn a_check_tells_what_would_be_served_or_what_is_wrong_and_opens_nothing() {
        let words = ["-a", "1", "-f", "/nowhere/Data.fs", "--check-config"];
        let Err(Stop::Answer(text)) = read_words(&words) else { panic!("it is in order") };
        assert!(text.starts_with("In order. Would listen at "), "{text}");
        assert!(text.ends_with("  1: /nowhere/Data.fs\n"), "{text}");
        assert!(complaint(&["-f", "x", "--check-config"]).contains("use -a or -C"));
    }

    #[test]
    fn each_wrong_flag_is_named() {
        let cases: [(&[&str], &str); 10] = [
            (&[], "no server address specified; use -a or -C"),
            (&["-f", "x"], "no server address specified; use -a or -C"),
            (&["-a", "1"], "no storages specified; use -f or -C"),
            (&["-X", "zeo/address=1"], "-X needs a configuration file; use -C"),
            (&["-C", "x", "-X", "zeo"], "-X zeo: expected section/key=value"),
            (&["-C", "/nowhere/x"], "/nowhere/x: No such file or directory (os error 2)"),
            (&["-C", "http://x/y"], "-C http://x/y: only files can be read"),
            (
                &["-a", "1", "-f", "x", "-t", "z"],
                "-t: expected a number of seconds, or none, found \"z\"",
            ),
            (
                &["-a", "1", "-f", "x", "--reactors", "0"],
                "--reactors: expected auto or a whole number from 1 to 1024, found \"0\"",
            ),
            (
                &["-a", "x y", "-f", "x"],
                "-a: expected host:port, port, [IPv6]:port, or a path with a /, found \"x y\"",
            ),
        ];
        for (words, message) in cases {
            let expected = format!("Error: {message}\nFor help, use -h\n");
            assert_eq!(complaint(words), expected, "{words:?}");
        }
        assert!(complaint(&["--nope"]).contains("--nope"));
        assert!(complaint(&["somewhere"]).contains("somewhere"));
    }

    #[test]
    fn help_and_version_are_answers() {
        for (flag, word) in [("-h", "--pid-file"), ("--version", env!("CARGO_PKG_VERSION"))] {
            match read_words(&[flag]) {
                Err(Stop::Answer(text)) => assert!(text.contains(word), "{text}"),
                other => panic!("{flag}: {other:?}"),
            }
        }
    }
}
