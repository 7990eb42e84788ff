"""Section `checkpoint`: how often checkpoints are written, and which of them are kept."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from manyfaces.configs.node import NOTHING, Decides, Node


class Best(Node):
    """Which checkpoints are kept for what they score."""

    decides: ClassVar[Decides] = NOTHING

    metric: Annotated[str, Field(pattern=r"^.+/[^/]+$")]
    """What is compared, as `metrics.jsonl` names it: `lfw/accuracy` of the set `lfw.bin`."""
    mode: Literal["max", "min"] = "max"
    """Whether the highest value is the best one, or the lowest; of equal ones the older stays."""
    keep: PositiveInt = 1
    """How many of the best are kept."""


class Checkpoint(Node):
    """How often checkpoints are written, and which of them are kept: whichever `keep`,
    `keep_every_steps` or `best` names."""

    decides: ClassVar[Decides] = NOTHING

    every_steps: PositiveInt = 1000
    """Steps between checkpoints; the last step always has one."""
    keep: PositiveInt = 3
    """How many of the newest checkpoints are kept."""
    keep_every_steps: PositiveInt | None = None
    """Each checkpoint whose step is a multiple of this is kept for ever; a multiple of
    `every_steps`."""
    best: Best | None = None
    """Which checkpoints to keep for their score, for example `{metric: lfw/accuracy}`. `RUN@best`
    names the best of them wherever a run can be given."""
    background: bool = True
    """Whether training continues while a checkpoint is written. This needs host memory for a copy
    of the state; with `false` training waits."""
    max_failures: PositiveInt = 3
    """How many checkpoints in a row may fail to be written, for example on a full disk, before
    training stops; the last checkpoint of a run may not fail. Uploads are counted in the same way
    where `run.dir` is a URL."""
    store_patience_s: PositiveFloat = 120.0
    """How long the store at `run.dir`'s URL may be away before a checkpoint counts as not sent;
    below `cluster.step_timeout_s`. A run that is asked to stop has `cluster.grace_s` to send its
    last one; what is not sent by then stays in `run.work_dir` and is sent by the next session."""

    @model_validator(mode="after")
    def _kept_steps_have_checkpoints(self) -> "Checkpoint":
        kept = self.keep_every_steps
        if kept is not None and kept % self.every_steps:
            raise ValueError(
                f"checkpoint.keep_every_steps {kept} is not a multiple of checkpoint.every_steps "
                f"{self.every_steps}: those steps would have no checkpoint to keep"
            )
        return self
