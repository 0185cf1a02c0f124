//! The two numbers that name everything in ZODB: which object, and which transaction.
//!
//! Both are eight bytes, big endian, on the wire and in a data file (`ZODB/utils.py`: `p64`, `u64`).

use std::fmt;

/// Which object: the identity that ZODB gives a persistent object for life.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Oid(pub u64);

/// Which transaction, and when: ids rise with time, so a tid is also a point in history.
///
/// A record's tid is also called its *serial*. The bits are a time stamp (see [`crate::clock`]).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Tid(pub u64);

impl Oid {
    /// The root object of every database.
    pub const ROOT: Self = Self(0);

    /// Reads the eight bytes of the wire and of a data file.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }

    /// The eight bytes of the wire and of a data file.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

impl Tid {
    /// The id of no transaction: what a new object has for a serial (`ZODB.utils.z64`).
    pub const ZERO: Self = Self(0);

    /// Later than every transaction: a load before it asks for what is current
    /// (`ZODB.utils.maxtid`).
    pub const MAX: Self = Self(0x7fff_ffff_ffff_ffff);

    /// Reads the eight bytes of the wire and of a data file.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }

    /// The eight bytes of the wire and of a data file.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// The smallest id after this one. The last id of all has itself for a successor.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Oid {
    /// Sixteen hexadecimal digits, as ZODB's tools print an oid.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Tid {
    /// Sixteen hexadecimal digits, as ZODB's tools print a tid.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
