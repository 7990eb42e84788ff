"""How a run stands, as the driver of a submitted job says it and `manyfaces jobs` reads it."""

import json
from dataclasses import dataclass, fields

PERIOD_S = 2.0
"""The driver says it so often."""


@dataclass(frozen=True)
class JobStatus:
    """How a run stands. What is not known yet is None."""

    folder: str
    """The run's folder, or its URL."""
    state: str
    """starting, training, restarting, saving, stopping, stopped, finished or failed."""
    step: int | None
    num_steps: int
    loss: float | None
    images_per_s: float | None
    seconds_left: float | None
    """At the present rate."""
    restarts: int
    """How often the workers were started again since the job began: after a failure, or as their
    number changed."""
    failures: int
    """How often a worker has failed since then."""
    workers: int | None
    nodes: tuple[str, ...]
    """The names of the machines that the workers run on."""
    checkpoint_step: int | None
    checkpoint_time: float | None
    """Step of the newest checkpoint, and when it was committed, in seconds since 1970."""
    time: float
    """When this was written."""

    @classmethod
    def parse(cls, text: str | None) -> "JobStatus | None":
        """The status that a driver has written; None for anything else."""
        try:
            told = json.loads(text or "")
            known = {field.name for field in fields(cls)}
            told["nodes"] = tuple(told["nodes"])
            return cls(**{name: told[name] for name in told.keys() & known})
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
