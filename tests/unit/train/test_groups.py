"""Groups of people at one threshold, against the definitions in loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.groups import Groups as GroupsConfig
from manyfaces.data.dataset.dataset import Dataset
from manyfaces.data.dataset.draw_pairs import draw_pairs
from manyfaces.data.sources.group_table import read_groups
from manyfaces.data.sources.verification_bin import write_bin
from manyfaces.train.evaluation import metrics
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.evaluation.groups import NO_GROUP, group_figures, group_quantities
from manyfaces.train.evaluation.report import draw_report, read_report, save_report
from manyfaces.train.evaluation.result import Result
from manyfaces.train.protocols.open import check_images, open_all

RNG = np.random.default_rng(11)
N = 600
NAMES = ["a", "b", "c"]
GROUP = RNG.integers(-1, 3, N)
SAME = RNG.random(N) < 0.5
SCORES = np.round(RNG.normal(SAME * 1.2 - GROUP * 0.1, 0.5), 2)
PEOPLE = RNG.integers(0, 40, (N, 2)) * 4 + GROUP[:, None]  # each person is of one group
PEOPLE[SAME, 1] = PEOPLE[SAME, 0]
PEOPLE[~SAME & (PEOPLE[:, 0] == PEOPLE[:, 1]), 1] += 200
FMR = 0.02


def rates(weights: np.ndarray, threshold: float) -> dict[str, list[float]]:
    """TAR and FMR of each group, each pair counting as often as it says."""
    found: dict[str, list[float]] = {"tar": [], "fmr": []}
    for group in range(3):
        for rate, kind in (("tar", True), ("fmr", False)):
            every = accepted = 0
            for pair in range(N):
                if GROUP[pair] == group and SAME[pair] == kind:
                    every += weights[pair]
                    accepted += weights[pair] * (SCORES[pair] >= threshold)
            found[rate].append(accepted / every)
    return found


def threshold_of_all() -> float:
    impostors = [float(score) for score, same in zip(SCORES, SAME, strict=True) if not same]
    fitting = [
        t
        for t in sorted({*SCORES.tolist()})
        if sum(score >= t for score in impostors) <= FMR * len(impostors)
    ]
    return fitting[0]


def test_one_threshold_for_all_and_the_rates_of_each_group() -> None:
    figures = group_figures("x", SCORES, SAME, GROUP, NAMES, FMR, PEOPLE)
    threshold = threshold_of_all()
    expected = rates(np.ones(N), threshold)
    scalars = figures.scalars
    assert scalars.keys() == {quantity.name for quantity in group_quantities(FMR)}
    assert scalars["threshold"] == threshold
    tars, fmrs = expected["tar"], expected["fmr"]
    assert [figures.table[name]["tar"] for name in NAMES] == pytest.approx(tars)
    assert [figures.table[name]["fmr"] for name in NAMES] == pytest.approx(fmrs)
    assert (scalars["tar_worst"], scalars["fmr_worst"]) == pytest.approx((min(tars), max(fmrs)))
    assert scalars["tar_gap"] == pytest.approx(max(tars) - min(tars))
    assert scalars["tar_ratio"] == pytest.approx(max(tars) / min(tars))
    assert scalars["fmr_gap"] == pytest.approx(max(fmrs) - min(fmrs))
    assert scalars["fmr_ratio"] == pytest.approx(max(fmrs) / min(fmrs))
    for group, name in enumerate(NAMES):
        own = group == GROUP
        folds = metrics.kfold(2 - 2 * SCORES[own], SAME[own]).accuracy_F
        assert figures.table[name]["accuracy"] == pytest.approx(folds.mean())
        assert figures.table[name]["genuine"] == (own & SAME).sum()
        assert figures.table[name]["impostors"] == (own & ~SAME).sum()
    accuracies = [figures.table[name]["accuracy"] for name in NAMES]
    assert scalars["accuracy_worst"] == min(accuracies)
    assert scalars["accuracy_std"] == pytest.approx(np.std(accuracies))
    assert scalars["accuracy_gap"] == pytest.approx(max(accuracies) - min(accuracies))


@pytest.mark.parametrize("people", [None, PEOPLE], ids=["pairs", "identities"])
def test_intervals_are_those_of_drawing_again(people: np.ndarray | None) -> None:
    figures = group_figures("x", SCORES, SAME, GROUP, NAMES, FMR, people)
    rng, known = np.random.default_rng(8), []
    threshold = threshold_of_all()
    every = np.unique(PEOPLE)
    for _ in range(400):
        weights = np.zeros(N)
        if people is None:
            for group in range(3):
                for kind in (SAME, ~SAME):
                    own = np.flatnonzero((group == GROUP) & kind)
                    np.add.at(weights, rng.choice(own, len(own)), 1)
        else:
            times = dict.fromkeys(every.tolist(), 0)
            for person in rng.choice(every, len(every)).tolist():
                times[person] += 1
            for pair, (first, second) in enumerate(PEOPLE.tolist()):
                weights[pair] = times[first] if SAME[pair] else times[first] * times[second]
        found = rates(weights, threshold)
        tars = found["tar"]
        known.append([tars[0], found["fmr"][0], max(tars) - min(tars)])
    low, high = np.quantile(known, [0.025, 0.975], axis=0)
    row = figures.table["a"]
    ours = [(row["tar_low"], row["tar_high"]), (row["fmr_low"], row["fmr_high"])]
    ours.append(figures.intervals["tar_gap"])
    for place, (from_, to) in enumerate(ours):
        width = high[place] - low[place]
        assert from_ == pytest.approx(low[place], abs=0.2 * width)
        assert to == pytest.approx(high[place], abs=0.2 * width)


def test_what_groups_cannot_tell_is_not_known() -> None:
    few = group_figures("x", SCORES, SAME, GROUP, NAMES, 1e-4)
    assert few.scalars["threshold"] is None
    assert few.scalars["tar_gap"] is None
    assert few.scalars["accuracy_worst"] is not None
    assert few.curves == {}
    safe = group_figures("x", SCORES - 9 * (GROUP == 0), SAME, GROUP, NAMES, FMR)
    assert safe.table["a"]["fmr"] == 0
    assert safe.scalars["fmr_ratio"] is safe.scalars["tar_ratio"] is None  # nothing divides by 0
    lacking = np.where((GROUP == 1) & SAME, NO_GROUP, GROUP)  # group b has impostors alone
    figures = group_figures("x", SCORES, SAME, lacking, [*NAMES, "d"], FMR)
    assert figures.table["b"]["tar"] is figures.table["b"]["tar_low"] is None
    assert figures.table["d"]["fmr"] is figures.table["d"]["accuracy"] is None
    assert figures.scalars["tar_worst"] is figures.scalars["accuracy_worst"] is None
    assert "tar_worst" not in figures.intervals


def test_curves_are_over_the_fmr_of_all() -> None:
    figures = group_figures("x", SCORES, SAME, GROUP, NAMES, FMR)
    curve = figures.curves["tar_by_group"]
    x, y = curve.lines["c"]
    for place in (0, len(x) // 2, -1):
        threshold = next(t for t in sorted(SCORES) if (SCORES[~SAME] >= t).mean() <= x[place])
        own = SCORES[SAME & (GROUP == 2)]
        assert y[place] == pytest.approx(np.mean(own >= threshold))
    assert figures.curves["fmr_by_group"].log_y


class Colours(nn.Module):
    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.mean(2).flatten(1)


def embedder() -> Embedder:
    return Embedder(Colours(), MobileFaceNet(embedding_dim=96), (32, 32), torch.device("cpu"))


def scored(**fields: object) -> Result:
    (protocol,) = open_all([GroupsConfig.model_validate(fields)])
    check_images([protocol], (32, 32))
    return evaluate(protocol, embedder())


@pytest.fixture(scope="module")
def rfw(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files of 40 pairs, as RFW has four."""
    folder = tmp_path_factory.mktemp("rfw") / "rfw"
    folder.mkdir()
    paths = [folder / f"{name}_test.bin" for name in ("African", "Asian", "Indian")]
    for seed, path in enumerate(paths):
        write_bin(path, *draw_pairs(dataset.part, 40, seed=seed))
    return paths


def test_files_are_groups(rfw: list[Path], tmp_path: Path) -> None:
    result = scored(paths=[str(path) for path in rfw], fmr=0.1)
    assert result.name == "rfw-by-group"
    assert list(result.tables["groups"]) == ["African_test", "Asian_test", "Indian_test"]
    assert dict(result.counts) == {"pairs": 120, "groups": 3, "pairs of no group": 0}
    row = result.tables["groups"]["Asian_test"]
    from manyfaces.train.protocols.verification import Verification

    alone = Verification(str(rfw[1]))
    alone.name = "alone"
    assert isinstance(row, dict)
    assert row["accuracy"] == pytest.approx(evaluate(alone, embedder()).scalars["accuracy"])
    save_report([result], tmp_path, 1)
    assert read_report(tmp_path).results[0].tables["groups"]["Asian_test"] == row
    names = {path.name for path in draw_report(tmp_path)}
    assert {"fmr_by_group-rfw-by-group.svg", "tar_by_group-rfw-by-group.png"} <= names


def test_a_table_tells_groups_of_images_or_identities(
    dataset: Dataset, rfw: list[Path], tmp_path: Path
) -> None:
    blobs, same = draw_pairs(dataset.part, 40, seed=5)
    write_bin(tmp_path / "pairs.bin", blobs, same)
    of_image = ["young" if number % 4 < 2 else "old" for number in range(80)]
    of_image[0], of_image[3] = "old", ""
    lines = [f"{number},x,{group}\n" for number, group in enumerate(of_image)]
    (tmp_path / "groups.csv").write_text("image,gender,age\n" + "".join(lines))
    path, table = str(tmp_path / "pairs.bin"), str(tmp_path / "groups.csv")
    result = scored(paths=[path], groups=table, column="age", fmr=0.1)
    assert result.name == "pairs-by-age"
    assert result.counts["pairs of no group"] == 2
    known = result.tables["groups"]
    assert sum(int(row["genuine"] + row["impostors"]) for row in known.values()) == 38  # type: ignore[index, operator]
    with pytest.raises(UserError, match=r"of one group or none \(x\); give two at least"):
        scored(paths=[path], groups=table)
    (tmp_path / "groups.csv").write_text("identity,age\nAnn,old\nBob,young\n")
    with pytest.raises(
        UserError, match=r"tells of identities, and .*pairs\.bin does not name them"
    ):
        scored(paths=[path], groups=table)

    for person, first in (("Ann", 0), ("Bob", 20)):
        (tmp_path / "faces" / person).mkdir(parents=True)
        for number in range(20):
            file = tmp_path / "faces" / person / f"{person}_{number + 1:04}.jpg"
            file.write_bytes(blobs[first + number])
    pairs = [f"{who} {n} {n + 1}" for n in range(1, 20) for who in ("Ann", "Bob")]
    pairs += [f"Ann {n} Bob {n}" for n in range(1, 21)]
    (tmp_path / "pairs.txt").write_text("\n".join(pairs))
    fields = {"paths": [str(tmp_path / "pairs.txt")], "root": str(tmp_path / "faces"), "fmr": 0.1}
    result = scored(**fields, groups=table, interleave=True)
    assert result.counts["pairs of no group"] == 20
    assert {name: row["genuine"] for name, row in result.tables["groups"].items()} == {  # type: ignore[index]
        "old": 19,
        "young": 19,
    }
    (tmp_path / "groups.csv").write_text("image,age\nAnn_0001.jpg,old\n")
    with pytest.raises(UserError, match=r"knows none of the images of .*pairs\.txt; expected '/"):
        scored(**fields, groups=table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a first row of names, `image` or `identity`"),
        ("name,age\n", "expected a first row of names, `image` or `identity`"),
        ("image\n", "expected a first row of names"),
        ("image,age\na,old\nb\n", r"groups\.csv:3: 1 cells; expected 2"),
        (
            "image,age\na,old\na,young\n",
            r"groups\.csv:3: a is of the group young, and of old before",
        ),
    ],
)
def test_tables_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_groups(tmp_path / "groups.csv")
    (tmp_path / "good.csv").write_text("image,age,gender\na,old,f\n")
    with pytest.raises(UserError, match="no column size; its columns are age, gender"):
        read_groups(tmp_path / "good.csv", "size")
    with pytest.raises(UserError, match=r"none\.csv: cannot be read as a CSV"):
        read_groups(tmp_path / "none.csv")


def test_what_makes_no_groups_is_refused() -> None:
    with pytest.raises(ValidationError, match="one set is one group: give a CSV as groups"):
        GroupsConfig.model_validate({"paths": ["a.bin"]})
    with pytest.raises(ValidationError, match="column is one of the table in groups"):
        GroupsConfig.model_validate({"paths": ["a.bin", "b.bin"], "column": "age"})
