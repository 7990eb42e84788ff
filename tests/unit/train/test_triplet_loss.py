"""The triplet loss against every triplet looked at one by one, in float64 with autograd, and
against pytorch-metric-learning."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from dense_head import triplets_one_by_one
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import Tensor

from manyfaces.configs.objectives.triplet import Triplet
from manyfaces.train.objectives import triplet_loss as module
from manyfaces.train.objectives.triplet_loss import triplet_loss

CONFIGS = [
    Triplet(mining=mining, margin=margin, distance=distance, weight=weight)
    for mining in ("batch_hard", "semi_hard")
    for margin, distance, weight in (
        (0.3, "euclidean", 1.0),
        ("soft", "euclidean", 0.5),
        (0.2, "squared", 3.0),
        (0.0, "euclidean", 1.0),
    )
]


def batch(B: int, D: int, people: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Unit float32 embeddings around a few centres, whatever their labels; a fifth is ignored, and
    zero."""
    generator = torch.Generator().manual_seed(seed)
    labels_B = torch.randint(people, (B,), generator=generator)
    labels_B[torch.rand(B, generator=generator) < 0.2] = -1
    centres = torch.randn(3, D, generator=generator)
    unit_BD = F.normalize(
        centres[torch.randint(3, (B,), generator=generator)]
        + spread * torch.randn(B, D, generator=generator)
    )
    return torch.where(labels_B[:, None] == -1, 0, unit_BD), labels_B


@given(
    B=st.integers(1, 20),
    D=st.sampled_from([2, 5, 64, 512]),
    people=st.integers(1, 6),
    spread=st.sampled_from([0, 1e-6, 1e-3, 0.3, 3]),
    seed=st.integers(0, 10**6),
    config=st.sampled_from(CONFIGS),
    cuts=st.lists(st.integers(0, 20), max_size=3),
    block=st.sampled_from([1, 45, 1 << 20]),
)
def test_any_split_is_the_whole(
    B: int,
    D: int,
    people: int,
    spread: float,
    seed: int,
    config: Triplet,
    cuts: list[int],
    block: int,
) -> None:
    unit_BD, labels_B = batch(B, D, people, spread, seed)
    edges = [0, *sorted(min(cut, B) for cut in cuts), B]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        parts = [
            triplet_loss(unit_BD, labels_B, first, after, config)
            for first, after in itertools.pairwise(edges)
        ]
    loss, d_unit_BD = sum(part[0] for part in parts), sum(part[1].double() for part in parts)
    expected_loss, expected_BD = triplets_one_by_one(unit_BD, labels_B, config)
    assert abs(loss - expected_loss) <= 5e-6 * expected_loss
    # Of places with the very same embedding, either may be the one that is mined: their gradients
    # are looked at in sum.
    point_B = torch.unique(unit_BD, dim=0, return_inverse=True)[1]
    sums = [
        torch.zeros(B, D, dtype=torch.float64).index_add_(0, point_B, gradient)
        for gradient in (d_unit_BD, expected_BD)
    ]
    assert (sums[0] - sums[1]).norm() <= 2e-5 * expected_BD.norm()
    assert all(part[0].dtype == torch.float64 and part[1].dtype == torch.float32 for part in parts)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    "labels", [[-1, -1, -1, -1], [0, 1, 2, 3], [5, 5, 5, 5], [5, 5, -1, -1], []], ids=str
)
def test_without_a_triplet_there_is_nothing(config: Triplet, labels: list[int]) -> None:
    labels_B = torch.tensor(labels, dtype=torch.int64)
    loss, d_unit_BD = triplet_loss(
        F.normalize(torch.ones(len(labels), 8)), labels_B, 0, len(labels), config
    )
    assert loss == 0
    assert d_unit_BD.shape == (len(labels), 8)
    assert not d_unit_BD.any()


@pytest.mark.parametrize(
    ("degrees", "pairs"),
    [
        (
            [0.0, 20, 12, 45],
            [(20, 45), (20, 25), (33, 12), (33, 45)],
        ),  # from 12, no negative is beyond 33: the farthest, not the nearest
        (
            [0.0, 20, 20, 45],
            [(20, 45), (20, 25), (25, 20), (25, 45)],
        ),  # as far as the positive is not farther
    ],
)
def test_points_on_a_circle(degrees: list[float], pairs: list[tuple[float, float]]) -> None:
    """By hand, for FaceNet's rule: the first two are one person; `pairs` are angles to positive,
    negative. A chord is 2 sin(angle / 2)."""
    unit_BD = torch.tensor(
        [[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in degrees]
    )
    chords = [tuple(2 * math.sin(math.radians(angle) / 2) for angle in pair) for pair in pairs]
    expected = sum(max(0.05 + p - n, 0) for p, n in chords) / 4
    loss, _ = triplet_loss(
        unit_BD, torch.tensor([0, 0, 1, 1]), 0, 4, Triplet(mining="semi_hard", margin=0.05)
    )
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("margin", [0.3, "soft"])
def test_batch_hard_agrees_with_pytorch_metric_learning(margin: float | str) -> None:
    unit_BD, labels_B = batch(60, 32, 12, 0.5, 1)
    valid_B = labels_B != -1
    kept_ND = unit_BD[valid_B].double().requires_grad_()
    options = {"smooth_loss": True, "margin": 0.0} if margin == "soft" else {"margin": margin}
    euclidean = distances.LpDistance(normalize_embeddings=False)
    mined = miners.BatchHardMiner(distance=euclidean)(kept_ND, labels_B[valid_B])
    theirs = losses.TripletMarginLoss(
        distance=euclidean, reducer=reducers.MeanReducer(), **options
    )(kept_ND, labels_B[valid_B], mined)
    loss, d_unit_BD = triplet_loss(unit_BD, labels_B, 0, 60, Triplet(margin=margin))
    assert loss == pytest.approx(theirs.item(), rel=5e-6)
    expected_ND = torch.autograd.grad(theirs, kept_ND)[0]
    assert (d_unit_BD[valid_B] - expected_ND).norm() <= 2e-5 * expected_ND.norm()


def test_semi_hard_takes_the_nearest_that_pytorch_metric_learning_mines() -> None:
    """Its miner gives every semi-hard negative of a pair, and nothing of a pair that has none."""
    unit_BD, labels_B = batch(40, 32, 8, 0.8, 2)
    unit_BD, labels_B = unit_BD[labels_B != -1].double(), labels_B[labels_B != -1]
    distance_BB = torch.cdist(unit_BD, unit_BD)
    mined = miners.TripletMarginMiner(
        2.0, "semihard", distance=distances.LpDistance(normalize_embeddings=False)
    )(unit_BD, labels_B)
    nearest: dict[tuple[int, int], float] = {}
    for a, p, n in torch.stack(mined, 1).tolist():
        nearest[a, p] = min(nearest.get((a, p), math.inf), float(distance_BB[a, n]))
    pairs = [
        (a, p)
        for a in range(len(labels_B))
        for p in range(len(labels_B))
        if a != p and labels_B[a] == labels_B[p]
    ]
    assert 0 < len(nearest) < len(pairs)
    farthest_B = torch.where(labels_B[:, None] != labels_B, distance_BB, 0).amax(1)
    costs = [
        max(0.2 + float(distance_BB[a, p]) - nearest.get((a, p), float(farthest_B[a])), 0)
        for a, p in pairs
    ]
    loss, _ = triplet_loss(
        unit_BD.float(), labels_B, 0, len(labels_B), Triplet(mining="semi_hard", margin=0.2)
    )
    assert loss == pytest.approx(sum(costs) / len(costs), rel=5e-6)


@pytest.mark.parametrize("config", CONFIGS[::4])
def test_no_shape_and_no_branch_depends_on_the_values(config: Triplet) -> None:
    """Tensors of the device `meta` have no values: whoever asks for one, as a wait for a GPU does,
    is refused."""
    loss, d_unit_BD = triplet_loss(
        torch.empty(6, 4, device="meta"),
        torch.empty(6, dtype=torch.int64, device="meta"),
        1,
        4,
        config,
    )
    assert (loss.shape, d_unit_BD.shape) == ((), (6, 4))
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(6, device="meta").any().item()
