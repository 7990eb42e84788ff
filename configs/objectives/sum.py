"""Objective sum: several objectives at once."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from manyfaces.configs.objectives.objective import Objective, ObjectiveCost, Sizes


class Sum(Objective):
    """Several objectives at once, each with its `weight` and the `branch` of the backbone's output
    that it reads."""

    kind: Literal["sum"] = "sum"
    target: ClassVar[str] = "manyfaces.train.objectives.sum.Sum"

    of: Annotated[tuple[Objective, ...], Field(min_length=2)]
    """The objectives that are added up."""

    @field_validator("branch")
    @classmethod
    def _reads_none(cls, branch: str) -> str:
        if branch != "main":
            raise ValueError("a sum reads no branch itself; set it in each objective of `of`")
        return branch

    def parts(self) -> tuple[Objective, ...]:
        """The objectives, and those of sums among them, with the weights that they have in the
        whole: class centres are stepped by their own objective, which has to know its weight."""
        return tuple(
            part.model_copy(update={"weight": part.weight * self.weight})
            for each in self.of
            for part in each.parts()
        )

    def arguments(self) -> dict[str, Any]:
        return {"of": self.parts()}

    def state_names(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts() for name in part.state_names())

    def score_branches(self) -> Mapping[str, str]:
        return {name: b for part in self.parts() for name, b in part.score_branches().items()}

    def cost(self, config: Any, sizes: Sizes) -> ObjectiveCost:
        total, seen = ObjectiveCost(), set()
        for part in self.parts():
            cost, exchanged = part.cost(config, sizes), part.exchanged(config)
            if exchanged is not None and exchanged in seen:
                cost = replace(cost, wire_bytes=0)
            seen.add(exchanged)
            total += cost
        return total

    def check(self, config: Any) -> None:
        names = self.state_names()
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"objective sum has two objectives with a {twice}; leave one out")
