"""Protocol knn: the labels of the nearest images vote."""

from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt

from manyfaces.configs.protocols.probe import SplitProbe


class KNN(SplitProbe):
    """The labels of the nearest images, `neighbours` of them, vote for an image's label, as
    pretraining without labels is measured (Wu et al., arXiv 1805.01978; DINO, arXiv 2104.14294):
    each with the weight exp(cosine / `temperature`)."""

    kind: Literal["knn"] = "knn"
    target: ClassVar[str] = "manyfaces.train.protocols.knn.KNN"

    neighbours: PositiveInt = 20
    """Images that vote."""
    temperature: PositiveFloat = 0.07
    """The smaller, the more the nearest of them count."""
