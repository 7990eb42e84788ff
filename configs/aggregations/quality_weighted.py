"""Aggregation quality_weighted: images count by a score of their quality."""

from typing import Annotated, ClassVar, Literal

from manyfaces.configs.aggregations.aggregation import Aggregation
from manyfaces.configs.node import PATH


class QualityWeighted(Aggregation):
    """The mean of the unit embeddings of all images of a template, weighted by scores from a file:
    media do not matter."""

    kind: Literal["quality_weighted"] = "quality_weighted"
    target: ClassVar[str] = "manyfaces.train.aggregations.quality_weighted.QualityWeighted"

    scores: Annotated[str, PATH]
    """Text lines `NAME SCORE` (the names as in the set), or a .parquet file such as `manyfaces
    embed` writes, with a column `name` or `key`; scores are positive numbers."""
    column: str = "quality"
    """The column of the scores in a .parquet file."""

    def called(self) -> str:
        column = f" {self.column}" if self.scores.endswith(".parquet") else ""
        return f"{self.word()}{column}"
