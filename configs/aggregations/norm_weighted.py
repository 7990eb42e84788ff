"""Aggregation norm_weighted: images count by the norms of their embeddings."""

from typing import ClassVar, Literal

from manyfaces.configs.aggregations.aggregation import Aggregation


class NormWeighted(Aggregation):
    """The mean of the unit embeddings of all images of a template, weighted by the norms that the
    embeddings had, as AdaFace and CAFace have it: media do not matter."""

    kind: Literal["norm_weighted"] = "norm_weighted"
    target: ClassVar[str] = "manyfaces.train.aggregations.norm_weighted.NormWeighted"
