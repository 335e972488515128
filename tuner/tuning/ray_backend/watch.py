"""Notices and reports the loss of Ray itself, before it silently ends this process."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import ray

from tuner.errors import ClusterError

LOOK_SECONDS = 0.5
HEAD_SECONDS = 45.0
"""Seconds within which the head of a cluster that others started may come back; Ray waits 60 s and
then ends the process. Nothing restarts a head that was started with this process."""
BUSY_SECONDS = 20.0
"""A machine that is merely busy answers within this time."""
CLOSING_SECONDS = 5.0
"""Time for the search to close the run once Ray is lost, if nothing keeps it from doing so."""


class RayWatch:
    """Watches, in a thread, the two processes of Ray that a driver cannot do without.

    These are the head (GCS) and this machine's node (raylet). When one is gone, a search that runs
    in the main thread is interrupted by a signal whose handler calls ``is_lost``. The search may be
    waiting in Ray for the head, where signals are not handled; then this thread closes the run and
    ends the process, as Ray would do a little later.

    Args:
        is_local: Whether Ray was started with this process.
        close: Closes the run of the search.
        advice: How to resume the run.
    """

    def __init__(self, *, is_local: bool, close: Callable[[], None], advice: str) -> None:
        self._close = close
        self._advice = advice
        self._is_over = threading.Event()
        self._lost = ""
        self._searcher = threading.current_thread()
        context = ray.get_runtime_context()
        host, _, port = context.gcs_address.rpartition(":")
        here = context.get_node_id()
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        node = next(node for node in nodes if node["NodeID"] == here)
        self._watched = {
            "head (gcs_server)": Address(host, int(port), 0.0 if is_local else HEAD_SECONDS),
            "node on this machine (raylet)": Address(
                node["NodeManagerAddress"], node["NodeManagerPort"]
            ),
        }
        self._thread = threading.Thread(target=self._watch, name="ray-watch", daemon=True)

    def is_lost(self) -> bool:
        """Whether Ray is gone."""
        return bool(self._lost)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        # When the process ends, it must not be in the middle of a look.
        self._thread.join(timeout=CLOSING_SECONDS)

    def check(self) -> None:
        """Make sure that Ray is still there.

        Raises:
            ClusterError: If not.
        """
        if self._lost:
            raise ClusterError(self._lost)

    def look(self) -> bool:
        """Check whether Ray is gone."""
        gone = [what for what, address in self._watched.items() if address.is_gone()]
        if gone and not self._lost:
            self._lost = f"Ray's {gone[0]} has ended, most likely killed; {self._advice}"
        return bool(self._lost)

    def _watch(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            if self.look():
                self._end()
                return

    def _end(self) -> None:
        if self._is_over.is_set():
            # It checked while the search was ending, and Ray with it.
            return
        if self._searcher is threading.main_thread():
            signal.pthread_kill(self._searcher.ident or 0, signal.SIGTERM)
        if self._is_over.wait(CLOSING_SECONDS):
            return
        try:
            self._close()
        finally:
            print(f"cifar-tune: {self._lost}", file=sys.stderr, flush=True)
            os._exit(ClusterError.exit_code)


class Address:
    """Where a process listens, and since when it has been missing.

    Args:
        host: Its host.
        port: Its port.
        patience: Seconds for which it may be missing.
    """

    def __init__(self, host: str, port: int, patience: float = 0.0) -> None:
        self._address = (host, port)
        self._patience = patience
        self._seen = time.monotonic()

    def is_gone(self) -> bool:
        """Whether nothing has listened there for too long."""
        try:
            socket.create_connection(self._address, timeout=1.0).close()
        except ConnectionRefusedError:
            patience = self._patience
        except OSError:
            patience = max(self._patience, BUSY_SECONDS)
        else:
            self._seen = time.monotonic()
            return False
        return time.monotonic() - self._seen > patience
