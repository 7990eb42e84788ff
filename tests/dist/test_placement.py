"""Rows on the host against rows on the device: bit for bit the same, on 1 and 2 real gloo ranks,
and nothing but chosen rows travels."""

import threading
import time
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from launcher import run_ranks
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.configs.margins.arcface import ArcFace
from manyfaces.configs.margins.curricularface import CurricularFace
from manyfaces.configs.margins.margin import Margin
from manyfaces.configs.split import batch_share
from manyfaces.models.head import row_optimizers, sampling
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.models.head.rows import Rows
from manyfaces.models.head.sampling import Columns
from manyfaces.models.head.staging import Staging

CPU = torch.device("cpu")
C, D, B, SEED, STEPS = 700, 16, 14, 3, 9
NOT_FINITE, NO_LABELS, FORGET, RESUME = 2, 6, 1, 7
"""Steps that are called off, before which classes are forgotten, and before which the head is made
anew from its state."""
WEIGHTED = (3, 5)
"""Steps whose samples have weights, and whose details are asked for."""
GONE = torch.arange(0, C, 5)


class Setting(NamedTuple):
    rate: float
    rows: schema.Rows
    sub_centers: int = 1
    spaces: tuple[int, ...] = (0,)
    margin: Margin = ArcFace()
    logits: str = "recompute"
    dim: int = D


SGD, LAZY = schema.Rows(), schema.Rows(lazy_decay=True)
ROWS = [
    SGD,
    LAZY,
    schema.Rows(optimizer="rowwise", dtype="float16"),
    schema.Rows(optimizer="rowwise", dtype="float8"),
    schema.Rows(optimizer="adamw", lr_scale=0.05),
    schema.Rows(lazy_decay=True, dtype="bfloat16", momentum=0.0),
]
SETTINGS = [
    *(
        Setting(rate, rows, 1 + 2 * ((i + j) % 2))
        for i, rate in enumerate((0.0, 0.1, 0.6))
        for j, rows in enumerate(ROWS)
    ),
    Setting(0.6, SGD, spaces=(0, 300, 301), margin=CurricularFace()),
    Setting(0.6, schema.Rows(dtype="float16"), logits="store16", dim=5),
]


def batch(step: int, dim: int = D) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng([SEED, step])
    labels = rng.integers(C, size=B)
    labels[rng.random(B) < (1 if step == NO_LABELS else 0.2)] = -1
    labels[:2] = labels[2]  # three of one class
    embeddings_BD, labels_B = (
        torch.from_numpy(rng.standard_normal((B, dim))).float(),
        torch.from_numpy(labels),
    )
    if step == NOT_FINITE:
        embeddings_BD[labels_B >= 0] = float("nan")
    return embeddings_BD, torch.where(torch.isin(labels_B, GONE), -1, labels_B)


def build(setting: Setting, placement: str, group: Any = None) -> PartialFC:
    tree = {
        "sample_rate": setting.rate,
        "rows": setting.rows,
        "sub_centers": setting.sub_centers,
        "margin": setting.margin,
    }
    tree |= {"scale": 16, "chunk_classes": 100, "logits": setting.logits, "placement": placement}
    config = schema.Head.model_validate(tree)
    return PartialFC(
        config,
        C,
        setting.dim,
        seed=SEED,
        weight_decay=0.02,
        device=CPU,
        group=group,
        spaces=setting.spaces,
    )


def take_step(head: PartialFC, step: int) -> dict[str, np.ndarray]:
    embeddings_BD, labels_B = batch(step, head.sub_centers[0].rows_CD.shape[1])
    lo, hi = batch_share(B, head.rank, head.world_size)
    done = head.step(
        embeddings_BD[lo:hi],
        labels_B[lo:hi],
        lr=0.05 + 0.01 * step,
        position=step * B,
        batch_size=B,
        weights_N=torch.arange(B)[lo:hi] / 4 if step in WEIGHTED else None,
        details=step in WEIGHTED,
    )
    found = {"loss": done.loss.numpy(), "gradient": done.d_embeddings_ND.numpy()}
    if done.target_cosine_N is not None and done.nearest_negative_N is not None:
        found["target"] = done.target_cosine_N.numpy()
        found["nearest"] = done.nearest_negative_N.numpy()
    return found


def run(setting: Setting, placement: str, group: Any = None) -> list[dict[str, np.ndarray]]:
    """Loss and gradient of each step; the state at the end, as `tensors` gives it then."""
    head, facts = build(setting, placement, group), []
    for step in range(STEPS):
        if step == RESUME:
            kept = {name: tensor.clone() for name, tensor in head.tensors().items()}
            numbers, head = head.numbers(), build(setting, placement, group)
            for name, tensor in head.tensors().items():
                tensor.copy_(kept[name])
            head.load_numbers(numbers)
            head.forget(GONE)
        if step == FORGET:
            head.prefetch(step * B, B)  # of rows that are then set to zero
            head.forget(GONE)
        if step % 3:  # else without, which must not matter
            head.prefetch((step + (step == STEPS - 2)) * B, B)  # at last of another step
        facts.append(take_step(head, step))
    return [
        *facts,
        {name: tensor.float().numpy().copy() for name, tensor in head.tensors().items()},
    ]


def run_settings(settings: list[Setting]) -> list[dict[str, list[dict[str, np.ndarray]]]]:
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)  # fresh memory is NaN
    row_optimizers.LONGEST_HISTORY = 3  # all rows are brought up to date after steps 3 and 6
    copy_back = Staging._copy_back

    def slow(self: Staging, ids_n: Tensor) -> None:
        time.sleep(0.01)  # whoever does not wait is early
        copy_back(self, ids_n)

    Staging._copy_back = slow
    return [
        {placement: run(setting, placement, dist.group.WORLD) for placement in ("device", "host")}
        for setting in settings
    ]


@pytest.fixture(scope="module")
def worlds() -> dict[int, list[Any]]:
    return {world_size: run_ranks(world_size, run_settings, SETTINGS) for world_size in (1, 2)}


def bits(facts: list[dict[str, np.ndarray]]) -> list[dict[str, bytes]]:
    return [{name: array.tobytes() for name, array in each.items()} for each in facts]


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_both_placements_are_the_same_to_the_bit(worlds: dict[int, list[Any]], number: int) -> None:
    for ranks in worlds.values():
        for rank in ranks:
            facts = rank[number]
            assert bits(facts["host"]) == bits(facts["device"])
            assert len(facts["host"][-1]["rows"]) == -(-C // len(ranks))
            assert np.isnan(facts["host"][NOT_FINITE]["loss"])
            assert facts["host"][-2]["loss"] > 0
            assert np.isfinite(facts["host"][WEIGHTED[0]]["nearest"]).any()


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Rows], Columns]]:
    """What every step works on."""
    seen: list[tuple[list[Rows], Columns]] = []
    real = Staging.stage

    def stage(self: Staging, columns: Columns) -> tuple[list[Rows], Columns]:
        seen.append(real(self, columns))
        return seen[-1]

    monkeypatch.setattr(Staging, "stage", stage)
    return seen


def chosen(rate: float, step: int) -> set[int]:
    drawn = sampling.blocks(C, rate, SEED, step * B)
    return {i for b in drawn for i in range(b * 128, min((b + 1) * 128, C))} | {
        i for i in batch(step)[1].tolist() if i >= 0
    }


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6])
@pytest.mark.parametrize(
    "rows", ROWS, ids=lambda rows: f"{rows.optimizer}-{rows.dtype}-{rows.lazy_decay}"
)
def test_rows_that_are_not_chosen_are_neither_read_nor_written(
    staged: list[Any], rate: float, rows: schema.Rows
) -> None:
    setting = Setting(rate, rows, sub_centers=2)
    head, plain = build(setting, "host"), build(setting, "device")
    ids = chosen(rate, 0)
    others = torch.tensor(sorted(set(range(C)) - ids))
    for name, tensor in head.tensors().items():
        tensor[others] = float("nan")
        assert tensor.device == CPU, name
    head.prefetch(0, B)
    facts = take_step(head, 0)
    assert bits([facts]) == bits([take_step(plain, 0)])
    own = torch.tensor(sorted(ids))
    theirs = plain.tensors()
    for name, tensor in head.tensors().items():
        assert torch.equal(tensor[own], theirs[name][own])
        assert tensor[others].isnan().all()
    ((sub_centers, columns),) = staged
    assert sum(map(len, columns.chunks)) == len(ids)
    assert len(sub_centers) == 2
    for staged_rows, whole in zip(sub_centers, head.sub_centers, strict=True):
        for name in staged_rows.per_class:
            staged_n, whole_C = getattr(staged_rows, name), getattr(whole, name)
            assert staged_n is None or len(staged_n) == len(ids) + 1
            assert (
                staged_n is None
                or staged_n.untyped_storage().data_ptr() != whole_C.untyped_storage().data_ptr()
            )
            assert (
                staged_n is None
                or len(staged_n.untyped_storage())
                <= (len(ids) + B + 1 + 4 * 128) * staged_n[0].nbytes
            )


def test_a_class_chosen_twice_in_a_row_is_the_new_one_however_slow_its_way_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows are held up on their way back until the next step asks for rows, or somebody for the
    state."""
    setting = Setting(0.6, SGD)
    expected = [take_step(plain, step) for plain in [build(setting, "device")] for step in range(4)]
    asked, order = threading.Event(), []
    copy_back, copy_in, wait = Staging._copy_back, Staging._copy_in, Staging.wait

    def held_up(self: Staging, ids_n: Tensor) -> None:
        assert asked.wait(30)
        asked.clear()
        order.append("back")
        copy_back(self, ids_n)

    def noted(self: Staging, ids_n: Tensor, first: int) -> None:
        order.append("prefetched" if first == 0 else "rest")
        copy_in(self, ids_n, first)

    monkeypatch.setattr(Staging, "_copy_back", held_up)
    monkeypatch.setattr(Staging, "_copy_in", noted)
    head, found = build(setting, "host"), []
    for step in range(4):
        head.prefetch(step * B, B)  # returns although rows of the step before are held up
        if step:
            assert order == (["prefetched", "rest", "back"] * step)[:-1]
            asked.set()
        found.append(take_step(head, step))
    assert order == ["prefetched", "rest", "back"] * 3 + ["prefetched", "rest"]
    assert bits(found) == bits(expected)

    def let_go(self: Staging) -> None:
        asked.set()
        wait(self)

    monkeypatch.setattr(Staging, "wait", let_go)
    plain = build(setting, "device")
    for step in range(4):
        take_step(plain, step)
    assert torch.equal(head.tensors()["rows"], plain.tensors()["rows"])


def test_drawn_rows_are_on_their_way_before_the_backbone_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from manyfaces.data.feed.loader import Batch  # here, as ranks need none of it
    from manyfaces.models.backbones.output import Output
    from manyfaces.train.objectives.margin_softmax import MarginSoftmax
    from manyfaces.train.objectives.objective import Moment
    from manyfaces.train.step import train_step

    head, order = build(Setting(0.6, SGD), "host"), []
    embeddings_BD, labels_B = batch(0)
    copy_in = Staging._copy_in

    class Backbone:
        module = None

        def run(self, images_NHWC: Tensor) -> Output:
            assert head.staging is not None
            head.staging._join_worker()
            order.append("forward")
            return Output({"main": embeddings_BD})

        def backward(self, *of: Tensor) -> None: ...

        def step(self, lr: float) -> float:
            return 0.0

    def noted(self: Staging, ids_n: Tensor, first: int) -> None:
        order.append(f"{len(ids_n)} rows")
        copy_in(self, ids_n, first)

    monkeypatch.setattr(Staging, "_copy_in", noted)
    images_NHWC = torch.zeros(B, 1, 1, 3, dtype=torch.uint8)
    objective = MarginSoftmax.__new__(MarginSoftmax)  # around a head that is there already
    objective.head, objective.weight, objective.branch = head, 1.0, "main"
    shown = Batch(0, np.arange(B), {"main": images_NHWC}, labels_B)
    moment = Moment(position=0, batch_size=B, lr=0.1)
    train_step(Backbone(), objective, shown, moment, seed=0, rank=0)  # type: ignore[arg-type]
    drawn = sum(min(C - b * 128, 128) for b in sampling.blocks(C, 0.6, SEED, 0).tolist())
    # and the one for no class
    assert order == [f"{drawn} rows", "forward", f"{len(chosen(0.6, 0)) - drawn + 1} rows"]


def test_what_fails_beside_the_step_is_told_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Staging, ids_n: Tensor) -> None:
        raise RuntimeError("lost rows")

    monkeypatch.setattr(Staging, "_copy_back", broken)
    head = build(Setting(0.1, SGD), "host")
    take_step(head, 0)
    with pytest.raises(RuntimeError, match="lost rows"):
        take_step(head, 1)
