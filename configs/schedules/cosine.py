"""The learning rate falls along half a wave."""

import math
from typing import Literal

from manyfaces.configs.schedules.schedule import Place, Schedule


class Cosine(Schedule):
    """(1 + cos(pi t)) / 2, where t goes from 0 to 1 over the samples behind the warm-up (arXiv
    1608.03983)."""

    kind: Literal["cosine"] = "cosine"

    def factor(self, place: Place) -> float:
        return (1 + math.cos(math.pi * place.share)) / 2
