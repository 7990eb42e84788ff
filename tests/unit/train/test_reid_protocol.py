"""Protocol reid over folders and lists as the data sets have them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.reid import MARKET
from manyfaces.configs.protocols.reid import ReIdentification as ReIdentificationConfig
from manyfaces.train.evaluation.nearest import unit
from manyfaces.train.evaluation.reid import Labels, Ranking
from manyfaces.train.evaluation.reranking import ReRanked
from manyfaces.train.evaluation.result import Result
from manyfaces.train.protocols.reid import ReIdentification

DIM = 6
QUERIES = tuple(f"{who:04}_c{camera}s1_000451_03.jpg" for who in (2, 3, 7, 9) for camera in (1, 2))
GALLERY = tuple(
    f"{who}_c{camera}s{n}_000{n}76_01.jpg"
    for who in ("-1", "0000", "0002", "0003", "0007", "0011")
    for camera in (1, 2, 3)
    for n in (1, 2)
)
MSMT = r"(?P<identity>\d+)_\d+_(?P<camera>\d+)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, names in (("query", QUERIES), ("bounding_box_test", GALLERY)):
        (tmp_path / name).mkdir()
        for each in (*names, "Thumbs.db"):
            (tmp_path / name / each).write_bytes(each.encode())
    return tmp_path


def embedding(name: str) -> NDArray[np.float32]:
    random = np.random.default_rng(list(name.encode()))
    person = np.random.default_rng(int(name.split("_")[0]) + 2).standard_normal(DIM)
    return (person + 1.3 * random.standard_normal(DIM)).astype(np.float32) * random.uniform(1, 3)


def outcome(protocol: ReIdentification) -> Result:
    protocol.name = "made"
    names = [bytes(image).decode() for image in protocol.images()]
    return protocol.result(np.stack([embedding(name) for name in names]).astype(np.float32))


def by_definition(distance: str = "cosine") -> dict[str, float]:
    """Names are read again here, and each query is ranked by a sort of Python's."""
    at_hits, firsts = [], []
    for query in QUERIES:
        who, camera = query[:4], query.split("_")[1][:2]
        scored = []
        for name in GALLERY:
            if name.startswith("-1") or (name[:4] == who and name.split("_")[1][:2] == camera):
                continue
            a, b = embedding(query).astype(float), embedding(name).astype(float)
            if distance == "cosine":
                scored.append((-a @ b / np.linalg.norm(a) / np.linalg.norm(b), name[:4] == who))
            else:
                scored.append((np.linalg.norm(a - b), name[:4] == who))
        matches = [match for _, match in sorted(scored)]
        if any(matches):
            precisions = [
                sum(matches[: n + 1]) / (n + 1) for n in range(len(matches)) if matches[n]
            ]
            at_hits.append(np.mean(precisions))
            firsts.append(matches.index(True))
    return {"map": float(np.mean(at_hits)), "rank1": float(np.mean(np.array(firsts) == 0))}


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_market_1501(folder: Path, distance: str) -> None:
    protocol = ReIdentification(
        str(folder / "query"), str(folder / "bounding_box_test"), distance=distance
    )
    result = outcome(protocol)
    expected = by_definition(distance)
    assert result.scalars["map"] == pytest.approx(expected["map"])
    assert result.scalars["rank1"] == pytest.approx(expected["rank1"])
    assert result.counts == {
        "queries": 6,
        "without_match": 2,  # both of 0009
        "gallery": 30,
        "distractors": 12,  # 0000 and 0011
        "junk": 6,
    }
    assert 0 < result.scalars["map"] < 1
    assert result.scalars["map_trapezoid"] != result.scalars["map"]
    assert protocol.flip == "none"


def test_distances_tell_apart() -> None:
    assert by_definition("cosine") != by_definition("euclidean")


def test_re_ranked_figures_stand_beside_the_others(folder: Path) -> None:
    words = str(folder / "query"), str(folder / "bounding_box_test")
    plain = outcome(ReIdentification(*words)).scalars
    protocol = ReIdentification(*words, re_rank=True, k1=4, k2=2)
    told: list[tuple[int, int]] = []
    protocol.working = lambda *parts: told.append(parts)
    result = outcome(protocol)
    assert told[-1] == (2 * 38 + 2 * 8, 2 * 38 + 2 * 8)
    assert {name: result.scalars[name] for name in plain} == plain
    kept = sorted(name for name in GALLERY if not name.startswith("-1"))
    queries, gallery = (
        (
            unit(np.stack([embedding(name) for name in names])),
            Labels(
                np.array([int(name[:4]) for name in names]),
                np.array([int(name.split("_c")[1][0]) for name in names]),
            ),
        )
        for names in (sorted(QUERIES), kept)
    )
    ranking = Ranking(gallery[1])
    for part, distances in ReRanked(queries[0], gallery[0], 4, 2, 0.3).distances():
        ranking.add(-distances, queries[1][part])
    assert result.scalars["re_ranked_map"] == pytest.approx(ranking.figures().map_at_hits)
    assert result.scalars["re_ranked_rank1"] == ranking.figures().cmc_R[0]
    assert result.scalars["re_ranked_map"] != plain["map"]
    assert list(result.curves["cmc"].lines) == ["re-ranked"]


def test_lists_with_and_without_cameras_are_the_folders(folder: Path) -> None:
    expected = outcome(ReIdentification(str(folder / "query"), str(folder / "bounding_box_test")))
    for name, names, mark in (
        ("query", QUERIES, ","),
        ("bounding_box_test", GALLERY, "\t"),
    ):
        header = "camera,path,id\n" if mark == "," else ""
        lines = []
        for each in sorted(names):
            cells = [f"{name}/{each}", each.split("_")[0], each.split("_c")[1][0]]
            lines.append(mark.join(cells[-1:] + cells[:-1] if header else cells))
        (folder / f"{name}.csv").write_text(header + "\n".join(lines) + "\n")
        plain = [f"{name}/{each} {each.split('_')[0]}" for each in sorted(names)]
        (folder / f"list_{name}.txt").write_text("\n".join(plain) + "\n")
    for words in (
        ("query.csv", "bounding_box_test.csv"),
        ("list_query.txt", "list_bounding_box_test.txt"),
    ):
        found = outcome(ReIdentification(*(str(folder / word) for word in words)))
        assert found.scalars == expected.scalars
        assert found.counts == expected.counts


def test_names_of_another_pattern(tmp_path: Path) -> None:
    """MSMT17: identity 0 is a person there."""
    for folder, cameras in (("query", (1, 2)), ("gallery", (1, 3))):
        for camera in cameras:
            name = f"0000_00{camera}_0{camera}_0303morning_0008_0.jpg"
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(name.encode())
    words = str(tmp_path / "query"), str(tmp_path / "gallery")
    assert outcome(ReIdentification(*words, name_pattern=MSMT)).counts["queries"] == 2
    with pytest.raises(UserError, match=r"the name 0000_001_01_0303morning.* set name_pattern, or"):
        ReIdentification(*words, name_pattern=MARKET)


def test_what_cannot_be_scored_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("path,id,camera\nx.jpg,2,1\n")
    (tmp_path / "g.csv").write_text("path,id,camera\ny.jpg,2,1\nz.jpg,3,2\n")
    with pytest.raises(UserError, match=r"no query has a match in .*: an image of the same identi"):
        ReIdentification(str(tmp_path / "q.csv"), str(tmp_path / "g.csv"))
    with pytest.raises(UserError, match="nothing: no such file or folder"):
        ReIdentification(str(folder / "nothing"), str(folder / "query"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"re_rank": True, "distance": "euclidean"}, "re_rank goes with distance: cosine only"),
        ({"k1": 3, "k2": 4}, "k2 4 is above k1 3"),
        ({"name_pattern": "(?P<identity>x"}, "is no regular expression"),
        ({"name_pattern": "(?P<identity>x)"}, "needs the groups"),
    ],
)
def test_the_configuration_refuses(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReIdentificationConfig.model_validate({"query": "q", "gallery": "g", **fields})
