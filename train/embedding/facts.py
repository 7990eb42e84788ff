"""What a file of embeddings says of itself: by which network they were made, how, and of which
images."""

from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from manyfaces.configs.errors import UserError
from manyfaces.configs.parsed import parsed

KEY = b"manyfaces"
"""Under which the facts stand in the metadata of a parquet file, as JSON."""
EMBEDDING = "embedding"
"""The column of embeddings."""
_REMEDY = "give what `manyfaces embed` wrote"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class SourceFacts(_Frozen):
    """One of the paths or URLs whose images were embedded."""

    where: str
    """As the person named it, without credentials; the column `source` says it of each image."""
    in_files: bool
    """Whether its images are files, at `where/key`."""
    images: NonNegativeInt
    digest: str


class Options(_Frozen):
    """What a person has chosen. It decides the embeddings, or what they are of."""

    flip: bool = False
    """The embedding is that of the image and its mirror image together: their sum."""
    normalised: bool = True
    """The embeddings have length 1; column `norm` says which length they had."""
    dtype: Literal["float32", "float16"] = "float32"
    root: str | None = None
    """What paths in lists are relative to, where that is not the list's folder."""
    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None

    def of_sources(self) -> dict[str, object]:
        """Those that say how sources are read, as `recognise` takes them."""
        told = self.model_dump(include={"split", "image_column", "label_column"})
        return told | {"root": None if self.root is None else Path(self.root)}


class Facts(_Frozen):
    """What decides the embeddings."""

    format: Literal[1] = 1
    version: str
    """The version of manyfaces that wrote the file."""
    model: str
    """The network, as a path of this machine or a URL without credentials."""
    weights_sha256: str
    """SHA-256 of the file of its weights."""
    image_hw: tuple[PositiveInt, PositiveInt]
    embedding_dim: PositiveInt
    scores: tuple[str, ...] = ()
    """What the network says of each image besides, such as its `quality`; each has a column."""
    options: Options
    folder: str
    """Where the command ran: relative paths are relative to it."""
    sources: tuple[SourceFacts, ...]

    @property
    def num_images(self) -> int:
        """Images of all sources, those included that are left out as forgotten."""
        return sum(source.images for source in self.sources)

    def metadata(self) -> dict[bytes, bytes]:
        """As the metadata of a parquet file's schema."""
        return {KEY: self.model_dump_json().encode()}

    def columns(self) -> pa.Schema:
        """The schema of a file of embeddings."""
        number = pa.float16() if self.options.dtype == "float16" else pa.float32()
        # A third of the time to read where no number may be missing.
        element = pa.field("element", number, nullable=False)
        fields = {
            "source": pa.string(),
            "row": pa.int64(),
            "key": pa.string(),
            "identity": pa.string(),
            "norm": pa.float32(),
            **{name: pa.float32() for name in self.scores},
            EMBEDDING: pa.list_(element, self.embedding_dim),
        }
        return pa.schema(
            [pa.field(name, kind, nullable=name == "identity") for name, kind in fields.items()],
            self.metadata(),
        )


def read_facts(schema: pa.Schema, where: str) -> Facts:
    """The facts in a parquet file's schema. Raises `UserError` for a file without them."""
    body = (schema.metadata or {}).get(KEY)
    if body is None:
        raise UserError(f"{where}: no embeddings of `manyfaces embed` are in it; {_REMEDY}")
    return parsed(Facts, body, f"{where}: metadata", _REMEDY)


def difference(old: Facts, new: Facts) -> str:
    """The first thing that keeps embeddings of these facts from being one file; "" for nothing."""
    if old.weights_sha256 != new.weights_sha256:
        return f"of the model {old.model}, and now it is {new.model} (other weights)"
    for name, before in old.options.model_dump().items():
        now = new.options.model_dump()[name]
        if before != now:
            return f"with {name} {before}, and now it is {now}"
    before_of = {source.where: source for source in old.sources}
    for source in new.sources:
        if source.where not in before_of:
            return f"of other images, without {source.where}"
        if before_of[source.where].digest != source.digest:
            return f"of {source.where} with other images than it has now"
    gone = before_of.keys() - {source.where for source in new.sources}
    if gone:
        return f"of other images, with {min(gone)}"
    for name in ("sources", "image_hw", "embedding_dim", "scores", "format"):
        if name != "sources" and getattr(old, name) != getattr(new, name):
            return f"with {name} {getattr(old, name)}, and now it is {getattr(new, name)}"
    if [source.where for source in old.sources] != [source.where for source in new.sources]:
        return "of the same images in another order"
    return ""
