"""A run stops at numbers that are not finite."""

from typing import Literal

from manyfaces.configs.not_finite.not_finite import OnNotFinite


class Stop(OnNotFinite):
    """The run stops and names the samples, for a person to look at them or at the learning rate."""

    kind: Literal["stop"] = "stop"

    @property
    def most_left_out(self) -> int:
        return 0
