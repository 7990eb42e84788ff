"""Objective margin_softmax: class centres, and a margin (section `head`)."""

from typing import Any, ClassVar, Literal

from manyfaces.configs.head_cost import head_cost
from manyfaces.configs.objectives.objective import Objective, ObjectiveCost, Sizes


class MarginSoftmax(Objective):
    """Identities are classes: the default. Margin and class rows are set in section `head`."""

    kind: Literal["margin_softmax"] = "margin_softmax"
    target: ClassVar[str] = "manyfaces.train.objectives.margin_softmax.MarginSoftmax"

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
