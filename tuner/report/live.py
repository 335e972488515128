"""A run's page behind HTTP, on this machine alone, made anew while the search runs."""

import hashlib
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

from tuner.errors import TunerError, UsageError
from tuner.loopback import HOST, names_this_machine
from tuner.report.page import LIVE_POLICY
from tuner.run.ensembles import ensemble_folders
from tuner.run.layout import HISTORY, ISSUES, METRICS, RUN, STATUS
from tuner.run.run import Run
from tuner.storage.paths import AnyPath, etag

SECONDS = 3.0
"""Least time between two looks at the run."""
IDLE = 4
"""For how long nothing is made, in times of what the last page took: a search needs the CPU."""


def version_of(run: Run) -> str:
    """Return what changes whenever a file of a run does that its page tells of."""
    files = [run.path / RUN, run.path / ISSUES]
    for trial in run.trial_paths():
        files += [trial / STATUS, trial / HISTORY]
    files += [folder / METRICS for folder in ensemble_folders(run.path)]
    told = repr([(str(file), etag(file)) for file in files])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


class LivePage:
    """The page of a run, as new as its files, but made only when it is asked for."""

    def __init__(self, path: AnyPath, build: Callable[[Run, str], str]) -> None:
        """Make the first page.

        Args:
            path: Of the run.
            build: Run, version -> HTML.

        Raises:
            TunerError: If the run is damaged.
        """
        self._path, self._build = path, build
        self._lock = Lock()
        self._version, self._html = "", b""
        self._next_look = 0.0
        self.current()

    def current(self) -> tuple[str, bytes]:
        """Return the version and the page.

        Raises:
            TunerError: If the run is damaged, or gone.
        """
        with self._lock:
            if time.monotonic() >= self._next_look:
                self._look()
            return self._version, self._html

    def _look(self) -> None:
        began = time.monotonic()
        version = version_of(Run.open(self._path))
        if version != self._version:
            # Read after the version: what is written meanwhile makes the next page.
            self._html = self._build(Run.open(self._path), version).encode()
            self._version = version
        ended = time.monotonic()
        self._next_look = ended + max(SECONDS, IDLE * (ended - began))


def page_server(page: LivePage, port: int) -> ThreadingHTTPServer:
    """Return a server that answers with a page, once its ``serve_forever`` is called.

    Args:
        page: What is served.
        port: Of this machine; 0 for a free one.

    Raises:
        UsageError: If the port cannot be had.
    """

    class Handler(_Handler):
        served = page

    try:
        return _Server((HOST, port), Handler)
    except OSError as error:
        raise UsageError(
            f"--port {port}: cannot be listened on ({error.strerror}). Take another, or 0 for one "
            "that is free."
        ) from error


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of an error, unless it is that the browser went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    served: LivePage

    def do_GET(self) -> None:
        """Answer with the page, unless the browser has it."""
        if not names_this_machine(self.headers.get("Host", "")):
            self._answer(403, "text/plain", b"This page is for this machine alone.\n")
        elif self.path != "/":
            self._answer(404, "text/plain", b"There is one page: /\n")
        else:
            self._answer_page()

    do_HEAD = do_GET

    def _answer_page(self) -> None:
        try:
            version, html = self.served.current()
        except TunerError as error:
            self._answer(503, "text/plain", f"{error}\n".encode())
            return
        tag = f'"{version}"'
        if self.headers.get("If-None-Match") == tag:
            self._answer(304, "text/html", b"", tag)
        else:
            self._answer(200, "text/html", html, tag)

    def _answer(self, status: int, kind: str, body: bytes, tag: str = "") -> None:
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Cache-Control": "no-cache",
            "Content-Security-Policy": f"{LIVE_POLICY}; frame-ancestors 'none'",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        if status != 304:
            headers["Content-Length"] = str(len(body))
        if tag:
            headers["ETag"] = tag
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        """Name the server without the versions of what it runs on."""
        return "cifar-tune"

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: a browser asks every few seconds."""
