//! The machine a figure was measured on: what it is, who else used it, and on which CPU we run.
//!
//! Every report opens with this, because a latency without its machine says nothing.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use crate::error::{BenchError, doing};

/// The server's end of every connection, and the disk floor, run here.
pub(crate) const SERVER_CPU: usize = 0;

/// The measuring end runs here.
pub(crate) const CLIENT_CPU: usize = 1;

/// How long we watch the machine before we use it.
const WATCHED: Duration = Duration::from_millis(300);

/// A machine that does more than this on its own, in percent of all CPUs, is called busy.
const BUSY_PERCENT: f64 = 5.0;

/// What is known of the machine before the first measurement.
pub(crate) struct Machine {
    kernel: String,
    cpu: String,
    cpus: usize,
    commit: String,
    /// Percent of all CPU time that others used while we waited.
    busy: f64,
    at_start: CpuTimes,
}

impl Machine {
    /// Looks at the machine, which must have nothing of ours running yet.
    pub(crate) fn observe() -> Self {
        let before = CpuTimes::now();
        std::thread::sleep(WATCHED);
        let at_start = CpuTimes::now();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let uname = rustix::system::uname();
        Self {
            kernel: format!(
                "{} {}",
                uname.sysname().to_string_lossy(),
                uname.release().to_string_lossy()
            ),
            cpu: model.map_or("unknown", |name| name.trim_start_matches(['\t', ' ', ':'])).into(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            commit: commit(),
            busy: at_start.since(&before).busy_percent(),
            at_start,
        }
    }

    /// The lines at the head of a report.
    pub(crate) fn describe(&self) -> String {
        let Self { kernel, cpu, cpus, commit, busy, .. } = self;
        let mut text = format!("{kernel}; {cpu}, {cpus} CPUs; commit {commit}");
        if self.is_busy() {
            text += &format!(
                "\nWARNING: others use {busy:.0} % of this machine: read the ratios, not the times"
            );
        }
        text
    }

    /// The same for a program, with the time that other machines stole while we measured.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "kernel": self.kernel, "cpu": self.cpu, "cpus": self.cpus, "commit": self.commit,
            "busy_before_percent": self.busy, "busy": self.is_busy(),
            "steal_percent": self.steal_percent(),
        })
    }

    /// Percent of CPU time that the hypervisor gave to others since [`Machine::observe`].
    pub(crate) fn steal_percent(&self) -> f64 {
        CpuTimes::now().since(&self.at_start).steal_percent()
    }

    fn is_busy(&self) -> bool {
        BUSY_PERCENT < self.busy
    }
}

/// The `cpu` line of `/proc/stat`, in clock ticks since boot.
struct CpuTimes {
    all: u64,
    idle: u64,
    steal: u64,
}

impl CpuTimes {
    fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let first = stat.lines().next().unwrap_or_default();
        // user nice system idle iowait irq softirq steal, see proc_stat(5).
        let ticks: Vec<u64> =
            first.split_whitespace().skip(1).take(8).map(|n| n.parse().unwrap_or(0)).collect();
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        Self { all: ticks.iter().sum(), idle: at(3) + at(4), steal: at(7) }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            all: self.all - before.all,
            idle: self.idle.saturating_sub(before.idle),
            steal: self.steal - before.steal,
        }
    }

    fn busy_percent(&self) -> f64 {
        100.0 * self.all.saturating_sub(self.idle) as f64 / self.all.max(1) as f64
    }

    fn steal_percent(&self) -> f64 {
        100.0 * self.steal as f64 / self.all.max(1) as f64
    }
}

/// Binds this thread to one CPU. What it starts from now on, threads and processes, inherits that.
pub(crate) fn pin(cpu: usize) -> Result<(), BenchError> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|e| doing("pinning a thread to a CPU")(e.into()))
}

/// Does `work` with this thread bound to `cpus`, then takes the old binding up again.
///
/// A process started in `work` inherits the binding; that is how a server is pinned.
pub(crate) fn pinned<T>(
    cpus: &[usize],
    work: impl FnOnce() -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let before =
        sched_getaffinity(None).map_err(|e| doing("asking for a CPU binding")(e.into()))?;
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    sched_setaffinity(None, &set).map_err(|e| doing("pinning to CPUs")(e.into()))?;
    let outcome = work();
    sched_setaffinity(None, &before).map_err(|e| doing("unpinning a thread")(e.into()))?;
    outcome
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(head) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".into() };
    let is_clean = git(&["status", "--porcelain"]).is_some_and(|changes| changes.is_empty());
    if is_clean { head } else { head + " with changes" }
}
