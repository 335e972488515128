"""What searches leave in the folder for temporary files."""

import re
import time
from pathlib import Path

from tests.benchmarks.faults import HANG_SECONDS
from tests.benchmarks.processes import Search
from tests.benchmarks.soak_parts.tried import Tried
from tuner.storage.temporary import SUFFIX

THEIRS = re.compile(r"ray|torchinductor_.*|tmp.*wandb-(media|artifacts)")
"""What other libraries keep: Ray its folder, PyTorch a cache of compiled code; and two empty
folders of wandb's, which Ray imports where it is installed, of each process that was killed."""


def try_leftovers(temporary: Path, folder: Path, *words: str) -> Tried:
    """Run one more search, and look for what it and all searches before have left.

    Args:
        temporary: The folder that they had for temporary files and for Ray's.
        folder: That it works in; its runs, and those of the others, are below the one above.
        words: That begin it.
    """
    tried = Tried(what="files and folders left behind")
    began = time.monotonic()
    with Search(folder, *words) as search:
        code = search.wait(HANG_SECONDS)
    broken = [] if code == 0 else [f"the last search ended with {code}: {search.errors[-300:]}"]
    # Ray keeps that of the session that has just ended.
    sessions = sorted((temporary / "ray").glob("session_2*"))
    stray = [path for path in folder.parent.rglob(".*") if path.name.endswith(SUFFIX)]
    others = [path for path in temporary.iterdir() if not THEIRS.fullmatch(path.name)]
    broken += [f"{path} is left" for path in (*sessions[:-1], *stray, *others)]
    tried.enter(broken, time.monotonic() - began)
    return tried
