"""Starts and stops a ZEO server, ours or any other, from the text of a zeo.conf.

The server is any command that takes `-C FILE`, listens, and leaves on SIGTERM with exit code 0. Never looks inside it.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time

# Below the kernel's range for outgoing connections, so that a free port stays free until the server binds it, and
# apart from the ports that ZEO's suite picks for itself.
PORT_FIRST, PORT_END = 10_000, 19_000

START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 15


def leave_on_sigterm():
    """Makes SIGTERM end this process through its `finally`s, which end the servers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


class ServerFailed(AssertionError):
    """The server did not start, ended by itself, or did not leave when told to."""


def _ports():
    width = PORT_END - PORT_FIRST
    offset = os.getpid() * 131 % width
    while True:
        yield PORT_FIRST + offset
        offset = (offset + 1) % width


_port_candidates = _ports()


def free_port(host="127.0.0.1"):
    """A port nobody listens on. Processes start at different places of the range."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in _port_candidates:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port


def resolve_address(config):
    """Finds the address line of `config`; port 0 becomes a free one. Gives (config, address)."""
    found = re.search(r"^[ \t]*address[ \t]+(\S.*?)[ \t]*$", config, re.M)
    if found is None:
        raise ValueError("the configuration has no address")
    text = found.group(1)
    if "/" in text:
        return config, text
    host, _, port = text.rpartition(":")
    host, port = host.strip().strip("[]") or "127.0.0.1", int(port)
    if port == 0:
        port = free_port(host)
        shown = f"[{host}]" if ":" in host else host
        config = config[: found.start(1)] + f"{shown}:{port}" + config[found.end(1) :]
    return config, (host, port)


def connects(address):
    """Whether a server greets at `address`: (host, port) or a socket's path.

    The sockets of a server that was killed may still accept for a moment, but nobody greets there.
    """
    if isinstance(address, str):
        family, target = socket.AF_UNIX, address
    else:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        target = tuple(address)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(target)
            return probe.recv(1) != b""
        except OSError:
            return False


class Server:
    """One server process in a folder. `output` is the file that takes what it prints."""

    def __init__(self, command, config, folder=".", environment=None, strict=True):
        # Stock ZEO under uvloop sometimes sleeps through SIGTERM: as a yardstick it may be killed instead.
        self.strict = strict
        self.command = shlex.split(command) if isinstance(command, str) else list(command)
        self.folder = os.path.abspath(folder)
        self.config, self.address = resolve_address(config)
        self.environment = environment
        self.process = None
        handle, self.config_path = tempfile.mkstemp(".conf", "server-", self.folder)
        with os.fdopen(handle, "w") as file:
            file.write(self.config)
        self.output = self.config_path + ".out"

    def start(self):
        """Returns when the server accepts connections."""
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                [*self.command, "-C", self.config_path],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env={**os.environ, **(self.environment or {})},
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not connects(self.address):
            if self.process.poll() is not None:
                raise ServerFailed(f"the server ended with {self.process.returncode} at start: {self.tail()}")
            if deadline < time.monotonic():
                self.kill()
                raise ServerFailed(f"the server does not listen after {START_SECONDS_MAX} s: {self.tail()}")
            time.sleep(0.005)
        return self

    def stop(self):
        """SIGTERM; raises when the server was already dead, does not leave, or leaves with an error."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is not None:
            raise ServerFailed(f"the server had ended by itself with {process.returncode}: {self.tail()}")
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS_MAX if self.strict else 2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            if not self.strict:
                return
            raise ServerFailed(f"the server ignored SIGTERM for {STOP_SECONDS_MAX} s: {self.tail()}") from None
        if self.strict and process.returncode != 0:
            raise ServerFailed(f"the server left with {process.returncode} on SIGTERM: {self.tail()}")

    def kill(self):
        """SIGKILL, without any check."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def tail(self):
        """The end of what the server printed."""
        with open(self.output, errors="replace") as file:
            return file.read()[-2000:]

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, error, trace):
        # The first failure is the one to see.
        if kind is None:
            self.stop()
        else:
            self.kill()


def file_storage_config(path="Data.fs", zeo="", log=None):
    """The text of a zeo.conf for one FileStorage at a free local port; `zeo` are more lines of its <zeo> section."""
    text = f"<zeo>\n  address 127.0.0.1:0\n{zeo}\n</zeo>\n<filestorage 1>\n  path {path}\n</filestorage>\n"
    if log:
        text += f"<eventlog>\n  level info\n  <logfile>\n    path {log}\n  </logfile>\n</eventlog>\n"
    return text
