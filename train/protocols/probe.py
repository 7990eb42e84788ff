"""What probes have in common: labelled images, of which some are told and others are asked for."""

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs import rng
from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.train.evaluation.nearest import Floats
from manyfaces.train.protocols.labelled import open_labelled
from manyfaces.train.protocols.lists import OverLists, codes_among, shared_images

Ints = NDArray[np.int64]


def one_of_each(code_N: Ints, seed: int) -> Ints:
    """The rows of one image, drawn at random, of each identity that has several; sorted."""
    word_N = rng.words(
        rng.key(seed, rng.Stream.PROBE_SPLIT), np.arange(len(code_N), dtype=np.uint64)
    )
    order = np.lexsort((word_N, code_N))
    first = np.flatnonzero(np.diff(code_N[order], prepend=-1))
    counts = np.diff(np.append(first, len(order)))
    return np.sort(order[first[counts > 1]])


class SplitProbe(OverLists):
    """Learns from some images and is asked for others.

    Raises `UserError` for lists that cannot be read, that share images, and where nothing can be
    asked for.
    """

    def __init__(self, path: str, test: str | None, flip: Flip, seed: int) -> None:
        paths = [path] if test is None else [path, test]
        super().__init__([open_labelled(each) for each in paths], flip)
        told = self.lists[0]
        if test is None:
            self._asked = one_of_each(told.code_N, seed)
            self._learnt = np.setdiff1d(np.arange(len(told)), self._asked)
            code_Q = told.code_N[self._asked]
            if not len(self._asked):
                raise UserError(
                    f"{told.where}: no identity has several images, so that none can be asked for; "
                    "give `test`"
                )
        else:
            asked = self.lists[1]
            code_Q = codes_among(asked, told)
            self._asked, self._learnt = np.flatnonzero(code_Q >= 0), np.arange(len(told))
            code_Q = code_Q[self._asked]
            if not len(self._asked):
                raise UserError(
                    f"{asked.where}: not one of its identities is in {told.where}; identities are "
                    "compared by name"
                )
            if shared := shared_images(asked, told):
                raise UserError(
                    f"{asked.where}: {len(shared):,} of its images are in {told.where} too (the "
                    f"first: {shared[0]}); leave them out of one of them"
                )
        self.code_Q = code_Q
        """The identity of each image that is asked for."""
        self.code_N = told.code_N[self._learnt]
        """The identity of each image that is learnt from."""

    def split(self, embeddings_ND: Floats) -> tuple[Floats, Floats]:
        """The unit embeddings that are learnt from, and those that are asked for."""
        self.check_widths(embeddings_ND)
        told = self.unit_rows(embeddings_ND, 0)
        asked = told if len(self.lists) == 1 else self.unit_rows(embeddings_ND, 1)
        return told[self._learnt], asked[self._asked]

    def counts(self) -> dict[str, int]:
        """What a result is about."""
        return {
            "learnt": len(self.code_N),
            "asked": len(self.code_Q),
            "identities": len(np.unique(self.code_N)),
        }
