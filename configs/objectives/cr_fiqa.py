"""Objective cr_fiqa: a margin softmax, and beside it the quality of each face."""

from collections.abc import Mapping
from math import ceil
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat

from manyfaces.configs.class_centres import ClassCentres
from manyfaces.configs.head_cost import chunk_classes, scored_columns
from manyfaces.configs.objectives.objective import ObjectiveCost, Sizes

SCORE = "quality"
"""What the score is called that the network learns to give."""


class CRFIQA(ClassCentres):
    """A margin softmax as `margin_softmax` has it, and beside it one linear layer on the embedding
    that learns how classifiable each face is: its quality (CR-FIQA, CVPR 2023, arXiv 2112.06592).
    The network then gives a score `quality` for every image, in evaluation and after export too.

    What is learnt is CR = CCS / (NNCCS + 1 + 1e-9): CCS is the cosine with the own class's centre,
    NNCCS that with the nearest other one, both without margin and scale. Below `head.sample_rate` 1
    NNCCS is the nearest of the classes that the step has drawn, so that CR is too high.
    """

    kind: Literal["cr_fiqa"] = "cr_fiqa"
    target: ClassVar[str] = "manyfaces.train.objectives.cr_fiqa.CRFIQA"

    quality_weight: PositiveFloat = 10.0
    """Factor of the quality's loss beside the margin softmax's; `weight` is one of both."""
    beta: PositiveFloat = 0.5
    """Below this difference the quality's loss, a smooth L1, is quadratic, above it linear."""
    formula: Literal["paper", "released"] = "paper"
    """`paper` is CR as above, `released` CCS / max(NNCCS, -1e-12), which the authors' program
    computes: its models' scores are to be compared with that."""

    def arguments(self) -> dict[str, Any]:
        return {"settings": self}

    def score_branches(self) -> Mapping[str, str]:
        return {SCORE: self.branch}

    def cost(self, config: Any, sizes: Sizes) -> ObjectiveCost:
        """The class centres' and, besides, the layer's, and that of the nearest other class: a copy
        of a chunk's scores, one pass over them, and a maximum over all workers."""
        share, layer = ceil(sizes.batch_size / sizes.world_size), sizes.dim + 1
        scored = scored_columns(config.head, sizes)
        chunk = min(chunk_classes(config.head, is_gpu=sizes.is_gpu), scored)
        padded = share * sizes.world_size
        states = config.train.optimizer.num_states
        return super().cost(config, sizes) + ObjectiveCost(
            parameters=layer,
            state_bytes=4 * layer * (1 + states),
            device_bytes=4 * layer * (2 + states),
            workspace_bytes=4 * sizes.batch_size * chunk,
            flops=3 * 2 * share * layer + sizes.batch_size * scored,
            wire_bytes=2 * 4 * (padded + layer) * (sizes.world_size - 1) // sizes.world_size,
        )
