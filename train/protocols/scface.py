"""Protocol scface: people before surveillance cameras at three distances (Grgic et al., "SCface",
Multimedia Tools and Applications 2011)."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.train.evaluation.identification import cmc, first_hits
from manyfaces.train.evaluation.nearest import exact_search
from manyfaces.train.evaluation.result import Quantity, Result
from manyfaces.train.protocols.labelled import images_below, listed
from manyfaces.train.protocols.lists import OverLists, codes_among

_METRES = {1: "4.20", 2: "2.60", 3: "1.00"}
_MUGSHOT = re.compile(r"(?P<person>\d{3})_frontal")
_CAMERA = re.compile(r"(?P<person>\d{3})_cam[1-5]_(?P<distance>[123])")
"""Cameras 6 and 7 see infrared."""
_RANKS = (1, 5)
_PROBES, _GALLERY = 0, 1


def _name(distance: int, rank: int) -> str:
    return f"rank{rank}_at_{_METRES[distance].replace('.', '_')}_m"


class SCface(OverLists):
    """Rank-1 of the images of cameras 1 to 5 at each distance, the gallery being one frontal
    mugshot of each person. Raises `UserError` for a folder that is not SCface's."""

    def __init__(self, path: str, leave_out: str | None = None, flip: Flip = "sum") -> None:
        folder = Path(path)
        files = images_below(folder) if folder.is_dir() else []
        tuned = _numbers(Path(leave_out)) if leave_out is not None else set()
        mugshots, probes = dict[str, str](), list[tuple[str, str, int]]()
        for file in files:
            stem = Path(file).stem
            told = _MUGSHOT.fullmatch(stem) or _CAMERA.fullmatch(stem)
            if told is None or told["person"] in tuned:
                continue
            if told.re is _CAMERA:
                probes.append((file, told["person"], int(told["distance"])))
            elif told["person"] in mugshots:
                raise UserError(
                    f"{path}: two mugshots of person {told['person']} "
                    f"({mugshots[told['person']]} and {file}); leave one version in it"
                )
            else:
                mugshots[told["person"]] = file
        if not mugshots or not probes:
            raise UserError(
                f"{path}: {len(mugshots)} mugshots 001_frontal.jpg and {len(probes)} images "
                "001_cam1_1.jpg of cameras in it; expected SCface"
            )
        super().__init__(
            [
                listed(path, [str(folder / each[0]) for each in probes], [p[1] for p in probes]),
                listed(path, [str(folder / each) for each in mugshots.values()], list(mugshots)),
            ],
            flip,
        )
        self._code_Q = codes_among(self.lists[_PROBES], self.lists[_GALLERY])
        if (self._code_Q < 0).any():
            row = int(np.flatnonzero(self._code_Q < 0)[0])
            raise UserError(f"{path}: no mugshot {probes[row][1]}_frontal for {probes[row][0]}")
        self._distance_Q = np.array([each[2] for each in probes])
        people = f"{len(mugshots)} people" if tuned else f"all {len(mugshots)} people"
        self.quantities = [
            Quantity(
                _name(distance, rank),
                f"rank-{rank} at {metres} m (mugshot gallery, {people})",
                f"{metres} m" if rank == 1 else "",
                unknown="no images at this distance",
            )
            for rank in _RANKS
            for distance, metres in _METRES.items()
        ]

    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        found = exact_search(
            self.unit_rows(embeddings_ND, _PROBES),
            self.unit_blocks(embeddings_ND, _GALLERY),
            max(_RANKS),
        )
        first_Q = first_hits(found, self._code_Q, self.lists[_GALLERY].code_N)
        scalars: dict[str, float | None] = {}
        counts = {"gallery": len(self.lists[_GALLERY])}
        for distance, metres in _METRES.items():
            here = first_Q[self._distance_Q == distance]
            counts[f"probes_{metres}_m"] = len(here)
            for rank, share in zip(_RANKS, cmc(here, _RANKS), strict=True):
                scalars[_name(distance, rank)] = share
        return Result(self.name, self.quantities, scalars, counts)


def _numbers(path: Path) -> set[str]:
    """The people of a text file, as `001`. Raises `UserError` naming file:line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    people = set()
    for number, line in enumerate(lines, 1):
        word = line.strip()
        if word and not (word.isdecimal() and int(word) < 1000):
            raise UserError(f"{path}:{number}: {word!r} is no number of a person")
        if word:
            people.add(f"{int(word):03}")
    return people
