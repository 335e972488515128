"""Small real file systems that fill up, and become read-only."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """Mount a new file system on a folder; ``size`` is written as for ``mount``."""
    if os.getuid():
        pytest.skip("only root may mount")
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    """Change a mounted file system: ``ro``, ``size=10m``."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def _may_mount_alone() -> bool:
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/tmp"]
    try:
        return subprocess.run(probe, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


needs_own_mounts = pytest.mark.skipif(
    not _may_mount_alone(), reason="nothing may be mounted for one node alone"
)
