"""Protocol custom: one of your own."""

from typing import ClassVar

from manyfaces.configs.kinds import Custom
from manyfaces.configs.protocols.protocol import Protocol


class CustomProtocol(Custom, Protocol):
    """A protocol of your own: a class in a file."""

    base: ClassVar[str] = "manyfaces.train.protocols.protocol.Protocol"

    def called(self, parents: int = 0) -> str:
        return self.result_name or self.name
