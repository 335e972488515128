"""What a search may spend."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a search may spend; then it ends as if it had had no more trials."""

    trials: int
    seconds: float = math.inf
    """Of searching, over all resumes."""
    gpu_seconds: float = math.inf
    """Of GPUs held by trials in their epochs, over all resumes."""
