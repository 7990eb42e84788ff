"""What a run's checkpoints are, for people: which are whole, why each is kept, what it scored, and
what is in one."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.filesize import decimal

from manyfaces.configs.errors import UserError
from manyfaces.configs.sections.checkpoint import Checkpoint
from manyfaces.configs.urls import url_of
from manyfaces.train.checkpoint.choice import chosen, names_checkpoint, retention_settings
from manyfaces.train.checkpoint.commit import Condition, Fault, committed, corrupt_file, read_commit
from manyfaces.train.checkpoint.fetched import fetched_folder, stored_checkpoints
from manyfaces.train.checkpoint.layout import candidates, folder_name
from manyfaces.train.checkpoint.retention import Reason, Verdict, read_scores, verdicts
from manyfaces.train.checkpoint.state import RunState
from manyfaces.train.checkpoint.store import RunStore, Stored
from manyfaces.train.folder import CHECKPOINTS
from manyfaces.train.record import METRICS, read_rows

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Listed:
    """A checkpoint as a run's table has it."""

    path: Path
    step: int
    num_bytes: int
    world_size: int
    fault: Fault | None
    """What is wrong with it, as far as its COMMIT.json and the sizes of its files tell."""
    kept: str = ""
    """Why it is kept; empty where the run's configuration is not there to tell."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What was measured at its step, as far as the run's record knows."""

    @property
    def headlines(self) -> dict[str, float]:
        """The first metric of each protocol that its step was evaluated by."""
        first: dict[str, str] = {}
        for name in self.metrics:
            protocol, slash, _ = name.rpartition("/")
            if slash and protocol != "train":
                first.setdefault(protocol, name)
        return {name: self.metrics[name] for name in first.values()}


def listed(run: Path) -> list[Listed]:
    """The checkpoints of a run, newest first, or the one that is given as its folder or as
    `RUN@best`. Raises `UserError` where there is none."""
    if names_checkpoint(run) and not run.exists():
        run = chosen(run)
    single = run.parent.name == CHECKPOINTS
    folder = run.parent if single else run / CHECKPOINTS
    settings, every = retention_settings(folder.parent), candidates(folder)
    scores = read_scores(folder.parent, settings.best if settings else None)
    judged = verdicts(every, settings or Checkpoint(), scores)
    measured: dict[int, dict[str, float]] = {each.step: {} for each in every}
    for row in read_rows(folder.parent / METRICS):
        if row["step"] in measured:
            measured[row["step"]] |= {k: v for k, v in row.items() if k not in ("step", "time")}
    found = [
        _listed(each, _why(each, settings), measured[each.checkpoint.step])
        for each in judged
        if not single or each.checkpoint.path.name == run.name
    ]
    if not found:
        raise UserError(
            f"{run}: no checkpoint there; expected a folder RUN with RUN/checkpoints/step-... in "
            "it, or one of its checkpoints"
        )
    return found


def _listed(verdict: Verdict, why: str, metrics: Mapping[str, float]) -> Listed:
    path, step = verdict.checkpoint.path, verdict.checkpoint.step
    fault = verdict.checkpoint.fault
    commit = read_commit(path)
    if isinstance(commit, Fault):
        return Listed(path, step, 0, 0, fault or commit, why, metrics)
    num_bytes = sum(facts.bytes for facts in commit.files.values())
    return Listed(path, step, num_bytes, commit.world_size, fault, why, metrics)


def _why(verdict: Verdict, settings: Checkpoint | None) -> str:
    """Why a checkpoint is kept, by settings that may not be known."""
    if settings is None:
        return ""
    words = {
        Reason.NEWEST: "newest",
        Reason.BEST: f"best by {settings.best.metric}" if settings.best else "",
        Reason.PERIODIC: f"every {settings.keep_every_steps} steps",
    }
    told = ", ".join(words[reason] for reason in verdict.reasons)
    return told or ("" if verdict.checkpoint.fault else "until the next is written")


def listed_at(url: str) -> list[Listed]:
    """As `listed`, of the run or the checkpoint at a URL."""
    return _listed_of(stored_checkpoints(url)[1])


def _listed_of(found: Sequence[Stored]) -> list[Listed]:
    return [
        Listed(
            Path(folder_name(each.step)),
            each.step,
            each.num_bytes,
            0 if isinstance(each.commit, Fault) else each.commit.world_size,
            each.commit if isinstance(each.commit, Fault) else None,
        )
        for each in found
    ]


def verifiable(run: Path) -> list[tuple[Listed, Callable[[Callable[[int], None]], list[Fault]]]]:
    """The checkpoints of a run, or the one that is given, each with what compares its bytes as
    `corrupt_files` does; the files of one at a URL are fetched one after the other."""
    if (url := url_of(run)) is None:
        return [(each, partial(corrupt_files, each.path)) for each in listed(run)]
    store, found = stored_checkpoints(url)
    compare = [partial(_corrupt_at, store, stored) for stored in found]
    return list(zip(_listed_of(found), compare, strict=True))


def _corrupt_at(store: RunStore, stored: Stored, count: Callable[[int], None]) -> list[Fault]:
    faults = store.corrupt_files(stored, fetched_folder(store), count)
    if faults and store.commit(stored.step) != stored.commit:
        return [Fault(Condition.UNCOMMITTED, "removed or written again since it was listed")]
    return faults


def is_damaged(fault: Fault | None) -> bool:
    """Whether bytes that were committed are not there any more; a write that was cut off, or goes
    on, lost none."""
    return fault is not None and fault.condition is not Condition.UNCOMMITTED


def corrupt_files(checkpoint: Path, count: Callable[[int], None]) -> list[Fault]:
    """What is wrong with the bytes of each file of a committed checkpoint, empty if nothing is.
    `count` is told of the bytes of each file once they are read."""
    files = committed(checkpoint).files
    faults = []
    for number, name in enumerate(sorted(files)):
        fault = corrupt_file(checkpoint, number, len(files))
        faults += [fault] if fault else []
        count(files[name].bytes)
    return faults


def facts(listed: Listed) -> Rows:
    """Label and text of what a committed checkpoint says of itself, and of what its run's record
    does. Raises `UserError` where it cannot be read."""
    checkpoint = listed.path
    commit, state = committed(checkpoint), RunState.read(checkpoint)
    config, model = state.config, state.config.model.model_dump()
    rows = [
        ("run", config.run.name),
        ("step", f"{state.step:,}, after {state.position:,} images"),
        ("training time", f"{state.seconds / 60:,.1f} min"),
        ("backbone", f"{model['kind']}, {config.model.embedding_dim} dimensions"),
        ("identities", f"{state.num_classes:,}"),
        ("dataset", state.dataset),
        ("seed", f"{state.seed}"),
        ("workers", f"{commit.world_size}, at ZeRO stage {config.engine.zero_stage}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in state.versions.items())),
    ]
    if state.base_sha256 is not None:
        rows.append(("adapters of", f"{config.model.init}, SHA-256 {state.base_sha256}"))
    if state.edited is not None:
        rows.append(("made by", f"head {state.edited['verb']} of {state.edited['source']}"))
    if state.mlflow is not None:
        rows.append(("MLflow run", str(state.mlflow.get("run_id", ""))))
    if listed.kept:
        rows.append(("kept", listed.kept))
    rows += [(name, f"{value:.6g}") for name, value in listed.metrics.items()]
    return rows + _sizes(checkpoint)


def _sizes(checkpoint: Path) -> Rows:
    """The bytes of each file, or of all in a folder."""
    num_bytes: Counter[str] = Counter()
    for name, found in committed(checkpoint).files.items():
        folder, slash, _ = name.partition("/")
        num_bytes[folder + slash] += found.bytes
    return [(name, decimal(size)) for name, size in sorted(num_bytes.items())]
