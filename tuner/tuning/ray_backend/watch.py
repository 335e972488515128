"""The loss of Ray itself, noticed and told before it ends this process without a word."""

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
"""A head of a cluster that others started may come back within this; Ray waits 60 s, and then ends
the process. One that was started with this process has none to start it again."""
BUSY_SECONDS = 20.0
"""A machine that is only busy answers within this."""
CLOSING_SECONDS = 5.0
"""For the books, once Ray is lost, where nothing keeps the search from closing them."""


class RayWatch:
    """Watches, in a thread, over the two processes of Ray that a driver cannot do without.

    Those are the head (GCS) and this machine's node (raylet). When one is gone, the search, if it
    runs in the main thread, is interrupted by a signal whose handler asks ``is_lost``. It may be
    waiting in Ray for the head, where no signal is heard; then this thread closes the books and
    ends the process, as Ray would do a little later.

    Args:
        is_local: Whether Ray was started with this process.
        close: Closes the books of the search.
        advice: Says how the run goes on.
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
        # At the end of the process it must not be in the midst of a look.
        self._thread.join(timeout=CLOSING_SECONDS)

    def check(self) -> None:
        """Make sure that Ray is there.

        Raises:
            ClusterError: If not.
        """
        if self._lost:
            raise ClusterError(self._lost)

    def look(self) -> bool:
        """Look whether Ray is gone."""
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
            # It was asked while the search came to its end, and Ray with it.
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
    """Where a process listens, and since when it is missed.

    Args:
        host: Its host.
        port: Its port.
        patience: Seconds for which it may be gone.
    """

    def __init__(self, host: str, port: int, patience: float = 0.0) -> None:
        self._address = (host, port)
        self._patience = patience
        self._seen = time.monotonic()

    def is_gone(self) -> bool:
        """Whether nobody has listened for too long."""
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
