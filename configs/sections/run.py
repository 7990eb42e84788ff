"""Section `run`: the run's name, its place and its seed."""

from typing import Annotated, ClassVar

from pydantic import Field

from manyfaces.configs.node import NOTHING, ON_FILE_SYSTEM, PATH, RESULTS, Decides, Node


class Run(Node):
    """The run's name, its place and its seed."""

    decides: ClassVar[Decides] = NOTHING

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "first"
    """The run's folder under `dir`. Typing the same name again resumes the run; other data, another
    model, head, optimiser or seed is then refused with the keys that differ."""
    dir: Annotated[str, PATH, ON_FILE_SYSTEM] = "runs"
    """Folder of all runs; on a cluster a path that every node sees."""
    seed: Annotated[int, Field(ge=0, lt=2**32), RESULTS] = 0
    """Seed of the weights, the order, the augmentation and the sampled classes."""
    resume_from: Annotated[str | None, PATH, ON_FILE_SYSTEM] = None
    """A run, or one of its checkpoints (`runs/OLD/checkpoints/step-...`), to start a new run name
    from."""
