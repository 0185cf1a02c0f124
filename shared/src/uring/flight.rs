//! What the kernel is working on, and everything that it may touch meanwhile.
//!
//! An operation's buffer and descriptor live here from its start to its last completion. The
//! number given to the kernel is a slot and a generation, so a late completion of a slot's former
//! tenant is told from one of the present.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use crate::io::DiskFile;
use crate::ring::Doorbell;

use super::reactor::Token;

/// An operation that the kernel has, and what it may touch.
#[derive(Debug)]
#[expect(dead_code, reason = "held, not read: the kernel uses the descriptors and the memory")]
pub(super) enum Flight {
    /// Connections come until it is cancelled.
    Accept { token: Token, listener: Rc<OwnedFd> },
    /// Bytes come into pool buffers until it is cancelled.
    Receive { token: Token, socket: Rc<OwnedFd> },
    /// Bytes go out, from the heap of this vector.
    Send { token: Token, socket: Rc<OwnedFd>, bytes: Vec<u8> },
    /// A file is read into the heap of this vector.
    Read { token: Token, file: Arc<dyn DiskFile>, bytes: Vec<u8> },
    /// The reactor's own bell, into the heap of this box.
    Bell { doorbell: Arc<Doorbell>, count: Box<[u8; 8]> },
    /// The end of another operation was asked for.
    Cancel,
}

/// All operations of a reactor that the kernel has.
#[derive(Debug, Default)]
pub(super) struct Flights {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    flight: Option<Flight>,
}

impl Flights {
    /// Keeps an operation, and names it for the kernel.
    pub(super) fn insert(&mut self, flight: Flight) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.flight = Some(flight);
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    /// The operation of that name, if it is still under way.
    pub(super) fn find(&mut self, name: u64) -> Option<&mut Flight> {
        let slot = self.slots.get_mut((name & 0xffff_ffff) as usize)?;
        if u64::from(slot.generation) != name >> 32 { None } else { slot.flight.as_mut() }
    }

    /// Takes an operation out after its last completion.
    pub(super) fn remove(&mut self, name: u64) -> Option<Flight> {
        self.find(name)?;
        let index = (name & 0xffff_ffff) as usize;
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index as u32);
        slot.flight.take()
    }

    /// Operations under way.
    pub(super) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_completion_does_not_reach_the_slots_next_tenant() {
        let mut flights = Flights::default();
        let first = flights.insert(Flight::Cancel);
        assert!(flights.remove(first).is_some());
        let second = flights.insert(Flight::Cancel);
        assert_eq!(first & 0xffff_ffff, second & 0xffff_ffff, "the slot is used again");
        assert!(flights.find(first).is_none());
        assert!(flights.remove(first).is_none());
        assert_eq!(flights.count(), 1);
    }
}
