"""The ensemble that teaches a run's trials, as stored in the run's record."""

from dataclasses import dataclass

from tuner.config import Amount


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherRecord:
    """The ensemble that teaches the trials of a run."""

    ensemble: str
    """``RUN/NAME``."""
    path: str
    """The absolute path of its folder, or its URI."""
    sha256: str
    """SHA-256 of its ``ensemble.json``, which holds those of its members."""
    members: tuple[str, ...]
    """Their names, such as ``trial 3``."""
    num_parameters: Amount | None = None
    """Parameters of all networks; ``None``, like the next, until it has predicted the images."""
    probs_sha256: str | None = None
    """SHA-256 of ``teacher.safetensors``."""
