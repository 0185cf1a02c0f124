//! Buffers that the kernel fills as bytes arrive: one provided-buffer ring a reactor.
//!
//! ```text
//!   ring of entries    | addr len id | addr len id | ...      the kernel takes from its head,
//!                        |                                    we add at its tail
//!   buffers            | 0 ........ | 1 ........ | 2 ...
//! ```
//!
//! A buffer is the kernel's from the moment its entry is in the ring until a completion names it;
//! then it is a [`Chunk`]'s, and dropping the chunk puts it back.

use std::alloc::{self, Layout};
use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// Buffers in a pool: a power of two, as the kernel asks.
///
/// Each holds what one `recv` brings, so this bounds how many are parsed in one turn.
const BUFFERS: u16 = 128;

/// Bytes of a buffer: some 350 pipelined loads, or one object of usual size.
const BUFFER_LENGTH: usize = 16 * 1024;

/// The group that receives name to take buffers from.
pub(super) const GROUP: u16 = 0;

const PAGE: usize = 4096;

/// The buffers of one reactor, and the ring that gives them to the kernel.
pub(super) struct Pool {
    entries: NonNull<BufRingEntry>,
    buffers: NonNull<u8>,
    tail: Cell<u16>,
}

/// Bytes that have arrived. Dropping it gives the buffer back to the kernel.
pub struct Chunk {
    pool: Rc<Pool>,
    id: u16,
    length: usize,
}

impl Pool {
    /// Makes the buffers and gives all of them to the ring.
    pub(super) fn new(ring: &IoUring) -> io::Result<Rc<Self>> {
        // SAFETY: both layouts have a size other than zero; the memory is zeroed, so every entry
        // and every byte is initialized.
        let (entries, buffers) = unsafe {
            (
                alloc::alloc_zeroed(Self::entries_layout()),
                alloc::alloc_zeroed(Self::buffers_layout()),
            )
        };
        let (Some(entries), Some(buffers)) = (NonNull::new(entries.cast()), NonNull::new(buffers))
        else {
            alloc::handle_alloc_error(Self::buffers_layout());
        };
        let pool = Rc::new(Self { entries, buffers, tail: Cell::new(0) });
        // SAFETY: the entries are page-aligned, as many as said, and live until the pool is dropped;
        // the reactor keeps the pool until its ring is closed.
        unsafe {
            let address = entries.as_ptr() as u64;
            ring.submitter().register_buf_ring_with_flags(address, BUFFERS, GROUP, 0)?;
        }
        (0..BUFFERS).for_each(|id| pool.provide(id));
        Ok(pool)
    }

    /// Takes the buffer that a completion names.
    ///
    /// The caller is the reactor, which calls once a completion: so no two chunks share a buffer.
    pub(super) fn chunk(self: &Rc<Self>, id: u16, length: usize) -> Chunk {
        assert!(id < BUFFERS && length <= BUFFER_LENGTH, "the kernel names buffers that we gave");
        Chunk { pool: Rc::clone(self), id, length }
    }

    /// Gives a buffer to the kernel.
    fn provide(&self, id: u16) {
        let tail = self.tail.get();
        let slot = usize::from(tail & (BUFFERS - 1));
        // SAFETY: `slot` is less than BUFFERS, so the entry lies in our memory; the kernel reads
        // entries only between its head and the tail, and this one is outside until the tail moves.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(slot);
            entry.set_addr(self.buffers.as_ptr().add(usize::from(id) * BUFFER_LENGTH) as u64);
            entry.set_len(BUFFER_LENGTH as u32);
            entry.set_bid(id);
        }
        self.tail.set(tail.wrapping_add(1));
        // SAFETY: the tail is a u16 within the first entry, aligned, and lives as long as the pool;
        // the kernel only reads it, and Release makes the entry visible first.
        unsafe {
            let shared = BufRingEntry::tail(self.entries.as_ptr());
            (*shared.cast::<AtomicU16>()).store(self.tail.get(), Ordering::Release);
        }
    }

    fn entries_layout() -> Layout {
        let size = size_of::<BufRingEntry>() * usize::from(BUFFERS);
        Layout::from_size_align(size, PAGE).expect("a constant size")
    }

    fn buffers_layout() -> Layout {
        Layout::from_size_align(BUFFER_LENGTH * usize::from(BUFFERS), PAGE)
            .expect("a constant size")
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: both were allocated with these layouts, and no ring uses them: the reactor
        // closes its ring before it lets go of the pool.
        unsafe {
            alloc::dealloc(self.entries.as_ptr().cast(), Self::entries_layout());
            alloc::dealloc(self.buffers.as_ptr(), Self::buffers_layout());
        }
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the buffer is this chunk's alone until it is dropped (see `Pool::chunk`), and
        // `length` bytes of it lie within the pool's memory, which the chunk keeps alive.
        unsafe {
            let start = self.pool.buffers.as_ptr().add(usize::from(self.id) * BUFFER_LENGTH);
            slice::from_raw_parts(start, self.length)
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.pool.provide(self.id);
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes)", self.length)
    }
}
