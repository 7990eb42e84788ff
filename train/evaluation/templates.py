"""Templates: sets of images of one person that are compared as one, their embeddings pooled.

Shapes: N images, D the embedding, M memberships of an image in a template, S media, K templates.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]

_LEAST_LENGTH = 1e-12
_BLOCK = 8192
"""Memberships that are pooled at a time: tens of megabytes of float64."""


class Block(NamedTuple):
    """Some consecutive templates with all their memberships."""

    templates: slice
    """Of the K."""
    image_m: Ints
    """The images of the templates, by template and then by media."""
    media_s: Ints
    """Where each medium of a template begins among them."""
    first_media_k: Ints
    """Where each template begins among the media."""
    first_k: Ints
    """Where each template begins among the images."""


@dataclass(frozen=True)
class Members:
    """Which images make up each of K templates, and of which medium each image is there.

    Every template has a member. Frames of one video are one medium; an image may be in several
    templates.
    """

    num_templates: int
    image_M: Ints
    """By template, and then by media."""
    template_M: Ints
    media_S: Ints
    """Where each medium of a template begins among the M."""

    @classmethod
    def of(cls, template_M: Ints, media_M: Ints, image_M: Ints) -> "Members":
        """Memberships in any order; templates are numbered from 0 on."""
        order = np.lexsort((media_M, template_M))
        template_M, media_M = template_M[order], media_M[order]
        is_new = np.ones(len(order), bool)
        is_new[1:] = (np.diff(template_M) != 0) | (np.diff(media_M) != 0)
        return cls(int(template_M[-1]) + 1, image_M[order], template_M, np.flatnonzero(is_new))

    @cached_property
    def firsts(self) -> Ints:
        """Where each template begins among the M, [K]."""
        return np.searchsorted(self.template_M, np.arange(self.num_templates))

    def blocks(self, memberships: int = _BLOCK) -> Iterator[Block]:
        """The templates in order, about so many memberships at a time."""
        first_K, total = self.firsts, len(self.image_M)
        bounds = np.append(first_K, total)
        edges = np.unique(np.searchsorted(first_K, np.arange(0, total, memberships)))
        for low, high in pairwise(np.union1d(edges, self.num_templates)):
            begin, end = bounds[[low, high]]
            media = slice(*np.searchsorted(self.media_S, [begin, end]))
            media_s, first_k = self.media_S[media] - begin, first_K[low:high] - begin
            yield Block(
                slice(low, high),
                self.image_M[begin:end],
                media_s,
                np.searchsorted(media_s, first_k),
                first_k,
            )


def pooled(
    embeddings_ND: Floats,
    members: Members,
    *,
    length: Literal["keep", "unit"],
    weight_N: Floats | None = None,
    by_media: bool = True,
) -> NDArray[np.float64]:
    """Templates as unit vectors, float64 [K, D].

    An image's embedding, made a unit vector or of the length that it has, is multiplied by the
    weight of the image. Then the images of each medium are averaged and the media of a template
    added up (`by_media`), as InsightFace's `eval_ijbc.py` does; otherwise all images of a template
    are added up. A template whose sum is zero stays zero.
    """
    templates_KD = np.empty((members.num_templates, embeddings_ND.shape[1]))
    for block in members.blocks():
        features_mD = embeddings_ND[block.image_m].astype(np.float64)
        if length == "unit":
            features_mD = unit(features_mD)
        if weight_N is not None:
            features_mD *= weight_N[block.image_m, None]
        if by_media:
            frames_s = np.diff(block.media_s, append=len(features_mD))
            media_sD = np.add.reduceat(features_mD, block.media_s) / frames_s[:, None]
            templates_KD[block.templates] = np.add.reduceat(media_sD, block.first_media_k)
        else:
            templates_KD[block.templates] = np.add.reduceat(features_mD, block.first_k)
    return unit(templates_KD)


def unit(vectors_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vectors with length 1; zeros stay."""
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    units_ND: NDArray[np.float64] = vectors_ND / lengths_N1.clip(_LEAST_LENGTH)
    return units_ND
