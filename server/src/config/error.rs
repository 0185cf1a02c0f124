//! What a configuration gets wrong, and where.

use std::{fmt, path::PathBuf};

/// Where a word of the configuration stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// A line of a file; the first is 1.
    Line {
        /// The file, as it was named.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// An option on the command line, with its value.
    Option(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{}:{line}", file.display()),
            Self::Option(option) => f.write_str(option),
        }
    }
}

/// The configuration cannot be used. Reads as one line: place, key, fact, remedy.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}{what}", place.as_ref().map(|place| format!("{place}: ")).unwrap_or_default())]
pub struct ConfigError {
    /// Where, if it is one place.
    pub place: Option<Place>,
    /// What is wrong there, and what would be right.
    pub what: String,
}

impl ConfigError {
    /// Something is wrong at `place`.
    pub fn at(place: &Place, what: impl Into<String>) -> Self {
        Self { place: Some(place.clone()), what: what.into() }
    }

    /// Something is wrong with the whole.
    pub fn new(what: impl Into<String>) -> Self {
        Self { place: None, what: what.into() }
    }
}
