"""What a run's checkpoints are, for people: which are whole, and what is in one."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from manyfaces.configs.errors import UserError
from manyfaces.train.checkpoint.commit import Condition, Fault, committed, corrupt_file, read_commit
from manyfaces.train.checkpoint.layout import candidates
from manyfaces.train.checkpoint.state import RunState

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


def listed(run: Path) -> list[Listed]:
    """The checkpoints of a run, newest first, or the one whose folder is given. Raises `UserError`
    where there is none."""
    single = run.parent.name == "checkpoints"
    folder = run.parent if single else run / "checkpoints"
    found = [
        _listed(each.path, each.step, each.fault)
        for each in candidates(folder)
        if not single or each.path.name == run.name
    ]
    if not found:
        raise UserError(
            f"{run}: no checkpoint there; expected a folder RUN with RUN/checkpoints/step-... in "
            "it, or one of its checkpoints"
        )
    return found


def _listed(path: Path, step: int, fault: Fault | None) -> Listed:
    commit = read_commit(path)
    if isinstance(commit, Fault):
        return Listed(path, step, 0, 0, commit if fault is None else fault)
    num_bytes = sum(facts.bytes for facts in commit.files.values())
    return Listed(path, step, num_bytes, commit.world_size, fault)


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


def facts(checkpoint: Path) -> Rows:
    """Label and text of what a committed checkpoint says of itself. Raises `UserError` where it
    cannot be read."""
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
    return rows + _sizes(checkpoint)


def _sizes(checkpoint: Path) -> Rows:
    """The bytes of each file, or of all in a folder."""
    num_bytes: Counter[str] = Counter()
    for name, found in committed(checkpoint).files.items():
        folder, slash, _ = name.partition("/")
        num_bytes[folder + slash] += found.bytes
    return [(name, decimal(size)) for name, size in sorted(num_bytes.items())]
