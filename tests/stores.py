"""A real S3 server on this machine that keeps its objects on disk, to be killed and started again.

It is localbucket: what it has taken outlives ``kill -9``, as with the stores of the clouds.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class S3Server:
    """The server, and the folder in which its buckets are folders."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.log = folder.with_name(f"{folder.name}.log")
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What clients of any kind find it by."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = Path(sys.executable).with_name("localbucket")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "--port", str(self.port), self.folder], stdout=log, stderr=log
            )
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.1)
        raise TimeoutError(self.log.read_text())

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Yield a server that keeps ``folder``, while the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    server = S3Server(folder, free_port())
    server.start()
    try:
        yield server
    finally:
        server.kill()
