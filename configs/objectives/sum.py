"""Objective sum: several objectives at once."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.objectives.objective import Objective, ObjectiveCost, Sizes


class Sum(Objective):
    """Several objectives at once, each with its `weight` and the `branch` of the backbone's output
    that it reads."""

    kind: Literal["sum"] = "sum"
    target: ClassVar[str] = "manyfaces.train.objectives.sum.Sum"

    of: Annotated[tuple[Objective, ...], Field(min_length=2)]
    """The objectives that are added up."""

    def parts(self) -> tuple[Objective, ...]:
        return tuple(part for each in self.of for part in each.parts())

    def state_names(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts() for name in part.state_names())

    def cost(self, config: Any, sizes: Sizes) -> ObjectiveCost:
        return sum((part.cost(config, sizes) for part in self.of), ObjectiveCost())

    def check(self, config: Any) -> None:
        names = self.state_names()
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"objective sum has two objectives with a {twice}; leave one out")
