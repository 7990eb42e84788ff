"""The class-sharded head on 1 to 4 real gloo ranks against tests/dense_head.py. Ranks only gather
facts; this process judges them."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from dense_head import DenseHead
from hypothesis import given, settings
from hypothesis import strategies as st
from launcher import run_ranks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from manyfaces.configs import schema
from manyfaces.configs.errors import UserError
from manyfaces.configs.margins.adaface import AdaFace
from manyfaces.configs.margins.arcface import ArcFace
from manyfaces.configs.margins.combined import Combined
from manyfaces.configs.margins.cosface import CosFace
from manyfaces.configs.margins.curricularface import CurricularFace
from manyfaces.configs.margins.magface import MagFace
from manyfaces.configs.margins.margin import Margin
from manyfaces.configs.margins.softmax import Softmax
from manyfaces.configs.margins.sphereface import SphereFace
from manyfaces.configs.margins.sphereface2 import SphereFace2
from manyfaces.configs.margins.uniface import UniFace
from manyfaces.configs.split import batch_share
from manyfaces.models.head import devices, sampling
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.models.head.rows import Rows

CPU = torch.device("cpu")
WORLD_SIZES = [1, 2, 3]
"""And 4 in `make test-all`: four processes on two cores take as long as the others together."""
STEPS = 3
MARGINS: list[Margin] = [
    ArcFace(m=0.5),
    CosFace(m=0.35),
    Combined(),
    Combined(m1=1.4, m2=0.2, m3=0.1),
    Softmax(),
    ArcFace(gradient="straight_through"),
    SphereFace(m=1.7),
    AdaFace(momentum=0.3),
    MagFace(low=1.0, high=20.0, regulariser=3.0),
    CurricularFace(momentum=0.3),
    SphereFace2(),
    UniFace(balance=0.7),
]

BINARY = ("sphereface2", "uniface")
"""Margins that are no softmax: they do not go with sampling."""


class Case(NamedTuple):
    number: int
    config: schema.Head
    num_classes: int
    dim: int
    batch_size: int
    seed: int
    cosine: float | None
    """Of each sample with its class row; None is random."""
    twins: bool
    """Classes come in pairs that lie close together: hard negatives."""
    low_classes: int
    """Labels are below this: with few, some ranks have no positive."""


def draw_case(number: int) -> Case:
    """A case for every margin with all classes and, where the margin allows it, some, with one
    sub-centre and three; scales and batches in turn; the other sizes are random."""
    rng = np.random.default_rng(number)
    each, kind = number % len(MARGINS), number // len(MARGINS)
    turn = number + kind
    scale = [16.0, 64.0, 73.0, 30.1, 100.0, 256.0][turn % 6]
    is_binary = MARGINS[each].word() in BINARY
    rate = 1.0 if kind % 2 == 0 or is_binary else [0.1, 0.0, 0.6][number % 3]
    num_classes = int(rng.choice([1, 2, 4, 5, 37, 257, 511, 700])) if number % 4 else 640 + number
    config = schema.Head(
        margin=MARGINS[each],
        sub_centers=[1, 3][kind // 2],
        filter_above=[None, None, 0.3][turn % 3],
        scale=scale,
        sample_rate=rate,
        chunk_classes=int(rng.choice([1, 7, 100, 8192]))
        if num_classes < 300
        else int(rng.choice([100, 8192])),
        rows=schema.Rows(
            momentum=float(rng.choice([0.3, 0.9])), lr_scale=float(rng.choice([1.0, 0.5]))
        ),
    )
    low = num_classes if number % 3 else max(1, num_classes // 4)
    cosine = [None, 0.99, 0.7, None, 0.97, -0.95, 0.99][turn % 7]
    dim = int(rng.choice([3, 16, 64, 512]))
    return Case(
        number,
        config,
        num_classes,
        dim,
        int(rng.integers(3, 28)),
        number,
        cosine,
        bool(number % 2),
        low,
    )


CASES = [draw_case(number) for number in range(4 * len(MARGINS))]
LOGITS = ["recompute", "store16"]
ROWWISE = [
    (number, schema.Rows(optimizer="rowwise", dtype=dtype, momentum=momentum))
    for number, (dtype, momentum) in enumerate(
        [("float32", 0.0), ("float32", 0.5), ("float16", 0.5), ("bfloat16", 0.5), ("float8", 0.5)]
        * 3
    )
]


def first_sub_centers(case: Case) -> list[Tensor]:
    """Rows of every sub-centre: the first near the samples, the others anywhere."""
    config = schema.Head(sub_centers=case.config.sub_centers)
    tensors = PartialFC(
        config, case.num_classes, case.dim, seed=case.seed, weight_decay=0, device=CPU
    ).tensors()
    return [first_rows(case), *(tensors[f"rows.{k}"] for k in range(1, config.sub_centers))]


def first_rows(case: Case) -> Tensor:
    rows_CD = PartialFC(
        schema.Head(), case.num_classes, case.dim, seed=case.seed, weight_decay=0, device=CPU
    ).tensors()["rows"]
    if case.twins:
        noise = (
            torch.randn(rows_CD.shape, generator=torch.Generator().manual_seed(case.seed)) * 0.002
        )
        rows_CD = rows_CD.clone()
        pairs = case.num_classes // 2
        rows_CD[pairs : 2 * pairs] = rows_CD[:pairs] + noise[:pairs]
    return rows_CD


def batch(case: Case, rows_CD: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Embeddings of all lengths, float32; labels with repetitions and, here and there, -1 on an
    embedding that is NaN."""
    rng = np.random.default_rng([case.seed, step])
    labels = rng.integers(case.low_classes, size=case.batch_size)
    embeddings = rng.standard_normal((case.batch_size, case.dim))
    if case.cosine is not None:
        own = rows_CD.numpy()[labels].astype(np.float64)
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        embeddings -= (embeddings * own).sum(1, keepdims=True) * own
        embeddings *= np.sqrt(1 - case.cosine**2) / np.linalg.norm(
            embeddings, axis=1, keepdims=True
        )
        embeddings += case.cosine * own
    embeddings *= np.exp(rng.normal(0, 1, (case.batch_size, 1)))
    labels[rng.random(case.batch_size) < 0.2] = -1
    embeddings[np.flatnonzero(labels == -1)[:1]] = np.nan
    return torch.from_numpy(embeddings).float(), torch.from_numpy(labels)


def chosen(case: Case, step: int, labels_B: Tensor) -> list[int]:
    if case.config.sample_rate == 1:
        return list(range(case.num_classes))
    blocks = sampling.blocks(
        case.num_classes, case.config.sample_rate, case.seed, step * case.batch_size
    )
    ids = {i for b in blocks for i in range(b * 128, min((b + 1) * 128, case.num_classes))}
    return sorted(ids | set(labels_B[labels_B >= 0].tolist()))


def fill(rows: Rows, state: dict[str, Tensor]) -> None:
    for name, tensor in rows.tensors().items():
        tensor.copy_(state[name])


def build(case: Case, weight_decay: float, group: Any = None, **settings: Any) -> PartialFC:
    """With the case's rows, which for the row-wise optimiser are scaled to length 1."""
    config = case.config.model_copy(update=settings)
    head = PartialFC(
        config,
        case.num_classes,
        case.dim,
        seed=case.seed,
        weight_decay=weight_decay,
        device=CPU,
        group=group,
    )
    for k, whole_CD in enumerate(first_sub_centers(case)):
        rows_CD, rows = whole_CD[head.lo : head.hi], head.sub_centers[k]
        if config.rows.optimizer == "sgd":
            fill(rows, {"rows": rows_CD, "momentum": torch.zeros_like(rows_CD)})
        else:
            rows_CD = F.normalize(rows_CD).to(rows.dtype)
            norms_C = torch.linalg.vector_norm(rows_CD.float(), dim=1)
            fill(
                rows,
                {
                    "rows": rows_CD,
                    "lengths": torch.ones(len(rows_CD)),
                    "inverse_norms": 1 / norms_C,
                },
            )
    return head


def take_step(
    head: PartialFC,
    embeddings_BD: Tensor,
    labels_B: Tensor,
    lr: float = 0.05,
    position: int = 0,
    last: bool = False,
    weights_B: Tensor | None = None,
    weight: float = 1.0,
    details: bool = False,
) -> dict[str, Any]:
    lo, hi = batch_share(len(labels_B), head.rank, head.world_size)
    before = head.ranks.group._get_sequence_number_for_group() if head.ranks.group else 0
    step = head.step(
        embeddings_BD[lo:hi],
        labels_B[lo:hi],
        lr=lr,
        position=position,
        batch_size=len(labels_B),
        last=last,
        weights_N=None if weights_B is None else weights_B[lo:hi],
        weight=weight,
        details=details,
    )
    assert step.d_embeddings_ND.dtype == embeddings_BD.dtype
    cosines = {}
    if details:
        assert step.target_cosine_N is not None
        assert step.nearest_negative_N is not None
        assert step.nearest_negative_N.dtype == step.target_cosine_N.dtype == torch.float32
        cosines = {
            "target": step.target_cosine_N.numpy(),
            "nearest": step.nearest_negative_N.numpy(),
        }
    else:
        assert step.target_cosine_N is None
        assert step.nearest_negative_N is None
    return {
        **cosines,
        "collectives": head.ranks.group._get_sequence_number_for_group() - before
        if head.ranks.group
        else 0,
        "loss": step.loss.item(),
        "d_embeddings": step.d_embeddings_ND.float().numpy() / head.world_size,
        "flags": (step.finite.item(), step.one_owner.item()),
        "last": step.last.item(),
        "numbers": head.numbers(),
        **{name: tensor.float().numpy().copy() for name, tensor in head.tensors().items()},
    }


WEIGHT = 0.7
"""Of the whole loss, where samples have weights too."""


def weighted_batch(case: Case, rows_CD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights from 0 to 3, some of them 0, of which one is on an embedding that is not finite, and
    any on ignored samples."""
    embeddings_BD, labels_B = batch(case, rows_CD, 0)
    generator = torch.Generator().manual_seed(case.seed)
    weights_B = 3 * torch.rand(len(labels_B), generator=generator)
    weights_B[torch.rand(len(labels_B), generator=generator) < 0.25] = 0
    weightless = ((weights_B == 0) & (labels_B != -1)).nonzero()[:1]
    embeddings_BD[weightless] = [float("nan"), float("inf")][case.seed % 2]
    weights_B[labels_B == -1] = float("nan")
    return embeddings_BD, labels_B, weights_B


def weighted_step(case: Case, logits: str, group: Any = None) -> dict[str, Any]:
    embeddings_BD, labels_B, weights_B = weighted_batch(case, first_rows(case))
    return take_step(
        build(case, 0, group, logits=logits), embeddings_BD, labels_B,
        weights_B=weights_B, weight=WEIGHT, details=True,
    )  # fmt: skip


FORGETFUL = [case.number for case in CASES if case.num_classes > 200][:6]


def gone(case: Case) -> Tensor:
    return torch.arange(case.seed % 3, case.num_classes, 3)


def forgetful_batch(case: Case, rows_CD: Tensor, step: int) -> tuple[Tensor, Tensor]:
    embeddings_BD, labels_B = batch(case, rows_CD, step)
    return embeddings_BD, torch.where(torch.isin(labels_B, gone(case)), -1, labels_B)


def weighted_logits(case: Case) -> str:
    return LOGITS[(case.number // 2 + case.number // len(MARGINS)) % 2]


def run_cases(cases: list[Case]) -> dict[str, Any]:
    """All that one rank sees."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)  # fresh memory is NaN
    world = dist.group.WORLD
    facts: dict[str, Any] = {
        "recompute": [],
        "store16": [],
        "runs": [],
        "rowwise": [],
        "weighted": [],
    }
    for case in cases:
        rows_CD = first_rows(case)
        for logits in LOGITS:
            facts[logits].append(
                take_step(build(case, 0, world, logits=logits), *batch(case, rows_CD, 0))
            )
        facts["weighted"].append(weighted_step(case, weighted_logits(case), world))
        head = build(case, 5e-3, world)
        facts["runs"].append(
            [
                take_step(head, *batch(case, rows_CD, s), position=s * case.batch_size)
                for s in range(STEPS)
            ]
        )
    for number, rows in ROWWISE:
        case = cases[number]
        head = build(case, 5e-3, world, rows=rows)
        rows_CD = first_rows(case)
        facts["rowwise"].append(
            [
                take_step(head, *batch(case, rows_CD, s), position=s * case.batch_size)
                for s in range(STEPS)
            ]
        )

    case = CASES[0]._replace(cosine=0.5, batch_size=11)
    embeddings_BD, labels_B = (tensor.clone() for tensor in batch(case, first_rows(case), 0))
    embeddings_BD, labels_B = embeddings_BD.nan_to_num(), torch.arange(11)
    head = build(case, 5e-3, world)
    facts["good"] = take_step(head, embeddings_BD, labels_B)
    broken_BD, strange_B = embeddings_BD.clone(), labels_B.clone()
    broken_BD[-1, 0], strange_B[-1] = float("nan"), case.num_classes
    facts["nan"] = take_step(head, broken_BD, labels_B)
    facts["infinite"] = take_step(head, broken_BD.nan_to_num(nan=float("inf")), labels_B)
    facts["strange label"] = take_step(head, embeddings_BD, strange_B)
    facts["negative label"] = take_step(
        head, embeddings_BD, torch.where(strange_B == case.num_classes, -2, strange_B)
    )
    facts["no labels"] = take_step(head, embeddings_BD, torch.full_like(labels_B, -1))
    facts["last"] = take_step(
        build(case, 5e-3, world), embeddings_BD, labels_B, last=head.rank == head.world_size - 1
    )
    facts["forgotten"] = []
    for number in FORGETFUL:
        head = build(CASES[number], 5e-3, world)
        head.forget(gone(CASES[number]))
        rows_CD = first_rows(CASES[number])
        facts["forgotten"].append(
            [take_step(head, *forgetful_batch(CASES[number], rows_CD, s)) for s in range(STEPS)]
        )
    half = build(case, 0, world, wire_dtype="bfloat16")
    facts["bfloat16"] = take_step(half, embeddings_BD.bfloat16(), labels_B)
    facts["initial"] = (
        PartialFC(case.config, 2500, 5, seed=9, weight_decay=0, device=CPU, group=dist.group.WORLD)
        .tensors()["rows"]
        .numpy()
    )
    return facts


class Worlds(dict[int, list[dict[str, Any]]]):
    """Facts of each rank, by world size; gathered when they are asked for."""

    def __missing__(self, world_size: int) -> list[dict[str, Any]]:
        self[world_size] = run_ranks(world_size, run_cases, CASES)
        return self[world_size]


@pytest.fixture(scope="module")
def worlds() -> Worlds:
    return Worlds()


@pytest.fixture(scope="module", params=[*WORLD_SIZES, pytest.param(4, marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest, worlds: Worlds) -> list[dict[str, Any]]:
    return worlds[request.param]


def whole(ranks: list[dict[str, Any]], name: str) -> Tensor:
    """Over all ranks; of the head's state sub-centre by sub-centre."""
    names = [name, *(f"{name}.{k}" for k in range(1, 16) if f"{name}.{k}" in ranks[0])]
    return torch.from_numpy(
        np.concatenate([facts[each] for each in names for facts in ranks])
    ).double()


def error(found: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected).clamp(min=1e-30))


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.number))
def test_loss_and_gradients(world: list[dict[str, Any]], case: Case, logits: str) -> None:
    ranks = [facts[logits][case.number] for facts in world]
    rows_CD = first_rows(case)
    embeddings_BD, labels_B = batch(case, rows_CD, 0)
    expected = DenseHead(case.config, first_sub_centers(case), 0).step(
        embeddings_BD.nan_to_num(1.0), labels_B, chosen(case, 0, labels_B), 0.05
    )
    for facts in ranks:
        assert facts["flags"] == (True, True)
        assert facts["loss"] == ranks[0]["loss"]
        assert facts["collectives"] <= (5 if case.config.margin.kind == "curricularface" else 4) * (
            len(world) > 1
        )
    agree(case, ranks[0]["loss"], whole(ranks, "d_embeddings"), whole(ranks, "momentum"), *expected)


def largest_logit(case: Case) -> float:
    return case.config.scale * (2 if case.config.margin.kind == "curricularface" else 1)


def drift(case: Case) -> float:
    """How far rows may be from float64's after steps: each step's gradient feels the rows' last
    error, and the steeper the more."""
    return 1e-5 * max(1, largest_logit(case) / 64)


def agree(
    case: Case,
    loss: float,
    d_embeddings_BD: Tensor,
    d_rows_CD: Tensor,
    true_loss: Tensor,
    true_BD: Tensor,
    true_CD: Tensor,
) -> None:
    assert abs(loss - true_loss.item()) <= 5e-6 * true_loss.item() + 1e-12
    # CurricularFace's logits reach twice the scale: from 200 on, which no scale in use comes to,
    # float32 leaves more of them.
    limit = 3e-5 if case.config.scale < largest_logit(case) >= 200 else 2e-5
    assert error(d_embeddings_BD, true_BD) <= limit
    assert error(d_rows_CD, true_CD) <= limit


def agree_weighted(case: Case, ranks: list[dict[str, Any]]) -> None:
    embeddings_BD, labels_B, weights_B = weighted_batch(case, first_rows(case))
    dense, ids = DenseHead(case.config, first_sub_centers(case), 0), chosen(case, 0, labels_B)
    target_B, nearest_B = dense.details(embeddings_BD, labels_B, ids)
    is_finite = embeddings_BD.isfinite().all(1) | (labels_B == -1)
    for name, expected in (("target", target_B), ("nearest", nearest_B)):
        found = whole(ranks, name)
        torch.testing.assert_close(
            found[is_finite], expected[is_finite], rtol=0, atol=2e-6, equal_nan=True
        )
    expected = dense.step(
        embeddings_BD.nan_to_num(1.0, 1.0), labels_B, ids, 0.05, weights_B.nan_to_num(), WEIGHT
    )
    d_embeddings_BD = whole(ranks, "d_embeddings")
    assert not d_embeddings_BD[(weights_B == 0) | (labels_B == -1)].any()
    assert ranks[0]["flags"] == (True, True)
    agree(case, ranks[0]["loss"], d_embeddings_BD, whole(ranks, "momentum"), *expected)
    numbers = ranks[0]["numbers"]
    for name, number in dense.numbers.items():
        assert abs(numbers[name] - number) <= 1e-6 * max(abs(number), 0.2), name
    if "bias" in numbers:
        assert abs(numbers["bias"] - dense.bias.item()) <= 1e-5 * max(abs(dense.bias.item()), 0.2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.number))
def test_weights_and_details(world: list[dict[str, Any]], case: Case) -> None:
    ranks = [facts["weighted"][case.number] for facts in world]
    for facts in ranks:
        assert facts["loss"] == ranks[0]["loss"]
        first_sum = case.config.margin.word() == "curricularface"
        assert facts["collectives"] == (5 + first_sum) * (len(world) > 1)
    agree_weighted(case, ranks)


@st.composite
def heads(draw: st.DrawFn) -> Case:
    C = draw(st.integers(1, 400))
    margin = draw(st.sampled_from(MARGINS))
    rate = draw(st.sampled_from([0.0, 0.3, 1.0]))
    config = schema.Head(
        margin=margin,
        scale=draw(st.floats(1, 256)),
        sample_rate=1.0 if margin.word() in BINARY else rate,
        sub_centers=draw(st.sampled_from([1, 1, 2, 3])),
        filter_above=draw(st.sampled_from([None, None, 0.2, 0.9])),
        chunk_classes=draw(st.integers(1, 500)),
        logits=draw(st.sampled_from(LOGITS)),
        rows=schema.Rows(momentum=0.9),
    )
    cosine = draw(st.one_of(st.none(), st.floats(-0.9, 0.99)))
    low = draw(st.integers(1, C))
    return Case(
        0,
        config,
        C,
        draw(st.integers(2, 128)),
        draw(st.integers(1, 40)),
        draw(st.integers(0, 999)),
        cosine,
        draw(st.booleans()),
        low,
    )


@given(heads())
def test_any_head_of_one_rank(case: Case) -> None:
    rows_CD = first_rows(case)
    embeddings_BD, labels_B = batch(case, rows_CD, 0)
    expected = DenseHead(case.config, first_sub_centers(case), 0).step(
        embeddings_BD.nan_to_num(1.0), labels_B, chosen(case, 0, labels_B), 0.05
    )
    facts = take_step(build(case, 0), embeddings_BD, labels_B)
    agree(
        case, facts["loss"], whole([facts], "d_embeddings"), whole([facts], "momentum"), *expected
    )


@settings(max_examples=30)
@given(heads())
def test_any_weights_and_details_of_one_rank(case: Case) -> None:
    agree_weighted(case, [weighted_step(case, case.config.logits)])


@settings(max_examples=30)
@given(heads(), st.sampled_from(["weights", "weight", "details"]))
def test_what_is_not_asked_for_costs_no_bit(case: Case, asked: str) -> None:
    """Weights of 1 and details change nothing but what they give."""
    embeddings_BD, labels_B = batch(case, first_rows(case), 0)
    plain = take_step(build(case, 5e-3), embeddings_BD, labels_B)
    ones_B = torch.ones(len(labels_B), dtype=torch.float64)
    more: dict[str, Any] = {"weights": {"weights_B": ones_B}, "weight": {"weight": 1}}.get(
        asked, {"details": True}
    )
    found = take_step(build(case, 5e-3), embeddings_BD, labels_B, **more)
    for name, expected in plain.items():
        np.testing.assert_array_equal(found[name], expected)


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("margin", [ArcFace(), MagFace(), SphereFace2(), CurricularFace()])
def test_without_any_weight_nothing_changes(margin: Margin, logits: str) -> None:
    head = PartialFC(
        schema.Head(margin=margin, logits=logits), 20, 8, seed=1, weight_decay=0.1, device=CPU
    )
    labels_B, nothing = torch.arange(6), torch.zeros(6)
    take_step(head, torch.randn(6, 8), labels_B)
    before, numbers = {k: v.clone() for k, v in head.tensors().items()}, head.numbers()
    for weights_B, weight in ((nothing, 1.0), (None, 0.0), (nothing + 1, 0.0)):
        facts = take_step(
            head, torch.randn(6, 8), labels_B, weights_B=weights_B, weight=weight, details=True
        )
        assert facts["loss"] == 0
        assert facts["flags"] == (True, True)
        assert not facts["d_embeddings"].any()
        assert np.isfinite(facts["target"]).all()
        assert head.numbers() == numbers
        assert all(torch.equal(tensor, before[name]) for name, tensor in head.tensors().items())


@pytest.mark.parametrize(
    "index", range(len(ROWWISE)), ids=lambda index: f"{ROWWISE[index][1].dtype}-{index}"
)
def test_rowwise_is_plain_sgd_of_length_times_row(worlds: Worlds, index: int) -> None:
    number, rows = ROWWISE[index]
    case = CASES[number]._replace(config=CASES[number].config.model_copy(update={"rows": rows}))
    dense = DenseHead(
        case.config,
        [
            F.normalize(sub_center.take(slice(case.num_classes)).double())
            for sub_center in build(case, 5e-3).sub_centers
        ],
        5e-3,
    )
    rows_CD = first_rows(case)
    limit = {"float32": drift(case), "float8": 0.1}.get(rows.dtype, 1e-2)
    # Rows of 8 bits are off by more with every step, and so are the gradients behind the first.
    for step in range(1 if rows.dtype == "float8" else STEPS):
        embeddings_BD, labels_B = batch(case, rows_CD, step)
        loss, d_embeddings_BD, _ = dense.step(
            embeddings_BD.nan_to_num(1.0), labels_B, chosen(case, step, labels_B), 0.05
        )
        for world in map(worlds.__getitem__, WORLD_SIZES):
            ranks = [facts["rowwise"][index][step] for facts in world]
            assert abs(ranks[0]["loss"] - loss.item()) <= 10 * limit * loss.item() + 1e-12
            gradients = whole(ranks, "d_embeddings")
            assert error(gradients, d_embeddings_BD) <= (10 * limit if step else 1e-3)
            norms_C = torch.linalg.vector_norm(whole(ranks, "rows"), dim=1)
            assert error(whole(ranks, "inverse_norms"), 1 / norms_C) <= 1e-6
            assert (
                abs(norms_C - 1).max()
                <= {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2, "float8": 0.1}[rows.dtype]
            )
            assert (
                error(
                    whole(ranks, "rows") * (whole(ranks, "lengths") / norms_C)[:, None],
                    dense.matrix(),
                )
                <= limit
            )


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.number))
def test_rows_after_steps(worlds: Worlds, case: Case) -> None:
    rows_CD = first_rows(case)
    dense = DenseHead(case.config, first_sub_centers(case), 5e-3)
    before = {world_size: dense.matrix() for world_size in WORLD_SIZES}
    first_ids = case.num_classes * np.arange(case.config.sub_centers)
    for step in range(STEPS):
        embeddings_BD, labels_B = batch(case, rows_CD, step)
        ids = chosen(case, step, labels_B)
        dense.step(embeddings_BD.nan_to_num(1.0), labels_B, ids, 0.05)
        for world_size in WORLD_SIZES:
            world = worlds[world_size]
            now = whole([facts["runs"][case.number][step] for facts in world], "rows")
            moved = (now != before[world_size]).any(1).nonzero().flatten().tolist()
            assert moved == (
                [first + i for first in first_ids for i in ids] if (labels_B >= 0).any() else []
            )
            numbers = world[0]["runs"][case.number][step]["numbers"]
            assert all(facts["runs"][case.number][step]["numbers"] == numbers for facts in world)
            bias = {"bias": dense.bias.item()} if "bias" in numbers else {}
            # norms do not depend on rows, which drift apart
            for name, number in {**dense.numbers, **bias}.items():
                assert abs(numbers[name] - number) <= (
                    1e-6 if "norm" in name else drift(case)
                ) * max(abs(number), 0.2), name
            before[world_size] = now
    for now in before.values():
        assert error(now, dense.matrix()) <= drift(case)
        assert error(now, before[1]) <= drift(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.number))
def test_four_ranks_have_the_rows_of_one(worlds: Worlds, case: Case) -> None:
    for step in range(STEPS):
        one, four = (
            whole([facts["runs"][case.number][step] for facts in worlds[size]], "rows")
            for size in (1, 4)
        )
        assert error(four, one) <= drift(case)


@pytest.mark.parametrize("number", FORGETFUL)
def test_forgotten_classes_take_no_part(world: list[dict[str, Any]], number: int) -> None:
    """As if the head had never had them."""
    case = CASES[number]
    rows_CD = first_rows(case)
    dense = DenseHead(
        case.config,
        [rows_CD.index_fill(0, gone(case), 0) for rows_CD in first_sub_centers(case)],
        5e-3,
    )
    every_gone = torch.cat(
        [gone(case) + k * case.num_classes for k in range(case.config.sub_centers)]
    )
    for step in range(STEPS):
        embeddings_BD, labels_B = forgetful_batch(case, rows_CD, step)
        ids = [i for i in chosen(case, 0, labels_B) if i not in set(gone(case).tolist())]
        loss, d_embeddings_BD, _ = dense.step(embeddings_BD.nan_to_num(1.0), labels_B, ids, 0.05)
        ranks = [facts["forgotten"][FORGETFUL.index(number)][step] for facts in world]
        assert abs(ranks[0]["loss"] - loss.item()) <= drift(case) * loss.item() + 1e-12
        assert error(whole(ranks, "d_embeddings"), d_embeddings_BD) <= 5 * drift(case)
        rows = whole(ranks, "rows")
        assert not rows[every_gone].any()
        assert not whole(ranks, "momentum")[every_gone].any()
        assert error(rows, dense.matrix()) <= drift(case)


def test_the_cases_are_as_hard_as_they_claim(worlds: Worlds) -> None:
    losses = [facts["loss"] for facts in worlds[1][0]["recompute"]]
    assert min(loss for loss in losses if loss > 0) < 1e-6
    assert max(losses) > 50
    assert any(len(facts["rows"]) == 0 for facts in worlds[3][2]["recompute"])  # empty shards
    assert any(case.num_classes == 1 for case in CASES)


@pytest.mark.parametrize(
    "fault", ["nan", "infinite", "strange label", "negative label", "no labels"]
)
def test_a_step_that_is_called_off_changes_nothing(world: list[dict[str, Any]], fault: str) -> None:
    for facts in world:
        np.testing.assert_array_equal(facts[fault]["rows"], facts["good"]["rows"])
        np.testing.assert_array_equal(facts[fault]["momentum"], facts["good"]["momentum"])
        assert not facts[fault]["d_embeddings"].any()
        assert facts[fault]["flags"] == (
            fault not in ("nan", "infinite"),
            "label" not in fault or fault == "no labels",
        )
        if fault == "no labels":
            assert facts[fault]["loss"] == 0


def test_one_rank_tells_all_that_this_step_is_its_last(world: list[dict[str, Any]]) -> None:
    for facts in world:
        assert facts["last"]["last"]
        assert not facts["good"]["last"]
        np.testing.assert_array_equal(facts["last"]["rows"], facts["good"]["rows"])
        np.testing.assert_array_equal(facts["last"]["d_embeddings"], facts["good"]["d_embeddings"])


def test_bfloat16_on_the_wire_is_close(world: list[dict[str, Any]]) -> None:
    case = CASES[0]._replace(cosine=0.5, batch_size=11)
    rows_CD = first_rows(case)
    embeddings_BD = batch(case, rows_CD, 0)[0].nan_to_num().bfloat16()
    loss, d_embeddings_BD, d_rows_CD = DenseHead(case.config, first_sub_centers(case), 0).step(
        embeddings_BD, torch.arange(11), chosen(case, 0, torch.arange(11)), 0.05
    )
    ranks = [facts["bfloat16"] for facts in world]
    assert abs(ranks[0]["loss"] / loss.item() - 1) < 0.01
    assert error(whole(ranks, "d_embeddings"), d_embeddings_BD) < 0.03
    assert error(whole(ranks, "momentum"), d_rows_CD) < 0.03


def test_first_rows_do_not_depend_on_the_world_size(worlds: Worlds) -> None:
    expected = worlds[1][0]["initial"]
    assert abs(expected.std() / 0.01 - 1) < 0.05
    assert len(np.unique(expected[:, 0])) > 2490  # blocks differ
    for world in map(worlds.__getitem__, WORLD_SIZES):
        np.testing.assert_array_equal(
            np.concatenate([facts["initial"] for facts in world]), expected
        )


class Watch(TorchDispatchMode):
    """Operations that make the host wait for a device, and the largest tensor made."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.waits: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(
            name in str(func)
            for name in (
                "_local_scalar_dense",
                "nonzero",
                "masked_s",
                "unique",
                "index.Tensor",
                "index_put",
                "is_nonzero",
                "equal",
            )
        ):
            self.waits.append(str(func))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "host_sync_is_free", lambda device: False)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("rate", [1.0, 0.2, 0.0])
@pytest.mark.parametrize(
    "rows",
    [
        schema.Rows(),
        *(schema.Rows(optimizer="rowwise", dtype=dtype) for dtype in ("float16", "float8")),
    ],
    ids=lambda rows: f"{rows.optimizer}-{rows.dtype}",
)
@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("scale", [64.0, 100.0])
def test_nothing_waits_and_nothing_is_large(
    scale: float, logits: str, rows: schema.Rows, rate: float
) -> None:
    C, D, B, n = 3000, 32, 16, 128
    config = schema.Head(scale=scale, chunk_classes=n, logits=logits, rows=rows, sample_rate=rate)
    head = PartialFC(config, C, D, seed=1, weight_decay=0.1, device=CPU)
    with Watch(list(head.tensors().values())) as watch:
        head.step(torch.randn(B, D), torch.arange(B) // 2, lr=0.1, position=0, batch_size=B)
    assert watch.waits == []
    assert watch.largest <= 128 * max(B, D)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.number))
def test_what_runs_without_looking_is_the_same(case: Case) -> None:
    """Classes that stand for none change nothing; stored logits are as exact as float16."""
    embeddings_BD, labels_B = batch(case, first_rows(case), 0)
    loss, d_embeddings_BD, d_rows_CD = DenseHead(case.config, first_sub_centers(case), 0).step(
        embeddings_BD.nan_to_num(1.0), labels_B, chosen(case, 0, labels_B), 0.05
    )
    for logits, limit in zip(LOGITS, (2e-5, 1e-3), strict=True):
        facts = take_step(build(case, 0, logits=logits), embeddings_BD, labels_B)
        assert abs(facts["loss"] - loss.item()) <= 5e-6 * loss.item() + 1e-12
        assert error(torch.from_numpy(facts["d_embeddings"]).double(), d_embeddings_BD) <= limit
        assert error(whole([facts], "momentum"), d_rows_CD) <= limit
        broken_BD = torch.where(labels_B[:, None] == labels_B.max(), float("nan"), embeddings_BD)
        head = build(
            case, 5e-3, logits=logits, rows=schema.Rows(optimizer="rowwise", dtype="float16")
        )
        before = {name: tensor.clone() for name, tensor in head.tensors().items()}
        if (labels_B >= 0).any():
            assert take_step(head, broken_BD, labels_B)["flags"] == (False, True)
            assert all(torch.equal(tensor, before[name]) for name, tensor in head.tensors().items())


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="0 classes"):
        PartialFC(schema.Head(), 0, 4, seed=1, weight_decay=0, device=CPU)
    head = PartialFC(schema.Head(), 9, 4, seed=1, weight_decay=0, device=CPU)
    step = {"lr": 0.1, "position": 0, "batch_size": 3}
    rows_ND, labels_N = torch.randn(3, 4), torch.arange(3)
    with pytest.raises(ValueError, match=r"3 embeddings and 3 labels and 2 weights; .* it holds 3"):
        head.step(rows_ND, labels_N, weights_N=torch.ones(2), **step)
    with pytest.raises(ValueError, match="weight of the head's loss is -1"):
        head.step(rows_ND, labels_N, weight=-1, **step)
    before = head.tensors()["rows"].clone()
    for wrong in (-1.0, float("nan")):
        weights_N = torch.tensor([1.0, wrong, 1.0])
        assert not head.step(rows_ND, labels_N, weights_N=weights_N, **step).finite
        assert torch.equal(head.tensors()["rows"], before)
    with pytest.raises(UserError, match=r"sample_rate 0.5 does not go with UniFace, .*=1"):
        PartialFC(
            schema.Head(margin=UniFace(), sample_rate=0.5), 9, 4, seed=1, weight_decay=0, device=CPU
        )
    with pytest.raises(ValueError, match="it holds 3"):
        head.step(torch.zeros(2, 4), torch.zeros(2), lr=0.1, position=0, batch_size=3)
