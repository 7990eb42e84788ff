"""The family of protocols: what a network is evaluated by."""

import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from manyfaces.configs.kinds import Kind
from manyfaces.configs.node import NOTHING, Decides
from manyfaces.configs.paths import absolute
from manyfaces.configs.redact import redact, redacted

Flip = Literal["none", "sum", "concatenate"]
"""What an embedding is: that of the image alone, the sum of those of the image and its mirror
image, or both one behind the other. The embeddings are not normalised before: so each counts by its
norm in the sum, which is AdaFace's fusion weighted by the norm as well as InsightFace's sum."""


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

    def named_after(self) -> str | None:
        """The file or folder that its result is called after; None for the kind's word."""
        return None

    def called(self, parents: int = 0) -> str:
        """What its result is called; with `parents`, so many folders of the file that it is called
        after stand before the name: `rfw-test` of `rfw/test.bin`."""
        file = self.named_after()
        if self.result_name is not None or file is None:
            return self.result_name or str(self.word())
        path = Path(redact(file))
        if not parents:
            return path.stem
        above = [part for part in path.absolute().parts[:-1] if part.strip("/")]
        return "-".join([*above[len(above) - min(parents, len(above)) :], path.stem])

    def source(self) -> str:
        """What the result is of, as JSON without credentials: it tells two of one name apart."""
        told = redacted(absolute(self)).model_dump(
            mode="json", exclude={"result_name"}, exclude_defaults=True
        )
        return json.dumps({"kind": self.word(), **told})
