"""Runs test classes of ZEO's own suite against a server that is a command. One process runs one class.

    python foreign_server.py --server COMMAND --exceptions FILE --result FILE MODULE:CLASS

ZEO's tests start their servers through one function, which takes a zeo.conf and gives an address and a way to stop.
That function is replaced here before the tests are imported. Servers that a test wants inside its own process stay
ZEO's: such a test looks at a Python server's objects. conformance.py starts these processes and adds up their results.
"""

import argparse
import doctest
import faulthandler
import importlib
import json
import os
import re
import sys
import time
import unittest

import ZEO._forker as zeo_forker

from server import Server

# The longest test that passes takes about 15 s; the process ends with all stacks when one takes this long.
TEST_SECONDS_MAX = 120

# What a FileStorage leaves beside its file.
STORAGE_SUFFIXES = ("", ".old", ".tmp", ".lock", ".index", ".pack")


class Exceptions:
    """The tests that are left out. A line: the reason's name, then a regular expression for the whole test id."""

    def __init__(self, path):
        self.lines = []
        with open(path) as file:
            for number, line in enumerate(file, 1):
                line = line.split("#")[0].strip()
                if line:
                    reason, _, pattern = line.partition(" ")
                    self.lines.append((number, reason, re.compile(pattern.strip())))

    def match(self, test_id):
        """The line's number and reason, or None."""
        for number, reason, pattern in self.lines:
            if pattern.fullmatch(test_id):
                return number, reason
        return None


def replacement(command, original, strict):
    """The function that ZEO's tests call to start a server, for servers that are `command`."""

    def start_zeo_server(
        storage_conf=None,
        zeo_conf=None,
        port=None,
        keep=False,
        path="Data.fs",
        protocol=None,
        blob_dir=None,
        suicide=True,
        debug=False,
        threaded=False,
        start_timeout=33,
        name=None,
        log=None,
        show_config=False,
    ):
        if threaded:
            return original(
                storage_conf, zeo_conf, port, keep, path, protocol, blob_dir, suicide, debug, True, start_timeout,
                name, log, show_config,
            )
        storage = storage_conf or f"<filestorage>\n  path {path}\n</filestorage>"
        if blob_dir:
            storage = f"<blobstorage>\n  blob-dir {blob_dir}\n{storage}\n</blobstorage>"
        if zeo_conf is None or isinstance(zeo_conf, dict):
            address = port if isinstance(port, (str, tuple)) else ("127.0.0.1", port or 0)
            zeo_conf = zeo_forker.ZEOConfig(address, log=log, **(zeo_conf or {}))
        environment = {"ZEO_SERVER_PROTOCOL": protocol.decode()} if protocol else None
        server = Server(command, f"{zeo_conf}\n\n{storage}\n", environment=environment, strict=strict).start()

        def stop(stop_timeout=None):
            server.stop()
            if not keep:
                for data in re.findall(r"^[ \t]*path[ \t]+(\S+)", storage, re.M):
                    for suffix in STORAGE_SUFFIXES:
                        try:
                            os.remove(os.path.join(server.folder, data) + suffix)
                        except FileNotFoundError:
                            pass

        return server.address, stop

    return start_zeo_server


def load(name):
    """The tests of MODULE:CLASS, with the prefixes its module gives its loaders; MODULE:doctests are its doctests."""
    module, _, class_name = name.partition(":")
    if class_name == "doctests":
        suite = importlib.import_module(module).test_suite()
        return unittest.TestSuite(case for case in cases(suite) if isinstance(case, doctest.DocTestCase))
    case = getattr(importlib.import_module(module), class_name)
    suite = unittest.TestSuite()
    for prefix in ("check",) if module.endswith("testConnection") else ("check", "test"):
        loader = unittest.TestLoader()
        loader.testMethodPrefix = prefix
        suite.addTest(loader.loadTestsFromTestCase(case))
    return suite


def cases(suite):
    """Every test of a suite of suites."""
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from cases(item)
        else:
            yield item


class Result(unittest.TextTestResult):
    """Tells each test's time, and ends the process with all stacks when one never ends."""

    def startTest(self, test):
        faulthandler.dump_traceback_later(TEST_SECONDS_MAX, exit=True)
        self.begun = time.monotonic()
        super().startTest(test)

    def stopTest(self, test):
        faulthandler.cancel_dump_traceback_later()
        super().stopTest(test)
        self.stream.writeln(f"  {time.monotonic() - self.begun:.1f} s")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--server", required=True)
    arguments.add_argument("--exceptions", required=True)
    arguments.add_argument("--result", required=True)
    arguments.add_argument("--only", help="a regular expression that the ids of the tests to run contain")
    arguments.add_argument("--everything", action="store_true", help="run the exceptions too")
    arguments.add_argument("--lenient-stop", action="store_true", help="kill a server that sleeps through SIGTERM")
    arguments.add_argument("name")
    options = arguments.parse_args()
    # The tests change the folder.
    options.result = os.path.abspath(options.result)

    exceptions = Exceptions(options.exceptions)
    start = replacement(options.server, zeo_forker.start_zeo_server, not options.lenient_stop)
    zeo_forker.start_zeo_server = start
    forker = importlib.import_module("ZEO.tests.forker")
    forker.start_zeo_server = start

    run, left_out, lines = unittest.TestSuite(), [], set()
    for test in cases(load(options.name)):
        matched = exceptions.match(test.id())
        if matched and not options.everything:
            lines.add(matched[0])
            left_out.append((test.id(), matched[1]))
        elif options.only is None or re.search(options.only, test.id()):
            run.addTest(test)
    result = unittest.TextTestRunner(sys.stdout, verbosity=2, resultclass=Result).run(run)
    with open(options.result, "w") as file:
        json.dump(
            {
                "run": result.testsRun,
                "failed": [test.id() for test, _ in result.failures + result.errors],
                "skipped": [(test.id(), reason) for test, reason in result.skipped],
                "left_out": left_out,
                "lines": sorted(lines),
            },
            file,
        )
    sys.stdout.flush()
    # Clients of a failed test may have left threads that never end.
    os._exit(0 if result.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
