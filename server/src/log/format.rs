//! How one message looks: the `%(name)s` formats of Python's `logging`.
//!
//! A format is checked when the configuration is read, so that writing a message cannot fail on
//! it. Writes to a text only.

use std::{fmt::Write as _, path::Path};

use jiff::{Timestamp, Zoned, fmt::strtime, tz::TimeZone};

use super::Severity;

/// One message, and what is known about it.
#[derive(Clone, Debug)]
pub(super) struct Record<'a> {
    /// When, in the local time zone.
    pub(super) at: &'a Zoned,
    /// Seconds since the log was opened.
    pub(super) uptime_s: f64,
    pub(super) severity: Severity,
    /// The name of the logger.
    pub(super) source: &'a str,
    /// One line, without anything that could be taken for the end of it.
    pub(super) message: &'a str,
    /// The place in this program.
    pub(super) file: &'a str,
    pub(super) line: u32,
}

/// How one message looks, ready for use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Format {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Part {
    Text(String),
    Field { field: Field, layout: Layout },
}

/// `-8.3f` in `%(msecs)-8.3f`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Layout {
    left: bool,
    zeros: bool,
    sign: Option<char>,
    width: usize,
    precision: Option<usize>,
    conversion: Conversion,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Conversion {
    #[default]
    Text,
    Integer,
    Fixed,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Field {
    Asctime,
    Created,
    File,
    Function,
    LevelName,
    LevelNumber,
    Line,
    Message,
    Module,
    Msecs,
    Name,
    Path,
    Process,
    ProcessName,
    RelativeCreated,
    Thread,
    ThreadName,
}

/// Python's names for what a record holds.
const FIELDS: [(&str, Field); 17] = [
    ("asctime", Field::Asctime),
    ("created", Field::Created),
    ("filename", Field::File),
    ("funcName", Field::Function),
    ("levelname", Field::LevelName),
    ("levelno", Field::LevelNumber),
    ("lineno", Field::Line),
    ("message", Field::Message),
    ("module", Field::Module),
    ("msecs", Field::Msecs),
    ("name", Field::Name),
    ("pathname", Field::Path),
    ("process", Field::Process),
    ("processName", Field::ProcessName),
    ("relativeCreated", Field::RelativeCreated),
    ("thread", Field::Thread),
    ("threadName", Field::ThreadName),
];

/// No column of a log is wider, and a format cannot ask for memory.
const WIDTH_MAX: usize = 1000;

enum Value {
    Text(String),
    Integer(u64),
    Float(f64),
}

impl Default for Format {
    /// The format of ZConfig's `<logfile>` and of `runzeo` without one.
    fn default() -> Self {
        Self::parse("------\n%(asctime)s %(levelname)s %(name)s %(message)s")
            .expect("the default format is a format")
    }
}

impl Format {
    /// Reads a format, or says what was expected in its place.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            plain.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                plain.push('%');
                rest = after;
                continue;
            }
            let (name, after) = after
                .strip_prefix('(')
                .and_then(|after| after.split_once(')'))
                .ok_or("expected %(name)s or %% at a %")?;
            let field = FIELDS.iter().find(|(known, _)| *known == name).map(|(_, field)| *field);
            let field = field.ok_or_else(|| {
                let known: Vec<_> = FIELDS.iter().map(|(known, _)| *known).collect();
                format!("no field {name:?}; known fields: {}", known.join(", "))
            })?;
            let (layout, after) = Layout::parse(after, name)?;
            if layout.conversion != Conversion::Text && field.is_text() {
                return Err(format!("expected %({name})s, because {name} is not a number"));
            }
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Field { field, layout });
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self { parts })
    }

    /// Writes the record and the end of the line behind what is in `out`.
    pub(super) fn write(&self, record: &Record<'_>, date_format: &str, out: &mut String) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Field { field, layout } => {
                    layout.write(field.value(record, date_format), out);
                }
            }
        }
        out.push('\n');
    }
}

impl Layout {
    fn parse<'a>(text: &'a str, name: &str) -> Result<(Self, &'a str), String> {
        let wrong = || format!("expected s, d or f after %({name})");
        let mut layout = Self::default();
        let mut rest = text;
        while let Some(flag) = rest.chars().next().filter(|c| "-0 +#".contains(*c)) {
            match flag {
                '-' => layout.left = true,
                '0' => layout.zeros = true,
                '+' => layout.sign = Some('+'),
                ' ' => layout.sign = layout.sign.or(Some(' ')),
                _ => {}
            }
            rest = &rest[1..];
        }
        let (width, behind) = number(rest).ok_or_else(wrong)?;
        layout.width = width.unwrap_or(0);
        rest = behind;
        if let Some(behind) = rest.strip_prefix('.') {
            let (precision, behind) = number(behind).ok_or_else(wrong)?;
            layout.precision = Some(precision.unwrap_or(0));
            rest = behind;
        }
        layout.conversion = match rest.chars().next() {
            Some('s') => Conversion::Text,
            Some('d' | 'i' | 'u') => Conversion::Integer,
            Some('f' | 'F') => Conversion::Fixed,
            _ => return Err(wrong()),
        };
        Ok((layout, &rest[1..]))
    }

    fn write(self, value: Value, out: &mut String) {
        let (digits, is_number) = match (self.conversion, value) {
            (Conversion::Text, Value::Text(text)) => (text, false),
            (Conversion::Text, Value::Integer(number)) => (number.to_string(), false),
            (Conversion::Text, Value::Float(number)) => (format!("{number:?}"), false),
            (Conversion::Integer, Value::Integer(number)) => (self.whole(number), true),
            (Conversion::Integer, Value::Float(number)) => (self.whole(number as u64), true),
            (Conversion::Fixed, Value::Integer(number)) => (self.fixed(number as f64), true),
            (Conversion::Fixed, Value::Float(number)) => (self.fixed(number), true),
            (_, Value::Text(_)) => unreachable!("parse refuses numbers of texts"),
        };
        let sign = self.sign.filter(|_| is_number).map(String::from).unwrap_or_default();
        let shown: String = match self.precision.filter(|_| !is_number) {
            Some(most) => digits.chars().take(most).collect(),
            None => digits,
        };
        let missing = self.width.saturating_sub(sign.len() + shown.chars().count());
        let (before, zeros, behind) = match (self.left, self.zeros && is_number) {
            (true, _) => (0, 0, missing),
            (false, true) => (0, missing, 0),
            (false, false) => (missing, 0, 0),
        };
        out.extend(std::iter::repeat_n(' ', before));
        out.push_str(&sign);
        out.extend(std::iter::repeat_n('0', zeros));
        out.push_str(&shown);
        out.extend(std::iter::repeat_n(' ', behind));
    }

    fn whole(self, number: u64) -> String {
        format!("{number:0digits$}", digits = self.precision.unwrap_or(0))
    }

    fn fixed(self, number: f64) -> String {
        format!("{number:.*}", self.precision.unwrap_or(6))
    }
}

/// The number at the start, if there is one, and the rest; `None` if it is too large.
fn number(text: &str) -> Option<(Option<usize>, &str)> {
    let length = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if length == 0 {
        return Some((None, text));
    }
    let number = text[..length].parse().ok().filter(|number| *number <= WIDTH_MAX)?;
    Some((Some(number), &text[length..]))
}

impl Field {
    fn is_text(self) -> bool {
        !matches!(
            self,
            Self::Created
                | Self::LevelNumber
                | Self::Line
                | Self::Msecs
                | Self::Process
                | Self::RelativeCreated
                | Self::Thread
        )
    }

    fn value(self, record: &Record<'_>, date_format: &str) -> Value {
        let part = |part: Option<&std::ffi::OsStr>| {
            Value::Text(part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default())
        };
        match self {
            Self::Asctime => Value::Text(asctime(record.at, date_format)),
            Self::Created => Value::Float(record.at.timestamp().as_microsecond() as f64 / 1e6),
            Self::File => part(Path::new(record.file).file_name()),
            // What Python writes when it does not know.
            Self::Function => Value::Text("(unknown function)".to_owned()),
            Self::LevelName => Value::Text(record.severity.to_string()),
            Self::LevelNumber => Value::Integer(record.severity.number().into()),
            Self::Line => Value::Integer(record.line.into()),
            Self::Message => Value::Text(record.message.to_owned()),
            Self::Module => part(Path::new(record.file).file_stem()),
            Self::Msecs => Value::Float(f64::from(record.at.millisecond())),
            Self::Name => Value::Text(record.source.to_owned()),
            Self::Path => Value::Text(record.file.to_owned()),
            Self::Process => Value::Integer(std::process::id().into()),
            Self::ProcessName => Value::Text("MainProcess".to_owned()),
            Self::RelativeCreated => Value::Float(record.uptime_s * 1e3),
            Self::Thread => {
                let id = rustix::thread::gettid().as_raw_nonzero().get();
                Value::Integer(u64::from(id.unsigned_abs()))
            }
            Self::ThreadName => {
                Value::Text(std::thread::current().name().unwrap_or("unnamed").to_owned())
            }
        }
    }
}

/// As Python has it: without a format, a fixed one with milliseconds.
fn asctime(at: &Zoned, date_format: &str) -> String {
    let mut text = String::new();
    let date_format = match date_format {
        "" => "%Y-%m-%d %H:%M:%S,%3f",
        date_format => date_format,
    };
    write!(text, "{}", at.strftime(date_format)).expect("the format has been checked");
    text
}

/// Says what was expected in the place of a format for dates that cannot be used.
pub fn check_date_format(text: &str) -> Result<(), String> {
    let epoch = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    strtime::format(text, &epoch)
        .map(|_| ())
        .map_err(|error| format!("expected a format of strftime ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(format: &str, date_format: &str) -> String {
        let zone = TimeZone::get("Europe/Berlin")
            .unwrap_or_else(|_| TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap());
        let at = Timestamp::from_millisecond(1_700_000_000_007).unwrap().to_zoned(zone);
        let record = Record {
            at: &at,
            uptime_s: 1.5,
            severity: Severity::Warning,
            source: "ZEO.StorageServer",
            message: "(127.0.0.1:4711) connected",
            file: "server/src/session/mod.rs",
            line: 42,
        };
        let mut out = String::new();
        Format::parse(format).unwrap().write(&record, date_format, &mut out);
        out
    }

    #[test]
    fn the_default_is_the_line_that_zeo_writes() {
        let mut out =
            shown("------\n%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S");
        assert_eq!(
            out,
            "------\n2023-11-14T23:13:20 WARNING ZEO.StorageServer (127.0.0.1:4711) connected\n"
        );
        out.clear();
        assert_eq!(
            Format::default(),
            Format::parse("------\n%(asctime)s %(levelname)s %(name)s %(message)s").unwrap()
        );
    }

    /// What Python 3.11 makes of the same record.
    #[test]
    fn fields_are_laid_out_as_python_does() {
        let cases = [
            ("100%%", "100%\n"),
            ("%(levelno)d|%(levelno)5d|%(levelno)-5d|%(levelno)05d", "30|   30|30   |00030\n"),
            ("%(levelno)+d|% d", ""),
            ("%(levelname)-10s|%(levelname)10s|%(levelname).4s", "WARNING   |   WARNING|WARN\n"),
            ("%(msecs)03d %(msecs).1f %(msecs)f", "007 7.0 7.000000\n"),
            ("%(created)d %(relativeCreated)d", "1700000000 1500\n"),
            ("%(levelno)+05d|%(msecs)08.2f|%(levelno)-05d|", "+0030|00007.00|30   |\n"),
            (
                "%(created)s|%(msecs)s|%(levelno)05s|%(msecs)5.1s",
                "1700000000.007|7.0|   30|    7\n",
            ),
            ("%(levelno) d %(levelno).4d", " 30 0030\n"),
            (
                "%(filename)s:%(lineno)d %(module)s %(pathname)s",
                "mod.rs:42 mod server/src/session/mod.rs\n",
            ),
            ("", "\n"),
        ];
        for (format, line) in cases {
            if line.is_empty() {
                assert!(Format::parse(format).is_err(), "{format}");
            } else {
                assert_eq!(shown(format, ""), line, "{format}");
            }
        }
        assert_eq!(shown("%(asctime)s", ""), "2023-11-14 23:13:20,007\n");
        assert_eq!(shown("%(asctime)s", "%d/%b/%Y %z"), "14/Nov/2023 +0100\n");
    }

    #[test]
    fn a_format_that_cannot_be_used_is_refused() {
        let cases = ["%", "%s", "%(name", "%(name)", "%(nope)s", "%(name)d", "%(message)9999s"];
        for format in cases {
            assert!(Format::parse(format).is_err(), "{format}");
        }
        assert!(check_date_format("%Y-%m-%d %H:%M:%S").is_ok());
        assert!(check_date_format("%").is_err());
    }
}
