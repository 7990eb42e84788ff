"""The page: what is known of one run or of several, put together and rendered."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from manyfaces.configs.files import write_atomic
from manyfaces.train.report.configuration import config_differences
from manyfaces.train.report.course import (
    Listing,
    Share,
    attempts_listing,
    evaluation_share,
    events_listing,
    left_out_listing,
    quarantine_listing,
    time_budget,
    time_text,
)
from manyfaces.train.report.drawing import Drawing
from manyfaces.train.report.evaluations import Evaluated, compared, evaluated
from manyfaces.train.report.facts import Facts, facts, mlflow_page, status
from manyfaces.train.report.headline import headline, side_by_side
from manyfaces.train.report.identities import embedding_map, images_per_identity
from manyfaces.train.report.run_data import RunData
from manyfaces.train.report.svg import marker, style_class
from manyfaces.train.report.training import further_curves, training_curves


@dataclass(frozen=True)
class OfRun:
    """What the page shows of one run by itself."""

    name: str
    number: int
    status: str
    facts: Facts
    mlflow_page: str
    missing: Sequence[str]
    evaluated: Sequence[Evaluated]
    identities: Sequence[Drawing]
    budget: Sequence[Share]
    evaluation_share: float | None
    attempts: Listing
    quarantine: Listing
    left_out: Listing
    events: Listing
    config_text: str
    plan_text: str


def write_page(
    runs: Sequence[RunData], out: Path, *, embeddings: int = 0, differences_only: bool = False
) -> int:
    """Write the page of these runs to a file; returns its bytes.

    `embeddings`: how many identities the map of embeddings shows, 0 for no map.
    `differences_only`: leave out what is of one run alone, for a comparison. Raises `UserError`
    where the map was asked for and cannot be made, and `OSError`.
    """
    text = page_text(runs, embeddings=embeddings, differences_only=differences_only)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text)
    return len(text.encode())


def page_text(
    runs: Sequence[RunData], *, embeddings: int = 0, differences_only: bool = False
) -> str:
    """The page of these runs as HTML."""
    shown: Mapping[str, Any] = {
        "title": _title(runs),
        "runs": [_of_run(run, number, embeddings) for number, run in enumerate(runs)],
        "headline": headline(runs[0]),
        "side_by_side": side_by_side(runs) if len(runs) > 1 else [],
        "curves": training_curves(runs),
        "further_curves": further_curves(runs),
        "compared": compared(runs) if len(runs) > 1 else [],
        "differences": config_differences([run.config for run in runs]) if len(runs) > 1 else [],
        "differences_only": differences_only,
        "version": version("manyfaces"),
        "made": time_text(time.time()),
    }
    text: str = _template().render(shown)
    return text


def _title(runs: Sequence[RunData]) -> str:
    *others, last = (run.name for run in runs)
    return f"{', '.join(others)} and {last}" if others else last


def _of_run(run: RunData, number: int, embeddings: int) -> OfRun:
    missing, identities = list(run.missing), []
    counted, why = images_per_identity(run)
    identities += [counted] if counted is not None else []
    missing += [why] if why else []
    if embeddings:
        identities.append(embedding_map(run, embeddings))
    return OfRun(
        name=run.name,
        number=number,
        status=status(run),
        facts=facts(run),
        mlflow_page=mlflow_page(run),
        missing=missing,
        evaluated=evaluated(run),
        identities=identities,
        budget=time_budget(run),
        evaluation_share=evaluation_share(run),
        attempts=attempts_listing(run),
        quarantine=quarantine_listing(run),
        left_out=left_out_listing(run),
        events=events_listing(run),
        config_text=run.config_text,
        plan_text=run.plan_text,
    )


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.globals["style"] = _file_text("page.css")
    environment.globals |= {"style_class": style_class, "marker": marker}
    environment.globals["script"] = _file_text("page.js")
    return environment.from_string(_file_text("page.html"))


def _file_text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
