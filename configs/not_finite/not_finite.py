"""The family of what a run does where a step gives no finite loss or gradient."""

from typing import ClassVar

from manyfaces.configs.kinds import Kind
from manyfaces.configs.node import NOTHING, Decides


class OnNotFinite(Kind):
    """What is done where a loss or a gradient is NaN or infinite; no such step is ever kept.

    A kind says how many batches may be left out; nothing is built of it. What was left out is a
    part of the run's state and stays so, whatever is set when the run is resumed.
    """

    folder: ClassVar[str] = "manyfaces.configs.not_finite"
    config_key: ClassVar[str] = "train.on_not_finite"
    decides: ClassVar[Decides] = NOTHING

    @property
    def most_left_out(self) -> int:
        """How many batches may be left out in a run's life."""
        raise NotImplementedError
