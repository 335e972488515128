"""The ensemble that teaches a run's trials, as the run's record tells it."""

from dataclasses import dataclass

from tuner.run.trial import Amount


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherRecord:
    """The ensemble that teaches the trials of a run."""

    ensemble: str
    """``RUN/NAME``."""
    path: str
    """Its folder, in full, or its URI."""
    sha256: str
    """SHA-256 of its ``ensemble.json``, which holds those of its members."""
    members: tuple[str, ...]
    """Such as ``trial 3``."""
    num_parameters: Amount | None = None
    """Parameters of all its networks; this and what follows is ``None`` until it has taught."""
    probs_sha256: str | None = None
    """SHA-256 of ``teacher.safetensors``."""
