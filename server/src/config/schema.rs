//! Which sections and keys there are, where they may stand, and what `-X` puts in their place.
//!
//! Checks the shape of a configuration and gives no value a meaning. What `runzeo` knows and this
//! server cannot do is refused by name, so that nobody believes it is in force.

use super::{
    ConfigError, Place,
    zconfig::{Entry, Section},
};

/// What may stand in one type of section.
struct SectionType {
    kind: &'static str,
    /// Keys that have to be there.
    required: &'static [&'static str],
    /// Keys that may be there.
    optional: &'static [&'static str],
    inner: &'static [Slot],
    /// Why this server refuses it, and what to do.
    refusal: Option<&'static str>,
}

/// A place in a section for sections of some types.
struct Slot {
    /// What all of them are, for messages.
    what: &'static str,
    kinds: &'static [&'static str],
    least: usize,
    most: usize,
}

/// The types of section that are a storage.
pub const STORAGES: &[&str] = &[
    "filestorage",
    "mappingstorage",
    "blobstorage",
    "demostorage",
    "zeoclient",
    "clientstorage",
    "fullstorage",
    "minimalstorage",
    "relstorage",
    "zrs",
];

const HANDLERS: &[&str] = &["logfile", "syslog", "http-logger", "email-notifier", "win32-eventlog"];

const STORAGE_SUPPORTED: &str = "this version has <filestorage>, <mappingstorage> and \
                                 <blobstorage>";
const HANDLER_SUPPORTED: &str = "this version has <logfile>; with path STDERR a service manager \
                                 passes the messages on";

const WHOLE: SectionType = SectionType {
    kind: "",
    required: &[],
    optional: &[],
    inner: &[
        Slot { what: "<zeo>", kinds: &["zeo"], least: 1, most: 1 },
        Slot { what: "a storage", kinds: STORAGES, least: 1, most: usize::MAX },
        Slot { what: "<eventlog>", kinds: &["eventlog"], least: 0, most: 1 },
        Slot { what: "<runner>", kinds: &["runner"], least: 0, most: 1 },
        Slot { what: "<zeoring>", kinds: &["zeoring"], least: 0, most: 1 },
    ],
    refusal: None,
};

const TYPES: &[SectionType] = &[
    SectionType {
        kind: "zeo",
        required: &["address"],
        optional: &[
            "read-only",
            "invalidation-queue-size",
            "invalidation-age",
            "transaction-timeout",
            "pid-filename",
            "client-conflict-resolution",
            "msgpack",
        ],
        inner: &[Slot { what: "<ssl>", kinds: &["ssl"], least: 0, most: 1 }],
        refusal: None,
    },
    refused("ssl", "TLS is not supported by this version; remove <ssl>"),
    SectionType {
        kind: "zeoring",
        required: &[],
        optional: &[
            "reactors",
            "spin-us",
            "connections-max",
            "frame-bytes-max",
            "handshake-timeout",
            "progress-timeout",
            "transaction-bytes-max",
            "output-bytes-max",
        ],
        inner: &[],
        refusal: None,
    },
    SectionType {
        kind: "filestorage",
        required: &["path"],
        optional: &[
            "blob-dir",
            "create",
            "read-only",
            "quota",
            "packer",
            "pack-gc",
            "pack-keep-old",
        ],
        inner: &[],
        refusal: None,
    },
    SectionType {
        kind: "mappingstorage",
        required: &[],
        optional: &["name"],
        inner: &[],
        refusal: None,
    },
    SectionType {
        kind: "blobstorage",
        required: &["blob-dir"],
        optional: &[],
        inner: &[Slot { what: "a storage", kinds: STORAGES, least: 1, most: 1 }],
        refusal: None,
    },
    refused("demostorage", STORAGE_SUPPORTED),
    refused("zeoclient", STORAGE_SUPPORTED),
    refused("clientstorage", STORAGE_SUPPORTED),
    refused("fullstorage", STORAGE_SUPPORTED),
    refused("minimalstorage", STORAGE_SUPPORTED),
    refused("relstorage", STORAGE_SUPPORTED),
    refused("zrs", STORAGE_SUPPORTED),
    SectionType {
        kind: "eventlog",
        required: &[],
        optional: &["level"],
        inner: &[Slot { what: "a handler", kinds: HANDLERS, least: 0, most: usize::MAX }],
        refusal: None,
    },
    SectionType {
        kind: "logfile",
        required: &["path"],
        optional: &[
            "level",
            "format",
            "dateformat",
            "style",
            "formatter",
            "arbitrary-fields",
            "max-size",
            "old-files",
            "when",
            "interval",
            "encoding",
            "delay",
        ],
        inner: &[],
        refusal: None,
    },
    refused("syslog", HANDLER_SUPPORTED),
    refused("http-logger", HANDLER_SUPPORTED),
    refused("email-notifier", HANDLER_SUPPORTED),
    refused("win32-eventlog", HANDLER_SUPPORTED),
    // For zeoctl, which starts the server. The server itself has no use for it.
    SectionType {
        kind: "runner",
        required: &[],
        optional: &[
            "program",
            "python",
            "zdrun",
            "socket-name",
            "daemon",
            "directory",
            "backoff-limit",
            "forever",
            "exit-codes",
            "start-test-program",
            "start-timeout",
            "stop-timeout",
            "user",
            "umask",
            "hang-around",
            "default-to-interactive",
            "logfile",
            "transcript",
            "prompt",
        ],
        inner: &[],
        refusal: None,
    },
];

const fn refused(kind: &'static str, why: &'static str) -> SectionType {
    SectionType { kind, required: &[], optional: &[], inner: &[], refusal: Some(why) }
}

/// Checks that a whole configuration has the sections and keys it needs, and no others.
pub fn check(whole: &Section) -> Result<(), ConfigError> {
    check_section(whole, &WHOLE)
}

fn check_section(section: &Section, shape: &SectionType) -> Result<(), ConfigError> {
    if let Some(why) = shape.refusal {
        return Err(ConfigError::at(&section.place, format!("<{}>: {why}", section.kind)));
    }
    check_keys(section, shape)?;
    for (index, inner) in section.sections.iter().enumerate() {
        let slot = shape.inner.iter().find(|slot| slot.kinds.contains(&inner.kind.as_str()));
        let Some(slot) = slot else {
            return Err(unknown_section(section, inner, shape));
        };
        let before = &section.sections[..index];
        let alike = before.iter().filter(|other| slot.kinds.contains(&other.kind.as_str()));
        if slot.most <= alike.count() {
            let what = format!("{} may stand {} only once", slot.what, inside(section));
            return Err(ConfigError::at(&inner.place, what));
        }
        let namesake = before.iter().find(|other| inner.name.is_some() && other.name == inner.name);
        if let (Some(other), Some(name)) = (namesake, &inner.name) {
            let what = format!("the name {name:?} is used already, at {}", other.place);
            return Err(ConfigError::at(&inner.place, what));
        }
        let shape = TYPES.iter().find(|shape| shape.kind == inner.kind);
        check_section(inner, shape.expect("each type that may stand somewhere is described"))?;
    }
    for slot in shape.inner {
        let alike = section.sections.iter().filter(|s| slot.kinds.contains(&s.kind.as_str()));
        if alike.count() < slot.least {
            let what = format!("{} is missing {}", slot.what, inside(section));
            return Err(ConfigError::at(&section.place, what));
        }
    }
    Ok(())
}

fn check_keys(section: &Section, shape: &SectionType) -> Result<(), ConfigError> {
    for (index, entry) in section.entries.iter().enumerate() {
        let key = entry.key.to_lowercase();
        let known = || shape.required.iter().chain(shape.optional).copied();
        if !known().any(|name| name == key) {
            let what = format!("unknown key {:?} {}", entry.key, inside(section));
            return Err(ConfigError::at(&entry.place, what + &remedy(&key, known(), "keys")));
        }
        let before = &section.entries[..index];
        if let Some(other) = before.iter().find(|other| other.key.eq_ignore_ascii_case(&key)) {
            let what = format!("{key}: it is set already, at {}", other.place);
            return Err(ConfigError::at(&entry.place, what));
        }
    }
    for key in shape.required {
        if !section.entries.iter().any(|entry| entry.key.eq_ignore_ascii_case(key)) {
            let what = format!("<{}> needs the key {key}", section.kind);
            return Err(ConfigError::at(&section.place, what));
        }
    }
    Ok(())
}

fn unknown_section(outer: &Section, inner: &Section, shape: &SectionType) -> ConfigError {
    let known = shape.inner.iter().flat_map(|slot| slot.kinds).copied();
    let useful = known
        .filter(|kind| TYPES.iter().any(|shape| shape.kind == *kind && shape.refusal.is_none()));
    let what = format!("<{}> cannot stand {}", inner.kind, inside(outer));
    ConfigError::at(&inner.place, what + &remedy(&inner.kind, useful, "sections"))
}

fn inside(section: &Section) -> String {
    if section.kind.is_empty() {
        "in the configuration".to_owned()
    } else {
        format!("in <{}>", section.kind)
    }
}

/// What would have been right: the name that looks most like `word`, and all of them.
fn remedy<'a>(word: &str, known: impl Iterator<Item = &'a str>, what: &str) -> String {
    let known: Vec<_> = known.collect();
    let nearest = known.iter().map(|name| (distance(word, name), name)).min();
    let guess = match nearest {
        Some((distance, name)) if distance <= 2 => format!("; did you mean {name}?"),
        _ => String::new(),
    };
    if known.is_empty() {
        format!("; it has no {what}")
    } else {
        format!("{guess}; known {what}: {}", known.join(", "))
    }
}

/// How many letters have to change to make one word of the other.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.bytes().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

/// `section/section/key=value`, given by `-X`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Override {
    /// The sections that lead to the key, each by its type or its name.
    sections: Vec<String>,
    entry: Entry,
}

impl Override {
    /// Takes the option apart. Section and key names are known in any case; the value is taken
    /// as it is, without `$name`, as in ZConfig.
    pub fn parse(option: &str) -> Result<Self, ConfigError> {
        let place = Place::Option(format!("-X {option}"));
        let wrong = || ConfigError::at(&place, "expected section/key=value");
        let (path, value) = option.split_once('=').ok_or_else(wrong)?;
        let mut sections: Vec<_> = path.split('/').map(str::to_lowercase).collect();
        if sections.iter().any(String::is_empty) {
            return Err(wrong());
        }
        let key = sections.pop().expect("a split gives at least one part");
        let entry = Entry { key, value: value.to_owned(), place: place.clone() };
        Ok(Self { sections, entry })
    }
}

/// Puts each override in the place of what the configuration says. The first section that
/// answers to a name, in the order of the file, takes all overrides for that name.
pub fn apply(whole: &mut Section, overrides: &[Override]) -> Result<(), ConfigError> {
    let all = overrides.iter().map(|option| (option.sections.as_slice(), option)).collect();
    apply_in(whole, all)
}

fn apply_in(
    section: &mut Section,
    options: Vec<(&[String], &Override)>,
) -> Result<(), ConfigError> {
    let (here, mut inside): (Vec<_>, Vec<_>) =
        options.into_iter().partition(|(path, _)| path.is_empty());
    // First all out, then all in, so that a key that is given twice is found by the check.
    for (_, option) in &here {
        section.entries.retain(|entry| !entry.key.eq_ignore_ascii_case(&option.entry.key));
    }
    section.entries.extend(here.into_iter().map(|(_, option)| option.entry.clone()));

    for inner in &mut section.sections {
        let answers =
            |path: &[String]| path[0] == inner.kind || inner.name.as_ref() == Some(&path[0]);
        let (mine, others): (Vec<_>, Vec<_>) =
            inside.into_iter().partition(|(path, _)| answers(path));
        inside = others;
        if !mine.is_empty() {
            apply_in(inner, mine.into_iter().map(|(path, option)| (&path[1..], option)).collect())?;
        }
    }
    match inside.first() {
        None => Ok(()),
        Some((path, option)) => {
            let what = format!("the configuration has no section {:?} there", path[0]);
            Err(ConfigError::at(&option.entry.place, what))
        }
    }
}
