"""Which checkpoints of a run are kept and why, and the removal of the others."""

import math
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from manyfaces.configs.sections.checkpoint import Best, Checkpoint
from manyfaces.train.checkpoint.commit import Condition
from manyfaces.train.checkpoint.layout import Candidate, candidates, sweep
from manyfaces.train.record import METRICS, read_rows

Scores = Mapping[int, float]
"""The values of a metric by step."""


class Reason(Enum):
    """Why a checkpoint is kept."""

    NEWEST = "newest"
    BEST = "best"
    PERIODIC = "every"


@dataclass(frozen=True)
class Verdict:
    """Whether a checkpoint is kept."""

    checkpoint: Candidate
    reasons: tuple[Reason, ...]
    """Empty for one that is not kept."""
    score: float | None
    """What `checkpoint.best` compares, where it is known of this step."""


@dataclass
class Removal:
    """What became of the checkpoints that are not kept."""

    removed: list[Verdict] = field(default_factory=list)
    refused: dict[Path, str] = field(default_factory=dict)
    """What the system refuses to remove, and why."""


def read_scores(run: Path, best: Best | None) -> Scores:
    """The values of the metric that `best` names, of each step of the run that has one. A step
    whose value is NaN, or that was not evaluated, has none."""
    if best is None:
        return {}
    return {
        row["step"]: float(row[best.metric])
        for row in read_rows(run / METRICS)
        if math.isfinite(row.get(best.metric, math.nan))
    }


def ranked(found: Sequence[Candidate], best: Best, scores: Scores) -> list[Candidate]:
    """The checkpoints whose step has a score, the best first; of equal ones the older."""
    sign = -1 if best.mode == "max" else 1
    scored = [each for each in found if each.step in scores]
    return sorted(scored, key=lambda each: (sign * scores[each.step], each.step))


def verdicts(
    found: Sequence[Candidate],
    settings: Checkpoint,
    scores: Scores,
    trusted: Collection[Path] = (),
) -> list[Verdict]:
    """Whether each of these checkpoints, newest first, is kept: `retain` says how. Where one that
    is kept for its step or its score is damaged, another is kept in its place and it stays too, as
    a file that cannot be seen for a while may come back."""
    whole = [each.path for each in found if each.fault is None]
    good = [path for path in whole if path in trusted]
    newest = (good + [path for path in whole if path not in trusted])[: settings.keep]
    best = set(_best(found, settings.best, scores))
    every = settings.keep_every_steps
    told = []
    for each in found:
        usable = each.fault is None or each.fault.condition is Condition.DAMAGED
        why = {
            Reason.NEWEST: each.path in newest,
            Reason.BEST: each.path in best,
            Reason.PERIODIC: usable and every is not None and each.step % every == 0,
        }
        reasons = tuple(reason for reason, holds in why.items() if holds)
        told.append(Verdict(each, reasons, scores.get(each.step)))
    return told


def _best(found: Sequence[Candidate], best: Best | None, scores: Scores) -> Iterator[Path]:
    """As many of the best whole checkpoints as are kept, and the damaged ones that are better."""
    left = 0 if best is None else best.keep
    for each in ranked(found, best, scores) if best is not None else ():
        if not left:
            return
        if each.fault is None or each.fault.condition is Condition.DAMAGED:
            yield each.path
        left -= each.fault is None


def retain(
    folder: Path,
    settings: Checkpoint,
    scores: Scores,
    trusted: Collection[Path],
    in_use: Path | None = None,
) -> tuple[list[Verdict], Removal]:
    """Remove the checkpoints that the settings do not keep, but for the one that is `in_use`, and
    what is left of others. Gives all verdicts and what was removed; a failed removal stops nothing.

    `trusted` are those whose every byte is known to be good: this session wrote them, or compared
    all with what was committed. Of the newest they come first; those that are whole as far as their
    sizes tell fill what they leave free. What is damaged goes once as many as `settings.keep` are
    trusted, unless its step or its score keeps it. Nothing is removed that has another name than a
    checkpoint, is of another format, or holds a file that is not its own.
    """
    found = candidates(folder)
    told = verdicts(found, settings, scores, trusted)
    enough = sum(each.fault is None and each.path in trusted for each in found) >= settings.keep
    removal = Removal()
    for verdict in told:
        path, fault = verdict.checkpoint.path, verdict.checkpoint.fault
        damaged = fault is not None and fault.condition is Condition.DAMAGED
        goes = fault is None or (damaged and enough and path not in trusted)
        if verdict.reasons or not goes or path == in_use:
            continue
        try:
            shutil.rmtree(path)
            removal.removed.append(verdict)
        except OSError as error:
            removal.refused[path] = error.strerror or str(error)
    sweep(folder)
    return told, removal


class Retention:
    """The retention of one run's checkpoints, over a session."""

    def __init__(self, folder: Path, settings: Checkpoint) -> None:
        self.folder, self.settings = folder, settings
        self._refused: set[Path] = set()
        """What was told not to be removable."""

    def apply(self, trusted: Collection[Path], in_use: Path | None = None) -> str | None:
        """Retain what the settings and the metrics that are recorded by now keep, and what is
        `in_use`; one line of what is kept and what was removed, None where there is nothing new to
        tell."""
        scores = read_scores(self.folder.parent, self.settings.best)
        told, removal = retain(self.folder, self.settings, scores, trusted, in_use)
        refused = {path: why for path, why in removal.refused.items() if path not in self._refused}
        self._refused |= refused.keys()
        if not removal.removed and not refused:
            return None
        parts = [f"kept: {_kept(told, self.settings)}"]
        if removal.removed:
            parts.append(f"removed {', '.join(map(self._named, removal.removed))}")
        if refused:
            names = ", ".join(f"{path.name} ({why})" for path, why in refused.items())
            parts.append(f"could not remove {names}: training goes on, see to the disk")
        return "; ".join(parts)

    def _named(self, verdict: Verdict) -> str:
        """A checkpoint that was removed, and what it scored or was wrong with it."""
        best, checkpoint = self.settings.best, verdict.checkpoint
        if checkpoint.fault is not None:
            return f"{checkpoint.path.name} ({checkpoint.fault})"
        if best is None:
            return checkpoint.path.name
        score = "not known" if verdict.score is None else f"{verdict.score:.4g}"
        return f"{checkpoint.path.name} ({best.metric} {score})"


def _kept(told: Sequence[Verdict], settings: Checkpoint) -> str:
    """What is kept for each reason; of those that are kept for ever, how many."""
    by_reason = {
        reason: [verdict for verdict in told if reason in verdict.reasons] for reason in Reason
    }
    newest = [each.checkpoint.path.name for each in by_reason[Reason.NEWEST]]
    parts = [f"newest {', '.join(newest) or 'none'}"]
    if settings.best is not None:
        best = [f"{v.checkpoint.path.name} ({v.score:.4g})" for v in by_reason[Reason.BEST]]
        none = "none, as none has a value of it"
        parts.append(f"best by {settings.best.metric} {', '.join(best) or none}")
    if settings.keep_every_steps is not None:
        count = len(by_reason[Reason.PERIODIC])
        parts.append(f"{count:,} of every {settings.keep_every_steps:,} steps")
    return ", ".join(parts)
