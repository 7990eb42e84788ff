"""Section `checkpoint`: how often checkpoints are written, and how many are kept."""

from typing import ClassVar

from pydantic import PositiveInt

from manyfaces.configs.node import NOTHING, Decides, Node


class Checkpoint(Node):
    """How often checkpoints are written, and how many are kept."""

    decides: ClassVar[Decides] = NOTHING

    every_steps: PositiveInt = 1000
    """Steps between checkpoints; the last step always has one."""
    keep: PositiveInt = 3
    """How many of the newest checkpoints are kept."""
    background: bool = True
    """Whether training goes on while one is written, from a copy of all it holds in host memory;
    `false` needs no copy, and training waits."""
    max_failures: PositiveInt = 3
    """How many in a row may fail to be written, as on a full disk, before training stops; the last
    one of a run must not."""
