"""The family of aggregations: how the embeddings of several images of a person become one."""

from typing import ClassVar

from manyfaces.configs.kinds import Kind
from manyfaces.configs.node import NOTHING, Decides


class Aggregation(Kind):
    """How the embeddings of the images of a template become one.

    `target` is a subclass of `manyfaces.train.aggregations.aggregation.Aggregation`.
    """

    folder: ClassVar[str] = "manyfaces.configs.aggregations"
    config_key: ClassVar[str] = "evaluation.protocols.ijb.aggregation"
    decides: ClassVar[Decides] = NOTHING

    def called(self) -> str:
        """What it is called in tables."""
        return str(self.word())
