"""The family of objectives: what is optimised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import PositiveFloat

from manyfaces.configs.kinds import Kind


@dataclass(frozen=True)
class ObjectiveCost:
    """What an objective costs the fullest worker in one step, besides the network."""

    parameters: int = 0
    """Numbers that are trained outside the network, of all workers together."""
    state_bytes: int = 0
    """Bytes of those numbers and of what their optimiser keeps, wherever they live."""
    device_bytes: int = 0
    """Bytes of these, or of copies of the chosen ones, that lie in the memory of the device; on a
    CPU that is the host's memory, and all of it."""
    host_bytes: int = 0
    """Bytes of these that lie in host memory beside a GPU."""
    travel_bytes: int = 0
    """Bytes of chosen rows and their state that travel to the device and back, beside the
    network."""
    workspace_bytes: int = 0
    """Bytes of memory that are needed during a step only."""
    flops: int = 0
    """Arithmetic operations."""
    traffic_bytes: int = 0
    """Bytes of rows, their state and stored logits that move from and to memory."""
    wire_bytes: int = 0
    """Bytes sent to other workers."""

    def __add__(self, other: "ObjectiveCost") -> "ObjectiveCost":
        both = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return ObjectiveCost(**both)


@dataclass(frozen=True)
class Sizes:
    """What the cost of an objective depends on besides its settings."""

    num_identities: int
    dim: int
    """Numbers of an embedding."""
    batch_size: int
    world_size: int
    is_gpu: bool


class Objective(Kind):
    """What is optimised.

    `target` is a subclass of `manyfaces.train.objectives.objective.Objective`, made with the
    settings and the `Setting` of the run.
    """

    folder: ClassVar[str] = "manyfaces.configs.objectives"
    config_key: ClassVar[str] = "objective"

    weight: PositiveFloat = 1.0
    """Factor of this loss."""
    branch: str = "main"
    """Which of the backbone's embeddings it reads."""

    def parts(self) -> tuple["Objective", ...]:
        """The objectives that it is made of: itself, unless it is a sum."""
        return (self,)

    def state_names(self) -> tuple[str, ...]:
        """Names of what a checkpoint keeps besides the network; one with others cannot be
        resumed."""
        return ()

    def score_branches(self) -> Mapping[str, str]:
        """The scores that its network gives each image besides embeddings, and goes on to give when
        it is evaluated: which embedding each is made of, by the score's name."""
        return {}

    def exchanged(self, config: Any) -> tuple[str, str] | None:
        """Which embeddings travel to all workers, and in which type, where they do: objectives of a
        sum share the exchange of the same ones, whose bytes are all that `cost` has as sent."""
        return None

    def cost(self, config: Any, sizes: Sizes) -> ObjectiveCost:
        """The cost of a step."""
        return ObjectiveCost()
