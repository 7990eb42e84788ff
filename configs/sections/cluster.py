"""Section `cluster`: where the workers run."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from manyfaces.configs.machines import Card
from manyfaces.configs.node import NOTHING, Decides, Node


class Elastic(Node):
    """A number of workers that may change while the run goes on."""

    decides: ClassVar[Decides] = NOTHING

    min: PositiveInt
    """Fewest workers the run goes on with."""
    max: PositiveInt
    """Most workers it takes."""

    @model_validator(mode="after")
    def _ordered(self) -> "Elastic":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Cluster(Node):
    """Where the workers run; it may change when a run is resumed."""

    decides: ClassVar[Decides] = NOTHING

    launcher: Literal["ray", "process"] = "ray"
    """Ray Train, or this one process (for debugging; under `torchrun --nproc-per-node=8 -m
    manyfaces.train train CONFIG` its processes are used)."""
    address: str | None = None
    """Ray cluster to join: `auto` or HOST:PORT; none starts a local one."""
    workers: PositiveInt | Elastic | Literal["auto"] = "auto"
    """Number of processes; `{min, max}` is elastic; `auto` is one for each GPU, and without GPUs
    two if there are the cores."""
    threads_per_worker: PositiveInt = 1
    """torch's CPU threads; results on CPU are bit-exact only at equal numbers."""
    gpus_per_worker: Literal["auto", 0, 1] = "auto"
    """GPUs of each worker; `auto` is one where the machine has any."""
    machine: Card | None = None
    """GPU of each worker, for the plan: its hours, and whether the run fits; `workers: auto` is
    planned as a node of eight. null is this computer's, and where it has none or `address` names a
    cluster, an H100."""
    check_memory: bool = True
    """Whether a run is refused that needs over 20 % more memory than its workers have, by the plan;
    `false` only says it. Of up to 20 % too much it is only said that the run may not fit."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """How often Ray restarts lost workers without a new checkpoint in between, or up to about twice
    as often where one was written just before; -1 means without limit."""
    step_timeout_s: PositiveFloat = 1800.0
    """A step that takes longer ends its worker with exit code 75, naming rank and phase."""
    grace_s: PositiveFloat = 30.0
    """Longest time from a request to stop (Ctrl-C, SIGTERM, SIGUSR1, a node that Ray drains) to the
    end; a checkpoint has four fifths of it, and the last one stays where that is too short.
    torchrun hands on SIGUSR1 only with `--signals-to-handle SIGTERM,SIGINT,SIGUSR1`. An elastic run
    does not end when a node is drained: it saves this long before the node goes, and is then placed
    anew."""
    schedule_timeout_s: PositiveFloat = 300.0
    """Longest wait for the workers' resources, at the start and each time that workers were lost;
    then the run ends."""
