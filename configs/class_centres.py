"""What objectives have in common whose identities are classes with centres (section `head`)."""

from typing import Any

from manyfaces.configs.head_cost import head_cost
from manyfaces.configs.objectives.objective import Objective, ObjectiveCost, Sizes


class ClassCentres(Objective):
    """An objective that steps the class centres of section `head`."""

    def state_names(self) -> tuple[str, ...]:
        return ("head",)

    def exchanged(self, config: Any) -> tuple[str, str]:
        return self.branch, config.head.wire_dtype

    def cost(self, config: Any, sizes: Sizes) -> ObjectiveCost:
        return head_cost(config.head, sizes)

    def check(self, config: Any) -> None:
        if config.head.label_spaces == "each" and not config.data.mixture:
            raise ValueError(
                "head.label_spaces each needs several datasets, and data.mixture has none; set "
                "data.mixture"
            )
