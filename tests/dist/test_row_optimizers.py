"""Row optimisers over many steps of the head on 1 and 2 real gloo ranks, against torch's own in
float64 (tests/dense_head.py)."""

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from dense_head import DenseHead
from launcher import run_ranks
from test_partial_fc import Watch
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.configs.split import batch_share
from manyfaces.models.head import devices, row_optimizers, sampling
from manyfaces.models.head.partial_fc import PartialFC
from manyfaces.models.head.rows import DTYPES

CPU = torch.device("cpu")
C, D, B, SEED, WEIGHT_DECAY = 600, 16, 12, 5, 0.02
NOT_FINITE, NO_LABELS = (2, 19), (4, 20)
"""Steps that are called off."""


class Setting(NamedTuple):
    rate: float
    rows: schema.Rows
    num_steps: int = 6
    limit: float = 1e-5
    longest_history: int = row_optimizers.LONGEST_HISTORY
    as_on_a_gpu: bool = False
    """Chunks hold rows that stand for no class."""


def lazy(**settings: Any) -> schema.Rows:
    return schema.Rows(lazy_decay=True, **settings)


TOUCHED = [
    *(Setting(rate, schema.Rows(optimizer="adamw", lr_scale=0.05)) for rate in (0.0, 0.1, 1.0)),
    Setting(
        0.1,
        schema.Rows(optimizer="adamw", lr_scale=0.05, betas=(0.0, 0.5), eps=1e-3, weight_decay=0.5),
        as_on_a_gpu=True,
    ),
    Setting(0.1, schema.Rows(optimizer="adamw", lr_scale=0.05, dtype="float16"), limit=1e-2),
    Setting(0.1, schema.Rows(optimizer="adamw", lr_scale=0.05, dtype="bfloat16"), limit=1e-2),
    *(
        Setting(rate, schema.Rows(dtype=dtype), 3, 1e-2)
        for rate in (0.1, 1.0)
        for dtype in ("float16", "bfloat16")
    ),
]
LAZY = [
    *(Setting(rate, lazy(), 45) for rate in (0.0, 0.1, 0.5, 1.0)),
    Setting(0.0, lazy(momentum=0.0), 45),
    Setting(0.1, lazy(momentum=0.5, lr_scale=0.5), 45, longest_history=16),
    Setting(0.1, lazy(), 45, as_on_a_gpu=True),
    Setting(0.0, lazy(dtype="float16"), 45, limit=1e-2),
]
SETTINGS = TOUCHED + LAZY


def learning_rate(step: int) -> float:
    return 0.05 * (1.3 + math.cos(step))


def first_rows(setting: Setting) -> Tensor:
    """Of length 1: steps are small beside them, and errors do not grow."""
    rows_CD = F.normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(SEED)))
    return rows_CD.to(DTYPES[setting.rows.dtype])


def batch(step: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng([SEED, step])
    labels = rng.integers(C, size=B)
    labels[rng.random(B) < (1 if step in NO_LABELS else 0.2)] = -1
    return torch.from_numpy(rng.standard_normal((B, D))).float(), torch.from_numpy(labels)


def chosen(setting: Setting, step: int) -> list[int]:
    blocks = sampling.blocks(C, setting.rate, SEED, step * B)
    return sorted(
        {i for b in blocks for i in range(b * 128, min((b + 1) * 128, C))}
        | {i for i in batch(step)[1].tolist() if i >= 0}
    )


def head_of(setting: Setting) -> schema.Head:
    return schema.Head(scale=16, sample_rate=setting.rate, chunk_classes=100, rows=setting.rows)


def run_steps(settings: list[Setting]) -> list[dict[str, Any]]:
    """All that one rank sees: of each setting the rows as they stand after each step, and the state
    in the end."""
    facts = []
    for setting in settings:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(row_optimizers, "LONGEST_HISTORY", setting.longest_history)
            if setting.as_on_a_gpu:
                patch.setattr(devices, "host_sync_is_free", lambda device: False)
            head = PartialFC(
                head_of(setting),
                C,
                D,
                seed=SEED,
                weight_decay=WEIGHT_DECAY,
                device=CPU,
                group=dist.group.WORLD,
            )
            head.tensors()["rows"].copy_(first_rows(setting)[head.lo : head.hi])
            lo, hi = batch_share(B, head.rank, head.world_size)
            after = []
            for step in range(setting.num_steps):
                embeddings_BD, labels_B = batch(step)
                if step in NOT_FINITE:
                    embeddings_BD[labels_B >= 0] = float("nan")
                head.step(
                    embeddings_BD[lo:hi],
                    labels_B[lo:hi],
                    lr=learning_rate(step),
                    position=step * B,
                    batch_size=B,
                )
                after.append(head.sub_centers[0].rows_CD[:-1].float().numpy().copy())
            facts.append(
                {"after": after}
                | {name: tensor.float().numpy() for name, tensor in head.tensors().items()}
            )
    return facts


class EveryRow(torch.optim.SGD):
    """Of the dense matrix: rows without a gradient have one of zero."""

    def step(self, closure: Any = None) -> None:
        for row in self.param_groups[0]["params"]:
            row.grad = torch.zeros_like(row) if row.grad is None else row.grad
        super().step(closure)


class Expected:
    """torch's optimiser after each step, and its state by name."""

    def __init__(self, setting: Setting) -> None:
        config, rows = head_of(setting), setting.rows
        weight_decay = WEIGHT_DECAY if rows.weight_decay is None else rows.weight_decay
        dense = DenseHead(config, first_rows(setting), weight_decay)
        if rows.lazy_decay:
            dense.optimizer = EveryRow(
                dense.rows, lr=1.0, momentum=rows.momentum, weight_decay=weight_decay
            )
        elif rows.optimizer == "adamw":
            dense.optimizer = torch.optim.AdamW(
                dense.rows, lr=1.0, betas=rows.betas, eps=rows.eps, weight_decay=weight_decay
            )
        self.after = []
        for step in range(setting.num_steps):
            if step not in NOT_FINITE:
                dense.step(*batch(step), chosen(setting, step), learning_rate(step))
            self.after.append(dense.matrix())
        names = {
            "momentum_buffer": "momentum",
            "exp_avg": "exp_avg",
            "exp_avg_sq": "exp_avg_sq",
            "step": "steps",
        }
        self.state = {"rows": dense.matrix()}
        for theirs, ours in names.items():
            if any(torch.is_tensor(each.get(theirs)) for each in dense.optimizer.state.values()):
                like = torch.zeros(D if theirs != "step" else ())
                self.state[ours] = torch.stack(
                    [dense.optimizer.state[row].get(theirs, like).double() for row in dense.rows]
                )


@pytest.fixture(scope="module")
def worlds() -> dict[int, list[list[dict[str, Any]]]]:
    """Facts of each rank and setting, by world size."""
    return {world_size: run_ranks(world_size, run_steps, SETTINGS) for world_size in (1, 2)}


def whole(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).double()


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize(
    "number", range(len(SETTINGS)), ids=lambda number: str(SETTINGS[number].rate) + f"-{number}"
)
def test_rows_and_state_are_those_of_torchs_optimiser(
    worlds: dict[int, list[list[dict[str, Any]]]], number: int
) -> None:
    setting, expected = SETTINGS[number], Expected(SETTINGS[number])
    for ranks in worlds.values():
        facts = [each[number] for each in ranks]
        before = first_rows(setting).double()
        for step in range(setting.num_steps):
            now, ids = whole([each["after"][step] for each in facts]), chosen(setting, step)
            assert error(now[ids], expected.after[step][ids]) <= setting.limit
            moved = (now != before).any(1).nonzero().flatten().tolist()
            settled = (step + 1) % setting.longest_history == 0
            assert settled or set(moved) <= set(ids)
            before = now
        assert facts[0].keys() - {"after"} == expected.state.keys()
        for name, tensor in expected.state.items():
            assert error(whole([each[name] for each in facts]), tensor) <= setting.limit
        if setting.rows.lazy_decay and setting.rate < 0.5:
            # rows had been left behind
            assert error(before, expected.after[-1]) > 10 * setting.limit


@pytest.mark.parametrize("rate", [1.0, 0.2, 0.0])
@pytest.mark.parametrize(
    "rows",
    [schema.Rows(optimizer="adamw"), lazy(), lazy(dtype="float16")],
    ids=["adamw", "lazy", "lazy-float16"],
)
def test_nothing_waits_and_nothing_is_large(
    monkeypatch: pytest.MonkeyPatch, rows: schema.Rows, rate: float
) -> None:
    monkeypatch.setattr(devices, "host_sync_is_free", lambda device: False)
    num_classes, chunk = 3000, 128
    config = schema.Head(chunk_classes=chunk, rows=rows, sample_rate=rate)
    head = PartialFC(config, num_classes, 32, seed=1, weight_decay=0.1, device=CPU)
    with Watch(
        [state for state in vars(head.sub_centers[0]).values() if isinstance(state, Tensor)]
    ) as watch:
        for position in (0, 16):
            head.step(
                torch.randn(16, 32), torch.arange(16) // 2, lr=0.1, position=position, batch_size=16
            )
    assert watch.waits == []
    assert watch.largest <= chunk * 32


@pytest.mark.parametrize("rows", [schema.Rows(optimizer="adamw"), lazy()], ids=["adamw", "lazy"])
def test_forgotten_classes_stay_zero(rows: schema.Rows) -> None:
    gone = torch.arange(0, C, 3)
    head = PartialFC(
        head_of(Setting(0.5, rows)), C, D, seed=SEED, weight_decay=WEIGHT_DECAY, device=CPU
    )
    for step in range(8):
        if step == 3:
            head.forget(gone)
        embeddings_BD, labels_B = batch(step)
        labels_B[torch.isin(labels_B, gone)] = -1
        head.step(embeddings_BD, labels_B, lr=0.05, position=step * B, batch_size=B)
    for tensor in head.tensors().values():
        assert not tensor[gone].any()
        assert tensor[1].any()


def test_a_step_that_is_called_off_changes_nothing() -> None:
    for rows in (schema.Rows(optimizer="adamw"), lazy()):
        head = PartialFC(
            head_of(Setting(0.1, rows)), C, D, seed=SEED, weight_decay=WEIGHT_DECAY, device=CPU
        )
        head.step(*batch(0), lr=0.05, position=0, batch_size=B)
        before = {name: tensor.clone() for name, tensor in head.tensors().items()}
        embeddings_BD, labels_B = batch(1)
        head.step(embeddings_BD * float("nan"), labels_B, lr=0.05, position=B, batch_size=B)
        assert all(torch.equal(tensor, before[name]) for name, tensor in head.tensors().items())
