"""How many columns a sampled step scores for the batch's own classes, and that it is exact where
they are more than expected: against tests/dense_head.py, as on a GPU and as on a CPU."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from dense_head import DenseHead
from hypothesis import given
from hypothesis import strategies as st
from launcher import run_ranks
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.configs.head_cost import head_cost, scored_columns, undrawn_columns
from manyfaces.configs.margins.arcface import ArcFace
from manyfaces.configs.margins.curricularface import CurricularFace
from manyfaces.configs.margins.margin import Margin
from manyfaces.configs.objectives.objective import Sizes
from manyfaces.configs.split import batch_share, class_share
from manyfaces.data.feed.loader import Batch
from manyfaces.models.backbones.output import Output
from manyfaces.models.head import devices, sampling
from manyfaces.models.head.class_choice import ClassChoice
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.models.head.sampling import Columns
from manyfaces.train.objectives.margin_softmax import MarginSoftmax
from manyfaces.train.objectives.objective import Moment
from manyfaces.train.step import train_step

CPU = torch.device("cpu")
C, D, B, SEED, STEPS = 1500, 16, 160, 5, 2


class Setting(NamedTuple):
    labels: str
    rate: float
    margin: Margin = ArcFace()
    placement: str = "device"


KINDS = ("uniform", "first rank", "undrawn", "images of few", "frequent first", "one", "none")
SETTINGS = [
    *(Setting(kind, rate) for kind in KINDS for rate in (0.0, 0.2, 0.6)),
    Setting("first rank", 0.2, CurricularFace(momentum=0.3)),
    Setting("undrawn", 0.6, placement="host"),
]


def labels_of(kind: str, rate: float, step: int) -> Tensor:
    """Labels of a batch, of classes in random order or in one that no dataset should have."""
    random = np.random.default_rng([SEED, step])
    blocks = sampling.blocks(C, rate, SEED, step * B)
    undrawn = np.flatnonzero(~np.isin(np.arange(C) // 128, blocks))
    labels = {
        "uniform": random.integers(C, size=B),
        "first rank": random.permutation(C // 4)[:B],
        "undrawn": np.resize(random.permutation(undrawn), B),
        "images of few": np.resize(np.repeat(random.permutation(undrawn)[: B // 8], 8), B),
        "frequent first": np.minimum(random.geometric(0.01, B) - 1, C - 1),
        "one": np.full(B, undrawn[0]),
        "none": np.full(B, -1),
    }[kind]
    labels[random.random(B) < 0.05] = -1
    return torch.from_numpy(labels)


def batch(setting: Setting, step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    return torch.randn(B, D, generator=random), labels_of(setting.labels, setting.rate, step)


def head_of(setting: Setting) -> schema.Head:
    return schema.Head(
        scale=16,
        margin=setting.margin,
        sample_rate=setting.rate,
        placement=setting.placement,
        chunk_classes=100,
    )


def build(setting: Setting, group: Any = None) -> PartialFC:
    return PartialFC(head_of(setting), C, D, seed=SEED, weight_decay=5e-3, device=CPU, group=group)


def run_rank(settings: list[Setting], is_gpu: bool) -> list[list[dict[str, Any]]]:
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)  # fresh memory is NaN
    return run_settings(settings, is_gpu)


def run_settings(settings: list[Setting], is_gpu: bool) -> list[list[dict[str, Any]]]:
    """All that one rank sees."""
    facts, counts = [], []
    columns = ClassChoice.columns

    def counted(self: ClassChoice, labels_B: Tensor, position: int) -> Columns:
        found = columns(self, labels_B, position)
        counts.append(sum(map(len, found.chunks)))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassChoice, "columns", counted)
        if is_gpu:
            patch.setattr(devices, "host_sync_is_free", lambda device: False)
        for setting in settings:
            head, steps = build(setting, dist.group.WORLD), []
            lo, hi = batch_share(B, head.rank, head.world_size)
            for step in range(STEPS):
                embeddings_BD, labels_B = batch(setting, step)
                done = head.step(
                    embeddings_BD[lo:hi], labels_B[lo:hi], lr=0.05, position=step * B, batch_size=B
                )
                steps.append(
                    {
                        "loss": done.loss.item(),
                        "one_owner": done.one_owner.item(),
                        "gradient": done.d_embeddings_ND.numpy() / head.world_size,
                        "rows": head.tensors()["rows"].numpy().copy(),
                        "columns": counts[-1],
                    }
                )
            facts.append(steps)
    return facts


def chosen(setting: Setting, step: int) -> list[int]:
    drawn = sampling.blocks(C, setting.rate, SEED, step * B).tolist()
    labels = labels_of(setting.labels, setting.rate, step).tolist()
    return sorted(
        {i for b in drawn for i in range(b * 128, min((b + 1) * 128, C))}
        | {i for i in labels if i >= 0}
    )


def error(found: np.ndarray, expected: Tensor) -> float:
    length = expected.norm().item()
    return float(np.linalg.norm(found - expected.numpy())) / (length or 1.0)


def judge(ranks: list[list[list[dict[str, Any]]]], settings: list[Setting], is_gpu: bool) -> int:
    """Compare with the dense head; how many times a rank needed more columns than are kept."""
    overflows = 0
    for number, setting in enumerate(settings):
        first_CD = build(setting).tensors()["rows"]
        dense = DenseHead(head_of(setting), [first_CD], 5e-3)
        for step in range(STEPS):
            facts = [rank[number][step] for rank in ranks]
            embeddings_BD, labels_B = batch(setting, step)
            ids = chosen(setting, step)
            loss, d_embeddings_BD, _ = dense.step(embeddings_BD, labels_B, ids, 0.05)
            assert all(fact["one_owner"] for fact in facts)
            assert all(abs(fact["loss"] - loss.item()) <= 1e-6 * loss.item() for fact in facts)
            gradient = np.concatenate([fact["gradient"] for fact in facts])
            assert error(gradient, d_embeddings_BD) < 1e-5
            rows = np.concatenate([fact["rows"] for fact in facts])
            assert error(rows, dense.matrix()) < 1e-5
            for rank, fact in enumerate(facts):
                lo, hi = class_share(C, rank, len(ranks))
                drawn = sampling.blocks(C, setting.rate, SEED, step * B).tolist()
                own = [i for i in ids if lo <= i < hi]
                num_undrawn = sum(i // 128 not in drawn for i in own)
                padded = -(-B // len(ranks)) * len(ranks)
                least = undrawn_columns(setting.rate, padded, hi - lo, C)
                on_gpu = len(own) - num_undrawn + max(num_undrawn, least)
                assert fact["columns"] == (on_gpu if is_gpu else len(own))
                overflows += num_undrawn > least
    return overflows


def test_one_rank_is_exact_where_it_needs_more_columns_than_are_kept() -> None:
    settings = [Setting("undrawn", 0.6)]
    assert judge([run_settings(settings, True)], settings, is_gpu=True) == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("is_gpu", [False, True])
def test_any_number_of_ranks_is_exact_whatever_the_labels_are(
    world_size: int, is_gpu: bool
) -> None:
    ranks = run_ranks(world_size, run_rank, SETTINGS, is_gpu)
    assert judge(ranks, SETTINGS, is_gpu) > 0


@pytest.mark.slow
@given(
    st.sampled_from([1, 2, 3, 4, 8]),
    st.sampled_from([0.0, 0.1, 0.3, 0.6, 0.9]),
    st.sampled_from(KINDS),
    st.booleans(),
)
def test_each_class_of_the_batch_has_one_column(
    world_size: int, rate: float, kind: str, is_gpu: bool
) -> None:
    labels_B, found = labels_of(kind, rate, 0), []
    for rank in range(world_size):
        lo, hi = class_share(C, rank, world_size)
        with pytest.MonkeyPatch.context() as patch:
            if is_gpu:
                patch.setattr(devices, "host_sync_is_free", lambda device: False)
            columns = sampling.choose(C, lo, hi, rate, SEED, 0, labels_B).columns(100)
        ids: list[int] = []
        for chunk in columns.chunks:
            assert isinstance(chunk.ids, Tensor)
            excluded_n = chunk.ids == hi - lo
            assert chunk.excluded_n is None or torch.equal(chunk.excluded_n, excluded_n)
            assert is_gpu or not excluded_n.any()
            assert chunk.first == len(ids)
            ids += torch.where(excluded_n, -1, chunk.ids + lo).tolist()
        for label, column in zip(labels_B.tolist(), columns.targets_B.tolist(), strict=True):
            assert (ids[column] if column >= 0 else None) == (label if lo <= label < hi else None)
        found += [i for i in ids if i >= 0]
    assert sorted(found) == chosen(Setting(kind, rate), 0)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["uniform", "zipf", "log-normal"])
def test_classes_in_random_order_need_no_more_columns_than_are_kept(shape: str) -> None:
    num_classes, batch_size, world_size, rate = 40_000, 1200, 16, 0.3
    random = np.random.default_rng(1)
    frequency = {
        "uniform": np.ones(num_classes),
        "zipf": 1 / np.arange(1, num_classes + 1),
        "log-normal": random.lognormal(0, 1.5, num_classes),
    }[shape]
    upto = random.permutation(frequency / frequency.sum()).cumsum()
    lo, hi = class_share(num_classes, 3, world_size)
    least = undrawn_columns(rate, batch_size, hi - lo, num_classes)
    assert least < 130 < batch_size
    for position in range(0, 50 * batch_size, batch_size):
        places = np.searchsorted(upto, random.random(batch_size)).clip(max=num_classes - 1)
        labels_B = torch.from_numpy(places)
        choice = sampling.choose(num_classes, lo, hi, rate, SEED, position, labels_B)
        assert choice.num_undrawn is not None
        assert int(choice.num_undrawn.read()) <= least


def test_the_recipe_of_42_million_images_by_hand() -> None:
    """mu = 0.7 x 24,576 x 32,186 / 2,059,906 = 268.8; 268.8 + 8 x 16.4 + 16 = 415.9."""
    assert undrawn_columns(0.3, 24_576, 32_186, 2_059_906) == 416
    assert undrawn_columns(0.3, 24_576, 100, 2_059_906) == 25
    assert undrawn_columns(0.3, 3, 100, 200) == 3
    assert undrawn_columns(0.0, 64, 10, 10) == 10


@pytest.mark.parametrize(
    ("world_size", "columns"),
    [
        (1, 617_972 + 18_269),  # mu = 17,203.2
        (8, 77_247 + 2_538),  # 2,150.4
        (64, 9_657 + 416),  # 268.8
        (512, 1_208 + 96),  # 33.6
    ],
)
def test_work_follows_the_rate_at_any_number_of_workers(world_size: int, columns: int) -> None:
    sizes = Sizes(2_059_906, 512, 24_576, world_size, is_gpu=True)
    assert scored_columns(schema.Head(sample_rate=0.3), sizes) == columns
    every = scored_columns(schema.Head(), sizes)
    assert every == -(-2_059_906 // world_size)
    assert columns < 0.33 * every
    flops = [head_cost(schema.Head(sample_rate=rate), sizes).flops for rate in (0.1, 0.3, 1.0)]
    assert flops[1] * every == flops[2] * columns
    assert flops[0] < 0.45 * flops[1]


def test_the_number_of_columns_is_asked_for_before_the_backbone_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that a GPU's host, which reads it when it has handed out the backbone's work, waits for
    nothing but labels."""
    setting, order = Setting("undrawn", 0.6), []

    class Noted(devices.ToHost):
        def __init__(self, tensor: Tensor) -> None:
            order.append("asked")
            super().__init__(tensor)

        def read(self) -> Tensor:
            order.append("read")
            return super().read()

    class Backbone:
        module = None

        def run(self, images_NHWC: Tensor) -> Output:
            order.append("forward")
            return Output({"main": batch(setting, 0)[0]})

        def backward(self, *of: Tensor) -> None: ...

        def step(self, lr: float) -> float:
            return 0.0

    monkeypatch.setattr(devices, "host_sync_is_free", lambda device: False)
    monkeypatch.setattr(devices, "ToHost", Noted)
    objective = MarginSoftmax.__new__(MarginSoftmax)  # around a head that is there already
    objective.head, objective.weight, objective.branch = build(setting), 1.0, "main"
    images = {"main": torch.zeros(B, 1, 1, 3, dtype=torch.uint8)}
    shown = Batch(0, np.arange(B), images, labels_of("undrawn", 0.6, 0))
    moment = Moment(position=0, batch_size=B, lr=0.1)
    train_step(Backbone(), objective, shown, moment, seed=0, rank=0)  # type: ignore[arg-type]
    assert order == ["asked", "forward", "read"]


@pytest.mark.slow
def test_what_was_asked_for_another_step_is_not_used() -> None:
    expected, head = (build(Setting("uniform", 0.2)) for _ in range(2))
    embeddings_BD, labels_B = batch(Setting("uniform", 0.2), 0)
    for position, told_B in ((B, labels_B), (0, labels_B.flip(0))):
        head.prefetch(position, B, told_B)
        for each in (expected, head):
            each.step(embeddings_BD, labels_B, lr=0.1, position=0, batch_size=B)
        assert torch.equal(head.tensors()["rows"], expected.tensors()["rows"])
