//! How grave a message is, in the numbers and words of Python's `logging`.

use std::fmt;

/// How grave a message is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    /// Each step (5).
    Trace,
    /// For those who look for a mistake (10).
    Debug,
    /// More than one wants to know (15).
    Blather,
    /// What happens on a good day (20).
    Info,
    /// Something that may need care later (30).
    Warning,
    /// Something could not be done (40).
    Error,
    /// Someone has to act (50).
    Critical,
}

impl Severity {
    /// The number Python's `logging` gives it.
    pub fn number(self) -> u8 {
        match self {
            Self::Trace => 5,
            Self::Debug => 10,
            Self::Blather => 15,
            Self::Info => 20,
            Self::Warning => 30,
            Self::Error => 40,
            Self::Critical => 50,
        }
    }
}

impl fmt::Display for Severity {
    /// As `%(levelname)s` shows it. 5 and 15 have the names that `ZODB.loglevels` gives them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Trace => "TRACE",
            Self::Debug => "DEBUG",
            Self::Blather => "BLATHER",
            Self::Info => "INFO",
            Self::Warning => "WARNING",
            Self::Error => "ERROR",
            Self::Critical => "CRITICAL",
        })
    }
}

/// The smallest [`Severity::number`] that is let through.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Threshold(u8);

impl Threshold {
    /// Lets every message through (`notset`).
    pub const ALL: Self = Self(0);
    /// Lets INFO and above through.
    pub const INFO: Self = Self(20);

    /// The smallest number that is let through; `None` above 50, as ZConfig has it.
    pub const fn new(number: u8) -> Option<Self> {
        if number <= 50 { Some(Self(number)) } else { None }
    }

    /// Whether a message of this severity is let through.
    pub fn admits(self, severity: Severity) -> bool {
        self.0 <= severity.number()
    }
}
