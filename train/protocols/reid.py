"""Protocol reid: the same person before another camera, by the rules of Market-1501 (Zheng et al.,
"Scalable Person Re-identification", ICCV 2015).

Shapes: Q queries, N gallery images, D the embedding.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Flip
from manyfaces.configs.protocols.reid import MARKET
from manyfaces.train.evaluation.nearest import Floats, unit
from manyfaces.train.evaluation.reid import Figures, Labels, Ranking
from manyfaces.train.evaluation.reranking import ReRanked
from manyfaces.train.evaluation.result import Curve, Quantity, Result
from manyfaces.train.protocols.columns import read_columns
from manyfaces.train.protocols.labelled import images_below, listed
from manyfaces.train.protocols.lists import OverLists

_RANKS = (1, 5, 10)
_JUNK = "-1"
_QUERY_ROWS = 256
_QUERY, _GALLERY = 0, 1
_NO_QUERY = "no query has a match"


def _quantities(prefix: str = "", words: str = "") -> list[Quantity]:
    """What is told of a ranking; with `prefix`, of the re-ranked one."""
    return [
        Quantity(
            f"{prefix}map", f"mAP (precision at hits){words}", f"mAP{words}", unknown=_NO_QUERY
        ),
        *(
            Quantity(f"{prefix}rank{rank}", f"rank-{rank}{words}", head, unknown=_NO_QUERY)
            for rank in _RANKS
            for head in [f"rank-{rank}{words}" if rank == 1 or not prefix else ""]
        ),
        Quantity(
            f"{prefix}map_trapezoid",
            f"mAP (trapezoid){words}",
            "" if prefix else "mAP trapezoid",
            unknown=_NO_QUERY,
        ),
        Quantity(f"{prefix}minp", f"mINP{words}", "" if prefix else "mINP", unknown=_NO_QUERY),
    ]


class _Seen(NamedTuple):
    """Images, whom they show and which camera saw them."""

    files: Sequence[str]
    identities: Sequence[str]
    cameras: Sequence[str]

    def without_junk(self) -> "_Seen":
        rows = [row for row, name in enumerate(self.identities) if name != _JUNK]
        return _Seen(*([column[row] for row in rows] for column in self))


class ReIdentification(OverLists):
    """Queries against a gallery, by cosine or by Euclidean distance.

    Images of identity -1 are left out and counted; distractors, which are of no query's identity,
    stay. The figures of re-ranking stand beside the others under names of their own. Raises
    `UserError` for lists that cannot be read, and where no query has a match.
    """

    def __init__(
        self,
        query: str,
        gallery: str,
        name_pattern: str = MARKET,
        distance: Literal["cosine", "euclidean"] = "cosine",
        flip: Flip = "none",
        re_rank: bool = False,
        k1: int = 20,
        k2: int = 6,
        original_weight: float = 0.3,
    ) -> None:
        pattern = re.compile(name_pattern)
        all_seen = [_seen(Path(path), pattern) for path in (query, gallery)]
        seen = [each.without_junk() for each in all_seen]
        self._junk = sum(len(each.files) for each in all_seen) - sum(len(e.files) for e in seen)
        super().__init__(
            [
                listed(path, each.files, each.identities)
                for path, each in zip((query, gallery), seen, strict=True)
            ],
            flip,
        )
        self._labels = _labels(seen)
        self._distance, self._re_rank = distance, (k1, k2, original_weight) if re_rank else None
        self._check_matches(query, gallery)
        self.quantities = [
            *_quantities(),
            *(_quantities("re_ranked_", " re-ranked") if re_rank else ()),
        ]

    def _check_matches(self, query: str, gallery: str) -> None:
        queries, images = self._labels
        pairs = set(zip(images.identity_N.tolist(), images.camera_N.tolist(), strict=True))
        cameras_of: dict[int, set[int]] = {}
        for identity, camera in pairs:
            cameras_of.setdefault(identity, set()).add(camera)
        asked = zip(queries.identity_N.tolist(), queries.camera_N.tolist(), strict=True)
        if not any(cameras_of.get(identity, set()) - {camera} for identity, camera in asked):
            raise UserError(
                f"{query}: no query has a match in {gallery}: an image of the same identity from "
                "another camera"
            )

    def result(self, embeddings_ND: NDArray[np.float32]) -> Result:
        first = int(self._starts[_GALLERY])
        query_QD, gallery_ND = embeddings_ND[:first], embeddings_ND[first:]
        if self._distance == "cosine":
            query_QD, gallery_ND = unit(query_QD), unit(gallery_ND)
        queries, gallery = self._labels
        num_queries, num_images = len(query_QD), len(query_QD) + len(gallery_ND)
        advance = self.advance(num_queries + (2 * num_images + num_queries) * bool(self._re_rank))
        ranking = Ranking(gallery)
        for part, scores_QN in _scores(query_QD, gallery_ND, self._distance):
            ranking.add(scores_QN, queries[part])
            advance(len(scores_QN))
        figures = ranking.figures()
        scalars, lines = _scalars(figures), {}
        if self._re_rank is not None:
            re_ranking = Ranking(gallery)
            re_ranked = ReRanked(query_QD, gallery_ND, *self._re_rank, advance)
            for part, distance_QN in re_ranked.distances():
                re_ranking.add(-distance_QN, queries[part])
                advance(len(distance_QN))
            again = re_ranking.figures()
            scalars |= _scalars(again, "re_ranked_")
            lines["re-ranked"] = (_ranks(again), again.cmc_R)
        return Result(
            name=self.name,
            quantities=self.quantities,
            scalars=scalars,
            counts=self._counts(figures),
            curves={
                "cmc": Curve(
                    f"{self.name}: cumulative matches, by {self._distance}",
                    "rank",
                    "queries found",
                    _ranks(figures),
                    figures.cmc_R,
                    lines=lines,
                )
            },
        )

    def _counts(self, figures: Figures) -> Mapping[str, int]:
        queries, gallery = self._labels
        of_nobody = ~np.isin(gallery.identity_N, queries.identity_N)
        return {
            "queries": figures.queries,
            "without_match": figures.without_match,
            "gallery": len(gallery.identity_N),
            "distractors": int(of_nobody.sum()),
            "junk": self._junk,
        }


def _ranks(figures: Figures) -> NDArray[np.float64]:
    return np.arange(1, len(figures.cmc_R) + 1, dtype=np.float64)


def _scalars(figures: Figures, prefix: str = "") -> dict[str, float | None]:
    cmc = {
        f"{prefix}rank{rank}": float(figures.cmc_R[min(rank, len(figures.cmc_R)) - 1])
        for rank in _RANKS
    }
    return {
        f"{prefix}map": figures.map_at_hits,
        f"{prefix}map_trapezoid": figures.map_trapezoid,
        f"{prefix}minp": figures.minp,
        **cmc,
    }


def _scores(
    query_QD: Floats, gallery_ND: Floats, distance: str
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Some queries and how near the gallery is to them, the nearest highest. Sums are in double
    precision, so that equal images have equal scores wherever they stand."""
    double_ND = gallery_ND.astype(np.float64)
    squares_N = np.einsum("nd,nd->n", double_ND, double_ND)
    for start in range(0, len(query_QD), _QUERY_ROWS):
        part = slice(start, start + _QUERY_ROWS)
        double_QD = query_QD[part].astype(np.float64)
        scores_QN = double_QD @ double_ND.T
        if distance == "euclidean":
            scores_QN *= 2
            scores_QN -= squares_N
            scores_QN -= np.einsum("qd,qd->q", double_QD, double_QD)[:, None]
        yield part, scores_QN.astype(np.float32)


def _labels(seen: Sequence[_Seen]) -> list[Labels]:
    """Names of identities and cameras as numbers, the same in all lists. Numbers that are written
    in two ways (`2` and `0002`) are one."""
    columns = [(each.identities, each.cameras) for each in seen]
    numbered = []
    for place in (0, 1):
        codes: dict[str, int] = {}
        numbered.append(
            [
                np.array([codes.setdefault(_plain(name), len(codes)) for name in each[place]])
                for each in columns
            ]
        )
    return [Labels(*pair) for pair in zip(*numbered, strict=True)]


def _plain(name: str) -> str:
    return str(int(name)) if name.isdecimal() else name


def _seen(path: Path, pattern: re.Pattern[str]) -> _Seen:
    """The images of a folder or a list, with identity and camera. Raises `UserError` for a name
    that tells neither."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        files = [str(path / file) for file in images_below(path)]
        told = [_told(file, pattern, str(path)) for file in files]
        if not files:
            raise UserError(f"{path}: no images in it")
        return _Seen(files, [each["identity"] for each in told], [each["camera"] for each in told])
    columns = read_columns(path)
    cameras = columns.cameras
    if cameras is None:
        cameras = [_told(file, pattern, str(path))["camera"] for file in columns.files]
    return _Seen(columns.files, columns.identities, cameras)


def _told(file: str, pattern: re.Pattern[str], where: str) -> re.Match[str]:
    told = pattern.match(Path(file).name)
    if told is None:
        raise UserError(
            f"{where}: the name {Path(file).name} does not tell identity and camera by the pattern "
            f"{pattern.pattern}; set name_pattern, or give a CSV with path, identity and camera"
        )
    return told
