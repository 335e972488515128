"""Serve a run's page over HTTP to this machine only, updated while the search runs."""

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
"""Minimum time in seconds between two looks at the run."""
IDLE = 4
"""Pause between pages, in multiples of the time for the last page: a search needs the CPU."""


def version_of(run: Run) -> str:
    """Return a hash that changes whenever a file of the run that its page shows changes."""
    files = [run.path / RUN, run.path / ISSUES]
    for trial in run.trial_paths():
        files += [trial / STATUS, trial / HISTORY]
    files += [folder / METRICS for folder in ensemble_folders(run.path)]
    told = repr([(str(file), etag(file)) for file in files])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


class LivePage:
    """The page of a run, as new as its files, rendered only on request."""

    def __init__(self, path: AnyPath, build: Callable[[Run, str], str]) -> None:
        """Render the first page.

        Args:
            path: Path of the run.
            build: Maps a run and its version to HTML.

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
            # Read after the version: later changes trigger the next page.
            self._html = self._build(Run.open(self._path), version).encode()
            self._version = version
        ended = time.monotonic()
        self._next_look = ended + max(SECONDS, IDLE * (ended - began))


def page_server(page: LivePage, port: int) -> ThreadingHTTPServer:
    """Return a server for a page; its ``serve_forever`` starts it.

    Args:
        page: The page to serve.
        port: Port of this machine; 0 for a free one.

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
        """Report an error, unless the browser closed the connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    served: LivePage

    def do_GET(self) -> None:
        """Send the page, unless the browser has it already."""
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
        """Return the server name without any versions."""
        return "cifar-tune"

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: a browser polls every few seconds."""
