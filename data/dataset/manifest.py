"""`manyfaces.json`, the manifest of a dataset folder: what its shards must be. Here are also the
names of the files that stand beside it."""

import functools
import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from manyfaces.configs.errors import UserError
from manyfaces.configs.files import relative_name
from manyfaces.configs.parsed import parsed

MANIFEST = "manyfaces.json"
INDEX = "index.arrow"
FORGOTTEN = "forgotten.json"
EDITS = "edits.arrow"
IDENTITIES = "identities.txt"


# 260 million samples have 30,000 of these, which would take 20 MB of each process as pydantic
# models.
@dataclass(frozen=True, slots=True)
class Shard:
    """What one shard file must be."""

    name: Annotated[str, AfterValidator(relative_name)]
    bytes: NonNegativeInt
    samples: PositiveInt
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """The content of `manyfaces.json`."""

    model_config = ConfigDict(frozen=True)
    format: Literal[1] = 1
    num_images: NonNegativeInt
    num_identities: NonNegativeInt
    image_px: tuple[PositiveInt, PositiveInt] | None
    """(height, width) that all images share; null where they differ."""
    template: str | None = None
    """How faces are aligned, if known: "arcface-112" is InsightFace's five-point template."""
    index_sha256: str
    shards: tuple[Shard, ...]
    shards_url: str | None = None
    """Where the shards are, if not beside this file."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of every byte that training sees; a copy elsewhere or under other shard names has
        the same."""
        parts = [
            str(self.num_images),
            str(self.num_identities),
            self.index_sha256,
            *(s.sha256 for s in self.shards),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def parse_manifest(body: bytes, where: str) -> Manifest:
    """The manifest in the bytes of a `manyfaces.json` of the folder or URL `where`. Raises
    `UserError` naming the first field that is wrong."""
    file, remedy = f"{where}/{MANIFEST}", f"run `manyfaces data index {where}`"
    manifest = parsed(Manifest, body, file, remedy)
    if manifest.num_images < 1 or not manifest.shards:
        raise UserError(f"{file}: lists no image; {remedy}")
    return manifest
