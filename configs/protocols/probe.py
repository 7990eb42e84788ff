"""What probes have in common: how good embeddings are for labels that the training has not seen."""

from typing import Annotated

from pydantic import NonNegativeInt

from manyfaces.configs.node import PATH
from manyfaces.configs.protocols.protocol import Flip, Protocol


class Probe(Protocol):
    """Images with labels, of which some are told and others are to be found."""

    path: Annotated[str, PATH]
    """The labelled images: a folder of identity folders, a dataset, a text list
    (`path<TAB>identity`), a CSV with such columns, or embeddings that are ready. It may be the
    dataset of a run that does not read labels."""
    flip: Flip = "none"
    """What an embedding is of: the image, or its mirror image as well."""
    seed: NonNegativeInt = 0
    """What is drawn among the images is drawn from it."""


class SplitProbe(Probe):
    """A probe that learns from some labelled images and is asked for others."""

    test: Annotated[str | None, PATH] = None
    """The images that it is asked for, of the same identities by name; null takes one image, drawn
    at random, of each identity that has several."""
