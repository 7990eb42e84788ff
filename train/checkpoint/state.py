"""`state.json`: where a run stands besides its tensors. It has a format number; what was written in
an older format is lifted to today's when it is read."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, ValidationError

from manyfaces.configs.errors import UserError
from manyfaces.configs.load import load_stored
from manyfaces.configs.parsed import first_fault
from manyfaces.configs.redact import redacted
from manyfaces.configs.schema import Config
from manyfaces.train.checkpoint.commit import committed_file
from manyfaces.train.checkpoint.layout import STATE
from manyfaces.train.left_out import LeftOut

FORMAT = 2


class _Stored(BaseModel):
    """The content of `state.json` in today's format; a field that came later has its default."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    format: int
    config: dict[str, Any]
    dataset: str
    num_classes: NonNegativeInt
    seed: NonNegativeInt
    step: NonNegativeInt
    position: NonNegativeInt
    seconds: NonNegativeFloat = 0.0
    numbers: dict[str, dict[str, float]] = {}
    mlflow: dict[str, Any] | None = None
    versions: dict[str, str] = {}
    base_sha256: str | None = None
    edited: dict[str, Any] | None = None
    left_out: list[LeftOut] = []


@dataclass(frozen=True)
class RunState:
    """What `state.json` says."""

    config: Config
    """The resolved configuration of the run that wrote it."""
    dataset: str
    """Fingerprint of the dataset."""
    num_classes: int
    seed: int
    step: int = 0
    position: int = 0
    """Samples of the stream that were trained on."""
    seconds: float = 0.0
    """Seconds of training over all sessions, evaluation not counted."""
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Running numbers of the objective, by the name of the part that keeps them."""
    mlflow: Mapping[str, Any] | None = None
    """The MLflow run that is continued."""
    versions: Mapping[str, str] = field(default_factory=dict)
    base_sha256: str | None = None
    """SHA-256 of the fixed weights that the checkpoint's adapters belong to; it does not hold
    them."""
    edited: Mapping[str, Any] | None = None
    """How `manyfaces head` made this checkpoint of another."""
    left_out: Sequence[LeftOut] = ()
    """Batches that the run leaves out, whether their position has come or not."""

    def at(self, **changes: Any) -> "RunState":
        """The same with these fields changed."""
        return replace(self, **changes)

    def to_json(self) -> str:
        """The text of `state.json`, without credentials."""
        tree = {**vars(self), "config": self.config.model_dump(mode="json"), "format": FORMAT}
        if self.edited is None:
            del tree["edited"]
        tree["left_out"] = [batch.model_dump() for batch in self.left_out]
        if not self.left_out:
            del tree["left_out"]
        return json.dumps(redacted(tree), indent=1)

    @classmethod
    def read(cls, checkpoint: Path) -> "RunState":
        """The state of a checkpoint of any format. Raises `UserError` for one that this version
        does not know, naming file and key."""
        tree, where = read_state(checkpoint), str(checkpoint / STATE)
        try:
            stored = dict(_Stored.model_validate(tree))
        except ValidationError as error:
            if unknown := sorted(tree.keys() - _Stored.model_fields):
                raise UserError(
                    f"{where}: unknown key {unknown[0]}; the checkpoint is of another version of "
                    "manyfaces: read it with that one"
                ) from error
            if missing := [each for each in error.errors() if each["type"] == "missing"]:
                raise UserError(
                    f"{where}: {missing[0]['loc'][0]} is missing; use another checkpoint"
                ) from error
            raise UserError(f"{where}: {first_fault(error)}; use another checkpoint") from error
        del stored["format"]
        try:
            config = load_stored(stored["config"], where)
        except UserError as error:
            raise UserError(f"{error}; use another checkpoint") from error
        left_out = tuple(stored["left_out"])
        return cls(**{**stored, "config": config, "left_out": left_out})


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`state.json` as a mapping in today's format; the configuration in it is as it was written.
    Raises `UserError` for a format that this version does not know, and where its bytes are not as
    committed."""
    path = committed_file(checkpoint, STATE)
    try:
        tree = json.loads(path.read_bytes())
        number = tree["format"]
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"format {number!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); use another checkpoint") from error
    if number > FORMAT:
        raise UserError(
            f"{path}: format {number}, and this version of manyfaces reads up to {FORMAT}; read it "
            "with the version that wrote it"
        )
    for older in range(number, FORMAT):
        tree = _LIFTS[older](tree)
    return {**tree, "format": FORMAT}


def _lift_1(tree: dict[str, Any]) -> dict[str, Any]:
    """Format 1 knew the head alone: its margin's numbers stood under `head`."""
    numbers = {"head": tree.pop("head")} if "head" in tree else {}
    return {**tree, "numbers": numbers}


_LIFTS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _lift_1}
