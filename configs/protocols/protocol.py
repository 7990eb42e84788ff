"""The family of protocols: what a network is evaluated by."""

from typing import Annotated, ClassVar

from pydantic import Field

from manyfaces.configs.kinds import Kind
from manyfaces.configs.node import NOTHING, Decides


class Protocol(Kind):
    """What a network is evaluated by: which images are embedded, and what the embeddings are worth.

    `target` is a subclass of `manyfaces.train.protocols.protocol.Protocol`, made with the fields
    but for `result_name`.
    """

    folder: ClassVar[str] = "manyfaces.configs.protocols"
    config_key: ClassVar[str] = "evaluation.protocols"
    decides: ClassVar[Decides] = NOTHING
    not_for_target: ClassVar[tuple[str, ...]] = ("kind", "result_name")

    result_name: Annotated[str, Field(pattern="^[^/]+$")] | None = None
    """What its result is called in metrics, tables and plots; null is named after its file."""

    def called(self) -> str:
        """What its result is called."""
        return self.result_name or str(self.word())
