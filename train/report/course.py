"""How a run went: where the time of a step goes, its attempts, and what was left out of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from manyfaces.train.report.run_data import RunData

_PARTS = {
    "data_wait_share": "waiting for data",
    "forward_share": "forward pass of the network",
    "head_share": "head and its exchange",
    "backward_share": "backward pass",
    "optimizer_share": "optimiser and gradient exchange",
    "checkpoint_share": "checkpoints",
}
REST = "not measured"
EVALUATION = "evaluation_share"
_MOST = 50
_TOLD = {"slow_rank", "hung", "left_out", "quarantine", "worker_failed", "system", "stopped"}


@dataclass(frozen=True)
class Share:
    """A part of the time of training, 0 to 1."""

    name: str
    share: float

    @property
    def text(self) -> str:
        """In percent."""
        return f"{self.share:.1%}"


@dataclass(frozen=True)
class Listing:
    """A table of which only the first rows are shown."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: int

    @property
    def more(self) -> int:
        """Rows that are not shown."""
        return self.total - len(self.rows)


def time_budget(run: RunData) -> list[Share]:
    """The mean share of each part of a step in the time of training, rows weighed by the time that
    they are of; empty where none was recorded."""
    rows = [row for row in run.rows if "forward_share" in row]
    if not rows:
        return []
    weights = [_seconds(before, row) for before, row in zip([None, *rows], rows, strict=False)]
    if not sum(weights):
        weights = [1.0] * len(rows)
    shares = [Share(name, _mean(rows, weights, key)) for key, name in _PARTS.items()]
    rest = 1 - sum(share.share for share in shares)
    return [*shares, Share(REST, max(rest, 0.0))]


def evaluation_share(run: RunData) -> float | None:
    """The mean share of evaluations in all of the time."""
    rows = [row for row in run.rows if EVALUATION in row]
    return _mean(rows, [1.0] * len(rows), EVALUATION) if rows else None


def _seconds(before: Mapping[str, float] | None, row: Mapping[str, float]) -> float:
    """How long the training took that a row is of, as far as the rows tell."""
    began = 0.0 if before is None else before.get("minutes", 0.0)
    return max(row.get("minutes", 0.0) - began, 0.0)


def _mean(rows: Sequence[Mapping[str, float]], weights: Sequence[float], key: str) -> float:
    total = sum(weights)
    pairs = zip(rows, weights, strict=True)
    return sum(row.get(key, 0.0) * weight for row, weight in pairs) / total


def attempts_listing(run: RunData) -> Listing:
    """Each start of the workers, and how it ended."""
    rows = []
    for attempt in run.attempts:
        start = attempt.start
        rows.append(
            [
                str(attempt.number),
                time_text(attempt.started),
                _text(start.get("step")),
                _text(start.get("world_size")),
                _devices(start.get("devices")),
                {"RUNNING": "runs, or was killed"}.get(attempt.status, attempt.status.lower()),
                attempt.reason,
            ]
        )
    columns = ["attempt", "began (UTC)", "from step", "workers", "devices", "end", "reason"]
    return _listing(columns, rows, newest=True)


def quarantine_listing(run: RunData) -> Listing:
    """Samples that could not be decoded."""
    return _listing(
        ["sample", "name", "reason"],
        [[_text(row.get(key)) for key in ("sample", "name", "reason")] for row in run.quarantine],
    )


def left_out_listing(run: RunData) -> Listing:
    """Batches that the run skips."""
    rows = []
    for row in run.left_out:
        samples = row.get("samples")
        count = len(samples) if isinstance(samples, list) else None
        told = [row.get("step"), row.get("position"), count, row.get("reason")]
        rows.append([_text(each) for each in told])
    return _listing(["step", "position in the stream", "samples", "reason"], rows)


def events_listing(run: RunData) -> Listing:
    """What else happened that a person may want to know of."""
    rows = [
        [time_text(event["time"]), _text(event.get("step")), event["kind"], event["message"]]
        for event in run.events
        if event["kind"] in _TOLD
    ]
    return _listing(["time (UTC)", "step", "kind", "what happened"], rows, newest=True)


def time_text(seconds: float) -> str:
    """A moment for people; "" for what no calendar has."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return ""


def _listing(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, newest: bool = False
) -> Listing:
    known = list(rows)
    return Listing(columns, known[-_MOST:] if newest else known[:_MOST], len(known))


def _devices(told: Any) -> str:
    if not isinstance(told, dict):
        return ""
    return ", ".join(f"{count} x {name}" for name, count in told.items())


def _text(value: Any) -> str:
    return "" if value is None else str(value)
