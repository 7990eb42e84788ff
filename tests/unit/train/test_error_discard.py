"""Error versus discard: the curves against loops over their definitions, and the protocol on a set
whose qualities are known."""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from manyfaces.configs.backbones.mobilefacenet import MobileFaceNet
from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.error_discard import ErrorDiscard as ErrorDiscardConfig
from manyfaces.configs.schema import Config
from manyfaces.data.sources.verification_bin import write_bin
from manyfaces.models.backbones.output import Output
from manyfaces.train.evaluation import discard, metrics
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.evaluation.result import Result
from manyfaces.train.protocols.open import open_all

HW, D = (8, 8), 6


def by_fixed_threshold(
    scores: list[float], same: list[bool], quality: list[float], fmr: float
) -> list[float]:
    """Of every threshold that a score is, and of none, the lowest whose false match rate over all
    pairs is at most `fmr`; then pairs of one identity are taken away one by one, worst first."""
    impostors = [s for s, is_same in zip(scores, same, strict=True) if not is_same]
    allowed = [
        t
        for t in sorted({*scores, math.inf})
        if sum(s >= t for s in impostors) / len(impostors) <= fmr
    ]
    genuine = [
        (q, number, s < allowed[0])
        for number, (s, is_same, q) in enumerate(zip(scores, same, quality, strict=True))
        if is_same
    ]
    curve = []
    for twentieth in range(20):
        kept = sorted(genuine)
        while (len(genuine) - len(kept) + 1) * 20 <= twentieth * len(genuine):
            kept.pop(0)
        curve.append(sum(rejected for *_, rejected in kept) / len(kept))
    return curve


def by_threshold_anew(
    scores: list[float], same: list[bool], quality: list[float], fmr: float
) -> list[float] | None:
    """As `ERC/erc.py` and `ERC/roc.py` of CR-FIQA work it out, pair by pair."""
    pairs = [
        (q, number, math.acos(min(max(s, -1.0), 1.0)) / math.pi, is_same)
        for number, (s, is_same, q) in enumerate(zip(scores, same, quality, strict=True))
    ]
    curve = []
    for rate in np.arange(0, 0.98, 0.05):
        kept = sorted(pairs)[int(rate * len(pairs)) :]
        genuine = [d for *_, d, is_same in kept if is_same]
        impostors = [d for *_, d, is_same in kept if not is_same]
        if not genuine or not impostors:
            return None
        best, nearest = 0.0, math.inf
        for threshold in sorted({d for *_, d, _ in kept}, reverse=True):
            rate_here = sum(d <= threshold for d in impostors) / len(impostors)
            if abs(rate_here - fmr) < nearest:
                best, nearest = threshold, abs(rate_here - fmr)
        curve.append(1 - sum(d < best for d in genuine) / len(genuine))
    return curve


@st.composite
def sets(draw: st.DrawFn) -> tuple[list[float], list[bool], list[float], float]:
    """Scores and qualities with ties."""
    count = draw(st.integers(2, 60))
    grid = st.integers(-20, 20).map(lambda n: n / 20)
    scores = draw(st.lists(grid, min_size=count, max_size=count))
    same = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    quality = draw(st.lists(st.integers(0, 9).map(float), min_size=count, max_size=count))
    return scores, same, quality, draw(st.sampled_from([0.02, 0.1, 0.25, 0.5]))


@given(sets())
def test_curves_are_those_of_the_definitions(
    case: tuple[list[float], list[bool], list[float], float],
) -> None:
    scores, same, quality, fmr = case
    pairs = discard.Pairs(np.array(scores), np.array(same))
    found = discard.fixed_threshold(pairs, np.array(quality), fmr)
    anew = discard.threshold_anew(pairs, np.array(quality), fmr)
    if not any(same) or fmr * (len(same) - sum(same)) < 1:
        assert found is None
        assert anew is None
        return
    assert found is not None
    assert found.tolist() == pytest.approx(by_fixed_threshold(*case), abs=1e-15)
    expected = by_threshold_anew(*case)
    assert (anew is None) == (expected is None)
    if anew is not None:
        assert anew.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_worse_image_counts_and_a_perfect_quality_is_the_best_possible() -> None:
    quality = discard.pair_quality(np.array([3, 1, 2, 5], np.float32))
    assert quality.tolist() == [1, 2]
    rng = np.random.default_rng(0)
    same = np.arange(400) % 2 == 0
    scores = np.where(same, rng.normal(0.5, 0.2, 400), rng.normal(0, 0.15, 400))
    pairs = discard.Pairs(scores, same)
    perfect = discard.fixed_threshold(pairs, scores, 0.1)
    chance = discard.fixed_threshold(pairs, rng.random(400), 0.1)
    assert perfect is not None
    assert chance is not None
    assert 0 < perfect[0] == chance[0]
    np.testing.assert_allclose(perfect, discard.best_possible(perfect[0]), atol=1e-15)
    assert discard.area(perfect) < 0.3 * discard.area(chance)
    # By hand: 0.2 and 0 from a half on; trapezes of 0.05 width.
    line = np.where(discard.FRACTIONS < 0.5, 0.2, 0.0)
    assert discard.area(line) == pytest.approx(0.2 * 0.45 + 0.05 * 0.1)


class Sharp(nn.Module):
    """The first pixel is the place on a circle, the second its radius and the third the quality."""

    def forward(self, images_NCHW: Tensor) -> Output:
        told_N3 = (images_NCHW[:, 0, 0, :3] + 1) / 2
        angle_N = told_N3[:, 0] * math.pi
        circle_N2 = torch.stack([angle_N.cos(), angle_N.sin()], 1)
        embeddings_ND = nn.functional.pad(circle_N2 * (1 + told_N3[:, 1:2]), (0, D - 2))
        return Output({"main": embeddings_ND}, scores={"quality": told_N3[:, 2]})


def embedder(network: nn.Module) -> Embedder:
    return Embedder(network, MobileFaceNet(embedding_dim=D), HW, torch.device("cpu"), batch_size=32)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.uint8]]:
    """A set, and what its images tell: [2N, 3]."""
    rng = np.random.default_rng(5)
    num_pairs = 240
    told_N3 = rng.integers(0, 256, (2 * num_pairs, 3), np.uint8)
    same = [pair % 2 == 0 for pair in range(num_pairs)]
    for pair in range(0, num_pairs, 2):  # of one identity: the worse the image, the farther away
        worst = told_N3[2 * pair : 2 * pair + 2, 2].min()
        moved = rng.normal(0, 1 + 0.3 * (255 - int(worst)))
        told_N3[2 * pair + 1, 0] = np.clip(float(told_N3[2 * pair, 0]) + moved, 0, 255)
    path = tmp_path_factory.mktemp("set") / "made.bin"
    blobs = []
    for each in told_N3:
        image = np.zeros((*HW, 3), np.uint8)
        image[0, :3] = each[:, None]
        blobs.append(cv2.imencode(".png", image)[1].tobytes())
    write_bin(path, blobs, same)
    return path, told_N3


def opened(path: Path, **settings: Any) -> Any:
    return open_all([ErrorDiscardConfig(path=str(path), flip="none", **settings)])[0]


def test_the_protocol_gives_each_score_s_curves(
    told: tuple[Path, NDArray[np.uint8]], tmp_path: Path
) -> None:
    path, told_N3 = told
    table = tmp_path / "scores.csv"
    order = np.random.default_rng(0).permutation(len(told_N3))
    lines = [f"{number},{-int(told_N3[number, 2])},x" for number in order]
    table.write_text("\ufeff" + "\n".join(["image,badness,comment", *lines]), encoding="utf-8")
    scores = ("norm", "quality", "badness")
    protocol = opened(path, scores=scores, fmrs=(0.1, 1e-2, 1e-3), scores_file=str(table))
    assert protocol.name == "made-discard"
    result = evaluate(protocol, embedder(Sharp()))
    assert isinstance(result, Result)

    angle_N = told_N3[:, 0] / 255 * math.pi
    # Of equal ones rounding decides: so scores and norms are those of the same embeddings.
    embeddings_MD = embedder(Sharp()).embed(protocol.images()).double().numpy()
    scores_N = metrics.cosine_scores(embeddings_MD)
    np.testing.assert_allclose(scores_N, np.cos(angle_N[0::2] - angle_N[1::2]), atol=1e-6)
    same = (np.arange(240) % 2 == 0).tolist()
    norms_M = np.linalg.norm(embeddings_MD, axis=1)
    np.testing.assert_allclose(norms_M, 1 + told_N3[:, 1] / 255, rtol=1e-5)
    qualities = {"norm": norms_M, "quality": told_N3[:, 2].astype(float)}
    for fmr in (0.1, 1e-2):
        for score, quality_M in qualities.items():
            quality = quality_M.reshape(-1, 2).min(1)
            expected = by_fixed_threshold(scores_N.tolist(), same, list(quality), fmr)
            found = result.curves[f"fnmr_at_fmr_{fmr:.0e}_fixed"].lines[score][1]
            np.testing.assert_allclose(found, expected, atol=1e-12)
            assert result.scalars[f"{score}_area_at_fmr_{fmr:.0e}"] == pytest.approx(
                float(np.trapezoid(expected, np.arange(20) / 20))
            )
            anew = by_threshold_anew(scores_N.tolist(), same, list(quality), fmr)
            found = result.curves[f"fnmr_at_fmr_{fmr:.0e}_anew"].lines[score][1]
            np.testing.assert_allclose(found, anew, atol=1e-12)
        areas = {score: result.scalars[f"{score}_area_at_fmr_{fmr:.0e}"] for score in scores}
        assert min(areas, key=lambda score: areas[score]) == "quality"
    # 120 pairs of two identities do not tell 0.001.
    assert result.scalars["quality_area_at_fmr_1e-03"] is None
    assert "fnmr_at_fmr_1e-03_fixed" not in result.curves
    assert result.headline.name == "norm_area_at_fmr_1e-01"
    curve = result.curves["fnmr_at_fmr_1e-01_fixed"]
    assert list(curve.lines) == [*scores, "best possible"]
    assert set(curve.y) == {curve.lines["norm"][1][0]}
    rows = result.tables["fnmr_by_quality"]
    assert list(rows)[:2] == ["0%", "5%"]
    at_5 = result.curves["fnmr_at_fmr_1e-02_anew"].lines["quality"][1][1]
    assert rows["5%"]["FMR 1e-02, threshold anew"] == at_5


def test_a_score_that_nobody_gives_is_told(
    told: tuple[Path, NDArray[np.uint8]], tmp_path: Path
) -> None:
    class Plain(nn.Module):
        def forward(self, images_NCHW: Tensor) -> Tensor:
            return Sharp()(images_NCHW).embeddings["main"]

    protocol = opened(told[0], scores=("quality",))
    with pytest.raises(UserError, match=r"nothing gives the score quality; this network has norm"):
        evaluate(protocol, embedder(Plain()))

    class Broken(nn.Module):
        def forward(self, images_NCHW: Tensor) -> Output:
            output = Sharp()(images_NCHW)
            return output._replace(scores={"quality": output.scores["quality"] / 0})

    with pytest.raises(UserError, match=r"gives NaN or infinite quality for \d+ of 480 images"):
        evaluate(protocol, embedder(Broken()))

    model = {"kind": "mobilefacenet"}
    asked = {"protocols": [{"kind": "error_discard", "path": "a.bin", "scores": ["quality"]}]}
    with pytest.raises(ValidationError, match="the network of this run gives norm; set objective"):
        Config(model=model, evaluation=asked)  # type: ignore[arg-type]
    Config(model=model, evaluation=asked, objective="cr_fiqa")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="the same value twice"):
        ErrorDiscardConfig(path="a.bin", scores=("norm", "norm"))


def test_scores_of_a_list_of_pairs_stand_beside_paths(tmp_path: Path) -> None:
    """All pairs of one identity first, and an image that is in several pairs."""
    faces = tmp_path / "faces"
    rng, lines, told = np.random.default_rng(3), list[str](), dict[str, float]()
    for person in range(120):
        (faces / f"p{person}").mkdir(parents=True)
        for number in range(2):
            image = np.zeros((*HW, 3), np.uint8)
            image[0, 0] = np.clip(255 * person / 120 + rng.normal(0, 20), 0, 255)
            name = f"p{person}/{number}.png"
            cv2.imwrite(str(faces / name), image)
            told[name] = float(rng.integers(0, 50))
        lines.append(f"p{person}/0.png p{person}/1.png 1")
    lines += [f"p{person}/0.png p{(person + 17) % 120}/1.png 0" for person in range(120)]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    table = tmp_path / "scores.csv"
    table.write_text("image,sharp\n" + "".join(f"{name},{s}\n" for name, s in told.items()))
    settings: dict[str, Any] = {"root": str(faces), "interleave": True, "scores": ("sharp",)}
    (protocol,) = open_all(
        [ErrorDiscardConfig(path=str(tmp_path / "pairs.txt"), flip="none", fmrs=(0.1,),
                            scores_file=str(table), **settings)]
    )  # fmt: skip
    assert protocol.name == "pairs-discard"
    assert len(protocol.distinct.images) == 240
    result = evaluate(protocol, embedder(Sharp()))
    images = [name for line in lines for name in line.split()[:2]]
    blobs = [(faces / name).read_bytes() for name in images]
    scores_N = metrics.cosine_scores(embedder(Sharp()).embed(blobs).numpy())
    quality = [min(told[a], told[b]) for a, b in zip(images[::2], images[1::2], strict=True)]
    same = [line.endswith(" 1") for line in lines]
    found = result.curves["fnmr_at_fmr_1e-01_fixed"].lines["sharp"][1]
    expected = by_fixed_threshold(scores_N.tolist(), same, quality, 0.1)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert len(set(found.tolist())) > 5
    table.write_text("image,sharp\np0/0.jpg,1\n")
    with pytest.raises(
        UserError, match=r"scores.csv:2: 'p0/0.jpg' is no image of the set, whose fi"
    ):
        open_all(
            [
                ErrorDiscardConfig(
                    path=str(tmp_path / "pairs.txt"), scores_file=str(table), **settings
                )
            ]
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,sharp\n0,1\n", "has no line for image 1, and for 479 of 480; give one"),
        ("image,blur\n0,1\n", "its columns are image, blur; expected image and one of sharp in"),
        ("", "its columns are none; expected image and one of sharp in the first line"),
        ("image,sharp\n0,1\n0,2\n", r":3: image 0 is there twice; leave one out"),
        (
            "image,sharp\n480,1\n",
            r":2: '480' is no image of the set, whose first is 0 and whose last is 479",
        ),
        ("image,sharp\nface.jpg,1\n", r":2: 'face.jpg' is no image of the set, whose first is 0"),
        ("image,sharp\n0,nan\n", r":2: 'nan' is no sharp; expected a finite number"),
        ("image,sharp\n0\n", r":2: None is no sharp; expected a finite number"),
        ('image,sharp\n"0,1\n', "cannot be read as a CSV"),
    ],
)
def test_a_broken_table_of_scores_is_told(
    told: tuple[Path, NDArray[np.uint8]], text: str, message: str, tmp_path: Path
) -> None:
    table = tmp_path / "scores.csv"
    table.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        opened(told[0], scores=("sharp",), scores_file=str(table))
    assert str(table) in str(caught.value)
    with pytest.raises(UserError, match="cannot be read as a CSV"):
        opened(told[0], scores=("sharp",), scores_file=str(tmp_path))
