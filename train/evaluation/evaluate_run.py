"""What `manyfaces evaluate` does: a trained network, scored on this machine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from manyfaces.configs.errors import UserError
from manyfaces.configs.load import changed
from manyfaces.configs.protocols.protocol import Protocol as ProtocolConfig
from manyfaces.configs.protocols.verification import Verification
from manyfaces.configs.schema import Config
from manyfaces.configs.sections.data import Data
from manyfaces.configs.sections.evaluation import Evaluation
from manyfaces.configs.urls import url_of
from manyfaces.models.backbones.encoder import Encoder
from manyfaces.models.backbones.weights import has_weights
from manyfaces.train.checkpoint.choice import names_checkpoint
from manyfaces.train.checkpoint.fetched import fetched
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.encoders import open_encoder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.evaluation.report import (
    RESULTS,
    draw_report,
    read_report,
    report_folder,
    save_results,
)
from manyfaces.train.evaluation.result import Result
from manyfaces.train.evaluation.trained import default_device, open_trained
from manyfaces.train.protocols.open import check_images, names, open_all

OF_FILE = ".evaluation"
"""End of the folder with the report of an exported file."""


def evaluate_run(
    run: Path,
    sets: Sequence[Path],
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    words: Sequence[str] = (),
    working: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[Path, Path, list[Result]]:
    """Evaluate a run's newest committed checkpoint, the checkpoint folder given, or the weights in
    an exported file or one that others have published, on verification sets (`.bin`) and by the
    protocols that the words `evaluation.key=value` name, or by the run's own where neither are
    given. The results are added to the report of the step, in the run's `evaluation/step-N/`, or to
    that of the weights, in `FILE.evaluation/` beside them.

    `progress(done, total)` counts images, and `working(what, done, total)` the rows that a protocol
    searches or ranks. Returns the checkpoint or the file, the folder of the report and the
    new results. A set that is called as another one in the report gets another name. Raises
    `UserError` for a checkpoint or a protocol that cannot be opened, and for a broken report.
    """
    subject = _opened(run)
    own = subject.config.evaluation.all_protocols()
    configs = [*(Verification(path=str(path)) for path in sets), *_asked_for(subject.config, words)]
    configs = configs or [*own]
    if not configs:
        raise UserError(
            f"{url_of(run) or run}: its configuration has no evaluation; give --pairs BIN or "
            "'evaluation.protocols=[{kind: KIND, ...}]'"
        )
    folder = subject.folder
    opened = open_all(configs, _taken(subject.config, folder))
    _refuse_unwritable(folder)
    check_images(opened, subject.encoder.image_hw)
    embedder = Embedder.of(subject.encoder, batch_size)
    done, total = 0, sum(len(protocol.distinct.images) for protocol in opened)

    def count(images: int) -> None:
        nonlocal done
        done += images
        progress(done, total)

    results = []
    for protocol in opened:
        works = partial(working, f"scoring {protocol.name}")
        results.append(evaluate(protocol, embedder, count, works))
        save_results(results[-1:], folder, subject.step)  # whatever ends this command later
    draw_report(folder)
    return subject.weights, folder, results


@dataclass(frozen=True)
class _Subject:
    """What is evaluated."""

    encoder: Encoder
    config: Config
    """Of its run; without one a tree that says what the network is and how large its images are."""
    weights: Path
    folder: Path
    """Of the report."""
    step: int


def _opened(path: Path) -> _Subject:
    path = fetched(path)
    if names_checkpoint(path) or not (path.is_file() or (path.is_dir() and has_weights(path))):
        trained = open_trained(path)
        step = trained.state.step
        folder = report_folder(trained.checkpoint.parent.parent, step)
        return _Subject(trained.encoder, trained.config, trained.checkpoint, folder, step)
    encoder = open_encoder(path, default_device())
    config = Config(model=encoder.model, data=Data(image_px=encoder.image_hw))
    return _Subject(encoder, config, path, path.with_name(f"{path.name}{OF_FILE}"), 0)


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
