"""What every aggregation is. A new one is a subclass in a file of this folder, a schema class in
`configs/aggregations/`, and a test.

Shapes: N images, D the embedding, K templates.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyfaces.train.evaluation.templates import Members


@dataclass(frozen=True, eq=False)
class ImageSets:
    """Embedded images, and the templates that they make up."""

    embeddings_ND: NDArray[np.float32]
    """As the network gives them, not normalised."""
    members: Members
    detector_N: NDArray[np.float32]
    """How sure the detector was of each face."""
    names: Sequence[str]
    """What each image is called, [N]."""


class Aggregation(ABC):
    """How the embeddings of the images of a template become one."""

    @abstractmethod
    def templates(self, sets: ImageSets) -> NDArray[np.float64]:
        """One unit vector for each template, float64 [K, D]."""
