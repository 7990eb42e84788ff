"""The report of an evaluated step, in a folder of its own: `evaluation.json` for people and
programs, `results.json` with all that a page shows, `examples/`, and plots."""

import fcntl
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import write_atomic
from manyfaces.configs.parsed import parsed
from manyfaces.train.evaluation.plots import file_stem, plot_result
from manyfaces.train.evaluation.result import Encoded, Result, finite
from manyfaces.train.evaluation.stored import StoredExample, StoredReport, StoredResult
from manyfaces.train.folder import EVALUATION

SUMMARY, RESULTS, EXAMPLES = "evaluation.json", "results.json", "examples"

_STEP = re.compile(r"step-(\d{8,})")
_PNG = b"\x89PNG"


def report_folder(run: Path, step: int) -> Path:
    """The folder of the report of this step, which need not be there."""
    return run / EVALUATION / f"step-{step:08d}"


def report_folders(run: Path) -> dict[int, Path]:
    """The folders of a run's reports by their steps, the first step first."""
    found = {
        int(fits[1]): path.parent
        for path in (run / EVALUATION).glob(f"*/{RESULTS}")
        if (fits := _STEP.fullmatch(path.parent.name))
    }
    return dict(sorted(found.items()))


def read_report(folder: Path) -> StoredReport:
    """The report in a folder. Raises `UserError` where there is none, or a broken one."""
    file = folder / RESULTS
    try:
        body = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: {error.strerror}; `manyfaces evaluate RUN` writes the results of a step"
        ) from error
    return parsed(StoredReport, body, str(file), "remove it and run `manyfaces evaluate RUN` again")


def save_report(results: Sequence[Result], folder: Path, step: int) -> list[Path]:
    """Add the results to the report in the folder, and draw them; returns the files of the whole
    report, `evaluation.json` first.

    Results of other names stay, one of the same name is replaced. Raises `UserError` where a
    broken report is there.
    """
    save_results(results, folder, step)
    return [folder / SUMMARY, folder / RESULTS, *draw_report(folder)]


def save_results(results: Sequence[Result], folder: Path, step: int) -> None:
    """As `save_report`, but draw nothing, which takes long."""
    (folder / EXAMPLES).mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        kept: dict[str, StoredResult] = {}
        if (folder / RESULTS).exists():
            kept = {result.name: result for result in read_report(folder).results}
        before = _images(kept.values())
        for result in results:
            kept[result.name] = StoredResult.of(result, _write_examples(result, folder))
        report = StoredReport(step=step, results=tuple(kept.values()))
        write_atomic(folder / RESULTS, report.model_dump_json())
        _write_summary(kept.values(), folder / SUMMARY, step)
        for name in before - _images(kept.values()):
            (folder / name).unlink(missing_ok=True)


def save_summary(results: Sequence[Result], file: Path, step: int) -> None:
    """Write what `evaluation.json` has of these results alone."""
    _write_summary([StoredResult.of(result, {}) for result in results], file, step)


def _write_summary(results: Iterable[StoredResult], file: Path, step: int) -> None:
    sets = {result.name: result.summary() for result in results}
    write_atomic(file, json.dumps({"step": step, "sets": sets}, indent=1, allow_nan=False))


def forget_reports(run: Path, step: int) -> None:
    """Remove the reports of later steps, which a resumed run makes again."""
    for each, folder in report_folders(run).items():
        if each > step:
            shutil.rmtree(folder, ignore_errors=True)


def draw_report(folder: Path) -> list[Path]:
    """Draw the results that were not drawn since they were saved; returns the files of all plots,
    PNG and SVG. Raises `UserError` where there is no report, or a broken one."""
    report = read_report(folder)
    saved = (folder / RESULTS).stat().st_mtime_ns
    return [file for each in report.results for file in plot_result(each, folder, saved)]


def draw_reports(run: Path, newest: Path) -> None:
    """Draw what was not drawn yet of a run's reports, and have copies of the plots of the last
    evaluated step in the folder `newest`. Raises as `draw_report` does."""
    drawn: list[Path] = []
    for folder in report_folders(run).values():
        drawn = draw_report(folder)
    newest.mkdir(parents=True, exist_ok=True)
    for file in drawn:
        shutil.copy2(file, newest / file.name)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process adds to the report in the block."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_examples(result: Result, folder: Path) -> dict[str, tuple[StoredExample, ...]]:
    """The examples of a result, once their images are files."""
    return {
        kind: tuple(
            StoredExample(
                images=tuple(
                    _write_image(image, folder, file_stem(kind, result.name, rank, place))
                    for place, image in enumerate(example.images, 1)
                ),
                label=example.label,
                score=finite(example.score),
            )
            for rank, example in enumerate(examples, 1)
        )
        for kind, examples in result.examples.items()
    }


def _write_image(image: Encoded, folder: Path, stem: str) -> str:
    """Write an image; its name in the folder of the report."""
    body = bytes(image)
    ending = "png" if body.startswith(_PNG) else "jpg"
    file = f"{EXAMPLES}/{stem}.{ending}"
    (folder / file).write_bytes(body)
    return file


def _images(results: Iterable[StoredResult]) -> set[str]:
    return {
        image
        for result in results
        for examples in result.examples.values()
        for example in examples
        for image in example.images
    }
