"""Workers that failed, as the run's record tells it: who, where, why, and what is done again."""

from collections.abc import Mapping
from typing import Any

from manyfaces.configs.load import load_stored
from manyfaces.configs.schema import Config
from manyfaces.train.checkpoint.layout import candidates
from manyfaces.train.folder import RunFolder
from manyfaces.train.heartbeat import read_heartbeats
from manyfaces.train.record import METRICS, Record, read_rows


def workers_failed(payload: Mapping[str, Any], causes: Mapping[int, str], count: int) -> None:
    """Record the `count`-th failure; `causes` by rank. Called by the launcher."""
    config = load_stored(payload["config"], "the launcher's configuration")
    folder = RunFolder.of(config)
    # When one worker is gone the others fail too, in their next collective.
    rank, cause = min(causes.items(), key=lambda each: (not each[1].startswith("died"), each[0]))
    beats = read_heartbeats(folder.path)
    where = beats[rank].where if rank in beats else f"rank {rank}"
    measured = [row["step"] for row in read_rows(folder.path / METRICS)]
    step = max([*measured, *(beat.step for beat in beats.values())], default=0)
    good = next((each.step for each in candidates(folder.checkpoints) if each.fault is None), 0)
    Record(folder.path).event(
        "worker_failed",
        f"{where} {cause}; step {step}; {_next(config, count, step, good)}",
        rank=rank,
        step=step,
    )


def _next(config: Config, count: int, step: int, good: int) -> str:
    limit = config.cluster.max_failures
    if 0 <= limit < count:
        return f"no restart is left of cluster.max_failures={limit}"
    of = f" of {limit}" if limit >= 0 else ""
    again = max(step - good, 0)
    return f"restart {count}{of} goes on from step {good}: {again} steps are done again"
