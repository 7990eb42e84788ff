"""Protocol identification: whom of a gallery does an image show, if anyone."""

from typing import Annotated, ClassVar, Literal

from pydantic import PositiveInt

from manyfaces.configs.node import PATH
from manyfaces.configs.protocols.protocol import Flip, Protocol


class Identification(Protocol):
    """Whom of a gallery each probe shows, among any number of distractors: rank-1 to rank-20, and
    TPIR at FPIR where some probes are of nobody in the gallery.

    Each list is a folder of identity folders, a dataset, a text list (`path<TAB>identity`), a CSV
    with such columns, or embeddings that are ready: a parquet file of `manyfaces embed`, a `.npy`
    with the identity of each row in a `.txt` beside it, or MegaFace's `.bin` files."""

    kind: Literal["identification"] = "identification"
    target: ClassVar[str] = "manyfaces.train.protocols.identification.Identification"

    gallery: Annotated[str, PATH]
    """Images, or embeddings, of the people who can be found."""
    probes: Annotated[str, PATH]
    """Those that are looked for; those whose identity is not in the gallery are the open set's."""
    distractors: Annotated[tuple[str, ...], PATH] = ()
    """Those of people who are neither in the gallery nor among the probes, one or several lists."""
    distractors_are_others: bool = False
    """Whether distractors are of other people whatever their labels say, as where both go by
    number; else an identity that is in the gallery or among the probes as well is refused."""
    enrol: Literal["images", "mean"] = "images"
    """Whether each image of the gallery is an entry, any of which is a hit, or each identity with
    the mean of its unit embeddings."""
    flip: Flip = "sum"
    """What an embedding is of: the image, or its mirror image as well."""
    search: Literal["exact", "ivf"] = "exact"
    """Whether the whole gallery is looked through, or the nearest of its inverted lists (faiss's
    IVF), whose recall is measured."""
    probed_lists: PositiveInt = 32
    """Lists that are looked through for each probe, of as many as the square root of the rows."""
