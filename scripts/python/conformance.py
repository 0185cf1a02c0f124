"""Runs ZEO's own suite against a server command, with both codecs, and says what was run, left out and failed.

Each class runs in a process and a folder of its own (foreign_server.py), a few at a time. Fails on any failure, on a
class that did not end, on a line of exceptions.txt that matches no test, and on an exception that docs/conformance.md
does not name. When it ends, however it ends, every process it started is gone.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter

from foreign_server import Exceptions
from server import leave_on_sigterm

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
EXCEPTIONS = os.path.join(HERE, "exceptions.txt")

# The longest first, so that none of them runs alone at the end.
CLASSES = (
    "ZEO.tests.testConnection:FileStorageConnectionTests",
    "ZEO.tests.testZEO:BlobAdaptedFileStorageTests",
    "ZEO.tests.testConnection:MappingStorageConnectionTests",
    "ZEO.tests.testConnection:FileStorageReconnectionTests",
    "ZEO.tests.testZEO:MappingStorageTests",
    "ZEO.tests.testConnection:FileStorageTimeoutTests",
    "ZEO.tests.testConnection:MappingStorageTimeoutTests",
    "ZEO.tests.testConnection:doctests",
    "ZEO.tests.testZEO:ClientConflictResolutionTests",
    "ZEO.tests.testZEO:FileStorageRecoveryTests",
    "ZEO.tests.testZEO:MultiprocessingTests",
    "ZEO.tests.testConnection:FileStorageInvqTests",
)
CODECS = {"Z5": {}, "M5": {"ZEO_MSGPACK": "1"}}

# All classes with both codecs take about three minutes, most of it waiting, on a machine with nothing else to do.
JOBS = 3
SECONDS_MAX = 460


class Job:
    """One class with one codec: a process that leads a group of its own, to be ended with its servers."""

    def __init__(self, name, codec, options, folder):
        self.title = f"{codec} {name.rpartition(':')[2]}"
        self.folder = os.path.join(folder, self.title.replace(" ", "-"))
        os.mkdir(self.folder)
        self.log = self.folder + ".log"
        self.result_path = self.folder + ".json"
        command = [sys.executable, os.path.join(HERE, "foreign_server.py"), "--server", options.server]
        command += ["--exceptions", EXCEPTIONS, "--result", self.result_path, name]
        command += ["--only", options.only] if options.only else []
        command += ["--lenient-stop"] if options.lenient_stop else []
        environment = {key: value for key, value in os.environ.items() if key != "ZEO_MSGPACK"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**environment, **CODECS[codec]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.begun = time.monotonic()

    def end(self):
        """Ends what is left of the process and of the servers it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def result(self):
        """What the process wrote, or None when it did not come to its end."""
        try:
            with open(self.result_path) as file:
                return json.load(file)
        except FileNotFoundError:
            return None


def run(jobs_wanted, options, folder):
    """Runs all jobs, `options.jobs` at a time; gives those that were started, all ended."""
    waiting, running, done = list(jobs_wanted), [], []
    deadline = time.monotonic() + SECONDS_MAX
    try:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                running.append(Job(*waiting.pop(0), options, folder))
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                done.append(job)
                job.end()
                report(job)
            if deadline < time.monotonic():
                print(f"conformance: not done after {SECONDS_MAX} s; ending {[job.title for job in running]}")
                done += running
                waiting.clear()
                break
            time.sleep(0.1)
    finally:
        for job in running:
            job.end()
    return done


def report(job):
    """One line for an ended job, and its log when something failed."""
    result = job.result()
    seconds = time.monotonic() - job.begun
    if result is None:
        print(f"{job.title}: did not come to its end ({seconds:.0f} s)")
    else:
        print(
            f"{job.title}: {result['run']} run, {len(result['failed'])} failed, "
            f"{len(result['left_out'])} left out ({seconds:.0f} s)",
            flush=True,
        )
    if result is None or result["failed"]:
        with open(job.log, errors="replace") as log:
            text = log.read()
        start = text.find("=" * 70)
        print(text[start:][:20_000] if 0 <= start else text[-10_000:], flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--server", required=True, help="the command; gets -C FILE")
    arguments.add_argument("--codec", choices=CODECS, help="only this one")
    arguments.add_argument("--class", dest="only_class", help="only classes whose name contains this")
    arguments.add_argument("--only", help="only tests whose id contains this regular expression")
    arguments.add_argument("--jobs", type=int, default=JOBS)
    arguments.add_argument("--lenient-stop", action="store_true", help="for stock runzeo: SIGTERM may have to be KILL")
    options = arguments.parse_args()
    leave_on_sigterm()

    wanted = [
        (name, codec)
        for name in CLASSES
        for codec in CODECS
        if options.codec in (None, codec) and (options.only_class or "") in name
    ]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zeoring-conformance-") as folder:
        jobs = run(wanted, options, folder)
        results = {job.title: job.result() for job in jobs}

    complaints = [f"{title}: did not come to its end" for title, result in results.items() if result is None]
    if len(results) < len(wanted):
        complaints.append(f"{len(wanted) - len(results)} classes were not run")
    results = {title: result for title, result in results.items() if result is not None}
    failed = [f"{title}: {test}" for title, result in results.items() for test in result["failed"]]
    left_out = {tuple(item) for result in results.values() for item in result["left_out"]}
    for title, result in results.items():
        complaints += [f"{title}: {test} was skipped by itself: {why}" for test, why in result["skipped"]]
    with open(os.path.join(ROOT, "docs", "conformance.md")) as file:
        page = file.read()
    for test, reason in sorted(left_out):
        if f"`{test.rpartition('.')[2]}`" not in page:
            complaints.append(f"docs/conformance.md does not name {test} ({reason})")
    if options.only_class is None:
        matched = {line for result in results.values() for line in result["lines"]}
        for number, _, pattern in Exceptions(EXCEPTIONS).lines:
            if number not in matched:
                complaints.append(f"exceptions.txt:{number}: matches no test: {pattern.pattern}")

    for line in failed + complaints:
        print("FAILED " + line)
    reasons = Counter(reason for _, reason in left_out)
    ran = sum(result["run"] for result in results.values())
    print(
        f"conformance: {ran - len(failed)} passed, {len(failed) + len(complaints)} failed, "
        f"left out of each codec: {len(left_out)} ({', '.join(f'{n} {r}' for r, n in sorted(reasons.items()))}), "
        f"{time.monotonic() - begun:.0f} s"
    )
    return 1 if failed or complaints or ran == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
