//! What both ends of ZEO know: ids, the wire, FileStorage records, the ring, and the seam to the
//! machine.

pub mod clock;
pub mod fork;
pub mod ids;
pub mod io;
pub mod record;
pub mod ring;
pub mod uring;
pub mod wire;
