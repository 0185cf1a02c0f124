//! What this kernel gives: tried once at start, said in one line.

use std::fmt;
use std::io;

use io_uring::{IoUring, Probe, opcode};
use rustix::io::Errno;

/// Submission entries of a reactor's ring. Small, because ring memory may count against the limit
/// on locked memory; a full queue is submitted and goes on.
const ENTRIES: u32 = 256;

/// Completion entries: every buffer of the pool, and a read and a send for many connections, may
/// finish in one turn. An overflow is not lost, only slower.
const COMPLETIONS: u32 = 4096;

/// What the kernel gives a ring of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Kernel {
    /// Completions are worked on only when the owner asks (6.1): no interrupt while it computes.
    pub defer_taskrun: bool,
    /// No array between the submission queue and its entries (6.6).
    pub no_sqarray: bool,
}

/// There is no ring to be had. The message ends in what to do.
#[derive(Debug, thiserror::Error)]
pub enum NoRing {
    /// The system forbids it.
    #[error(
        "io_uring is forbidden here ({source}); allow it with 'sysctl -w \
         kernel.io_uring_disabled=0', or in the seccomp profile of the container"
    )]
    Forbidden {
        /// EPERM or EACCES.
        source: io::Error,
    },
    /// The kernel was built without it, is older than it, or a sandbox hides it.
    #[error("this kernel has no io_uring ({source}); run Linux 6.1 or later, outside gVisor")]
    Absent {
        /// ENOSYS.
        source: io::Error,
    },
    /// Ring memory counts against the limit on locked memory.
    #[error(
        "io_uring may lock too little memory ({source}); raise the limit with 'ulimit -l 65536' \
         or LimitMEMLOCK=64M in the systemd unit"
    )]
    Memory {
        /// ENOMEM.
        source: io::Error,
    },
    /// It is there, but too old for multishot receives and buffer rings.
    #[error("io_uring of this kernel lacks {lacks}; run Linux 6.1 or later")]
    TooOld {
        /// What is missing.
        lacks: &'static str,
    },
    /// Anything else.
    #[error("io_uring could not be set up: {source}; run Linux 6.1 or later with io_uring allowed")]
    Other {
        /// What the system said.
        source: io::Error,
    },
}

impl NoRing {
    pub(super) fn from_setup(source: io::Error) -> Self {
        match Errno::from_io_error(&source) {
            Some(Errno::PERM | Errno::ACCESS) => Self::Forbidden { source },
            Some(Errno::NOSYS) => Self::Absent { source },
            Some(Errno::NOMEM) => Self::Memory { source },
            Some(Errno::INVAL) => Self::TooOld { lacks: "cooperative task running" },
            _ => Self::Other { source },
        }
    }
}

impl Kernel {
    /// Tries what a reactor needs, on a ring of its own that is closed again.
    ///
    /// # Errors
    ///
    /// [`NoRing`] says why there is none, and what to do about it.
    pub fn probe() -> Result<Self, NoRing> {
        open_ring().map(|(_, kernel)| kernel)
    }
}

impl fmt::Display for Kernel {
    /// One line for the log: what is used, and what this kernel lacks.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let release = rustix::system::uname();
        write!(f, "Linux {}: io_uring with ", release.release().to_string_lossy())?;
        f.write_str("multishot accept and receive, buffer rings")?;
        let optional = [(self.defer_taskrun, "DEFER_TASKRUN"), (self.no_sqarray, "NO_SQARRAY")];
        for (_, name) in optional.iter().filter(|(given, _)| *given) {
            write!(f, ", {name}")?;
        }
        let mut lacking = optional.iter().filter(|(given, _)| !given).map(|(_, name)| name);
        match lacking.next() {
            None => f.write_str("; lacks nothing"),
            Some(first) => {
                write!(f, "; lacks {first}")?;
                lacking.try_for_each(|name| write!(f, ", {name}"))
            }
        }
    }
}

/// Sets up a ring with the best flags that this kernel takes. The calling thread owns it.
pub(super) fn open_ring() -> Result<(IoUring, Kernel), NoRing> {
    let best = Kernel { defer_taskrun: true, no_sqarray: true };
    let kernels = [
        best,
        Kernel { no_sqarray: false, ..best },
        Kernel { defer_taskrun: false, no_sqarray: false },
    ];
    let mut refused = None;
    for kernel in kernels {
        match setup(kernel) {
            Ok(ring) => {
                check_operations(&ring)?;
                return Ok((ring, kernel));
            }
            // An old kernel refuses flags that it does not know: try with fewer.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                refused = Some(error)
            }
            Err(error) => return Err(NoRing::from_setup(error)),
        }
    }
    Err(NoRing::from_setup(refused.expect("the loop ends early unless every try was refused")))
}

fn setup(kernel: Kernel) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_cqsize(COMPLETIONS).setup_clamp().setup_submit_all();
    builder.setup_taskrun_flag();
    if kernel.defer_taskrun {
        builder.setup_single_issuer().setup_defer_taskrun();
    } else {
        builder.setup_coop_taskrun();
    }
    if kernel.no_sqarray {
        builder.setup_no_sqarray();
    }
    builder.build(ENTRIES)
}

/// Multishot receives have no probe of their own: they came with SEND_ZC, in 6.0.
fn check_operations(ring: &IoUring) -> Result<(), NoRing> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|source| NoRing::Other { source })?;
    let wanted = [
        (opcode::Accept::CODE, "accept"),
        (opcode::Recv::CODE, "recv"),
        (opcode::Send::CODE, "send"),
        (opcode::Read::CODE, "read"),
        (opcode::AsyncCancel::CODE, "cancel"),
        (opcode::SendZc::CODE, "multishot receives"),
    ];
    match wanted.into_iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, lacks)) => Err(NoRing::TooOld { lacks }),
        None => Ok(()),
    }
}
