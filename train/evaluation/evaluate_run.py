"""What `manyfaces evaluate` does: a run's newest checkpoint, scored on this machine."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.configs.load import changed
from manyfaces.configs.protocols.protocol import Protocol as ProtocolConfig
from manyfaces.configs.protocols.verification import Verification
from manyfaces.configs.schema import Config
from manyfaces.configs.sections.evaluation import Evaluation
from manyfaces.configs.urls import url_of
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.evaluation.report import (
    RESULTS,
    draw_report,
    read_report,
    report_folder,
    save_results,
)
from manyfaces.train.evaluation.result import Result
from manyfaces.train.evaluation.trained import open_trained
from manyfaces.train.protocols.open import check_images, names, open_all


def evaluate_run(
    run: Path,
    sets: Sequence[Path],
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    words: Sequence[str] = (),
    working: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[Path, Path, list[Result]]:
    """Evaluate a run's newest committed checkpoint, or the checkpoint folder given, on verification
    sets (`.bin`) and by the protocols that the words `evaluation.key=value` name, or by the run's
    own where neither are given. The results are added to the report of the step, in the run's
    `evaluation/step-N/`.

    `progress(done, total)` counts images, and `working(what, done, total)` the rows that a protocol
    searches or ranks. Returns the checkpoint, the folder of the report and the
    new results. A set that is called as another one in the report gets another name. Raises
    `UserError` for a checkpoint or a protocol that cannot be opened, and for a broken report.
    """
    trained = open_trained(run)
    configs = [*(Verification(path=str(path)) for path in sets), *_asked_for(trained.config, words)]
    if not configs:
        configs = [*trained.config.evaluation.all_protocols()]
    if not configs:
        where = url_of(run) or run
        raise UserError(
            f"{where}: its configuration has no evaluation; give --pairs BIN or "
            "'evaluation.protocols=[{kind: KIND, ...}]'"
        )
    folder = report_folder(trained.checkpoint.parent.parent, trained.state.step)
    opened = open_all(configs, _taken(trained.config, folder))
    _refuse_unwritable(folder)
    check_images(opened, trained.image_hw)
    embedder = trained.embedder(batch_size)
    done, total = 0, sum(len(protocol.distinct.images) for protocol in opened)

    def count(images: int) -> None:
        nonlocal done
        done += images
        progress(done, total)

    results = []
    for protocol in opened:
        works = partial(working, f"scoring {protocol.name}")
        results.append(evaluate(protocol, embedder, count, works))
        save_results(results[-1:], folder, trained.state.step)  # whatever ends this command later
    draw_report(folder)
    return trained.checkpoint, folder, results


def _refuse_unwritable(folder: Path) -> None:
    """Raise `UserError` before anything is embedded where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        raise UserError(f"{folder}: the results cannot be kept there ({error.strerror})") from error


def _asked_for(config: Config, words: Sequence[str]) -> Sequence[ProtocolConfig]:
    """The protocols of the words alone, read as in a recipe of the run."""
    for word in words:
        if not word.startswith("evaluation."):
            raise UserError(
                f"{word}: expected evaluation.KEY=VALUE; the other keys of a trained run stand"
            )
    bare = config.model_copy(update={"evaluation": Evaluation()})
    return changed(bare, words).evaluation.all_protocols()


def _taken(config: Config, folder: Path) -> dict[str, str]:
    """The sources of results that are in the report already, or that the run gives itself, by their
    names."""
    own = config.evaluation.all_protocols()
    taken = {name: each.source() for name, each in zip(names(own, {}), own, strict=True)}
    if (folder / RESULTS).exists():
        taken |= {each.name: each.source for each in read_report(folder).results}
    return taken
