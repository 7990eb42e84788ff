"""Protocol ijb on a made set, from the image files to the figures, against loops in plain Python
that follow InsightFace's `eval_ijbc.py` and `ijb_evals.py`."""

import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from launcher import run_ranks
from made_ijb import MadeIJB, write_ijb
from sklearn.metrics import roc_curve
from torch import Tensor, nn

from manyfaces.configs.aggregations.media_mean import MediaMean
from manyfaces.configs.errors import UserError
from manyfaces.configs.protocols.protocol import Protocol as ProtocolConfig
from manyfaces.configs.schema import Config
from manyfaces.data.conversion.align import TEMPLATE
from manyfaces.data.sources.ijb import Enrolled
from manyfaces.train.aggregations.aggregation import ImageSets
from manyfaces.train.evaluation.embedder import Embedder
from manyfaces.train.evaluation.evaluate import evaluate
from manyfaces.train.evaluation.result import Result
from manyfaces.train.protocols.aligned_images import AlignedImages
from manyfaces.train.protocols.ijb_identification import TemplateIdentification
from manyfaces.train.protocols.open import check_images, open_all

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
HW = (112, 112)
MODEL = Config.model_validate({"model": {"kind": "mobilefacenet", "embedding_dim": 192}}).model


class Coarse(nn.Module):
    """An embedding that one can compute by hand: the means of 8 x 8 fields, in three colours."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images_NCHW, 8).flatten(1) + 0.2


def embedder(batch_size: int = 7) -> Embedder:
    return Embedder(Coarse(), MODEL, HW, torch.device("cpu"), batch_size=batch_size)


def result_of(made: MadeIJB, batch_size: int = 7, **fields: Any) -> Result:
    config = ProtocolConfig._validate({"kind": "ijb", "root": str(made.root), **fields})
    (protocol,) = open_all([config])
    return evaluate(protocol, embedder(batch_size))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeIJB:
    return write_ijb(tmp_path_factory.mktemp("ijb") / "IJBC")


@pytest.fixture(scope="module")
def pixels(made: MadeIJB) -> list[np.ndarray]:
    """The aligned faces, RGB: the similarity in its linear form, warped with a black border."""
    lines = (made.root / "meta/ijbc_name_5pts_score.txt").read_text().splitlines()
    faces = []
    for line in lines:
        name, *numbers = line.split()
        points = np.float32(numbers[:10]).reshape(5, 2).astype(np.float64)
        x, y, ones, zeros = points[:, 0], points[:, 1], np.ones(5), np.zeros(5)
        rows = np.concatenate(
            [np.column_stack((x, -y, ones, zeros)), np.column_stack((y, x, zeros, ones))]
        )
        (a, b, *shift), *_ = np.linalg.lstsq(rows, TEMPLATE.T.ravel(), rcond=None)
        picture = cv2.imread(str(made.root / "loose_crop" / name))
        matrix = np.column_stack(([[a, -b], [b, a]], shift))
        faces.append(cv2.warpAffine(picture, matrix, (112, 112), borderValue=0)[:, :, ::-1])
    return faces


def embedded(pixels: list[np.ndarray], mirrored: bool) -> list[np.ndarray]:
    def one(image: np.ndarray) -> np.ndarray:
        fields = image.reshape(8, 14, 8, 14, 3).mean((1, 3)) / 127.5 - 1 + 0.2
        return fields.transpose(2, 0, 1).ravel()

    return [one(image) + (one(image[:, ::-1]) if mirrored else 0) for image in pixels]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt((vector**2).sum())


def template_vectors(
    made: MadeIJB, features: list[np.ndarray], keep_norm: bool, detector_score: bool
) -> dict[int, np.ndarray]:
    vectors = {}
    for template in {t for _, t, _ in made.memberships}:
        media: dict[int, list[np.ndarray]] = {}
        for name, of, medium in made.memberships:
            if of == template:
                row = made.names.index(name)
                feature = features[row] if keep_norm else unit(features[row])
                weight = made.scores[row] if detector_score else 1
                media.setdefault(medium, []).append(weight * feature)
        vectors[template] = unit(sum(np.mean(frames, 0) for frames in media.values()))
    return vectors


def tars_of(made: MadeIJB, vectors: dict[int, np.ndarray]) -> dict[float, float]:
    """TAR at the FAR nearest to each wanted one."""
    scores = [float(vectors[a] @ vectors[b]) for a, b, _ in made.pairs]
    fpr, tpr, _ = (each[::-1] for each in roc_curve([same for *_, same in made.pairs], scores))
    return {far: float(tpr[np.argmin(np.abs(fpr - far))]) for far in FARS}


def test_faces_are_aligned_as_insightface_does_and_not_changed_on_the_way(
    made: MadeIJB, pixels: list[np.ndarray]
) -> None:
    (protocol,) = open_all([ProtocolConfig._validate({"kind": "ijb", "root": str(made.root)})])
    images = protocol.images()
    assert len(images) == len(pixels) == 39
    for encoded, expected in zip(images, pixels, strict=True):
        decoded = cv2.imdecode(np.frombuffer(bytes(encoded), np.uint8), cv2.IMREAD_COLOR_RGB)
        assert np.abs(decoded.astype(int) - expected).max() <= 1
        assert (decoded == expected).mean() > 0.999
    assert min(image.std() for image in pixels) > 10, "not blank"
    assert protocol.image_name(3) == str(made.root / "loose_crop" / made.names[3])


@pytest.mark.parametrize("flip", ["none", "sum"])
def test_verification_is_that_of_the_loops(
    made: MadeIJB, pixels: list[np.ndarray], flip: str
) -> None:
    features = embedded(pixels, flip == "sum")
    also = [
        {"kind": "media_mean", "keep_norm": n, "detector_score": d}
        for n, d in ((True, False), (False, True), (False, False))
    ]
    result = result_of(made, flip=flip, also=also)
    assert result.name == "ijbc"
    for keep_norm, detector_score in itertools.product((True, False), repeat=2):
        expected = tars_of(made, template_vectors(made, features, keep_norm, detector_score))
        row = result.tables["aggregations"][f"media_mean N{keep_norm:d}D{detector_score:d}"]
        assert isinstance(row, dict)
        for far in (1e-4, 1e-5, 1e-6):
            assert row[f"TAR {far:.0e} (nearest)".replace("e-0", "e-")] == expected[far]
        if keep_norm and detector_score:
            for far, tar in expected.items():
                assert result.scalars[f"tar_nearest_far_{far:.0e}"] == tar
    assert result.headline.label == "TAR at the FAR nearest to 1e-4"
    assert result.scalars["tar_at_far_1e-04"] is None, "30 impostor pairs cannot tell"
    assert result.counts == {
        "images": 39, "templates": 12, "pairs": 36, "genuine": 6, "impostor": 30
    }  # fmt: skip
    far_table = result.tables["tar_at_far"]["1e-1"]
    assert isinstance(far_table, dict)
    assert far_table["not above: FAR"] <= 0.1
    low, high = result.intervals["tar_at_far_1e-01"]
    assert low <= result.scalars["tar_at_far_1e-01"] <= high


def test_norm_detector_and_flip_give_eight_different_vectors(
    made: MadeIJB, pixels: list[np.ndarray]
) -> None:
    """The figures of so few pairs coincide; the scores of a pair do not, and are the loops'."""
    seen = []
    for flip in ("none", "sum"):
        config = {"kind": "ijb", "root": str(made.root), "flip": flip}
        (protocol,) = open_all([ProtocolConfig._validate(config)])
        embeddings_ND = embedder().embed(protocol.images(), flip=flip).numpy()
        sets = ImageSets(embeddings_ND, protocol.members, protocol.faces.detector_N, made.names)
        features = embedded(pixels, flip == "sum")
        for keep_norm, detector_score in itertools.product((False, True), repeat=2):
            aggregation = MediaMean(keep_norm=keep_norm, detector_score=detector_score)
            unit_KD = aggregation.build().templates(sets)
            vectors = template_vectors(made, features, keep_norm, detector_score)
            expected = [vectors[template] for template in sorted(vectors)]
            np.testing.assert_allclose(unit_KD, expected, atol=1e-4)
            seen.append(float(unit_KD[0] @ unit_KD[-1]))
    assert len(set(np.round(seen, 6))) == 8


def search_by_loops(
    made: MadeIJB, vectors: dict[int, np.ndarray], fpir: float
) -> tuple[list[float], float]:
    """Rank-1, 5 and 10 over both galleries, and the mean TPIR of both."""
    hits, tpirs = {1: 0, 5: 0, 10: 0}, []
    for gallery in made.galleries.values():
        mated, unknown = [], []
        for probe, subject in made.probes:
            scores = sorted(
                ((float(vectors[probe] @ vectors[t]), s) for t, s in gallery), reverse=True
            )
            if subject in [s for _, s in gallery]:
                rank = [s for _, s in scores].index(subject) + 1
                for k in hits:
                    hits[k] += rank <= k
                mated.append((rank, scores[0][0]))
            else:
                unknown.append(scores[0][0])
        unknown.sort(reverse=True)
        threshold = unknown[max(int(len(unknown) * fpir) - 1, 0)]
        found = sum(rank == 1 and score > threshold for rank, score in mated)
        tpirs.append(found / len(mated))
    return [hits[k] / len(made.probes) for k in hits], float(np.mean(tpirs))


def test_identification_is_that_of_the_loops(made: MadeIJB, pixels: list[np.ndarray]) -> None:
    result = result_of(made, tasks=["verification", "identification"])
    vectors = template_vectors(made, embedded(pixels, True), True, True)
    for fpir in (1e-2, 1e-1):
        ranks, tpir = search_by_loops(made, vectors, fpir)
        assert [result.scalars[f"rank{k}"] for k in (1, 5, 10)] == ranks
        assert result.scalars[f"tpir_at_fpir_{fpir:.0e}"] == pytest.approx(tpir)
    assert result.counts["gallery_G1"] == result.counts["mated_G2"] == 3
    assert result.scalars["tar_nearest_far_1e-04"] is not None, "both tasks are of one result"
    alone = result_of(made, tasks=["identification"])
    assert alone.headline.name == "rank1"
    assert alone.scalars == {name: result.scalars[name] for name in alone.scalars}


def enrolled(rows: list[tuple[int, int]]) -> Enrolled:
    return Enrolled(*np.array(rows, np.int32).T)


def test_an_impostor_at_rank_1_above_the_threshold_is_no_hit() -> None:
    """Gallery A holds subjects 1 and 2, B holds 3. Probe 5, of subject 1, scores highest with
    subject 2, above every unknown probe; probe 6, of subject 2, is right."""

    def at(degrees: float) -> list[float]:
        return [np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))]

    vectors = np.array([at(0), at(90), at(180), at(89), at(95), at(160)])
    task = TemplateIdentification(
        {"A": enrolled([(0, 1), (1, 2)]), "B": enrolled([(2, 3)])},
        enrolled([(3, 1), (4, 2), (5, 3)]),
    )
    figures = task.figures("made", vectors)
    assert figures.scalars["rank1"] == 2 / 3
    assert figures.scalars["rank5"] == 1
    rows = figures.tables["open_set"]
    # A: one probe of two. The one unknown search stands at index max(int(1 * 0.01) - 1, 0) = 0.
    assert rows["FPIR 1e-02, gallery A"]["tpir"] == 0.5
    assert rows["FPIR 1e-02, gallery A"]["threshold"] == pytest.approx(np.cos(np.deg2rad(70)))
    assert rows["FPIR 1e-02, gallery A"]["fpir"] == 1
    assert rows["FPIR 1e-02, gallery B"]["tpir"] == 1
    assert figures.scalars["tpir_at_fpir_1e-02"] == 0.75


def of_rank(root: str) -> tuple[dict[str, float | None], dict[str, Any]]:
    torch.set_num_threads(1)
    result = result_of(
        MadeIJB(Path(root), [], [], [], [], {}, []), tasks=["verification", "identification"]
    )
    return dict(result.scalars), dict(result.tables)


def test_the_result_is_the_same_for_one_and_two_ranks_and_for_any_batch_size(made: MadeIJB) -> None:
    tasks = ["verification", "identification"]
    alone = result_of(made, tasks=tasks)
    for batch_size in (1, 39):
        assert result_of(made, batch_size, tasks=tasks).scalars == alone.scalars
    for scalars, tables in run_ranks(2, of_rank, str(made.root)):
        assert scalars == alone.scalars
        assert tables == alone.tables


def test_ijb_b_has_names_of_its_own(tmp_path: Path) -> None:
    made = write_ijb(tmp_path / "IJBB", subjects=2, prefix="ijbb")
    result = result_of(made, set="IJBB", tasks=["verification", "identification"])
    assert result.name == "ijbb"
    assert result.counts["gallery_S1"] == 1
    with pytest.raises(UserError, match=r"ijbc_name_5pts_score.txt: .*[Nn]o such file"):
        result_of(made)


def test_images_are_read_when_they_are_embedded_and_a_broken_one_is_told_by_its_path(
    tmp_path: Path,
) -> None:
    made = write_ijb(tmp_path / "IJBC", subjects=2)
    broken = made.root / "loose_crop" / "5.jpg"
    broken.write_bytes(broken.read_bytes()[:-400])
    (protocol,) = open_all([ProtocolConfig._validate({"kind": "ijb", "root": str(made.root)})])
    check_images([protocol], HW)
    with pytest.raises(UserError, match=f"^{broken} is not a whole, decodable"):
        evaluate(protocol, embedder())


def test_landmarks_that_are_one_point_are_told(made: MadeIJB) -> None:
    points = np.full((1, 5, 2), 30, np.float32)
    images = AlignedImages(lambda row: made.root / "loose_crop" / made.names[row], points)
    with pytest.raises(UserError, match=r"1.jpg: its five landmarks are one point"):
        images[0]


def test_images_that_are_taken_out_of_order_are_the_same(made: MadeIJB) -> None:
    (protocol,) = open_all([ProtocolConfig._validate({"kind": "ijb", "root": str(made.root)})])
    images = protocol.images()
    in_order = list(images)
    order = [5, 6, 7, 2, 3, 38, 0, 1, 2, 6, 5]
    assert [images[i] for i in order] == [in_order[i] for i in order]
    assert list(images[3:9]) == in_order[3:9]
