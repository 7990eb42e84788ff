"""Which checkpoint a person means: a run stands for its newest one, `RUN@best` for its best."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from manyfaces.configs.errors import UserError
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.train.checkpoint.commit import committed
from manyfaces.train.checkpoint.layout import candidates, newest
from manyfaces.train.checkpoint.retention import ranked, read_scores
from manyfaces.train.folder import CHECKPOINTS, RunFolder

BEST = "@best"


def names_checkpoint(path: Path) -> bool:
    """Whether a path names a checkpoint, a run, or the best of a run."""
    run = _run_of_best(path) or path
    return (run / CHECKPOINTS).is_dir() or path.parent.name == CHECKPOINTS


def chosen(path: Path) -> Path:
    """The checkpoint folder that is given, the newest one of the run that is, or the best one of
    `RUN@best`. Raises `UserError`."""
    if path.parent.name == CHECKPOINTS:
        committed(path)
        return path
    best_of = _run_of_best(path)
    folder = (best_of or path) / CHECKPOINTS
    if not folder.is_dir():
        raise UserError(
            f"{path}: no run there; expected a folder RUN with RUN/checkpoints in it, or one of "
            "its checkpoints"
        )
    if best_of is not None:
        return _best(best_of)
    newest_one = newest(folder)
    if newest_one is None:
        raise UserError(f"{folder}: no committed checkpoint in it")
    return newest_one


def retention_settings(run: Path) -> Checkpoint | None:
    """Section `checkpoint` of the run's configuration; None where that cannot be read. The others
    may name files that are gone."""
    try:
        tree = yaml.safe_load(RunFolder(run).config.read_bytes())
        return Checkpoint.model_validate(tree["checkpoint"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValidationError):
        return None


def _run_of_best(path: Path) -> Path | None:
    """The run of `RUN@best` or `RUN/@best`; None for any other path, and for a folder of that very
    name."""
    if not path.name.endswith(BEST) or path.exists():
        return None
    return path.with_name(path.name.removesuffix(BEST)) if path.name != BEST else path.parent


def _best(run: Path) -> Path:
    config = RunFolder(run).config
    settings = retention_settings(run)
    if settings is None:
        raise UserError(
            f"{run}{BEST}: {config} is missing or cannot be read, so nothing tells by what its "
            f"best checkpoint is; restore it, or give one of {run / CHECKPOINTS}/step-..."
        )
    if settings.best is None:
        raise UserError(
            f"{run}{BEST}: {config} sets no checkpoint.best, so none of its "
            f"checkpoints is the best; `manyfaces checkpoint show {run}` lists them"
        )
    found = [each for each in candidates(run / CHECKPOINTS) if each.fault is None]
    best = ranked(found, settings.best, read_scores(run, settings.best))
    if not best:
        raise UserError(
            f"{run}{BEST}: no whole checkpoint of it was evaluated by {settings.best.metric}; "
            f"`manyfaces checkpoint show {run}` lists them"
        )
    return best[0].path
