//! The bytes that have arrived and are not yet understood. Does no I/O: a driver receives into it.

/// What a driver can receive at once while nothing larger is under way: 60 loads of 1 kB.
const SPACE_LEN: usize = 64 * 1024;

/// A driver is always offered at least so much.
const SPACE_MIN: usize = 16 * 1024;

/// An empty buffer that grew beyond this for a long message is given back.
const KEPT_MAX: usize = 1024 * 1024;

/// What has arrived of a connection's messages.
///
/// Invariant: parsed <= received <= bytes.len()
#[derive(Debug)]
pub struct Inbound {
    bytes: Vec<u8>,
    parsed: usize,
    received: usize,
}

impl Inbound {
    /// Nothing has arrived.
    pub fn new() -> Self {
        Self { bytes: vec![0; SPACE_LEN], parsed: 0, received: 0 }
    }

    /// Where the next bytes go: never empty.
    ///
    /// The buffer doubles only once it is full of bytes that did arrive, so a length that was only
    /// told reserves nothing.
    pub fn space(&mut self) -> &mut [u8] {
        if self.parsed == self.received {
            (self.parsed, self.received) = (0, 0);
            if KEPT_MAX < self.bytes.len() {
                self.bytes.truncate(SPACE_LEN);
                self.bytes.shrink_to(SPACE_LEN);
            }
        }
        if self.bytes.len() - self.received < SPACE_MIN {
            self.bytes.copy_within(self.parsed..self.received, 0);
            (self.parsed, self.received) = (0, self.received - self.parsed);
        }
        if self.bytes.len() - self.received < SPACE_MIN {
            self.bytes.resize(self.bytes.len() * 2, 0);
        }
        &mut self.bytes[self.received..]
    }

    /// Says how much of [`Inbound::space`] a driver has filled.
    pub fn fill(&mut self, count: usize) {
        self.received += count;
        assert!(self.received <= self.bytes.len(), "a driver fills the space that it was given");
    }

    /// Adds bytes that arrived elsewhere.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let space = self.space();
            let count = rest.len().min(space.len());
            space[..count].copy_from_slice(&rest[..count]);
            self.fill(count);
            rest = &rest[count..];
        }
    }

    /// What has arrived and is not yet understood.
    pub(super) fn unparsed(&self) -> &[u8] {
        &self.bytes[self.parsed..self.received]
    }

    /// Says how much of [`Inbound::unparsed`] is understood.
    pub(super) fn consume(&mut self, count: usize) {
        self.parsed += count;
        assert!(self.parsed <= self.received, "nothing is understood before it arrives");
    }
}

impl Default for Inbound {
    fn default() -> Self {
        Self::new()
    }
}
