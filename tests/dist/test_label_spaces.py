"""A head for each dataset of a mixture, against dense heads that know nothing of each other."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from dense_head import DenseHead
from launcher import run_ranks
from torch import Tensor

from manyfaces.configs import schema
from manyfaces.configs.margins.arcface import ArcFace
from manyfaces.configs.split import batch_share
from manyfaces.models.head import sampling
from manyfaces.models.head.partial_fc import PartialFC

CPU = torch.device("cpu")
C, D, B, FIRST = 700, 16, 21, (0, 300, 310)
"""The middle dataset has ten classes, of which a batch may show none."""
SETTINGS = list(product(["recompute", "store16"], [1.0, 0.3], [1, 2], [False, True]))
"""Of the last, whether samples have weights and details are asked for."""


def config(logits: str, rate: float, sub_centers: int) -> schema.Head:
    margin = ArcFace()
    return schema.Head(
        margin=margin, logits=logits, sample_rate=rate, sub_centers=sub_centers, chunk_classes=128
    )  # type: ignore[arg-type]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    labels_B = torch.randint(-1, C, (B,), generator=generator)
    labels_B[:4] = torch.tensor([2, 299, 300, 310])
    return torch.randn(B, D, generator=generator), labels_B


def weights() -> Tensor:
    return torch.arange(B) % 5 / 2


def step_of_a_rank() -> list[dict[str, Any]]:
    facts, (embeddings_BD, labels_B) = [], batch()
    for each in SETTINGS:
        head = PartialFC(
            config(*each[:3]),
            C,
            D,
            seed=2,
            weight_decay=0,
            device=CPU,
            group=dist.group.WORLD,
            spaces=FIRST,
        )
        lo, hi = batch_share(B, head.rank, head.world_size)
        before = {name: tensor.clone() for name, tensor in head.tensors().items()}
        step = head.step(
            embeddings_BD[lo:hi],
            labels_B[lo:hi],
            lr=0.1,
            position=0,
            batch_size=B,
            weights_N=weights()[lo:hi] if each[3] else None,
            details=each[3],
        )
        state = {f"before.{name}": tensor for name, tensor in before.items()} | head.tensors()
        facts.append(
            {
                "loss": step.loss.item(),
                "d_embeddings": step.d_embeddings_ND / head.world_size,
                "target": torch.zeros(hi - lo)
                if step.target_cosine_N is None
                else step.target_cosine_N,
                "nearest": torch.zeros(hi - lo)
                if step.nearest_negative_N is None
                else step.nearest_negative_N,
                **state,
            }
        )
    return facts


@pytest.mark.parametrize("logits", ["recompute", "store16"])
@pytest.mark.parametrize(("kind", "scale"), [("arcface", 256.0), ("curricularface", 128.0)])
def test_a_foreign_class_may_be_much_nearer_than_all_own_ones(
    kind: str, scale: float, logits: str
) -> None:
    """The same person in the other dataset: no sum has that class in it, so nothing bounds its
    exponential."""
    head = PartialFC(
        schema.Head.model_validate({"margin": {"kind": kind}, "scale": scale, "logits": logits}),
        C,
        64,
        seed=2,
        weight_decay=0,
        device=CPU,
        spaces=FIRST,
    )
    before_CD = head.sub_centers[0].rows_CD[:-1].clone()
    step = head.step(before_CD[400:408] * 100, torch.arange(8), lr=0.1, position=0, batch_size=8)
    assert step.finite
    assert step.d_embeddings_ND.isfinite().all()
    assert step.d_embeddings_ND.any(1).all()
    after_CD = head.sub_centers[0].rows_CD[:-1]
    assert after_CD.isfinite().all()
    assert torch.equal(after_CD[300:], before_CD[300:])
    assert not torch.equal(after_CD[:300], before_CD[:300])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_sample_meets_the_classes_of_its_own_dataset_only(world_size: int) -> None:
    ranks = run_ranks(world_size, step_of_a_rank)
    embeddings_BD, labels_B = batch()
    num_valid = int((labels_B != -1).sum())
    for number, each in enumerate(SETTINGS):
        mine = {
            key: torch.cat([facts[number][key] for facts in ranks])
            for key in ranks[0][number]
            if key != "loss"
        }
        sub_centers = [mine[f"before.{name}"] for name in ("rows", "rows.1")[: each[2]]]
        chosen = set(range(C))
        if each[1] < 1:
            blocks = sampling.blocks(C, each[1], 2, 0)
            chosen = {i for b in blocks for i in range(b * 128, min((b + 1) * 128, C))} | set(
                labels_B[labels_B >= 0].tolist()
            )
        loss, d_embeddings_BD = (
            torch.zeros((), dtype=torch.float64),
            torch.zeros(B, D, dtype=torch.float64),
        )
        d_rows = [torch.zeros(C, D, dtype=torch.float64) for _ in sub_centers]
        for first, after in zip(FIRST, (*FIRST[1:], C), strict=True):
            ids = sorted(i - first for i in chosen if first <= i < after)
            own_B = (labels_B >= first) & (labels_B < after)
            dense = DenseHead(
                config(*each[:3]), [rows_CD[first:after] for rows_CD in sub_centers], 0
            )
            own_labels_B = torch.where(own_B, labels_B - first, -1)
            if each[3]:
                details = dense.details(embeddings_BD, own_labels_B, ids)
                for name, found_B in zip(("target", "nearest"), details, strict=True):
                    torch.testing.assert_close(
                        mine[name][own_B].double(), found_B[own_B], rtol=0, atol=2e-6
                    )
            part, d_part_BD, d_part_CD = dense.step(
                embeddings_BD, own_labels_B, ids, 0.1, weights() if each[3] else None
            )
            weight = int(own_B.sum()) / num_valid  # the mean is over the whole batch
            loss, d_embeddings_BD = loss + weight * part, d_embeddings_BD + weight * d_part_BD
            for k, d_rows_CD in enumerate(d_part_CD.view(len(sub_centers), after - first, D)):
                d_rows[k][first:after] = weight * d_rows_CD
        assert all(
            abs(facts[number]["loss"] - loss.item()) <= 5e-6 * loss.item() for facts in ranks
        )
        if each[3]:
            assert mine["nearest"][labels_B == -1].isnan().all()
        momenta = [mine[name] for name in ("momentum", "momentum.1")[: each[2]]]
        for found, expected in [
            (mine["d_embeddings"], d_embeddings_BD),
            *zip(momenta, d_rows, strict=True),
        ]:
            assert torch.linalg.norm(found - expected) <= 2e-5 * torch.linalg.norm(expected)
