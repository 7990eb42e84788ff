"""Protocol tinyface: small faces, found among distractors (Cheng et al., "Low-Resolution Face
Recognition", ACCV 2018)."""

from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.train.evaluation.identification import NOBODY, cmc, first_hits
from manyfaces.train.evaluation.nearest import exact_search
from manyfaces.train.evaluation.result import Curve, Quantity, Result
from manyfaces.train.protocols.labelled import Labelled, images_below, listed
from manyfaces.train.protocols.lists import OverLists, codes_among

_RANKS = (1, 5, 20)
_PROBES, _GALLERY, _DISTRACTORS = 0, 1, 2


class TinyFace(OverLists):
    """Each probe is searched for among the matching gallery and the distractors: any image of its
    identity within the rank is a hit. Raises `UserError` for a folder that is not TinyFace's."""

    def __init__(self, path: str, images: str | None = None, flip: Flip = "sum") -> None:
        lists = _lists_folder(Path(path))
        folder = Path(images) if images is not None else lists
        distractors = folder / "Gallery_Distractor"
        files = images_below(distractors) if distractors.is_dir() else []
        if not files:
            raise UserError(f"{distractors}: no images in it; expected TinyFace's distractors")
        super().__init__(
            [
                _matlab_list(lists / "probe_img_ID_pairs.mat", "probe", folder / "Probe"),
                _matlab_list(
                    lists / "gallery_match_img_ID_pairs.mat", "gallery", folder / "Gallery_Match"
                ),
                listed(
                    str(distractors), [str(distractors / file) for file in files], [""] * len(files)
                ),
            ],
            flip,
        )
        self._code_Q = codes_among(self.lists[_PROBES], self.lists[_GALLERY])
        if (self._code_Q < 0).any():
            row = int(np.flatnonzero(self._code_Q < 0)[0])
            raise UserError(
                f"{self.lists[_PROBES].name(row)}: its identity is not in the gallery, and every "
                "probe of TinyFace has a match there"
            )
        self.quantities = [
            Quantity(f"rank{rank}", f"rank-{rank} (any match)", f"rank-{rank}") for rank in _RANKS
        ]

    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        entries = chain(
            self.unit_blocks(embeddings_ND, _GALLERY), self.unit_blocks(embeddings_ND, _DISTRACTORS)
        )
        advance = self.advance(len(self.lists[_GALLERY]) + len(self.lists[_DISTRACTORS]))
        probes_QD = self.unit_rows(embeddings_ND, _PROBES)
        found = exact_search(probes_QD, entries, max(_RANKS), advance)
        nobody = np.full(len(self.lists[_DISTRACTORS]), NOBODY)
        label_N = np.concatenate([self.lists[_GALLERY].code_N, nobody])
        ranks = range(1, max(_RANKS) + 1)
        shares = cmc(first_hits(found, self._code_Q, label_N), ranks)
        names = ("probes", "gallery", "distractors")
        return Result(
            name=self.name,
            quantities=self.quantities,
            scalars={f"rank{rank}": shares[rank - 1] for rank in _RANKS},
            counts={name: len(held) for name, held in zip(names, self.lists, strict=True)},
            curves={
                "cmc": Curve(
                    f"{self.name}: cumulative matches",
                    "rank",
                    "probes found",
                    np.array(ranks, np.float64),
                    np.array(shares),
                )
            },
        )


def _lists_folder(path: Path) -> Path:
    for folder in (path, path / "Testing_Set", path / "tinyface" / "Testing_Set"):
        if (folder / "probe_img_ID_pairs.mat").is_file():
            return folder
    raise UserError(
        f"{path}: no probe_img_ID_pairs.mat in it or in its Testing_Set; expected TinyFace"
    )


def _matlab_list(file: Path, what: str, folder: Path) -> Labelled:
    """The images that a MATLAB file lists as `WHAT_set`, with their identities `WHAT_ids`."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        held = loadmat(file)
        names = [_text(each) for each in np.ravel(held[f"{what}_set"])]
        identities = [str(int(each)) for each in np.ravel(held[f"{what}_ids"])]
    except (OSError, KeyError, ValueError, TypeError, MatReadError) as error:
        raise UserError(
            f"{file}: no {what}_set and {what}_ids can be read from it ({error}); expected "
            "TinyFace's list"
        ) from error
    if len(names) != len(identities):
        raise UserError(f"{file}: {len(names)} images and {len(identities)} identities")
    files = [str(folder / name) for name in names]
    missing = [each for each in files if not Path(each).is_file()]
    if missing:
        raise UserError(
            f"{folder}: {len(missing):,} of the {len(files):,} images in {file.name} are not there "
            f"(the first: {missing[0]})"
        )
    return listed(str(file), files, identities)


def _text(cell: object) -> str:
    """The text in a cell of MATLAB's, which stands in arrays of one element."""
    while isinstance(cell, np.ndarray):
        (cell,) = cell.ravel().tolist()
    return str(cell)
