//! Gives the keys of a checked configuration their meaning.
//!
//! Every value that cannot be what it should be is an error that names file, line and key.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Address, ConfigError, FileSettings, HandlerSettings, LogSettings, Reactors, Rotation, Settings,
    Spin, StorageKind, StorageSettings, Target, Tuning, datatype, schema,
    schema::Override,
    zconfig::{self, Entry, Environment, Section},
};
use crate::log::{Format, check_date_format};

/// How many reactors one may ask for: far above any machine, far below what would hurt it.
const REACTORS_MAX: u64 = 1024;

/// The longest an idle reactor may be told to spin, in microseconds: one second.
const SPIN_US_MAX: u64 = 1_000_000;

/// A registered client has to be able to send what an unregistered one may.
const FRAME_BYTES_LEAST: u64 = 64 * 1024;

/// Reads a configuration file, puts the overrides in, and says what it means.
pub fn settings(
    file: &Path,
    overrides: &[Override],
    environment: Environment<'_>,
) -> Result<Settings, ConfigError> {
    settings_of(zconfig::read(file, environment)?, overrides, environment)
}

/// Says what a configuration means that has been read already.
pub fn settings_of(
    mut whole: Section,
    overrides: &[Override],
    environment: Environment<'_>,
) -> Result<Settings, ConfigError> {
    schema::apply(&mut whole, overrides)?;
    schema::check(&whole)?;
    let zeo = whole.first("zeo").expect("checked: there is a <zeo>");
    let address = zeo.required("address", datatype::address)?;
    let mut settings = Settings::new(address, storages(&whole, environment)?, environment);
    read_zeo(zeo, &mut settings, environment)?;
    if let Some(eventlog) = whole.first("eventlog") {
        settings.log = log(eventlog)?;
    }
    if let Some(zeoring) = whole.first("zeoring") {
        settings.tuning = tuning(zeoring)?;
    }
    Ok(settings)
}

impl Settings {
    /// Every default, with what the environment says.
    pub fn new(
        address: Address,
        storages: Vec<StorageSettings>,
        environment: Environment<'_>,
    ) -> Self {
        let mut notices = Vec::new();
        if environment("ZEO_MTACCEPTOR").is_some_and(|value| !value.is_empty()) {
            notices.push("ZEO_MTACCEPTOR is set; there is only one acceptor, ignored".to_owned());
        }
        for storage in &storages {
            storage.kind.notice(&storage.name, &mut notices);
        }
        Self {
            address,
            read_only: false,
            invalidation_queue_size: 100,
            invalidation_age: None,
            transaction_timeout: Some(Duration::from_secs(30)),
            pid_file: environment("INSTANCE_HOME")
                .filter(|home| !home.is_empty())
                .map(|home| Path::new(&home).join("var").join("ZEO.pid")),
            msgpack: environment("ZEO_MSGPACK").is_some_and(|value| !value.is_empty()),
            client_conflict_resolution: false,
            storages,
            log: LogSettings::default(),
            tuning: Tuning::default(),
            stop_at_once: false,
            notices,
        }
    }
}

impl StorageKind {
    /// A data file with every default.
    pub fn file(path: PathBuf) -> Self {
        Self::File(FileSettings {
            path,
            create: false,
            read_only: false,
            quota_bytes: None,
            blob_dir: None,
            packer: None,
            pack_gc: true,
            pack_keep_old: true,
        })
    }

    fn notice(&self, name: &str, notices: &mut Vec<String>) {
        match self {
            Self::File(FileSettings { packer: Some(packer), .. }) => notices.push(format!(
                "storage {name:?}: the packer {packer:?} is Python; packing is done without it"
            )),
            Self::Blob { base, .. } => base.notice(name, notices),
            Self::File(_) | Self::Mapping { .. } => {}
        }
    }
}

impl Section {
    fn first(&self, kind: &str) -> Option<&Self> {
        self.sections.iter().find(|section| section.kind == kind)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key.eq_ignore_ascii_case(key))
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.entry(key).map(|entry| entry.value.as_str())
    }

    /// The value of a key, or `None` if the key is not there.
    fn optional<T>(
        &self,
        key: &str,
        convert: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(entry) = self.entry(key) else { return Ok(None) };
        convert(&entry.value).map(Some).map_err(|expected| entry.wrong(&expected))
    }

    /// The value of a key that the schema requires.
    fn required<T>(
        &self,
        key: &str,
        convert: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        Ok(self.optional(key, convert)?.expect("checked: the required keys are there"))
    }
}

impl Entry {
    fn wrong(&self, expected: &str) -> ConfigError {
        let key = self.key.to_lowercase();
        ConfigError::at(&self.place, format!("{key}: {expected}, found {:?}", self.value))
    }

    fn refused(&self, why: &str) -> ConfigError {
        ConfigError::at(&self.place, format!("{}: {why}", self.key.to_lowercase()))
    }
}

fn read_zeo(
    zeo: &Section,
    settings: &mut Settings,
    environment: Environment<'_>,
) -> Result<(), ConfigError> {
    if let Some(value) = zeo.optional("read-only", datatype::boolean)? {
        settings.read_only = value;
    }
    let size = |text: &str| datatype::integer_between(text, 1, u64::from(u32::MAX));
    if let Some(value) = zeo.optional("invalidation-queue-size", size)? {
        settings.invalidation_queue_size = value as usize;
    }
    if let Some(value) = zeo.optional("invalidation-age", datatype::seconds_or_none)? {
        settings.invalidation_age = value;
    }
    if let Some(value) = zeo.optional("transaction-timeout", datatype::seconds_or_none)? {
        settings.transaction_timeout = value;
    }
    if let Some(value) = zeo.optional("client-conflict-resolution", datatype::boolean)? {
        settings.client_conflict_resolution = value;
    }
    if let Some(value) = zeo.optional("msgpack", datatype::boolean)? {
        settings.msgpack = value;
    }
    let path = |text: &str| datatype::path_in_existing_directory(text, environment);
    match zeo.optional("pid-filename", path)? {
        Some(path) if path != Path::new("") => settings.pid_file = Some(path),
        _ => {}
    }
    if settings.read_only {
        settings.pid_file = None;
    }
    Ok(())
}

fn storages(
    whole: &Section,
    environment: Environment<'_>,
) -> Result<Vec<StorageSettings>, ConfigError> {
    let sections = || whole.sections.iter().filter(|s| schema::STORAGES.contains(&s.kind.as_str()));
    let mut storages = Vec::new();
    let mut unnamed: Option<&Section> = None;
    for section in sections() {
        if section.name.is_none() {
            if let Some(other) = unnamed {
                let what = format!("only one storage may be unnamed; {} is too", other.place);
                return Err(ConfigError::at(&section.place, what));
            }
            if let Some(other) = sections().find(|other| other.name.as_deref() == Some("1")) {
                let what = format!(
                    "a storage without a name is named 1, but {} has that name",
                    other.place
                );
                return Err(ConfigError::at(&section.place, what));
            }
            unnamed = Some(section);
        }
        let name = section.name.clone().unwrap_or_else(|| "1".to_owned());
        storages.push(StorageSettings { name, kind: storage(section, environment)? });
    }
    Ok(storages)
}

fn storage(section: &Section, environment: Environment<'_>) -> Result<StorageKind, ConfigError> {
    let path = |text: &str| datatype::path_in_existing_directory(text, environment);
    match section.kind.as_str() {
        "filestorage" => {
            let path_required = |text: &str| match text {
                "" => Err("expected a path".to_owned()),
                text => path(text),
            };
            let flag =
                |key, default| Ok(section.optional(key, datatype::boolean)?.unwrap_or(default));
            Ok(StorageKind::File(FileSettings {
                path: section.required("path", path_required)?,
                create: flag("create", false)?,
                read_only: flag("read-only", false)?,
                quota_bytes: section.optional("quota", datatype::byte_size)?,
                blob_dir: section.optional("blob-dir", path)?.filter(|path| path != Path::new("")),
                packer: section.text("packer").filter(|t| !t.is_empty()).map(str::to_owned),
                pack_gc: flag("pack-gc", true)?,
                pack_keep_old: flag("pack-keep-old", true)?,
            }))
        }
        "mappingstorage" => {
            let name = section.text("name").unwrap_or("Mapping Storage").to_owned();
            Ok(StorageKind::Mapping { name })
        }
        "blobstorage" => {
            let directory = |text: &str| match text {
                "" => Err("expected a directory".to_owned()),
                text => Ok(PathBuf::from(text)),
            };
            let base = section.sections.first().expect("checked: there is a storage inside");
            let base = Box::new(storage(base, environment)?);
            Ok(StorageKind::Blob { blob_dir: section.required("blob-dir", directory)?, base })
        }
        other => unreachable!("checked: <{other}> is refused"),
    }
}

fn log(eventlog: &Section) -> Result<LogSettings, ConfigError> {
    let mut settings =
        LogSettings { handlers: Vec::new(), configured: true, ..LogSettings::default() };
    if let Some(level) = eventlog.optional("level", datatype::level)? {
        settings.level = level;
    }
    for section in &eventlog.sections {
        settings.handlers.push(handler(section)?);
    }
    Ok(settings)
}

fn handler(section: &Section) -> Result<HandlerSettings, ConfigError> {
    let target = section.required("path", |text| match text {
        "STDOUT" => Ok(Target::Stdout),
        "STDERR" => Ok(Target::Stderr),
        "" => Err("expected a path, STDOUT or STDERR".to_owned()),
        path => Ok(Target::File(path.into())),
    })?;
    refuse_unless_default(section)?;
    let mut handler = HandlerSettings::new(target);
    if let Some(level) = section.optional("level", datatype::level)? {
        handler.level = level;
    }
    if let Some(format) =
        section.optional("format", |text| Format::parse(&datatype::unescape(text)))?
    {
        handler.format = format;
    }
    let date_format = |text: &str| check_date_format(text).map(|()| text.to_owned());
    if let Some(date_format) = section.optional("dateformat", date_format)? {
        handler.date_format = date_format;
    }
    handler.delay = section.optional("delay", datatype::boolean)?.unwrap_or(false);
    handler.rotation = rotation(section)?;
    if !matches!(handler.target, Target::File(_)) {
        let set = [("delay", handler.delay), ("max-size", handler.rotation.is_some())];
        if let Some((key, _)) = set.into_iter().find(|(_, set)| *set) {
            let entry = section.entry(key).expect("it is set");
            return Err(entry.refused("only a file has that"));
        }
    }
    Ok(handler)
}

/// Keys of `<logfile>` that have one value this server can serve.
fn refuse_unless_default(section: &Section) -> Result<(), ConfigError> {
    // These formatters differ from each other only in how they print Python's tracebacks.
    let formatters = ["", "logging.Formatter", "zope.exceptions.log.Formatter"];
    let accepted: [(&str, &[&str], &str); 5] = [
        ("style", &["classic"], "this version has classic, with %(name)s"),
        ("formatter", &formatters, "other formatters are Python; remove it"),
        ("encoding", &["", "utf-8", "utf8", "ascii", "us-ascii"], "this version writes utf-8"),
        ("when", &[""], "this version rotates by max-size, or by logrotate and USR2"),
        ("interval", &["0"], "this version rotates by max-size, or by logrotate and USR2"),
    ];
    for (key, values, why) in accepted {
        if let Some(entry) = section.entry(key)
            && !values.iter().any(|value| entry.value.eq_ignore_ascii_case(value))
        {
            return Err(entry.refused(why));
        }
    }
    section.optional("arbitrary-fields", datatype::boolean).map(|_| ())
}

fn rotation(section: &Section) -> Result<Option<Rotation>, ConfigError> {
    let bytes_max = section.optional("max-size", datatype::byte_size)?.unwrap_or(0);
    let old_files = section
        .optional("old-files", |text| datatype::integer_between(text, 0, 1_000_000))?
        .unwrap_or(0);
    match (bytes_max, NonZeroUsize::new(old_files as usize)) {
        (0, None) => Ok(None),
        (0, Some(_)) => {
            let entry = section.entry("old-files").expect("it is not zero");
            Err(entry.refused("it needs max-size beside it"))
        }
        (_, None) => {
            let entry = section.entry("max-size").expect("it is not zero");
            Err(entry.refused("it needs old-files beside it"))
        }
        (bytes_max, Some(old_files)) => Ok(Some(Rotation { bytes_max, old_files })),
    }
}

fn tuning(section: &Section) -> Result<Tuning, ConfigError> {
    let mut tuning = Tuning::default();
    if let Some(value) = section.optional("reactors", reactors)? {
        tuning.reactors = value;
    }
    if let Some(value) = section.optional("spin-us", spin)? {
        tuning.spin = value;
    }
    let count = |text: &str| datatype::integer_between(text, 1, 1 << 20);
    if let Some(value) = section.optional("connections-max", count)? {
        tuning.connections_max = NonZeroUsize::new(value as usize).expect("at least 1");
    }
    let frame = |text: &str| bytes_between(text, FRAME_BYTES_LEAST, u64::from(u32::MAX));
    if let Some(value) = section.optional("frame-bytes-max", frame)? {
        tuning.frame_bytes_max = value as u32;
    }
    let time = |text: &str| match datatype::time_interval(text)? {
        Duration::ZERO => Err("expected more than no time".to_owned()),
        time => Ok(time),
    };
    if let Some(value) = section.optional("handshake-timeout", time)? {
        tuning.handshake_timeout = value;
    }
    if let Some(value) = section.optional("progress-timeout", time)? {
        tuning.progress_timeout = value;
    }
    let transaction = |text: &str| bytes_between(text, FRAME_BYTES_LEAST, 1 << 40);
    if let Some(value) = section.optional("transaction-bytes-max", transaction)? {
        tuning.transaction_bytes_max = value;
    }
    let output = |text: &str| bytes_between(text, FRAME_BYTES_LEAST, 1 << 40);
    if let Some(value) = section.optional("output-bytes-max", output)? {
        tuning.output_bytes_max = value as usize;
    }
    Ok(tuning)
}

fn bytes_between(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let bytes = datatype::byte_size(text)?;
    if !(least..=most).contains(&bytes) {
        return Err(format!("expected from {least} to {most} bytes"));
    }
    Ok(bytes)
}

/// `auto` or a number of threads.
pub(super) fn reactors(text: &str) -> Result<Reactors, String> {
    let count = datatype::auto_or_integer(text, 1, REACTORS_MAX)?;
    let count = count.and_then(|count| NonZeroUsize::new(count as usize));
    Ok(count.map_or(Reactors::Auto, Reactors::Count))
}

/// `auto` or a number of microseconds.
pub(super) fn spin(text: &str) -> Result<Spin, String> {
    let micros = datatype::auto_or_integer(text, 0, SPIN_US_MAX)?;
    Ok(micros.map_or(Spin::Auto, |micros| Spin::For(Duration::from_micros(micros))))
}
