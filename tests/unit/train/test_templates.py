"""Pooling of templates against loops over lists, and by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyfaces.configs.aggregations.aggregation import Aggregation as AggregationConfig
from manyfaces.configs.aggregations.media_mean import MediaMean
from manyfaces.configs.aggregations.norm_weighted import NormWeighted
from manyfaces.configs.aggregations.quality_weighted import QualityWeighted
from manyfaces.configs.errors import UserError
from manyfaces.train.aggregations.aggregation import ImageSets
from manyfaces.train.evaluation.templates import Members, pooled


def sets(
    embeddings: list[list[float]], memberships: list[tuple[int, int, int]], scores: list[float]
) -> ImageSets:
    """Memberships are (image, template, media)."""
    image_M, template_M, media_M = np.array(memberships).T
    return ImageSets(
        np.array(embeddings, np.float32),
        Members.of(template_M, media_M, image_M),
        np.array(scores, np.float32),
        [f"{image}.jpg" for image in range(len(embeddings))],
    )


def length(vector: list[float]) -> float:
    return math.sqrt(sum(x * x for x in vector))


def unit(vector: list[float]) -> list[float]:
    return [x / length(vector) for x in vector]


def by_loops(
    images: ImageSets, keep_norm: bool, detector_score: bool, template: int, media_M: list[int]
) -> list[float]:
    """IF's `image2template_feature` in plain Python: the mean over the frames of a medium, and the
    sum over the media."""
    frames: dict[int, list[list[float]]] = {}
    for place in range(len(media_M)):
        if images.members.template_M[place] != template:
            continue
        image = images.members.image_M[place]
        feature = [float(x) for x in images.embeddings_ND[image]]
        feature = feature if keep_norm else unit(feature)
        weight = float(images.detector_N[image]) if detector_score else 1.0
        frames.setdefault(media_M[place], []).append([weight * x for x in feature])
    means = [[sum(xs) / len(xs) for xs in zip(*each, strict=True)] for each in frames.values()]
    return unit([sum(xs) for xs in zip(*means, strict=True)])


def test_a_template_of_two_media_by_hand() -> None:
    """One medium is a picture, the other a video of three frames; norms 5, 2, 2 and 4."""
    images = sets(
        [[3, 4], [2, 0], [0, 2], [0, 4]],
        [(0, 0, 7), (1, 0, 8), (2, 0, 8), (3, 0, 8)],
        [1, 0.5, 1, 1],
    )
    by_hand = {
        (True, False): (3 + 2 / 3, 4 + 6 / 3),  # (3, 4) + ((2, 0) + (0, 2) + (0, 4)) / 3
        (True, True): (3 + 1 / 3, 4 + 6 / 3),  # the first frame has half the score
        (False, False): (0.6 + 1 / 3, 0.8 + 2 / 3),
        (False, True): (0.6 + 0.5 / 3, 0.8 + 2 / 3),
    }
    for (keep_norm, detector_score), expected in by_hand.items():
        config = MediaMean(keep_norm=keep_norm, detector_score=detector_score)
        got = config.build().templates(images)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, [unit(list(expected))], rtol=1e-7)
    # All images alike, whatever their media.
    np.testing.assert_allclose(NormWeighted().build().templates(images), [unit([5, 10])])


@st.composite
def made_sets(draw: st.DrawFn) -> tuple[ImageSets, list[int]]:
    """Each template has a member, images are in one template or several, in any order."""
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    templates, images = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    extra = draw(st.integers(0, 20))
    template_M = random.permutation(
        np.concatenate([np.arange(templates), random.integers(0, templates, extra)])
    )
    media_M = random.integers(0, 4, len(template_M))
    image_M = random.integers(0, images, len(template_M))
    made = ImageSets(
        random.standard_normal((images, 3)).astype(np.float32),
        Members.of(template_M, media_M, image_M),
        random.uniform(0.1, 1, images).astype(np.float32),
        [],
    )
    order = np.lexsort((media_M, template_M))
    return made, media_M[order].tolist()


@given(made_sets(), st.booleans(), st.booleans())
def test_media_means_are_those_of_loops(
    made: tuple[ImageSets, list[int]], keep_norm: bool, detector_score: bool
) -> None:
    images, media_M = made
    config = MediaMean(keep_norm=keep_norm, detector_score=detector_score)
    got = config.build().templates(images)
    for template, vector in enumerate(got):
        expected = by_loops(images, keep_norm, detector_score, template, media_M)
        np.testing.assert_allclose(vector, expected, rtol=1e-6, atol=1e-6)


@given(made_sets(), st.integers(1, 30))
def test_blocks_hold_every_template_once_and_whole(
    made: tuple[ImageSets, list[int]], memberships: int
) -> None:
    members = made[0].members
    blocks = list(members.blocks(memberships))
    assert [k for block in blocks for k in range(block.templates.start, block.templates.stop)] == (
        list(range(members.num_templates))
    )
    assert np.array_equal(np.concatenate([block.image_m for block in blocks]), members.image_M)
    sizes = np.bincount(members.template_M)
    for block in blocks:
        inside = np.diff([*block.first_k, len(block.image_m)])
        assert inside.tolist() == sizes[block.templates].tolist()
        assert block.media_s[block.first_media_k].tolist() == block.first_k.tolist()


def test_nothing_but_zeros_stays_zero() -> None:
    images = sets([[0, 0], [1, 0]], [(0, 0, 0), (1, 1, 0)], [1, 0])
    for length_ in ("keep", "unit"):
        got = pooled(
            images.embeddings_ND, images.members, length=length_, weight_N=images.detector_N
        )
        assert got.tolist() == [[0, 0], [0, 0]]


def test_quality_weights_are_found_by_the_names_of_the_images(tmp_path) -> None:
    images = sets([[3, 0], [0, 5], [7, 7]], [(0, 0, 0), (1, 0, 0), (2, 1, 1)], [1, 1, 1])
    scores = tmp_path / "scores.txt"
    scores.write_text("2.jpg 9\nother.jpg 5\n1.jpg 0.25\n0.jpg 0.5\n")
    config = AggregationConfig._validate({"kind": "quality_weighted", "scores": str(scores)})
    expected = [unit([0.5, 0.25]), unit([1, 1])]
    np.testing.assert_allclose(config.build().templates(images), expected)


def test_quality_weights_are_read_from_the_embeddings_of_a_model(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = sets([[3, 0], [0, 5]], [(0, 0, 0), (1, 0, 0)], [1, 1])
    file = str(tmp_path / "embeddings.parquet")
    table = {"key": ["1.jpg", "0.jpg"], "quality_quality": [0.25, 0.5], "norm": [4.0, 1.0]}
    pq.write_table(pa.table(table), file)
    for column, expected in {"quality_quality": [0.5, 0.25], "norm": [1, 4]}.items():
        got = QualityWeighted(scores=file, column=column).build().templates(images)
        np.testing.assert_allclose(got, [unit(expected)])
    with pytest.raises(
        UserError, match="has the columns key, quality_quality, norm; expected sharp"
    ):
        QualityWeighted(scores=file, column="sharp").build()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("0.jpg 1\n", "no score of 1.jpg \\(1 such images of 2\\)"),
        ("0.jpg 1\n1.jpg -2\n", "the score of 1.jpg is -2; weights have to be positive"),
        ("0.jpg 1\n1.jpg nan\n", "the score of 1.jpg is nan; weights have to be positive"),
        ("0.jpg 1\n1.jpg high\n", "scores.txt:2: expected `name score`, got '1.jpg high'"),
    ],
)
def test_quality_weights_that_cannot_be_used_are_refused(tmp_path, lines: str, told: str) -> None:
    images = sets([[3, 0], [0, 5]], [(0, 0, 0), (1, 0, 0)], [1, 1])
    scores = tmp_path / "scores.txt"
    scores.write_text(lines)
    with pytest.raises(UserError, match=told):
        QualityWeighted(scores=str(scores)).build().templates(images)
